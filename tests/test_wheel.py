"""The wheel alone is enough: nothing that a command needs is left in the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a wheel was installed that was built just now, without its dependencies."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
    ]
    subprocess.run([*install, str(wheel)], capture_output=True, check=True)
    return folder / "site"


@pytest.mark.slow
def test_an_installed_wheel_goes_from_a_table_to_a_report(installed: Path, reviews_csv: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    where = "import bilstm_cls, importlib.resources as r; print(bilstm_cls.__file__)"
    page = (
        "assert (r.files('bilstm_cls.serve') / 'web/page.html').is_file(); assert (r.files('bilstm_cls') / 'py.typed')"
    )
    assert run("-c", f"{where}; {page}").startswith(str(installed))
    command = ("-m", "bilstm_cls")
    run(*command, "init", "--data", str(reviews_csv), "-o", "reviews.yaml")
    for name in ("one", "two"):
        run(*command, "train", "-c", "reviews.yaml", "-q", "--set", "train.epochs=1", "--set", f"name={name}")
    assert "\t" in run(*command, "predict", "a good film")
    assert Path(tmp_path / run(*command, "report").strip()).read_text("utf-8").startswith("<!doctype html>")
    run(*command, "report", "--run", "runs/one", "--run", "runs/two", "--html", "compared.html")
    run(*command, "predict", "a good film", "--explain", "--html", "explained.html")
    run(*command, "predict", "a good film", "--gates", "gates.html")
    assert all((tmp_path / name).exists() for name in ("compared.html", "explained.html", "gates.html"))
    assert "Usage" in run(*command, "serve", "--help")
