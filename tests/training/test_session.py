"""How a run starts: the first word vectors and the weights of the labels."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilstm_cls.checkpoint import load_tensors
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.prepare import PreparedData, prepare, with_dim
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.vectors import corpus_vectors
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.inspection import plan
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.run_directory import RunDirectory, build_model
from bilstm_cls.training.run import train
from bilstm_cls.training.session import class_weights, initialize_weights
from tests.training.runs import flip

LABEL_IDS = np.array([0, 0, 0, 0, 1, 1, 2, 0])
LABELS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("setting", "label_ids", "expected"),
    [
        (None, LABEL_IDS, None),
        ("balanced", LABEL_IDS, [8 / 15, 8 / 6, 8 / 3]),  # so that all labels weigh the same in sum
        ("balanced", np.array([0, 0, 1]), [0.5, 1.0, 1.0]),  # the third label has no text
        ({"c": 3, "a": 0.5, "b": 1}, LABEL_IDS, [0.5, 1.0, 3.0]),
    ],
)
def test_labels_have_the_weights_that_are_set(setting: Any, label_ids: Any, expected: list[float] | None) -> None:
    assert class_weights(setting, label_ids, LABELS) == (expected and pytest.approx(expected))
    for wrong, labels in (("'c'", {"a": 1, "b": 1}), ("'d'", {"a": 1, "b": 1, "c": 1, "d": 1}), ("'A'", {"A": 1})):
        with pytest.raises(DataError, match=rf"train\.class_weights: {wrong}"):
            class_weights(labels, LABEL_IDS, LABELS)


@pytest.fixture(scope="module")
def data(tiny_config: Callable[..., Config]) -> PreparedData:
    return prepare(tiny_config())


def start(config: Config, data: PreparedData) -> tuple[BiLSTMClassifier, dict[str, Any]]:
    torch.manual_seed(0)
    model = build_model(config, len(data.tokenizer), 2)
    return model, initialize_weights(model, config, data)


def test_vectors_are_made_of_the_train_split_or_found_in_a_file_by_token(
    tiny_config: Callable[..., Config], data: PreparedData, tmp_path: Path
) -> None:
    made, facts = start(tiny_config("embedding.init=ppmi"), data)
    expected = corpus_vectors([data.corpora["train"]], len(data.tokenizer), dim=8, seed=1)
    assert np.array_equal(made.embedding.weight.detach().numpy(), expected)
    assert facts == {}
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{token} {i} 1 2 3 4 5 6 7\n" for i, token in enumerate(["good", "bad", "zebra"])))
    read, facts = start(tiny_config(f"embedding.init={path}"), data)
    rows = {token: read.embedding.weight[data.tokenizer.tokens.index(token)].tolist() for token in ("good", "bad")}
    assert rows == {"good": [0, 1, 2, 3, 4, 5, 6, 7], "bad": [1, 1, 2, 3, 4, 5, 6, 7]}
    assert facts == {"embedding/coverage": 2 / len(data.tokenizer)}
    assert not made.embedding.weight[0].any()
    assert not read.embedding.weight[0].any()


def test_a_run_is_as_good_a_start_as_an_encoder(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    first = train(tiny_config("train.epochs=1", f"output_dir={tmp_path}")).run
    config = tiny_config(f"model.init_from={first.path}", "embedding.dim=null", "model.pooling=max")
    config = with_dim(config)
    model, facts = start(config, prepare(config))
    trained = first.load_model().model.state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[name], trained[name]) for name in own)
    assert facts.keys() == {"encoder/sha256", "time/pretrain_seconds"}
    (first / "tokenizer.json").write_text(Tokenizer.train(["good bad the"], min_freq=1).to_json(), "utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        start(config, prepare(config))


def test_a_config_to_start_from_is_trained_first_and_once(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    given = ["train.epochs=1", f"output_dir={tmp_path}"]
    (tmp_path / "first.yaml").write_text(
        dump_config(tiny_config(*given, "name=first", "output_dir=elsewhere")), "utf-8"
    )
    config = tiny_config(*given, f"model.init_from={tmp_path / 'first.yaml'}", "embedding.dim=null", "name=second")
    with pytest.raises(ConfigError, match=r"model\.init_from: .*first holds no encoder"):
        prepare(config)
    with pytest.raises(ConfigError, match=r"model\.hidden_size is \d+ there and 9 here"):
        train(config.replace(**{"model.hidden_size": 9}))
    planned = plan(config)
    assert planned["trained_first"]["run_directory"] == str(tmp_path / "first")
    assert not (tmp_path / "first").exists()
    train(config)
    later = plan(config)
    assert later == {key: value for key, value in planned.items() if key != "trained_first"}
    first = RunDirectory(tmp_path / "first")
    trained = first.load_model().model.state_dict()
    model, _ = start(with_dim(config), prepare(config))
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    before = (first / "model.safetensors").stat().st_mtime_ns
    train(config, overwrite=True)
    assert (first / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_goes_on_with_new_labels(tiny_config: Callable[..., Config], trained_run: Path, tmp_path: Path) -> None:
    rows = [("a good zebra", "pos"), ("bad zebra", "odd"), ("the dull zebra", "odd"), ("great zebra", "pos")] * 5
    (tmp_path / "new.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), "utf-8")
    config = tiny_config(f"model.init_from={trained_run}", f"data.train={tmp_path / 'new.csv'}", "data.test=null")
    before = RunDirectory(trained_run).load_model()
    data = prepare(config)
    assert data.tokenizer.to_json() == before.tokenizer.to_json()
    model, _ = start(config, data)
    assert torch.equal(model.embedding.weight, before.model.embedding.weight)
    assert data.dataset.labels == ["odd", "pos"]
    assert torch.equal(model.project.weight[1], before.model.project.weight[before.labels.index("pos")])
    assert not torch.equal(model.project.weight[0], before.model.project.weight[before.labels.index("neg")])


def test_an_encoder_is_taken_over_to_the_bit_and_the_head_is_new(
    tiny_config: Callable[..., Config], encoder: Path
) -> None:
    config = tiny_config(f"model.init_from={encoder}", "model.bigrams=50")
    torch.manual_seed(0)
    new = build_model(config, len(prepare(config).tokenizer), 2).state_dict()
    model, facts = start(config, prepare(config))
    tensors, metadata = load_tensors(encoder / "encoder.safetensors")
    own = model.state_dict()
    assert all(torch.equal(own.pop(name), tensor) for name, tensor in tensors.items())
    assert all(torch.equal(tensor, new[name]) for name, tensor in own.items())
    assert own.keys() == {"project.weight", "project.bias", "bigrams.weight"}
    assert facts.pop("time/pretrain_seconds") > 0
    assert facts == {"encoder/sha256": metadata["sha256"]}


@pytest.mark.parametrize("change", ["another token", "a flipped bit", "another size"])
def test_an_encoder_whose_files_do_not_fit_is_refused(
    tiny_config: Callable[..., Config], encoder: Path, tmp_path: Path, change: str
) -> None:
    folder, size, named = shutil.copytree(encoder, tmp_path / "other"), 8, "encoder.safetensors"
    if change == "another token":
        named = "tokenizer.json"
        tokens = Tokenizer.load(folder / named).tokens
        other = Tokenizer.train([" ".join([*tokens, "zebra"])], min_freq=1)
        (folder / named).write_text(other.to_json(), "utf-8")
    elif change == "a flipped bit":
        flip(folder / named)
    else:
        size, path = 9, folder / "config.yaml"
        path.write_text(path.read_text("utf-8").replace("hidden_size: 8", "hidden_size: 9"), "utf-8")
    config = tiny_config(f"model.init_from={folder}", f"model.hidden_size={size}")
    with pytest.raises(CheckpointError, match=re.escape(named)):
        start(config, prepare(config))
