"""A study: what it searches, that valid alone decides, and that it goes on after any end."""

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

from bilstm_cls.commands.train import parse_duration, parse_size
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config, load_config
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.run import train
from bilstm_cls.training.session import Session
from bilstm_cls.training.tune import Budget, Study, parse_space, tune
from tests.command_line import run_cli
from tests.training.runs import history

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("light")

Make = Callable[..., Config]
SEARCH = ["train.learning_rate=1e-3..1e-1:log", "model.hidden_size=4..12", "model.pooling=mean|[mean, max]"]


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (parse_duration, "90s", 90), (parse_duration, "1h30m", 5400), (parse_size, "5MB", 5_000_000),
        (parse_duration, "1d2h", 93_600), (parse_duration, "20", None), (parse_duration, "-5m", None),
        (parse_duration, "d", None), (parse_size, "MB", None),
    ],
)  # fmt: skip
def test_durations_and_sizes_have_units(read: Callable[[str], float], text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises((ConfigError, ValueError), match=r"\w"):
            read(text)
    else:
        assert read(text) == value


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("train.learning_rate=1e-4..1e-2:log", (1e-4, 1e-2)), ("model.dropout = 0..0.5", (0.0, 0.5)),
        ("model.hidden_size=32..256", (32, 256)), ("text.max_vocab_size=1000|null", (1000, None)),
        ("model.pooling=mean|[mean, max]", ("mean", ["mean", "max"])), ("text.lowercase=true|false", (True, False)),
    ],
)  # fmt: skip
def test_a_search_is_an_interval_or_choices(words: str, values: tuple[Any, ...], tiny_config: Make) -> None:
    ((_, found),) = parse_space([words], tiny_config()).values()
    read = [found.low, found.high] if ".." in words else [json.loads(choice) for choice in found.choices]
    assert (read, found.log if ".." in words else False) == (list(values), words.endswith(":log"))
    assert [type(value) for value in read] == [type(value) for value in values]  # whole numbers stay whole


