"""Gates: those of the kernel, under the right words, in files that are whole."""

from pathlib import Path

import pytest
import torch

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import gate_activations, write_gates
from bilstm_cls.model.recurrent import BidirectionalLSTM
from tests.command_line import answer
from tests.evaluation.pages import png_size
from tests.serve.untrained import TEXT, untrained


@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, True), (1, False), (2, True), (3, False)])
@torch.no_grad()
def test_outputs_are_those_of_the_kernel(num_layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(3, 5, num_layers=num_layers, bidirectional=bidirectional).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    inputs = torch.randn(7, 3)
    outputs, _ = layer(inputs[None], torch.tensor([7]))
    for values, output in zip(gate_activations(layer, inputs), outputs, strict=True):
        torch.testing.assert_close(values["hidden"], output[0], atol=1e-5, rtol=0)
        assert all((values[name] >= 0).all() and (values[name] <= 1).all() for name in ("forget", "input", "output"))


@pytest.mark.parametrize(("name", "cell"), [("gates.pdf", "lstm"), ("gates.png", "gru")])
def test_what_cannot_be_drawn_is_refused(name: str, cell: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gates"):
        write_gates(untrained(f"model.cell={cell}"), TEXT, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_odd_texts_and_long_ones_are_drawn(tmp_path: Path) -> None:
    for text in ("", "a$b$ \x00 \ud800 👨‍👩‍👧 ∮ 中文 " * 9):
        write_gates(untrained("text.max_length=100", "model.bidirectional=false"), text, tmp_path / "gates.png")
        assert 600 < min(png_size((tmp_path / "gates.png").read_bytes())) < 4000


def test_the_command_draws_one_text_and_classifies_it(trained_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "gates.png"
    done = answer("predict", "--run", trained_run, "--gates", target, "-", stdin=b"a good film\n")
    assert done.stdout == answer("predict", "--run", trained_run, "a good film").stdout
    assert min(png_size(target.read_bytes())) > 600
