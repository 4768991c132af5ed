import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.prepare import PreparedData, prepare
from bilstm_cls.errors import DataError

Prepare = Callable[..., PreparedData]

TRAIN = "text,label\n" + "common good,pos\ncommon bad,neg\n" * 5
TEST = "text,label\ncommon unseen good,pos\n,neg\ncommon common common common common,neg\n"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares a small data set with an own cache."""
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    for name, content in {"train.csv": TRAIN, "test.csv": TEST, "more.txt": "common rare rare\n"}.items():
        (tmp_path / name).write_text(content, "utf-8")

    def make(*overrides: str) -> PreparedData:
        data = [f"data.train={tmp_path / 'train.csv'}", f"data.test={tmp_path / 'test.csv'}", "data.valid=0.2"]
        return prepare(load_config(None, [*data, "text.max_length=4", "text.min_freq=1", *overrides]))

    return make


def ids_of(data: PreparedData) -> dict[str, tuple[list[int], list[int], list[int]]]:
    return {
        name: (corpus.token_ids.tolist(), corpus.offsets.tolist(), corpus.num_tokens.tolist())
        for name, corpus in data.corpora.items()
    }


def test_the_vocabulary_is_that_of_the_train_split_alone(prepared: Prepare, tmp_path: Path) -> None:
    data = prepared("embedding.init=ppmi", f"data.unlabelled={tmp_path / 'more.txt'}")
    assert set(data.tokenizer.tokens) == {"<pad>", "<unk>", "common", "good", "bad"}


def test_every_corpus_has_the_labels_of_its_split(prepared: Prepare) -> None:
    data = prepared()
    for name, corpus in data.corpora.items():
        assert corpus.label_ids is not None
        assert corpus.label_ids.tolist() == data.dataset.splits[name].label_ids.tolist()


def test_facts_count_truncated_empty_and_unknown(prepared: Prepare) -> None:
    facts = prepared().facts()
    test = {key: facts[f"text/test/{key}"] for key in ("texts", "tokens", "truncated", "empty", "unknown", "longest")}
    assert test == {"texts": 3, "tokens": 8, "truncated": 1, "empty": 1, "unknown": 2, "longest": 5}
    assert facts["text/vocab_size"] == 5
    assert (facts["data/read"], facts["data/skipped"], facts["data/is_official"]) == (13, 0, False)


@pytest.mark.parametrize(("init", "is_read"), [("ppmi", True), ("random", False)])
def test_unlabelled_texts_are_encoded_only_where_vectors_are_made_of_them(
    init: str, is_read: bool, prepared: Prepare, tmp_path: Path
) -> None:
    data = prepared(f"embedding.init={init}", f"data.unlabelled={tmp_path / 'more.txt'}")
    assert ("unlabelled" in data.corpora) == is_read


def test_a_second_preparation_is_the_same_and_encodes_nothing_again(
    prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared()
    monkeypatch.setattr("bilstm_cls.data.prepare.encode_to_files", None)
    second = prepared("seed=5", "train.epochs=9")
    assert ids_of(second) == ids_of(first)
    assert second.tokenizer.to_json() == first.tokenizer.to_json()


def test_a_preparation_without_a_cache_is_the_same(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids_of(prepared())
    monkeypatch.setenv("BILSTM_CLS_CACHE", "/proc/nowhere")
    assert ids_of(prepared()) == expected


def test_a_preparation_afresh_is_the_same(prepared: Prepare, tmp_path: Path) -> None:
    expected = ids_of(prepared())
    shutil.rmtree(tmp_path / "cache")
    assert ids_of(prepared()) == expected


@pytest.mark.parametrize(
    "key", ["text.max_length=2", "text.truncate=head", "text.lowercase=false", "data.split_seed=3"]
)
def test_another_setting_of_the_texts_is_another_preparation(key: str, prepared: Prepare, tmp_path: Path) -> None:
    prepared()
    prepared(key)
    assert len(list((tmp_path / "cache/corpus").iterdir())) == 2


@pytest.mark.parametrize(("package", "number"), [("tokenizers", 2), ("rjieba", 2), ("torch", 1)])
def test_another_version_of_what_splits_texts_is_another_preparation(
    package: str, number: int, prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rjieba")
    prepared("text.tokenizer=chinese_words")
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == package else version(name))
    prepared("text.tokenizer=chinese_words")
    assert len(list((tmp_path / "cache/corpus").iterdir())) == number


def test_encoded_texts_are_mapped_and_not_loaded(prepared: Prepare) -> None:
    assert isinstance(prepared().corpora["train"].token_ids, np.memmap)


def test_no_frequent_token_is_an_error_that_names_the_key(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"no token of the train split occurs 99 times.*lower text\.min_freq"):
        prepared("text.min_freq=99")


def test_a_data_set_without_a_test_split_is_prepared(tiny_config: Callable[..., Config]) -> None:
    assert set(prepare(tiny_config("data.test=null")).corpora) == {"train", "valid"}