@pytest.mark.parametrize(
    "words",
    [
        "train.learning_rate", "train.learning_rat=1..2", "learning_rate=1..2", "train.learning_rate=0..1",
        "model.hidden_size=1.5..9", "model.dropout=0.5..0.1", "model.dropout=0..0.5:log", "model.pooling=mean..max",
        "model.pooling=mean", "model.pooling=mean|mean", "model.pooling=mean|maximum", "data.valid=0.1|0.2",
        "seed=1..9", "model.ngrams=nbsvm|null",
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_with_all_problems(words: str, tiny_config: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space([words, "text.x=1..2"], tiny_config())
    assert str(caught.value).startswith(f"--search {words}")
    assert len(str(caught.value).splitlines()) == 2


def test_the_default_space_leaves_out_what_other_keys_decide_and_the_last_word_wins(tiny_config: Make) -> None:
    everything, encoder = parse_space([], tiny_config()), tiny_config("model.init_from=encoder")
    left_out = {"model.hidden_size", "embedding.dim", "text.min_freq"}
    assert everything.keys() - parse_space([], encoder).keys() == left_out
    space = parse_space(["default", "train.epochs=1..2", "train.epochs=2..3"], tiny_config())
    assert (space["train.epochs"][0], space.keys()) == ("2..3", everything.keys())


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


def test_the_winner_trains_to_its_score_and_the_config_as_given_is_among_the_trials(study: Study) -> None:
    assert study.best is not None
    assert study.best.score == max(t.score for t in study.trials if t.state == "finished" and t.score is not None)
    assert next(trial.values for trial in study.trials if trial.number == 0) == {
        "train.learning_rate": 0.02, "model.hidden_size": 8, "model.pooling": "mean",
    }  # fmt: skip
    assert study.run.read_json("tuning.json") == json.loads(json.dumps(study.as_object()))
    assert study.run.read_status()["status"] == "finished"
    assert not (study.run / "trial").exists()
    run = train(load_config(study.run / "best.yaml")).run
    assert max(row["valid/accuracy"] for row in history(run.path)) == study.best.score
    needed = sum((run / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    assert study.best.num_bytes == pytest.approx(needed, rel=0.2)


def test_another_test_split_changes_nothing(base: Config, tmp_path: Path) -> None:
    results = []
    for name, label in (("one", "pos"), ("two", "neg")):
        path = tmp_path / f"{name}.csv"
        path.write_text(f"text,label\na good film,{label}\n", "utf-8")
        results.append(search(base.replace(**{"data.test": str(path), "name": name}), trials=2))
    assert outcomes(results[0]) == outcomes(results[1])


def test_a_trial_that_diverges_or_runs_out_of_memory_has_failed_and_a_bug_ends_the_study(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, error = Session.start, "a bug"

    def starved(run: RunDirectory, config: Config, *more: Any) -> Session:
        if config.model.pooling == "max" or error == "a bug":
            raise RuntimeError(error)
        return start(run, config, *more)

    monkeypatch.setattr(Session, "start", starved)
    words = ["train.learning_rate=0.02|1e9", "model.pooling=mean|max"]
    with pytest.raises(RuntimeError, match="a bug"):
        search(base, words)
    error = "CUDA out of memory. Tried to allocate 1 GiB"
    result = search(base, words, trials=100, resume=True)
    assert len(result.trials) == 4  # the space is exhausted
    found = {(trial.values["train.learning_rate"], trial.values["model.pooling"]): trial for trial in result.trials}
    assert found[0.02, "mean"] == result.best
    assert "diverged" in found[1e9, "mean"].reason
    assert {found[0.02, "max"].reason, found[1e9, "max"].reason} == {"out of memory"}


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


def test_a_trial_that_falls_behind_is_pruned_and_a_loss_is_minimised(base: Config) -> None:
    words = ["train.learning_rate=0.02|0.03|0.04|0.05|1e-7|2e-7|3e-7"]
    config = base.replace(**{"train.epochs": 4, "train.select_by": "valid/log_loss"})
    result = search(config, words, trials=7)
    states = {trial.values["train.learning_rate"]: trial.state for trial in result.trials}
    assert "pruned" in {state for rate, state in states.items() if rate < 1e-6}
    assert sum(state == "finished" for rate, state in states.items() if rate > 1e-6) >= 3
    assert result.best is not None
    assert result.best.values["train.learning_rate"] > 1e-6


def test_a_study_that_is_stopped_continues_with_the_same_trials(
    base: Config, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    report, left = optuna.Trial.report, iter(range(4, 0, -1))

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
    assert len(stopped.trials) == 1
    assert outcomes(search(base, trials=5, resume=True)) == outcomes(study)


def test_another_study_or_other_data_are_not_resumed_and_a_damaged_journal_is_named(
    base: Config, reviews_csv: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.csv"
    rows = reviews_csv.read_text("utf-8").splitlines(keepends=True)
    copy.write_text("".join(rows), "utf-8")
    config = base.replace(**{"data.train": str(copy)})
    run = search(config, trials=1).run
    other = config.replace(seed=2), SEARCH
    before = run.read_status()
    searched = ["model.hidden_size=4..12", "model.pooling=mean|max"]
    for (changed, words), resume in ((other, True), ((config, searched), True), ((config, SEARCH), False)):
        with pytest.raises(ConfigError) as caught:
            search(changed, words, trials=2, resume=resume)
        if words == searched:
            (message,) = str(caught.value).splitlines()
            assert all(word in message for word in ("train.learning_rate", "mean|max", "mean|[mean, max]", "--search"))
            assert "hidden_size" not in message
    copy.write_text("".join(rows[:-40]), "utf-8")
    with pytest.raises(DataError):
        search(config, trials=2, resume=True)
    assert run.read_status() == before
    copy.write_text("".join(rows), "utf-8")
    for damage in (b"no journal\n\n", b'{"op_code": 99}\n', b"[1]\n"):
        (run / "study.journal").write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"study\.journal"):
            search(config, trials=2, resume=True)


def test_the_command_shows_what_it_would_search_and_a_signal_or_a_kill_leaves_what_was_found(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(base), "utf-8")
    planned = run_cli("tune", "-c", path, "--time", "20m", "--max-size", "5MB", "--dry-run", "--json").json
    assert planned["budget"] == {"trials": None, "seconds": 1200, "max_bytes": 5_000_000}
    assert planned["search"]["train.learning_rate"] == "0.004..0.1:log"
    words = ["tune", "-c", str(path), "--search", SEARCH[0]]
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
    assert "best first:" in stdout
    folder = tmp_path / "tiny-tune"
    assert yaml.safe_load((folder / "best.yaml").read_text("utf-8"))["name"] == "tiny-best"
    with (folder / "study.journal").open("a") as journal:
        journal.write('{"op_code": 5, "wor')  # as a kill in the middle of a write leaves it
    (folder / "study.journal.lock").symlink_to("study.journal")
    again = run_cli(*words, "--trials", "3", "--resume", "--json")
    assert again.stderr.count("train: ") == again.stderr.count("train: 168 texts") == 1
    assert len(again.json["trials"]) >= 3
    assert again.json["config"] == str(folder / "best.yaml")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert (run_cli(*words, "--time", "20").code, "1h30m" in run_cli(*words, "--time", "20").stderr) == (2, True)
    missing = run_cli(*words, "--resume")
    assert (missing.code, "bilstm-cls[tune]" in missing.stderr) == (2, True)
