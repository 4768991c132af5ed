import importlib.metadata
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from bilstm_cls import doctor
from bilstm_cls.doctor import Check, examine, run_checks
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.recurrent import CELLS


def test_texts_do_not_depend_on_company_and_padding_for_any_cell() -> None:
    checks = run_checks(torch.device("cpu"))
    assert len(checks) == 2 * len(CELLS)
    assert all(check.is_sound for check in checks)
    assert all(any(check.name.startswith(f"{cell}: ") for check in checks) for cell in CELLS)


def test_the_checks_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = BiLSTMClassifier.forward

    def careless(self: BiLSTMClassifier, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return forward(self, token_ids, torch.full_like(lengths, token_ids.shape[1]))

    monkeypatch.setattr(BiLSTMClassifier, "forward", careless)
    findings = examine("cpu")
    assert findings["is_sound"] is False
    assert not any(check["is_sound"] for check in findings["checks"] if "padding" in check["name"])


def test_the_checks_leave_the_random_numbers_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = torch.get_rng_state()
        run_checks(torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("difference", "is_sound"), [(0.0, True), (1e-6, True), (1.1e-6, False), (float("nan"), False)]
)
def test_a_check_is_sound_up_to_its_limit(difference: float, is_sound: bool) -> None:
    assert Check("name", difference, 1e-6).is_sound is is_sound


def test_versions_device_and_cache_are_named(cache: Path) -> None:
    findings = examine("cpu")
    assert set(findings["versions"]) == set(doctor.PACKAGES)
    assert findings["versions"]["torch"] == importlib.metadata.version("torch")
    assert (findings["device"], findings["cache"], findings["is_sound"]) == ("cpu", str(cache), True)
    assert "run" not in findings


def test_every_extra_of_the_project_is_told() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    assert set(examine("cpu")["extras"]) == set(project["optional-dependencies"]) - {"dev"}


def test_an_extra_is_there_if_all_its_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "torch>=2",
        "Py.Test_x>1; extra == 'a'",
        "pytest>=8; extra == 'a'",
        "numpy<2; (x == 'y') and extra == \"b\"",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [*listed, "ruff; extra == 'dev'"])
    assert doctor.missing_packages() == {"a": ["Py.Test_x"], "b": []}
    assert examine("cpu")["extras"] == {"a": False, "b": True}


def test_a_whole_run_is_said_to_be(trained_run: Path) -> None:
    assert examine("cpu", trained_run)["run"] == f"{trained_run}: every digest fits"


def test_a_damaged_run_is_an_error(trained_run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "labels.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(trained_run / name, tmp_path / name)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        examine("cpu", tmp_path)


def test_a_device_that_is_not_here_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'cuda:99' is not here"):
        examine("cuda:99")
