import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config, load_config
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training import tune as tuning
from bilstm_cls.training.run import train
from bilstm_cls.training.search_space import Budget, parse_space
from bilstm_cls.training.session import Session
from bilstm_cls.training.tune import Study, tune
from tests.command_line import run_cli
from tests.conftest import PRETRAINED
from tests.training.runs import history

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]
SEARCH = ["train.learning_rate=1e-3..1e-1:log", "model.hidden_size=4..12", "model.pooling=mean|[mean, max]"]


@pytest.fixture
def base(tiny_config: Make, tmp_path: Path) -> Config:
    """A config of two epochs whose study is in a folder of its own."""
    return tiny_config("train.epochs=2", f"output_dir={tmp_path}")


def search(config: Config, words: list[str] = SEARCH, **options: Any) -> Study:
    budget = Budget(options.pop("trials", 4), options.pop("seconds", None), options.pop("max_bytes", None))
    return tune(config, parse_space(words, config), budget, **options)


def outcomes(result: Study) -> list[Any]:
    """What two studies of one seed have in common, but for the numbers of their trials."""
    trials = sorted(result.trials, key=lambda trial: trial.number)
    return [(trial.state, trial.values, trial.score, trial.num_bytes) for trial in trials]


@pytest.fixture(scope="module")
def study(tiny_config: Make, light: None, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of five trials that nothing happened to."""
    return search(tiny_config("train.epochs=2", f"output_dir={tmp_path_factory.mktemp('study')}"), trials=5)


def test_the_folder_holds_what_was_found_and_the_config_as_given_is_among_it(study: Study) -> None:
    finished = [trial.score for trial in study.trials if trial.state == "finished" and trial.score is not None]
    assert study.best is not None
    assert study.best.score == max(finished)
    assert next(trial.values for trial in study.trials if trial.number == 0) == {
        "train.learning_rate": 0.02, "model.hidden_size": 8, "model.pooling": "mean",
    }  # fmt: skip
    rows = list(csv.DictReader((study.run / "trials.csv").read_text("utf-8").splitlines()))
    assert [int(row["trial"]) for row in rows] == [trial.number for trial in study.trials]
    assert study.run.read_json("tuning.json") == json.loads(json.dumps(study.as_object()))
    assert study.run.read_status()["status"] == "finished"
    assert not (study.run / "trial").exists()


def test_the_winning_config_trains_to_the_score_and_size_that_the_study_reports(study: Study) -> None:
    assert study.best is not None
    run = train(load_config(study.run / "best.yaml")).run
    assert max(row["valid/accuracy"] for row in history(run.path)) == study.best.score
    needed = [*run.path.glob("*.safetensors"), run / "tokenizer.json", run / "labels.json"]
    assert sum(path.stat().st_size for path in needed) == study.best.num_bytes


def test_another_test_split_changes_nothing(base: Config, tmp_path: Path) -> None:
    results = []
    for name, label in (("one", "pos"), ("two", "neg")):
        path = tmp_path / f"{name}.csv"
        path.write_text(f"text,label\na good film,{label}\n", "utf-8")
        results.append(search(base.replace(**{"data.test": str(path), "name": name}), trials=2))
    assert outcomes(results[0]) == outcomes(results[1])


def test_data_are_prepared_once_for_each_setting_that_touches_them(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    prepare = tuning.prepare
    monkeypatch.setattr(tuning, "prepare", lambda c, **only: seen.append(c.text.min_freq) or prepare(c, **only))
    result = search(base, ["text.min_freq=1|2", "train.learning_rate=1e-3..1e-1:log"])
    assert sorted(seen) == sorted({2, *(trial.values["text.min_freq"] for trial in result.trials)})


def test_a_trial_that_diverges_or_runs_out_of_memory_has_failed_and_the_study_continues(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Session.start

    def starved(run: RunDirectory, config: Config, *more: Any) -> Session:
        if config.model.pooling == "max":
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return start(run, config, *more)

    monkeypatch.setattr(Session, "start", starved)
    result = search(base, ["train.learning_rate=0.02|1e9", "model.pooling=mean|max"], trials=100)
    assert len(result.trials) == 4  # the space is exhausted
    found = {(trial.values["train.learning_rate"], trial.values["model.pooling"]): trial for trial in result.trials}
    assert found[0.02, "mean"] == result.best
    assert "diverged" in found[1e9, "mean"].reason
    assert {found[0.02, "max"].reason, found[1e9, "max"].reason} == {"out of memory"}


def test_a_bug_ends_the_study_and_the_trial_starts_again(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Session:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "start", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            search(base)
    assert search(base, trials=1, resume=True).trials[0].values["model.hidden_size"] == 8


@pytest.mark.parametrize(
    ("words", "limits", "reason"),
    [
        (["train.learning_rate=1e8..1e9"], {"trials": 2}, "2 trials were trained"),
        (SEARCH, {"max_bytes": 100}, "50 proposals in a row"),
        (SEARCH, {"trials": None, "seconds": 0.02}, "time is over"),
    ],
    ids=["all fail", "none fits", "no time"],
)
def test_a_study_without_a_finished_trial_says_why(
    words: list[str], limits: dict[str, Any], reason: str, base: Config
) -> None:
    with pytest.raises(ConfigError, match=f"no trial was finished: .*{reason}"):
        search(base, words, **limits)


def test_trials_start_from_a_pretrained_encoder(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    config = tiny_config("train.epochs=1", f"output_dir={tmp_path}", *PRETRAINED, "pretrain.enabled=true")
    found = search(config, ["model.hidden_size=4|8", "train.learning_rate=0.01|0.02"], trials=4)
    assert [trial.state for trial in found.trials] == ["finished"] * 4
    assert len(list((tmp_path / "cache" / "encoders").iterdir())) == 2


def test_models_over_the_size_are_not_trained(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    start = Session.start
    monkeypatch.setattr(Session, "start", lambda r, c, *m: trained.append(c.model.hidden_size) or start(r, c, *m))
    result = search(base, ["model.hidden_size=4..64"], max_bytes=20_000, trials=4)
    assert len(trained) == len(result.trials) == 4
    assert all(trial.num_bytes is not None and trial.num_bytes <= 20_000 for trial in result.trials)


def test_a_trial_that_falls_behind_is_pruned(base: Config) -> None:
    words = ["train.learning_rate=0.02|0.03|0.04|0.05|1e-7|2e-7|3e-7"]
    states = {
        t.values["train.learning_rate"]: t.state
        for t in search(base.replace(**{"train.epochs": 4}), words, trials=7).trials
    }
    assert "pruned" in {state for rate, state in states.items() if rate < 1e-6}
    assert sum(state == "finished" for rate, state in states.items() if rate > 1e-6) >= 3


@pytest.mark.parametrize("evaluations", [1, 4])
def test_a_study_that_is_stopped_continues_with_the_same_trials(
    evaluations: int, base: Config, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    report, left = optuna.Trial.report, iter(range(evaluations, 0, -1))

    def reported_and_stopped(self: Any, value: float, stage: int) -> None:
        if stage in (5, 10) and next(left, 0) == 1:
            signal.raise_signal(signal.SIGINT)
        report(self, value, stage)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "report", reported_and_stopped)
        stopped = search(base, trials=5)
    assert stopped.stopped is not None
    assert stopped.stopped.exit_code == 130
    assert stopped.run.read_status()["status"] == "stopped"
    assert len(stopped.trials) == (evaluations - 1) // 2
    assert outcomes(search(base, trials=5, resume=True)) == outcomes(study)


@pytest.mark.parametrize(
    ("change", "words", "resume"),
    [({"seed": 2}, SEARCH, True), ({}, ["model.hidden_size=4..9"], True), ({}, SEARCH, False)],
    ids=["another seed", "another search", "no --resume"],
)
def test_another_study_is_not_resumed(change: dict[str, Any], words: list[str], resume: bool, base: Config) -> None:
    search(base, trials=1)
    with pytest.raises(ConfigError):
        search(base.replace(**change), words, trials=2, resume=resume)


def test_changed_data_are_noticed(base: Config, reviews_csv: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    rows = reviews_csv.read_text("utf-8").splitlines(keepends=True)
    copy.write_text("".join(rows), "utf-8")
    config = base.replace(**{"data.train": str(copy)})
    search(config, trials=1)
    copy.write_text("".join(rows[:-40]), "utf-8")
    with pytest.raises(DataError):
        search(config, trials=2, resume=True)


@pytest.mark.parametrize("damage", [b"no journal\n\n", b'{"op_code": 99}\n', b"[1]\n"])
def test_a_damaged_journal_is_named(damage: bytes, base: Config) -> None:
    run = search(base, trials=1).run
    (run / "study.journal").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"study\.journal"):
        search(base, trials=2, resume=True)


def test_a_score_of_which_less_is_better_is_minimised(base: Config) -> None:
    config = base.replace(**{"train.select_by": "valid/log_loss"})
    result = search(config, ["train.learning_rate=1e-6|0.02"], trials=2)
    assert result.best is not None
    assert result.best.values == {"train.learning_rate": 0.02}


@pytest.fixture
def config_file(base: Config, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(base), "utf-8")
    return path


def test_the_command_shows_what_it_would_search_and_what_it_found(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = run_cli("tune", "-c", config_file, "--time", "20m", "--max-size", "5MB", "--dry-run", "--json").json
    assert planned["budget"] == {"trials": None, "seconds": 1200, "max_bytes": 5_000_000}
    assert planned["search"]["train.learning_rate"] == "0.004..0.1:log"
    given = ["tune", "-c", config_file, "--trials", "2", "--search", "model.hidden_size=4..12"]
    shown = run_cli(*given, "-q")
    assert shown.code == 0
    assert shown.stdout.startswith("2 trials in ")
    again = run_cli(*given, "--resume", "--json")
    assert [trial["state"] for trial in again.json["trials"]] == ["finished", "finished"]
    assert again.json["config"] == str(config_file.parent / "tiny-tune" / "best.yaml")
    monkeypatch.setitem(sys.modules, "optuna", None)
    missing = run_cli(*given, "--resume")
    assert (missing.code, "bilstm-cls[tune]" in missing.stderr) == (2, True)


def test_a_signal_or_a_kill_of_the_command_leaves_what_was_found(config_file: Path) -> None:
    words = ["tune", "-c", str(config_file), "--search", SEARCH[0]]
    command = [sys.executable, "-m", "bilstm_cls", *words, "--trials", "1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("trial 1 "))
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "trials, best first:" in stdout
    folder = config_file.parent / "tiny-tune"
    assert yaml.safe_load((folder / "best.yaml").read_text("utf-8"))["name"] == "tiny-best"
    with (folder / "study.journal").open("a") as journal:
        journal.write('{"op_code": 5, "wor')  # as a kill in the middle of a write leaves it
    (folder / "study.journal.lock").symlink_to("study.journal")
    assert len(run_cli(*words, "--trials", "3", "--resume", "--json").json["trials"]) >= 3
