import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data import prepare as module
from bilstm_cls.data.prepare import PreparedData, prepare
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import CheckpointError, ConfigError, DataError

Prepare = Callable[..., PreparedData]
Make = Callable[..., Config]

BARE = ["data.train=x.csv", "text.max_length=4", "text.min_freq=1"]
TRAIN = "text,label\n" + "common good,pos\ncommon bad,neg\n" * 5
TEST = "text,label\ncommon unseen good,pos\n,neg\ncommon common common common common,neg\n"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares a small data set in a separate cache."""
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    for name, content in {"train.csv": TRAIN, "test.csv": TEST, "more.txt": "common rare rare\n"}.items():
        (tmp_path / name).write_text(content, "utf-8")

    def make(*overrides: str) -> PreparedData:
        data = [f"data.train={tmp_path / 'train.csv'}", f"data.test={tmp_path / 'test.csv'}", "data.valid=0.2"]
        return prepare(load_config(None, [*BARE, *data, *overrides]))

    return make


def ids_of(data: PreparedData) -> dict[str, tuple[list[int], ...]]:
    return {
        name: tuple(ids.tolist() for ids in (*corpus.read(np.arange(len(corpus))), corpus.num_tokens))
        for name, corpus in data.corpora.items()
    }


def test_the_vocabulary_is_that_of_the_train_split_alone(prepared: Prepare, tmp_path: Path) -> None:
    settings = [f"data.unlabelled={tmp_path / 'more.txt'}"]
    data = prepared("embedding.init=ppmi", *settings)
    assert set(data.tokenizer.tokens) == {"<pad>", "<unk>", "common", "good", "bad"}
    assert "unlabelled" in data.corpora  # to make vectors of
    assert "unlabelled" not in prepared(*settings).corpora


def test_facts_count_truncated_empty_and_unknown(prepared: Prepare) -> None:
    facts = prepared().facts()
    names = ("texts", "tokens", "truncated", "empty", "unknown", "median_length")
    test = {name: facts[f"text/test/{name}"] for name in names}
    assert test == {"texts": 3, "tokens": 8, "truncated": 1, "empty": 1, "unknown": 2, "median_length": 3}
    assert facts["text/vocab_size"] == 5
    assert (facts["data/read"], facts["data/skipped"], facts["data/is_official"]) == (13, 0, False)


def test_texts_are_encoded_once_for_every_length(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared()
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    for override in ("text.max_length=2", "text.truncate=head", "seed=5", "train.epochs=9"):
        assert prepared(override).tokenizer.to_json() == first.tokenizer.to_json()
    assert ids_of(prepared()) == ids_of(first)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_in_memory_and_without_a_cache_the_preparation_is_the_same(
    prepared: Prepare, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"text.tokenizer={kind}", "text.max_vocab_size=300"]
    data = prepared(*settings)
    memory = prepare(load_config(None, [*BARE, *settings]), in_memory=data.dataset)
    monkeypatch.setenv("BILSTM_CLS_CACHE", "/proc/nowhere")
    for again in (memory, prepared(*settings)):
        assert again.tokenizer.to_json() == data.tokenizer.to_json()
        assert ids_of(again) == ids_of(data)


@pytest.mark.parametrize("key", ["text.lowercase=false", "data.split_seed=3", None])
def test_other_settings_or_splitters_are_another_preparation(
    key: str | None, prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared()
    before = len(list((tmp_path / "cache/corpus").glob("[!.]*")))
    if key is None:
        monkeypatch.setitem(module.SPLITTERS, "tokenizers", "0.0.1")
    prepared(*([key] if key else []))
    assert len(list((tmp_path / "cache/corpus").glob("[!.]*"))) > before


def test_no_frequent_token_is_an_error_that_names_the_key(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"99 times.*text\.min_freq"):
        prepared("text.min_freq=99")


def test_english_vectors_bring_frequent_words_that_train_lacks(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "frequent_words", lambda: ["good", "zebra", "the"])
    without, with_words = (
        prepare(tiny_config(f"embedding.init={init}", "embedding.dim=null")) for init in ("ppmi", "[en-300, ppmi]")
    )
    assert with_words.tokenizer.tokens == [*without.tokenizer.tokens, "zebra"]
    memory = prepare(tiny_config("embedding.init=en-300", "embedding.dim=null"), in_memory=without.dataset)
    assert memory.tokenizer.tokens == with_words.tokenizer.tokens
    assert ids_of(memory) == ids_of(with_words)


@pytest.mark.parametrize("override", ["embedding.dim=9", "model.cell=gru", "text.tokenizer=cjk", "embedding.init=ppmi"])
def test_a_key_that_does_not_agree_with_the_encoder_is_named(override: str, tiny_config: Make, encoder: Path) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        prepare(tiny_config(f"model.init_from={encoder}", override))


def test_a_folder_without_an_encoder_is_an_error(tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.init_from: .* holds no encoder; make it with bilstm-cls pretrain"):
        prepare(tiny_config(f"model.init_from={tmp_path}"))


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", b"{"), ("tokenizer.json", b"{"), ("tokenizer.json", None)]
)
def test_a_damaged_or_missing_file_of_an_encoder_is_an_error(
    name: str, content: bytes | None, tiny_config: Make, encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(encoder, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):  # of the folder's name at least
        prepare(tiny_config(f"model.init_from={folder}"))
