"""Pictures as PNG files of twice the pixels, drawn without a display.

Their ground is transparent and their colours are of middle brightness, so that they read on a light page and on a dark
one.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilstm_cls.evaluation.metrics import NUM_BINS, calibration_bins, confidences
from bilstm_cls.files import replacing
from bilstm_cls.ngrams import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Near Okabe & Ito's colours, which the colour-blind can tell apart; the greys have equal contrast to black and white.
BLUE, ORANGE, GREEN, VERMILION, GREY, INK = "#2f8fcf", "#d98e00", "#0f9d76", "#dd6413", "#8a8a8a", "#7b7b7b"
CELLS = ("#e8f0f7", "#0a5c9c")
"""Grounds of a confusion matrix's cells, from none to all."""

STYLE: dict[str, Any] = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize"], 9),
    "text.parse_math": False, "axes.titlesize": 10, "figure.titlesize": 11, "legend.frameon": False,
}  # fmt: skip
_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans")
_MAX_LABEL_LENGTH = 24

SERIES = {
    "loss (nats)": {"train/loss": (ORANGE, "train loss"), "valid/log_loss": (BLUE, "valid log loss")},
    "score": {"valid/accuracy": (BLUE, "valid accuracy"), "valid/macro_f1": (GREEN, "valid macro F1")},
}  # fmt: skip
"""Colour and name of what is drawn, by its key in a row of the history."""


@contextlib.contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Yields an empty figure of that many inches, and then writes it as PNG, whole or not at all."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = STYLE | {"font.family": font_families()}
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
        yield figure
        with replacing(path) as file:
            figure.savefig(file, format="png", transparent=True, metadata={"Software": None})


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws losses and scores of `history.jsonl` over epochs, with a ring around the evaluation that was kept."""
    with drawing(path, 7.6, 2.9) as figure:
        for axes, (title, series) in zip(figure.subplots(1, 2), SERIES.items(), strict=True):
            for key, (colour, name) in series.items():
                rows = [row for row in history if row.get(key) is not None]
                epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
                axes.plot(epochs, values, "o-", color=colour, ms=3.5, label=name)
                for row in [row for row in rows if row.get("is_best") and key.startswith("valid/")][-1:]:
                    axes.plot(row["epoch"], row[key], "o", ms=11, mfc="none", color=colour)
            axes.set(xlabel="epoch", ylabel=title)
            axes.locator_params(axis="x", integer=True)
            axes.grid(alpha=0.3, color=GREY)
            axes.legend()


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Draws counts `[C][C]`, rows true, columns predicted, of few labels, shaded by the fraction of the true label."""
    from matplotlib.colors import LinearSegmentedColormap

    texts = np.asarray(counts, dtype=np.int64)
    fractions = texts / np.maximum(1, texts.sum(axis=1, keepdims=True))
    names, side = [drawable(label, i) for i, label in enumerate(labels)], 2.3 + 0.55 * len(labels)
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 2 else {}
    with drawing(path, side + 0.4, side) as figure:
        axes = figure.subplots()
        axes.imshow(fractions, LinearSegmentedColormap.from_list("cells", CELLS), vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, **turned)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted label", ylabel="true label")
        for (row, column), count in np.ndenumerate(texts):
            colour = "white" if fractions[row, column] > 0.5 else "#1c1e21"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)


def calibration(probabilities: Floats, label_ids: Any, path: Path) -> None:
    """Draws how often predictions `[N, C]` of a probability are right by label ids, and how many there are."""
    counts, num_correct, sums = calibration_bins(*confidences(probabilities, label_ids))
    held = counts > 0
    centres, width = (np.arange(NUM_BINS) + 0.5) / NUM_BINS, 1 / NUM_BINS
    accuracy, confidence = num_correct[held] / counts[held], sums[held] / counts[held]
    with drawing(path, 4.4, 4.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.bar(centres[held], accuracy, width, color=BLUE, alpha=0.55, label="accuracy")
        upper.plot(confidence, accuracy, "o", ms=4, color=VERMILION, label="mean confidence")
        upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
        upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        upper.set_title(f"expected calibration error {np.abs(num_correct - sums).sum() / counts.sum():.3f}")
        upper.legend(loc="upper left")
        lower.bar(centres, counts, 0.9 * width, color=GREY)
        lower.set(xlabel="probability of the prediction", ylabel="texts")


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
