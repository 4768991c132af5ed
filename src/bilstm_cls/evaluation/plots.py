"""Pictures of a run as PNG and SVG files, drawn without a display and without matplotlib's global state."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilstm_cls.evaluation.breakdown import Group
from bilstm_cls.evaluation.metrics import NUM_BINS, Floats, Ints, calibration_bins
from bilstm_cls.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe & Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
DEEP_BLUE = "#0060A0"
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "SimHei",
    "Arial Unicode MS",
)  # fmt: skip
_MAX_LABEL_LENGTH = 24
_MAX_WRITTEN_CELLS = 20
_MAX_SHARES = 8
LOSSES = {"train/loss": (ORANGE, "train loss"), "valid/log_loss": (BLUE, "valid log loss")}
SCORES = {"valid/accuracy": (BLUE, "valid accuracy"), "valid/macro_f1": (GREEN, "valid macro F1")}
RATES = {"learning_rate": (GREY, "learning rate")}


def learning_curves(
    history: Sequence[Mapping[str, Any]], series: Mapping[str, tuple[str, str]], title: str, path: Path
) -> None:
    """Draws numbers over epochs, with a ring around the evaluation that was kept.

    Args:
        history: rows of `history.jsonl`; keys that a row lacks are left out.
        series: colour and name by key: `LOSSES`, `SCORES` or `RATES`.
        title: what the numbers are.
        path: the PNG to write, and an SVG beside it.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.4, 3.1)
    axes = figure.subplots()
    for key, (colour, name) in series.items():
        _curve(axes, history, key, colour, name)
    axes.set(xlabel="epoch", ylabel=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False)
    save_both(figure, path)


def _curve(axes: "Axes", history: Sequence[Mapping[str, Any]], key: str, colour: str, name: str) -> None:
    rows = [row for row in history if row.get(key) is not None]
    if not rows:
        return
    axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], "o-", color=colour, ms=3.5, label=name)
    best = [row for row in rows if row.get("is_best")]
    if best and key.startswith("valid/"):
        axes.plot(best[-1]["epoch"], best[-1][key], "o", ms=11, mfc="none", color=colour)


def confusion_matrix(matrix: Sequence[Sequence[int]] | Ints, labels: Sequence[str], path: Path) -> None:
    """Draws counts, shaded by their share of the true label.

    Args:
        matrix: `[C, C]` counts, rows true, columns predicted.
        labels: C class names; one that no installed font can draw is shown as its number.
        path: the PNG to write, and an SVG beside it.
    """
    from matplotlib.patches import Rectangle

    counts = np.asarray(matrix, dtype=np.int64)
    assert counts.shape == (len(labels), len(labels)), (counts.shape, len(labels))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(16.0, 2.3 + (0.55 if len(labels) <= _MAX_WRITTEN_CELLS else 0.28) * len(labels))
    figure = new_figure(side + 0.4, side)
    axes = figure.subplots()
    style: dict[str, Any] = {"parse_math": False, "fontfamily": font_families(), "fontsize": 9}
    names = [drawable(label, i) for i, label in enumerate(labels)]
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 2 else {}
    axes.set_xticks(range(len(names)), names, **turned, **style)
    axes.set_yticks(range(len(names)), names, **style)
    limits = (-0.5, len(names) - 0.5)
    axes.set(xlabel="predicted label", ylabel="true label", xlim=limits, ylim=limits[::-1], aspect="equal")
    is_written = len(names) <= _MAX_WRITTEN_CELLS
    for (row, column), count in np.ndenumerate(counts):
        share = float(shares[row, column])
        if count:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=DEEP_BLUE, alpha=share, lw=0))
        if is_written:
            colour = "white" if share > 0.5 else "black"
            lines = f"{count:,}\n{share:.0%}" if len(names) <= _MAX_SHARES and count else f"{count:,}"
            axes.text(column, row, lines, ha="center", va="center", color=colour, fontsize=8)
    save_both(figure, path)


