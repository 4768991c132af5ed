import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bilstm_cls.data.hub import Address
from bilstm_cls.data.types import Dataset
from bilstm_cls.errors import ConfigError, DataError
from tests.data.rows import loaded
from tests.hub_server import FakeHub, serving_hub

datasets = pytest.importorskip("datasets")

ROWS = [("a good film", 1), ("a bad film", 0), ("fine and fun", 1), ("dull", 0), ("weak plot", 0), ("superb", 1)]
CARD = """---
license: mit
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train-*
  - split: test
    path: plain/test-*
  - split: unsupervised
    path: plain/unsupervised-*
- config_name: other
  data_files: other/train.parquet
---
# Films
"""


def parquet(rows: list[tuple[str, int]]) -> bytes:
    """Writes rows with the names of the labels in the schema."""
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    table = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in rows], features)
    sink = io.BytesIO()
    table.to_parquet(sink)
    return sink.getvalue()


def csv_of(rows: list[tuple[str, Any]]) -> bytes:
    return "".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]).encode()


SUBSETS = {
    "README.md": CARD.encode(),
    "plain/train-00000-of-00002.parquet": parquet(ROWS[:3]),
    "plain/train-00001-of-00002.parquet": parquet(ROWS[3:]),
    "plain/test-00000-of-00001.parquet": parquet([("good", 1), ("bad", 0)]),
    "plain/unsupervised-00000-of-00001.parquet": parquet([("who knows", -1)]),
    "other/train.parquet": parquet(ROWS[:4]),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    with serving_hub(tmp_path / "hub-cache") as hub:
        yield hub


def load(address: str, *keys: str) -> Dataset:
    return loaded("valid=0.34", f"source={address}", *keys)


def content(dataset: Dataset, *splits: str) -> list[tuple[str, int]]:
    found = [dataset.splits[name] for name in splits]
    return sorted(pair for one in found for pair in zip(one.texts, one.label_ids.tolist(), strict=True))


def test_splits_labels_and_their_names_are_those_of_the_subset(hub: FakeHub) -> None:
    hub.add("dataset", "ada/films", SUBSETS)
    dataset = load("hf/ada/films:plain")
    assert dataset.labels == ["neg", "pos"]
    assert content(dataset, "train", "valid") == sorted(ROWS)
    assert content(dataset, "test") == [("bad", 0), ("good", 1)]
    assert list(dataset.splits["unlabelled"].texts) == ["who knows"]
    assert (dataset.is_official, dataset.origin) == (True, "ada/films:plain of the Hugging Face Hub")
    assert sum(map(len, load("hf/ada/films:other").splits.values())) == 4


def test_a_test_split_with_secret_labels_is_left_out(hub: FakeHub) -> None:
    hidden = parquet([("who knows", -1), ("nobody", -1)])
    hub.add("dataset", "ada/films", {"train.parquet": parquet(ROWS), "test.parquet": hidden})
    assert set(load("hf/ada/films").splits) == {"train", "valid"}
    assert set(load("hf/ada/films", "test=0.34").splits) == {"train", "valid", "test"}


def test_what_may_not_be_read_is_reported(hub: FakeHub) -> None:
    hub.status = 403
    with pytest.raises(ConfigError, match="hf auth login"):
        load("hf/ada/films:plain")


def test_a_revision_is_read(hub: FakeHub) -> None:
    hub.add("dataset", "ada/films", {"train.csv": csv_of(ROWS)})
    hub.add("dataset", "ada/films", {"train.csv": csv_of(ROWS[:4])}, branch="v1")
    assert [load(f"hf/ada/films{at}").counts["read"] for at in ("", "@v1")] == [6, 4]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (SUBSETS, r"(?s)plain.*other.*hf/ada/films:SUBSET"),
        ({"films.py": b"raise SystemExit('a script was run')", "films.zip": b"x"}, "@refs/convert/parquet"),
        ({"test.csv": csv_of(ROWS)}, "'train'"),
        ({"train.parquet": b"PAR1"}, "cannot be read"),
        ({"train.csv": b"text,label\na,x\nb,\n"}, "train:2: .* label is empty"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_an_error(files: dict[str, bytes], complaint: str, hub: FakeHub) -> None:
    hub.add("dataset", "ada/films", files)
    with pytest.raises((DataError, ConfigError), match=complaint):
        load("hf/ada/films")


@pytest.mark.parametrize("text", ["hf/", "a/b/c", "/etc/passwd", "a/../b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no repository of the Hub"):
        Address.parse(text)
