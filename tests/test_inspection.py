import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls.config import Config, load_config
from bilstm_cls.data.preparation import prepare
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.inspection import as_lines, inspect_data, inspect_file, inspect_run, plan, with_overrides
from bilstm_cls.training.loop import Trainer


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Data with a repeated text, an overlap, a text too long, an empty and an unknown one."""
    files = {
        "train": "same,pos\nsame,pos\nsame,neg\nalso here,neg\none two three four five six,pos\n",
        "valid": "same,pos\n,neg\n",
        "test": "also here,neg\nunseen,pos\n",
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}", "utf-8")
    data = [f"data.{name}={tmp_path / f'{name}.csv'}" for name in files]
    return load_config(None, [*data, "text.max_length=4", "text.min_freq=1"])


def test_every_split_is_described(config: Config) -> None:
    findings = inspect_data(config)
    assert findings["labels"] == ["neg", "pos"]
    assert findings["vocabulary"] == 11
    train, valid, test = (findings["splits"][name] for name in ("train", "valid", "test"))
    assert train["labels"] == {"neg": 2, "pos": 3}
    assert (train["texts"], train["truncated"], train["duplicates"], train["longest"]) == (5, 1, 2, 6)
    assert (valid["empty"], valid["duplicates"], valid["known_tokens"]) == (1, 0, 0.5)
    assert test["known_tokens"] == pytest.approx(2 / 3, abs=1e-4)


def test_overlaps_between_splits_are_counted(config: Config) -> None:
    assert inspect_data(config)["overlap"] == {"valid in train": 1, "test in train": 1, "test in valid": 0}


def test_overlaps_agree_with_the_counts_of_the_data_set(config: Config) -> None:
    findings = inspect_data(config)
    counts = prepare(config).dataset.counts
    assert findings["rows"] == counts
    assert findings["overlap"]["valid in train"] == counts["valid_in_train"]
    assert findings["splits"]["train"]["duplicates"] == counts["duplicates_train"]


def test_a_file_is_inspected_by_guessed_columns(tmp_path: Path) -> None:
    rows = "".join(f"{i};A film about number {i} and more;{'good' if i % 2 else 'bad'}\n" for i in range(40))
    (tmp_path / "odd.csv").write_text(f"id;review;sentiment\n{rows}", "utf-8")
    findings = inspect_file(tmp_path / "odd.csv", [])
    assert findings["labels"] == ["bad", "good"]
    assert findings["rows"]["read"] == 40


def test_a_file_of_another_encoding_and_a_name_with_blanks_is_inspected(tmp_path: Path) -> None:
    rows = "".join(f"Un café numéro {i} très cher,{'bon' if i % 2 else 'mauvais'}\n" for i in range(40))
    path = tmp_path / "mes avis: 'été'.csv"
    path.write_bytes(f"text,label\n{rows}".encode("cp1252"))
    assert inspect_file(path, [])["labels"] == ["bon", "mauvais"]


def test_a_file_is_inspected_with_overrides(tmp_path: Path, reviews_csv: Path) -> None:
    assert set(inspect_file(reviews_csv, ["data.test=0.5"])["splits"]) == {"train", "valid", "test"}


def test_a_folder_of_texts_is_inspected(tmp_path: Path) -> None:
    for i in range(40):
        file = tmp_path / "texts" / ("a", "b")[i % 2] / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Text number {i} is here", "utf-8")
    assert inspect_file(tmp_path / "texts", [])["rows"]["used"] == 40


def test_a_run_is_shown_with_its_state_and_scores(trained_run: Path) -> None:
    findings = inspect_run(trained_run)
    metrics = json.loads((trained_run / "metrics.json").read_text("utf-8"))
    assert findings["status"]["status"] == "finished"
    assert findings["parameters"] == metrics["model/parameters"]
    assert findings["metrics"]["test/accuracy"] == metrics["test/accuracy"]
    assert not any("confusion" in key or "per_class" in key for key in findings["metrics"])


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished model"):
        inspect_run(tmp_path / "none")


def test_a_plan_is_what_training_would_do(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("name=planned")
    planned = plan(config)
    data = prepare(config)
    from bilstm_cls.run_directory import build_model

    model = build_model(config, len(data.tokenizer), 2)
    assert planned["steps"] == Trainer(model, data.corpora["train"], config.train, seed=1).total_steps
    assert planned["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert planned["run_directory"] == str(Path(config.output_dir) / "planned")
    assert planned["tokens_per_epoch"] == data.corpora["train"].lengths.sum()
    assert 0 <= planned["padding"] < 1
    assert not (Path(config.output_dir) / "planned").exists()


def test_a_plan_needs_data() -> None:
    with pytest.raises(ConfigError, match=r"data\.train: no data are given"):
        plan(load_config(None))


def test_overrides_go_into_the_text_of_a_config(tmp_path: Path, reviews_csv: Path) -> None:
    text = with_overrides(f"seed: 3\ndata: {{train: {reviews_csv}}}\n", ["train.epochs=7", "seed=4"], name="mine")
    (tmp_path / "out.yaml").write_text(text, "utf-8")
    config = load_config(tmp_path / "out.yaml")
    assert (config.seed, config.train.epochs, config.name) == (4, 7, "mine")


def test_a_wrong_override_is_told(reviews_csv: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set train\.epochs=x: must be an integer"):
        with_overrides(f"data: {{train: {reviews_csv}}}\n", ["train.epochs=x"], name="mine")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        inspect_file(tmp_path / "none.csv", [])


def test_findings_are_shown_as_indented_lines() -> None:
    findings = {
        "sizes": {"train": 12345, "share": 0.123456},
        "labels": ["a", "b"],
        "checks": [{"name": "one", "is_sound": True}, {"name": "two", "is_sound": False}],
        "none": None,
        "notes": [],
    }
    assert list(as_lines(findings)) == [
        "sizes:", "  train: 12,345", "  share: 0.1235", "labels: a, b",
        "checks:", "  name one, is_sound yes", "  name two, is_sound no", "none: none", "notes: ",
    ]  # fmt: skip