def calibration(probabilities: Floats, label_ids: Ints, path: Path) -> None:
    """Draws how often answers are right beside how probable the model held them, and how many answers that concerns.

    Args:
        probabilities: `[N, C]`.
        label_ids: `[N]`.
        path: the PNG to write, and an SVG beside it.
    """
    confidence = probabilities.max(axis=1)
    bins = calibration_bins(confidence, probabilities.argmax(axis=1) == label_ids)
    held = bins.counts > 0
    centres, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 1 / NUM_BINS
    accuracy = bins.num_correct[held] / bins.counts[held]
    figure = new_figure(4.4, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(centres[held], accuracy, width, color=BLUE, alpha=0.45, label="accuracy")
    upper.plot(bins.confidence[held] / bins.counts[held], accuracy, "o", ms=4, color=VERMILION, label="mean confidence")
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"expected calibration error {bins.error:.3f}", fontsize=10)
    upper.legend(frameon=False, loc="upper left")
    lower.bar(centres, bins.counts, 0.9 * width, color=GREY)
    lower.set(xlabel="probability of the answer", ylabel="texts")
    save_both(figure, path)


def length_histogram(counts: Sequence[int], width: int, max_length: int, path: Path) -> None:
    """Draws how long the texts are and where they are cut.

    Args:
        counts: texts by length before truncation: of up to `width` tokens, of up to twice as many, and so on; the last
            bin holds all longer texts.
        width: tokens of a bin.
        max_length: tokens of a text that the model reads.
        path: the PNG to write, and an SVG beside it.
    """
    figure = new_figure(4.4, 3.1)
    axes = figure.subplots()
    axes.bar((np.arange(len(counts)) + 0.5) * width, counts, 0.9 * width, color=BLUE)
    axes.axvline(max_length, color=VERMILION, ls="--", label=f"text.max_length {max_length:,}")
    axes.set(xlabel="tokens (the last bar holds all longer texts)", ylabel="texts")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False)  # above, clear of the bars
    save_both(figure, path)


def score_by_length(groups: Sequence[Group], path: Path) -> None:
    """Draws the accuracy of texts of similar length, with its interval.

    Args:
        groups: by rising length, at least one.
        path: the PNG to write, and an SVG beside it.
    """
    figure = new_figure(4.4, 3.1)
    axes = figure.subplots()
    scores = np.array([group.accuracy for group in groups])
    low, high = np.array([group.interval for group in groups]).T
    errors = np.maximum(0.0, [scores - low, high - scores])
    axes.errorbar(range(len(groups)), scores, errors, fmt="o", color=BLUE, ms=5, capsize=4)
    axes.set_xticks(range(len(groups)), [group.name for group in groups], fontsize=9)
    axes.set(xlabel="tokens of a text", ylabel="accuracy", xlim=(-0.5, len(groups) - 0.5))
    axes.grid(axis="y", alpha=0.3)
    save_both(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def save_both(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG, and beside it as SVG without a background, whose letters are text and not outlines."""
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.patch.set_visible(False)
    save_figure(figure, path)
    options = rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem})
    with options, replacing(path.with_suffix(".svg")) as file:
        figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})


def drawable(label: str, label_id: int) -> str:
    """Returns a label, shortened, or its number where no installed font can draw it."""
    shown = " ".join(label.split())
    if not shown or not set(map(ord, shown)) <= _glyphs():
        return f"#{label_id}"
    return shown if len(shown) <= _MAX_LABEL_LENGTH else shown[: _MAX_LABEL_LENGTH - 1] + "…"


@functools.cache
def font_families() -> list[str]:
    """Returns matplotlib's own font and whichever of the common East Asian ones are installed."""
    installed = _installed_families()
    if installed.isdisjoint(_FONTS):
        _add_new_fonts()
        installed = _installed_families()
    return ["DejaVu Sans", *(name for name in _FONTS if name in installed)]


def _installed_families() -> set[str]:
    from matplotlib.font_manager import fontManager

    return {entry.name for entry in fontManager.ttflist}


def _add_new_fonts() -> None:
    """Tells matplotlib of the fonts that were installed after it made its list, which it keeps in a file."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known):
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError, KeyError) as error:  # as damaged files and bitmap fonts do
            logger.debug(f"{path}: is no font to draw with ({error})")


@functools.cache
def _glyphs() -> frozenset[int]:
    """Returns the code points that our fonts can draw, so that none is drawn as an empty box."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=name))) for name in font_families()]
    return frozenset().union(*(font.get_charmap() for font in fonts))
