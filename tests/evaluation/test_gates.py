"""Gates: those of the kernel, under the right words, in files that are whole."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import read_tokens
from bilstm_cls.evaluation.gates import MAX_SHOWN, SHOWN, gate_activations, read_gates, write_gates
from bilstm_cls.model.recurrent import BidirectionalLSTM
from tests.command_line import run_cli
from tests.evaluation.pages import png_size
from tests.serve.untrained import TEXT, untrained

NAMES = {
    "lstm": {"forget", "input", "output", "candidate", "cell", "hidden"},
    "gru": {"reset", "update", "candidate", "hidden"},
}
CELLS = [
    ("model.cell=lstm", "model.num_layers=2"),
    ("model.cell=gru", "model.bidirectional=false", "model.hidden_size=1"),
    ("model.cell=lstm", "model.bigrams=50"),
]


def layer_and_inputs(cell: str, num_layers: int, bidirectional: bool) -> tuple[BidirectionalLSTM, torch.Tensor]:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(3, 5, cell=cell, num_layers=num_layers, bidirectional=bidirectional).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer, torch.randn(7, 3)


@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, True), (1, False), (2, True), (3, False)])
@torch.no_grad()
def test_outputs_are_those_of_the_kernel(cell: str, num_layers: int, bidirectional: bool) -> None:
    layer, inputs = layer_and_inputs(cell, num_layers, bidirectional)
    outputs, _ = layer(inputs[None], torch.tensor([7]))
    directions = gate_activations(layer, inputs)
    for values, output in zip(directions, outputs, strict=True):
        assert values.keys() == NAMES[cell]
        torch.testing.assert_close(values["hidden"], output[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("overrides", CELLS, ids=str)
def test_values_are_those_of_the_last_layer_with_its_units_sorted_by_memory(overrides: tuple[str, ...]) -> None:
    loaded = untrained(*overrides)
    gates = read_gates(loaded, TEXT)
    ids = torch.tensor([read_tokens(loaded, TEXT).token_ids])
    with torch.no_grad():
        embedded = loaded.model.embed(ids, torch.tensor([ids.shape[1]]))[:, 0]
        expected = gate_activations(loaded.model.encoder, embedded)
    for values, direction in zip(gates.values, expected, strict=True):
        memory = values["cell" if gates.cell == "lstm" else "hidden"]
        assert (np.diff(memory.mean(0)) <= 1e-7).all()
        for name in SHOWN[gates.cell]:
            np.testing.assert_allclose(np.sort(values[name]), np.sort(direction[name].numpy()), atol=1e-6)


@pytest.mark.parametrize("text", ["", "a$b$ \x00 \ud800 👨‍👩‍👧 ∮"])
def test_one_picture_has_everything(text: str, tmp_path: Path) -> None:
    write_gates(untrained(), text, tmp_path / "gates.png")
    width, height = png_size((tmp_path / "gates.png").read_bytes())
    assert 1200 < width < 6000
    assert 1200 < height < 4000


def test_no_more_tokens_are_drawn_than_can_be_read() -> None:
    assert read_gates(untrained(), "GOOD  中文 \ud800!").tokens == ["GOOD", "中文", "\ud800", "!"]
    assert read_gates(untrained(), "").tokens == ["<unk>"]
    gates = read_gates(untrained("text.max_length=100"), "good film " * 80)
    assert len(gates.tokens) == len(gates.values[0]["cell"]) == MAX_SHOWN
    assert f"{MAX_SHOWN} of 100 tokens" in gates.caption


@pytest.mark.parametrize(("name", "cell"), [("gates.pdf", "lstm"), ("gates.png", "rnn")])
def test_what_cannot_be_drawn_is_refused(name: str, cell: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gates"):
        write_gates(untrained(f"model.cell={cell}"), TEXT, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_one_text_and_classifies_it(trained_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "gates.png"
    done = run_cli("predict", "--run", trained_run, "--gates", target, "-", stdin=b"a good film\n")
    assert done.code == 0, done.stderr
    assert done.stdout == run_cli("predict", "--run", trained_run, "a good film").stdout
    assert min(png_size(target.read_bytes())) > 600
    assert run_cli("predict", "--run", trained_run, "--gates", tmp_path / "gates.png", "one", "two").code == 2
