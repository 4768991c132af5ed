"""What a config takes over from an encoder's folder, and what has to agree."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bilstm_cls.config import Config
from bilstm_cls.data.encoder import tokenizer_of_encoder
from bilstm_cls.data.prepare import prepare
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.training.pretrain import pretrain

Make = Callable[..., Config]


def test_without_an_encoder_there_is_no_tokenizer_to_take_over(tiny_config: Make) -> None:
    assert tokenizer_of_encoder(tiny_config()) is None


def test_texts_are_encoded_by_the_vocabulary_of_the_encoder(tiny_config: Make, encoder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("text,label\n" + "good zebra,pos\nbad zebra,neg\n" * 10, "utf-8")
    data = prepare(tiny_config(f"data.train={few}", f"model.init_from={encoder}"))
    own = Tokenizer.load(encoder / "tokenizer.json")
    assert data.tokenizer.to_json() == own.to_json()
    first = data.dataset.splits["train"].texts[0]
    assert data.corpora["train"].token_ids[:2].tolist() == own.encode_batch([first])[0]


def test_another_vocabulary_is_another_preparation(tiny_config: Make, encoder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    smaller = Tokenizer.train(["good bad the"], min_freq=1)
    (other / "tokenizer.json").write_text(smaller.to_json(), "utf-8")
    assert len(prepare(tiny_config(f"model.init_from={encoder}")).tokenizer) > 5
    assert len(prepare(tiny_config(f"model.init_from={other}")).tokenizer) == 5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("embedding.dim=9", "embedding.dim is 8 there and 9 here"),
        ("model.hidden_size=16", "model.hidden_size is 8 there and 16 here"),
        ("model.cell=gru", "model.cell is 'lstm' there and 'gru' here"),
        ("model.num_layers=2", "model.num_layers is 1 there and 2 here"),
        ("model.bidirectional=false", "model.bidirectional is True there and False here"),
        ("text.tokenizer=cjk", "text.tokenizer is 'words' there and 'cjk' here"),
        ("text.lowercase=false", "text.lowercase is True there and False here"),
    ],
)
def test_a_key_that_does_not_agree_is_named_with_both_values(
    override: str, words: str, tiny_config: Make, encoder: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(tiny_config(f"model.init_from={encoder}", override))
    assert str(caught.value) == f"model.init_from: the encoder in {encoder} does not fit: {words}; make them agree"


def test_other_vectors_than_the_encoders_are_refused(tiny_config: Make, encoder: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not fit: embedding\.init is 'random' there and 'ppmi' here;"):
        prepare(tiny_config(f"model.init_from={encoder}", "embedding.init=ppmi"))


def test_one_config_makes_an_encoder_from_vectors_and_starts_from_it(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(f"model.init_from={tmp_path / 'made'}", "embedding.init=ppmi", "pretrain.epochs=1")
    pretrain(config, tmp_path / "made")
    assert prepare(config).tokenizer.tokens


def test_a_folder_without_an_encoder_is_told(tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.init_from: .* holds no encoder; make it with bilstm-cls pretrain"):
        prepare(tiny_config(f"model.init_from={tmp_path}"))


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"{", None])
def test_a_damaged_or_missing_file_of_an_encoder_is_told(
    name: str, content: bytes | None, tiny_config: Make, encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(encoder, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):  # of the folder's name at least
        prepare(tiny_config(f"model.init_from={folder}"))
