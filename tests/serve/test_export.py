"""Bundles: the graph gives PyTorch's logits, and nothing that differs or is damaged is ever written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bilstm_cls.classifier import Classifier
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.pooling import POOLINGS
from bilstm_cls.ngrams import NgramCounts, NgramModel
from bilstm_cls.run_directory import RunDirectory, build_model
from bilstm_cls.runtime import Runtime
from bilstm_cls.serve import export as export_module
from bilstm_cls.serve.export import build_graph, export
from tests.command_line import answer
from tests.serve.untrained import untrained

VOCAB, LABELS, MAX_LENGTH = 40, 3, 12


def network(*, seed: int = 0, **options: Any) -> BiLSTMClassifier:
    """A model whose weights, biases included, are far from zero, so that no gate can be taken for another."""
    torch.manual_seed(seed)
    model = BiLSTMClassifier(VOCAB, LABELS, embedding_dim=5, hidden_size=4, max_length=MAX_LENGTH, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model._clear_padding()
    return model


def random_batch(size: int = 30) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, MAX_LENGTH + 1, size=size)
    lengths[:2] = 1, MAX_LENGTH
    token_ids = generator.integers(1, VOCAB, size=(size, MAX_LENGTH + 2))
    token_ids[np.arange(MAX_LENGTH + 2) >= lengths[:, None]] = 0
    return token_ids, lengths


def agrees(*models: BiLSTMClassifier) -> None:
    """Compares the sum of the logits with onnxruntime's, which reads nothing past a length."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = build_graph(models)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    token_ids, lengths = random_batch()
    with torch.inference_mode():
        expected = sum(model(torch.from_numpy(token_ids), torch.from_numpy(lengths)).numpy() for model in models)
    for ids in (token_ids, np.where(token_ids == 0, VOCAB - 1, token_ids)):
        (logits,) = session.run(["logits"], {"token_ids": ids, "lengths": lengths})
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(("num_layers", "bigrams"), [(1, 17), (2, None)])
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_every_cell_gives_torchs_logits(cell: str, num_layers: int, bidirectional: bool, bigrams: int | None) -> None:
    options = {"cell": cell, "num_layers": num_layers, "bidirectional": bidirectional, "bigrams": bigrams}
    agrees(network(**options, pooling=[*POOLINGS, "attention"]))


def test_a_bundle_is_verified_whole_and_made_of_the_same_bytes_again(trained_run: Path, tmp_path: Path) -> None:
    bundle = export(trained_run, tmp_path / "tiny")
    assert bundle["largest_logit_difference"] < 1e-5
    assert bundle["checked_longest"] == 20
    files = list(Path(bundle["path"]).iterdir())
    assert {path.name for path in files} == {"model.onnx", "tokenizer.json", "labels.json", "config.json"}
    assert bundle["bytes"] == sum(path.stat().st_size for path in files)
    export(str(trained_run), str(tmp_path / "again"))
    for path in files:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_graph_that_disagrees_with_torch_is_refused_and_leaves_nothing(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export_module.GATES, "lstm", (0, 1, 2, 3))
    with pytest.raises(CheckpointError, match=r"differs from PyTorch by \d.*more than the accepted 0.0001"):
        export(trained_run, tmp_path / "bundle")
    monkeypatch.undo()
    monkeypatch.setattr(Classifier, "predict_proba", lambda *_: np.array([[np.nan, np.nan]]))
    with pytest.raises(CheckpointError, match="differs from PyTorch by nan"):
        export(trained_run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_stays_unless_it_may_be_replaced_by_a_verified_one(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(export(trained_run, tmp_path / "bundle")["path"])
    inode = (target / "config.json").stat().st_ino
    with pytest.raises(ConfigError, match="exists; add --overwrite"):
        export(trained_run, target)
    monkeypatch.setattr(export_module, "_compare", lambda *_: (1.0, 20))
    with pytest.raises(CheckpointError):
        export(trained_run, target, overwrite=True)
    monkeypatch.undo()
    assert (target / "config.json").stat().st_ino == inode
    export(trained_run, target, overwrite=True)
    assert (target / "config.json").stat().st_ino != inode
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_with_other_files_is_never_replaced(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not a bundle, so it is not replaced"):
        export(trained_run, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_an_ensemble_with_an_n_gram_model_of_characters_is_exported(tmp_path: Path) -> None:
    texts = ["很好的电影", "很坏的电影", "好看", "坏人", "一般", "一般般"]
    given = ["data.train=texts.csv", "model.ngrams=nbsvm"]
    loaded = untrained(*given, kind="cjk", labels=["a", "b", "c"], texts=texts)
    others = tuple(build_model(loaded.config, len(loaded.tokenizer), 3).eval() for _ in range(2))
    ngrams = NgramModel.train(NgramCounts.of(texts), np.array([0, 1, 0, 1, 2, 2]), 3)
    run = RunDirectory(tmp_path / "run")
    run.save_model(replace(loaded, ngrams=ngrams, others=others))
    asked = [*texts, "", "unheard of", "很好看的人", "a\ud800 İ"]
    expected = Classifier.load(run.path, device="cpu").predict_proba(asked)
    found = Runtime.load(export(run.path, tmp_path / "bundle")["path"]).predict_proba(asked)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_command_prints_the_figures_and_the_place(trained_run: Path, tmp_path: Path) -> None:
    done = answer("export", "--run", trained_run, "-o", tmp_path / "bundle")
    assert "500 random texts of up to 20 tokens (allowed: 0.0001)" in done.stdout
    assert f"wrote {tmp_path / 'bundle'}" in done.stdout
    facts = answer("export", "--run", trained_run, "-o", tmp_path / "bundle", "--json", "--overwrite").json
    assert (facts["checked_texts"], facts["path"]) == (500, str(tmp_path / "bundle"))
