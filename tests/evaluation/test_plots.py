"""Pictures: whole, the same every time, of twice the pixels on a transparent ground, quiet about odd labels."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from bilstm_cls.evaluation import plots
from tests.evaluation.pages import png_size

HISTORY: list[dict[str, Any]] = [
    {
        "step": 10 * i, "epoch": float(i), "train/loss": 1 / i, "valid/accuracy": 0.5 + 0.1 * i,
        "valid/macro_f1": 0.4 + 0.1 * i, "valid/log_loss": 1 / i, "learning_rate": 1e-3, "is_best": i == 2,
    }
    for i in (1, 2, 3)
]  # fmt: skip


def test_every_plot_is_whole_transparent_and_readable_on_black_and_on_white(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plots.learning_curves(HISTORY, tmp_path / "curves.png")
    plots.confusion_matrix([[30, 9], [11, 50]], ["neg", "pos"], tmp_path / "matrix.png")
    plots.confusion_matrix([[30, 9], [11, 50]], ["neg", "pos"], tmp_path / "again.png")
    plots.calibration(rng.dirichlet([1, 1], size=100), rng.integers(2, size=100), tmp_path / "calibration.png")
    assert (tmp_path / "matrix.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    for path in tmp_path.iterdir():
        assert min(png_size(path.read_bytes())) > 500
        pixels = imread(path)  # [height, width, red green blue alpha]
        assert (pixels[[0, -1], :, 3] == 0).all()
        margin = pixels[:, : pixels.shape[1] // 12]  # the names of the axis, no drawing
        letters = margin[margin[..., 3] > 0.9][:, :3]
        luminance = np.where(letters > 0.04, ((letters + 0.055) / 1.055) ** 2.4, letters / 12.92) @ [0.21, 0.72, 0.07]
        assert len(luminance) > 0
        assert (1.05 / (luminance + 0.05)).min() > 3.8  # WCAG's contrast to white, and to the report's dark ground
        assert ((luminance + 0.05) / (0.0085 + 0.05)).min() > 3.8


def test_many_and_odd_labels_are_drawn_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["好评", "$x_$", "two\nlines", "", "🙂", "\ud800", "a" * 300, "_hidden"]
    with caplog.at_level(logging.WARNING):
        plots.learning_curves([{"step": 1, "epoch": 1.0}], tmp_path / "short.png")
        plots.confusion_matrix(np.eye(len(labels)).tolist(), labels, tmp_path / "matrix.png")
    assert caplog.records == []
    assert max(png_size((tmp_path / "matrix.png").read_bytes())) < 3000
    assert (plots.drawable("\U0010fffd", 3), plots.drawable("bon  goût", 3)) == ("#3", "bon goût")
