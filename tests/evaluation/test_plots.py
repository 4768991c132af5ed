"""Pictures: written whole, the same every time, quiet about odd labels."""

import logging
import struct
from xml.etree import ElementTree

import numpy as np
import pytest

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation import plots
from bilstm_cls.evaluation.breakdown import Group

HISTORY = [
    {
        "step": 10 * i,
        "epoch": float(i),
        "train/loss": 1 / i,
        "valid/accuracy": 0.5 + 0.1 * i,
        "valid/macro_f1": 0.4 + 0.1 * i,
        "valid/log_loss": 1 / i,
        "valid/auroc": None,
        "learning_rate": 1e-3,
        "is_best": i == 2,
    }
    for i in (1, 2, 3)
]


GROUPS = [Group("1–9", 50, 0.9, (0.8, 0.96)), Group("10–400", 50, 1.0, (1.0, 1.0))]


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


def draw_all(folder):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1], size=100)
    plots.learning_curves(HISTORY, plots.SCORES, "score", folder / "scores.png")
    plots.confusion_matrix([[30, 2], [4, 40]], ["neg", "pos"], folder / "matrix.png")
    plots.calibration(probabilities, rng.integers(2, size=100), folder / "calibration.png")
    plots.length_histogram([3, 40, 7], 100, 200, folder / "lengths.png")
    plots.score_by_length(GROUPS, folder / "groups.png")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_plot_is_a_whole_png_with_an_svg_and_the_same_each_time(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = draw_all(tmp_path / "a")
    assert len(first) == 2 * 5
    pictures = [content for name, content in first.items() if name.endswith(".png")]
    assert all(min(png_size(content)) > 300 for content in pictures)
    assert first == draw_all(tmp_path / "b")


@pytest.mark.parametrize("num_labels", [2, 3, 20, 21, 50])
def test_a_confusion_matrix_takes_many_labels(tmp_path, num_labels):
    labels = [f"a rather long label number {i}" for i in range(num_labels)]
    plots.confusion_matrix(np.eye(num_labels, dtype=np.int64) * 12_345, labels, tmp_path / "matrix.png")
    assert max(png_size((tmp_path / "matrix.png").read_bytes())) < 2500


@pytest.mark.parametrize(
    "label", ["好评", "$x_$", "two\nlines", "", "🙂", "\ud800", "\x00", "a" * 300, "مرحبا", "_hidden"]
)
def test_odd_labels_are_drawn_without_a_warning(tmp_path, caplog, label):
    with caplog.at_level(logging.WARNING):
        plots.confusion_matrix([[1, 0], [0, 1]], [label, "other"], tmp_path / "matrix.png")
    assert caplog.records == []
    assert png_size((tmp_path / "matrix.png").read_bytes())


def test_a_label_no_font_can_draw_is_shown_as_its_number():
    assert plots.drawable("\U0010fffd", 3) == "#3"
    assert plots.drawable("bon  goût", 3) == "bon goût"


def test_a_font_that_was_installed_after_matplotlib_made_its_list_is_found(monkeypatch, tmp_path):
    from matplotlib import font_manager

    own = next(entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans Mono")
    listed = [
        entry for entry in font_manager.fontManager.ttflist if entry.name not in ("DejaVu Sans Mono", *plots._FONTS)
    ]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), own.fname])
    monkeypatch.setattr(plots, "_FONTS", ("DejaVu Sans Mono",))
    assert plots.font_families.__wrapped__() == ["DejaVu Sans", "DejaVu Sans Mono"]


@pytest.mark.parametrize("history", [[], HISTORY[:1], [{"step": 1, "epoch": 1.0}]])
def test_a_short_history_is_drawn(tmp_path, history):
    plots.learning_curves(history, plots.LOSSES, "loss", tmp_path / "curves.png")
    assert png_size((tmp_path / "curves.png").read_bytes())


def test_the_letters_of_an_svg_are_text_and_its_background_is_clear(tmp_path):
    plots.confusion_matrix([[30, 2], [4, 40]], ["bad & <b>", "pos"], tmp_path / "matrix.png")
    root = ElementTree.parse(tmp_path / "matrix.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"bad & <b>", "pos", "predicted label", "true label"} <= set(texts)
    assert {"30", "94%", "2", "6%"} <= {part for text in texts for part in text.split()}
    shapes = [element for element in root.iter() if not element.tag.endswith("}text")]
    assert not any("fill: #ffffff" in element.get("style", "") for element in shapes)


def test_a_matrix_that_does_not_fit_its_labels_leaves_the_old_plot(tmp_path):
    path = tmp_path / "matrix.png"
    path.write_bytes(b"old")
    with pytest.raises(AssertionError):
        plots.confusion_matrix([[1, 0], [0, 1]], ["one"], path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["matrix.png"]
    assert path.read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        plots.confusion_matrix([[1, 0], [0, 1]], ["neg", "pos"], tmp_path / "file" / "matrix.png")
