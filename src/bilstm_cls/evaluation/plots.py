"""Pictures as PNG files of twice the pixels, without a display and without matplotlib's global state.

Their ground is transparent and their colours are of middle brightness, so that they read on a light page and on a dark
one.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilstm_cls.evaluation.metrics import NUM_BINS, Floats, calibration_bins, confidences
from bilstm_cls.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Near Okabe & Ito's colours, which the colour-blind can tell apart; the grey has equal contrast to black and white.
BLUE, ORANGE, GREEN, VERMILION, GREY, INK = "#2f8fcf", "#d98e00", "#0f9d76", "#dd6413", "#8a8a8a", "#7b7b7b"
CELLS = ("#e8f0f7", "#0a5c9c")
"""Grounds of a confusion matrix's cells, from none to all."""

DPI = 200
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "SimHei",
    "Arial Unicode MS",
)  # fmt: skip
_MAX_LABEL_LENGTH = 24
MAX_FRACTIONS = 8
"""Labels up to which the cells of a confusion matrix have fractions."""

LOSSES = {"train/loss": (ORANGE, "train loss"), "valid/log_loss": (BLUE, "valid log loss")}
SCORES = {"valid/accuracy": (BLUE, "valid accuracy"), "valid/macro_f1": (GREEN, "valid macro F1")}
RATES = {"learning_rate": (GREY, "learning rate")}


def learning_curves(
    history: Sequence[Mapping[str, Any]], series: Mapping[str, tuple[str, str]], title: str, path: Path
) -> None:
    """Draws numbers of `history.jsonl` over epochs, with a ring around the evaluation that was kept.

    `series` has colour and name by key: `LOSSES`, `SCORES` or `RATES`.
    """
    figure, axes = _new_axes(3.6, 2.7)
    for key, (colour, name) in series.items():
        rows = [row for row in history if row.get(key) is not None]
        axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], "o-", color=colour, ms=3.5, label=name)
        best = [row for row in rows if row.get("is_best")]
        if best and key.startswith("valid/"):
            axes.plot(best[-1]["epoch"], best[-1][key], "o", ms=11, mfc="none", color=colour)
    axes.set(xlabel="epoch", ylabel=title)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3, color=GREY)
    if len(series) > 1:
        axes.legend(frameon=False)
    save_figure(figure, path)


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Draws counts `[C][C]`, rows true, columns predicted, of few labels, shaded by the fraction of the true label."""
    from matplotlib.colors import LinearSegmentedColormap

    texts = np.asarray(counts, dtype=np.int64)
    fractions = texts / np.maximum(1, texts.sum(axis=1, keepdims=True))
    side = 2.3 + 0.55 * len(labels)
    figure, axes = _new_axes(side + 0.4, side)
    axes.imshow(fractions, LinearSegmentedColormap.from_list("cells", CELLS), vmin=0, vmax=1)
    style: dict[str, Any] = {"parse_math": False, "fontfamily": font_families(), "fontsize": 9}
    names = [drawable(label, i) for i, label in enumerate(labels)]
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 2 else {}
    axes.set_xticks(range(len(names)), names, **turned, **style)
    axes.set_yticks(range(len(names)), names, **style)
    axes.set(xlabel="predicted label", ylabel="true label")
    for (row, column), count in np.ndenumerate(texts):
        fraction = float(fractions[row, column])
        colour = "white" if fraction > 0.5 else "#1c1e21"
        lines = f"{count:,}\n{fraction:.0%}" if len(names) <= MAX_FRACTIONS and count else f"{count:,}"
        axes.text(column, row, lines, ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path)


def calibration(probabilities: Floats, label_ids: Any, path: Path) -> None:
    """Draws how often predictions `[N, C]` of a probability are right by label ids, and how many there are."""
    bins = calibration_bins(*confidences(probabilities, label_ids))
    held = bins.counts > 0
    centres, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 1 / NUM_BINS
    accuracy = bins.num_correct[held] / bins.counts[held]
    figure = new_figure(4.4, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(centres[held], accuracy, width, color=BLUE, alpha=0.55, label="accuracy")
    upper.plot(bins.confidence[held] / bins.counts[held], accuracy, "o", ms=4, color=VERMILION, label="mean confidence")
    upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"expected calibration error {bins.error:.3f}", fontsize=10)
    upper.legend(frameon=False, loc="upper left")
    lower.bar(centres, bins.counts, 0.9 * width, color=GREY)
    lower.set(xlabel="probability of the prediction", ylabel="texts")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _new_axes(width: float, height: float) -> tuple["Figure", Any]:
    figure = new_figure(width, height)
    return figure, figure.subplots()


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG, whole or not at all, all lines and letters that have no colour in grey."""
    if figure._suptitle is not None:  # type: ignore[attr-defined]
        figure._suptitle.set_color(INK)  # type: ignore[attr-defined]
    for axes in figure.axes:
        axes.tick_params(colors=INK)
        legend = axes.get_legend()
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ())):
            text.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
    with replacing(path) as file:
        figure.savefig(file, format="png", transparent=True, metadata={"Software": None})


def drawable(label: str, label_id: int) -> str:
    """Returns a label, shortened, or its number where no installed font can draw it."""
    shown = " ".join(label.split())
    if not shown or not set(map(ord, shown)) <= _glyphs():
        return f"#{label_id}"
    return shown if len(shown) <= _MAX_LABEL_LENGTH else shown[: _MAX_LABEL_LENGTH - 1] + "…"


@functools.cache
def font_families() -> list[str]:
    """Returns matplotlib's default font and whichever of the common East Asian ones are installed."""
    from matplotlib.font_manager import fontManager

    installed = {entry.name for entry in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FONTS if name in installed)]


@functools.cache
def _glyphs() -> frozenset[int]:
    """Returns the code points that our fonts can draw, so that none is drawn as an empty box."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=name))) for name in font_families()]
    return frozenset().union(*(font.get_charmap() for font in fonts))
