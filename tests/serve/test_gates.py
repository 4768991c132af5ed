"""Pictures of gates: right values under the right words, and files that are whole."""

import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.explain import read_tokens
from bilstm_cls.model.gates import gate_activations
from bilstm_cls.serve.gates import MAX_SHOWN, SHOWN, Gates, read_gates, write_gates
from tests.command_line import run_cli
from tests.serve.untrained import TEXT, untrained

CELLS = [
    ("model.cell=lstm",),
    ("model.cell=gru",),
    ("model.cell=lstm", "model.num_layers=2"),
    ("model.cell=gru", "model.bidirectional=false", "model.hidden_size=1"),
    ("model.cell=lstm", "model.bigrams=50"),
]


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


class Page(HTMLParser):
    """The alternative texts of a page's pictures, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            given = dict(attributes)
            assert given["src"].startswith("data:image/png;base64,iVBOR")
            self.pictures.append(given["alt"])

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("overrides", CELLS, ids=str)
def test_values_are_those_of_the_last_layer_with_its_units_sorted_by_memory(overrides: tuple[str, ...]) -> None:
    loaded = untrained(*overrides)
    gates = read_gates(loaded, TEXT)
    ids = torch.tensor([read_tokens(loaded, TEXT).token_ids])
    with torch.no_grad():
        lengths = torch.tensor([ids.shape[1]])
        embedded = loaded.model.embed(ids, lengths).transpose(0, 1)
        expected = gate_activations(loaded.model.encoder, embedded, lengths)
    for values, direction in zip(gates.values, expected, strict=True):
        memory = values["cell" if gates.cell == "lstm" else "hidden"]
        assert (np.diff(memory.mean(0)) <= 1e-7).all()
        for name in SHOWN[gates.cell]:
            assert values[name].shape == (ids.shape[1], loaded.config.model.hidden_size)
            np.testing.assert_allclose(np.sort(values[name]), np.sort(direction[name][0].numpy()), atol=1e-6)


def test_units_have_the_same_place_in_every_gate() -> None:
    (values, *_) = read_gates(untrained(), TEXT).values
    before = np.pad(values["cell"][:-1], ((1, 0), (0, 0)))
    made = values["forget"] * before + values["input"] * values["candidate"]
    np.testing.assert_allclose(made, values["cell"], atol=1e-6)


def test_tokens_are_the_texts_own_words() -> None:
    assert read_gates(untrained(), "GOOD  中文 \ud800!").tokens == ["GOOD", "中文", "\ud800", "!"]
    assert read_gates(untrained(), "").tokens == ["<unk>"]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [(CELLS[0], TEXT), *((CELLS[-1], text) for text in ("", "good", "a$b$ \x00 \ud800 👨‍👩‍👧 ∮"))],
    ids=["lstm", "no tokens", "one token", "odd tokens"],
)
def test_one_picture_has_everything(overrides: tuple[str, ...], text: str, tmp_path: Path) -> None:
    write_gates(untrained(*overrides), text, tmp_path / "gates.png")
    width, height = png_size(tmp_path / "gates.png")
    assert 600 < width < 3000
    assert 600 < height < 2000


def test_a_picture_shows_no_more_tokens_than_can_be_read(tmp_path: Path) -> None:
    loaded = untrained("text.max_length=100")
    gates = read_gates(loaded, "good film " * 30)
    assert isinstance(gates, Gates)
    assert len(gates.tokens) == len(gates.values[0]["cell"]) == MAX_SHOWN
    write_gates(loaded, "good film " * 30, tmp_path / "gates.html")
    assert "the first 40 of 60 tokens" in Page((tmp_path / "gates.html").read_text("utf-8")).text


def test_a_page_has_one_picture_for_each_gate_and_escapes_the_text(tmp_path: Path) -> None:
    write_gates(untrained(), "<script>good</script> 中文", tmp_path / "GATES.HTML")
    page = Page((tmp_path / "GATES.HTML").read_text("utf-8"))
    assert page.pictures == ["forget gate f", "input gate i", "candidate g", "cell state c", "output gate o"]
    assert "<script>good</script> 中文" in page.text


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("gates.pdf", "lstm", r"--gates: .*gates\.pdf must end in \.png or \.html"),
        ("gates.png", "rnn", "--gates: cell 'rnn' has no gates; lstm and gru have"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name: str, cell: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_gates(untrained(f"model.cell={cell}"), TEXT, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_one_text_and_classifies_it(trained_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "gates.png"
    done = run_cli("predict", "--run", trained_run, "--gates", target, "-", stdin=b"a good film\n")
    assert done.code == 0, done.stderr
    assert done.stdout == run_cli("predict", "--run", trained_run, "a good film").stdout
    assert f"wrote {target}" in done.stderr
    assert min(png_size(target)) > 300


def test_the_command_draws_no_second_text(trained_run: Path, tmp_path: Path) -> None:
    done = run_cli("predict", "--run", trained_run, "--gates", tmp_path / "gates.png", "one", "two")
    assert (done.code, done.errors) == (2, ["error: --gates: draws one text, not 2"])
    assert list(tmp_path.iterdir()) == []
