"""Pictures of a run as PNG files, drawn without a display and without matplotlib's global state."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.evaluation.metrics import NUM_BINS, Floats, Ints, calibration_bins
from bilstm_cls.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Okabe & Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "SimHei",
    "Arial Unicode MS",
)  # fmt: skip
_MAX_LABEL_LENGTH = 24
_MAX_WRITTEN_CELLS = 20
_LOSSES = {"train/loss": (ORANGE, "train loss"), "valid/log_loss": (BLUE, "valid log loss")}
_SCORES = {"valid/accuracy": (BLUE, "valid accuracy"), "valid/macro_f1": (GREEN, "valid macro F1")}
_RATES = {"learning_rate": (GREY, "learning rate")}


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws losses, scores and learning rate over epochs, with a ring around the evaluation that was kept.

    Args:
        history: rows of `history.jsonl`; keys that a row lacks are left out.
        path: the PNG to write.
    """
    figure = new_figure(10.5, 3.4)
    panels = zip(
        figure.subplots(1, 3), (_LOSSES, _SCORES, _RATES), ("loss (nats)", "score", "learning rate"), strict=True
    )
    for axes, series, title in panels:
        for key, (colour, name) in series.items():
            _curve(axes, history, key, colour, name)
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    save_figure(figure, path)


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
        path: the PNG to write.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    assert counts.shape == (len(labels), len(labels)), (counts.shape, len(labels))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(16.0, 2.6 + (0.62 if len(labels) <= _MAX_WRITTEN_CELLS else 0.28) * len(labels))
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    style: dict[str, Any] = {"parse_math": False, "fontfamily": font_families(), "fontsize": 9}
    names = [drawable(label, i) for i, label in enumerate(labels)]
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 2 else {}
    axes.set_xticks(range(len(names)), names, **turned, **style)
    axes.set_yticks(range(len(names)), names, **style)
    axes.set(xlabel="predicted label", ylabel="true label")
    if len(names) <= _MAX_WRITTEN_CELLS:
        size = 10 if counts.max() < 10_000 else 8
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)
    save_figure(figure, path)


def calibration(probabilities: Floats, label_ids: Ints, path: Path) -> None:
    """Draws how often answers are right beside how probable the model held them, and how many answers that concerns.

    Args:
        probabilities: `[N, C]`.
        label_ids: `[N]`.
        path: the PNG to write.
    """
    confidence = probabilities.max(axis=1)
    bins = calibration_bins(confidence, probabilities.argmax(axis=1) == label_ids)
    held = bins.counts > 0
    centres, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 1 / NUM_BINS
    accuracy = bins.num_correct[held] / bins.counts[held]
    figure = new_figure(5, 5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(centres[held], accuracy, width, color=BLUE, alpha=0.45, edgecolor=BLUE, label="accuracy")
    upper.plot(bins.confidence[held] / bins.counts[held], accuracy, "o", ms=4, color=VERMILION, label="mean confidence")
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=f"expected calibration error {bins.error:.3f}")
    upper.legend(frameon=False, loc="upper left")
    lower.bar(centres, bins.counts, width, color=GREY, edgecolor="white")
    lower.set(xlabel="probability of the answer", ylabel="texts")
    save_figure(figure, path)


def length_histogram(lengths: npt.NDArray[np.integer[Any]], max_length: int, path: Path) -> None:
    """Draws how long the texts are and where they are cut.

    Args:
        lengths: `[N]` tokens of each text before truncation.
        max_length: tokens of a text that the model reads.
        path: the PNG to write.
    """
    shown = max(1.1 * max_length, float(np.percentile(lengths, 99.5)) if len(lengths) else 1.0)
    figure = new_figure(6.5, 3.2)
    axes = figure.subplots()
    values, counts = np.unique(lengths, return_counts=True)
    axes.hist(np.minimum(values, shown), bins=60, range=(0, shown), weights=counts, color=BLUE)
    cut = int((np.asarray(lengths) > max_length).sum())
    name = f"text.max_length {max_length:,}: {cut / max(1, len(lengths)):.1%} of the texts are longer"
    axes.axvline(max_length, color=VERMILION, ls="--", label=name)
    axes.set(xlabel="tokens (the last bar holds all longer texts)", ylabel="texts")
    axes.legend(loc="upper right")
    save_figure(figure, path)


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
