"""A report made again: the same page, from the run directory alone; and how pages look in a browser."""

import json
import shutil
from pathlib import Path

import pytest

from bilstm_cls.errors import CheckpointError
from bilstm_cls.evaluation.compare import compare
from bilstm_cls.evaluation.compare_view import write_comparison
from bilstm_cls.evaluation.rebuild import rebuild
from tests.browser import DESKTOP, PHONE, needs_browser, visit
from tests.command_line import contents, run_cli


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(trained_run, tmp_path / "copy"))


def test_the_report_made_again_is_the_same_and_needs_no_data(trained_run: Path, run: Path) -> None:
    (run / "report.html").unlink()
    shutil.rmtree(run / "plots")
    config = (run / "config.yaml").read_text("utf-8")
    assert "reviews.csv" in config
    before = contents(run)
    assert rebuild(run, device="cpu") == run / "report.html"
    again = (run / "report.html").read_text("utf-8").replace(str(run), "RUN")
    assert again == (trained_run / "report.html").read_text("utf-8").replace(str(trained_run), "RUN")
    after = contents(run)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        name for name in contents(trained_run) if name.startswith(("plots/", "report"))
    }


def test_the_report_of_a_run_without_the_newer_facts_has_fewer_sections(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    kept = {key: value for key, value in metrics.items() if "labels/" not in key and "length_" not in key}
    assert len(kept) < len(metrics)
    (run / "metrics.json").write_text(json.dumps(kept), "utf-8")
    (run / "history.jsonl").unlink()
    source = rebuild(run, device="cpu").read_text("utf-8")
    assert "Lengths of the training texts" not in source
    assert "<h2>Learning</h2>" not in source
    assert "<h2>Calibration</h2>" in source


def test_the_command_prints_where_the_report_is(run: Path) -> None:
    (run / "report.html").unlink()
    done = run_cli("report", "--run", run, "-q")
    assert (done.code, done.stdout) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").exists()
    assert run_cli("report", "--run", run, "-q", "--json").json == {"report": str(run / "report.html")}


def test_a_run_without_a_model_is_told_to_be_a_baseline(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no model \\(is it of `bilstm-cls baseline`"):
        rebuild(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("history.jsonl", b"{", r"history\.jsonl: damaged"),
        ("predictions_test.csv", b"", "first line is not"),
        ("labels.json", b'["bad", "good"]', r"labels\.json is not what the model was trained with"),
        ("metrics.json", b"[]", r"metrics\.json: damaged"),
        ("environment.json", b"{", r"environment\.json: damaged"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: bytes, message: str) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        rebuild(run, device="cpu")


def test_predictions_of_an_unknown_label_are_named(run: Path) -> None:
    path = run / "predictions_test.csv"
    path.write_text(path.read_text("utf-8").replace(",pos,", ",good,"), "utf-8")
    with pytest.raises(CheckpointError, match=r"predictions_test\.csv has the label 'good'"):
        rebuild(run, device="cpu")


LUMINANCE = """name => {
  const [r, g, b] = getComputedStyle(document.body)[name].match(/[0-9.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}"""
SMALLEST_LETTERS = """Math.min(...[...document.querySelectorAll('figure text')].map(text =>
  parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b)))"""


@needs_browser
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_is_whole_and_readable_in_a_browser(trained_run: Path, width: int) -> None:
    path = trained_run / "report.html"
    assert path.stat().st_size < 2 * 2**20
    with visit(width) as found:
        found.page.goto(path.as_uri())
        assert not found.is_wider_than_the_screen()
        assert found.page.locator("figure svg").count() >= 6
        if width == PHONE:
            assert found.page.evaluate(SMALLEST_LETTERS) > 7  # pixels
        assert found.page.evaluate(LUMINANCE, "backgroundColor") > 0.9
        assert found.page.evaluate(LUMINANCE, "color") < 0.2
        found.page.emulate_media(color_scheme="dark")
        assert found.page.evaluate(LUMINANCE, "backgroundColor") < 0.2
        assert found.page.evaluate(LUMINANCE, "color") > 0.8
        found.page.emulate_media(media="print", color_scheme="dark")
        assert found.page.evaluate(LUMINANCE, "backgroundColor") > 0.9
        found.page.emulate_media(media="screen")
        found.page.click("nav a:last-child")
        assert found.page.evaluate("window.scrollY") > 0
        assert found.complaints == []
        assert found.requests == [path.as_uri()]


@needs_browser
def test_a_comparison_is_whole_on_a_phone(trained_run: Path, run: Path, tmp_path: Path) -> None:
    predictions = run / "predictions_test.csv"
    predictions.write_text(predictions.read_text("utf-8").replace(",pos,pos,", ",pos,neg,"), "utf-8")
    write_comparison(tmp_path / "page.html", compare([trained_run, run]), 10)
    with visit(PHONE) as found:
        found.page.goto((tmp_path / "page.html").as_uri())
        assert found.page.locator("article").count() == 10
        assert not found.is_wider_than_the_screen()
        assert found.complaints == []
        assert found.requests == [(tmp_path / "page.html").as_uri()]


@needs_browser
def test_the_browser_tells_of_what_a_page_loads_and_complains_of(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<img src='missing.png'><script>undefined_name()</script><div style='width:3000px'>wide</div>", "utf-8"
    )
    with visit(PHONE) as found:
        found.page.goto((tmp_path / "bad.html").as_uri())
        assert found.is_wider_than_the_screen()
        assert found.requests == [(tmp_path / name).as_uri() for name in ("bad.html", "missing.png")]
        assert any("undefined_name" in complaint for complaint in found.complaints)
