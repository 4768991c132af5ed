"""torchtext's tokenizers and vocabulary: the same ids where it can be imported, one line elsewhere.

What follows from torchtext's answers alone is tried everywhere, without it on a stand-in with the same names.
"""

import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bilstm_cls.config import Config
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.torchtext import PREFIX
from bilstm_cls.data.vectors import load_vectors
from bilstm_cls.errors import ConfigError, DataError
from tests.command_line import run_cli
from tests.conftest import reviews
from tests.data.test_tokenizer import ODD, basic_english

TEXTS = ["Good film & good plot", "bad film's plot\u00a0", "don't <pad> <unk> it"]
try:
    import torchtext as real_torchtext

    real_torchtext.disable_torchtext_deprecation_warning()
    import torchtext.data.utils
    import torchtext.vocab
except (ImportError, OSError, AttributeError) as error:
    REAL, REASON = None, str(error)
else:
    REAL, REASON = real_torchtext, ""
needs_torchtext = pytest.mark.skipif(REAL is None, reason=REASON)


@pytest.fixture(scope="module", autouse=True)
def torchtext() -> Iterator[Any]:
    """The real package or, where there is none, a stand-in for what we call."""
    if REAL is not None:
        yield REAL
        return
    package, data, utils = map(types.ModuleType, ("torchtext", "torchtext.data", "torchtext.data.utils"))
    package.__dict__.update(data=data, disable_torchtext_deprecation_warning=lambda: None)
    data.__dict__.update(utils=utils)
    utils.__dict__.update(get_tokenizer={None: str.split, "basic_english": basic_english}.get)
    with pytest.MonkeyPatch.context() as patch:
        for module in (package, data, utils):
            patch.setitem(sys.modules, module.__name__, module)
        yield package


def learned(kind: str, texts: Iterable[str] = TEXTS, **options: Any) -> Tokenizer:
    return Tokenizer.train(texts, kind=PREFIX + kind, **options)


def test_where_torchtext_is_missing_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchtext", None)
    with pytest.raises(ConfigError, match=r"torchtext/moses cannot be used .* pip install 'bilstm-cls\[torchtext\]'$"):
        learned("moses")


PIECES = st.one_of(ODD, st.sampled_from(["<pad>", "<unk>", " ", "ab", "good film"]))


@settings(deadline=None)
@given(st.lists(st.lists(PIECES).map("".join), min_size=1), st.integers(1, 2), st.none() | st.integers(3, 9))
@example(["<unk> <unk> b b a <pad>"], 1, 4)
def test_basic_english_has_the_vocabulary_and_ids_of_ours(texts: list[str], min_freq: int, size: int | None) -> None:
    options: dict[str, Any] = {"min_freq": min_freq, "max_vocab_size": size}
    theirs, ours = learned("basic_english", texts, **options), Tokenizer.train(texts, kind="basic_english", **options)
    assert theirs.tokens == ours.tokens
    assert theirs.encode_batch(texts) == ours.encode_batch(texts)


def test_json_gives_the_same_tokenizer_back() -> None:
    tokenizer = learned("split", lowercase=False)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert again.encode_batch([*TEXTS, "new words", ""]) == tokenizer.encode_batch([*TEXTS, "new words", ""])


@pytest.mark.usefixtures("light")
def test_a_run_predicts_from_its_directory_and_cannot_explain(tiny_config: Callable[..., Config]) -> None:
    from bilstm_cls.training.run import train

    run = train(tiny_config("name=torchtext", "text.tokenizer=torchtext/split", "train.epochs=1")).run.path
    assert (run / "report.html").exists()
    assert run_cli("predict", "--run", run, "good Film").code == 0
    done = run_cli("predict", "--run", run, "--explain", "good Film")
    assert (done.code, "torchtext does not say where" in done.stderr) == (2, True)


def test_vectors_are_read_from_torchtexts_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for init, file in (("glove.6B.50d", "glove.6B.50d.txt"), ("fasttext.en.300d", "wiki.en.vec")):
        with pytest.raises(DataError, match=f"{file}: cannot be read"):
            load_vectors(f"torchtext/{init}", ["film"], seed=1)
        (tmp_path / ".vector_cache").mkdir(exist_ok=True)
        (tmp_path / ".vector_cache" / file).write_text("film 1 1\ngood 2 2\n")
        matrix, is_found = load_vectors(f"torchtext/{init}", ["<pad>", "<unk>", "Good", "bad"], seed=1)
        assert (matrix[2, 0], is_found.sum()) == (2, 1)


@needs_torchtext
@pytest.mark.parametrize(("name", "package"), [("split", "torchtext"), ("toktok", "nltk"), ("moses", "sacremoses")])
def test_tokens_are_those_of_get_tokenizer(torchtext: Any, name: str, package: str) -> None:
    pytest.importorskip(package)
    split = torchtext.data.utils.get_tokenizer(None if name == "split" else name)
    tokenizer = learned(name)
    for text in TEXTS[:2]:
        assert [tokenizer.tokens[i] for i in tokenizer.encode_batch([text])[0]] == split(text.lower())


@needs_torchtext
@pytest.mark.parametrize("limits", [(1, None), (2, 5000)], ids=["all", "limited"])
@pytest.mark.parametrize("kind", ["basic_english", "torchtext/basic_english"])
def test_tokens_and_ids_of_reviews_are_torchtexts(torchtext: Any, kind: str, limits: tuple[int, int | None]) -> None:
    texts = [text for text, _ in reviews(500)] + TEXTS
    split = torchtext.data.utils.get_tokenizer("basic_english")
    vocab = torchtext.vocab.build_vocab_from_iterator(
        map(split, texts), min_freq=limits[0], max_tokens=limits[1], specials=["<pad>", "<unk>"]
    )
    vocab.set_default_index(vocab["<unk>"])
    expected = [vocab(split(text)) for text in texts]

    tokenizer = Tokenizer.train(texts, kind=kind, min_freq=limits[0], max_vocab_size=limits[1])
    assert tokenizer.tokens == vocab.get_itos()
    assert tokenizer.encode_batch(texts) == expected
