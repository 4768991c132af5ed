"""The tokenizers of torchtext 0.18, which works with torch 2.3 alone (the extra `torchtext`), and its vector files."""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from bilstm_cls.errors import ConfigError, DataError

PREFIX = "torchtext/"
PACKAGES: dict[str, str | None] = {
    "split": None, "basic_english": None, "toktok": "nltk", "moses": "sacremoses", "spacy": "spacy",
    "revtok": "revtok", "subword": "revtok",
}  # fmt: skip
"""Tokenizers of `torchtext.data.utils.get_tokenizer`, and the package that each needs besides."""

CACHE = Path(".vector_cache")
"""Where torchtext keeps vectors, in the working directory."""


@dataclass(frozen=True)
class Encoding:
    """The tokens of a text, their ids and, where they were asked for, their places in the text's characters."""

    tokens: list[str]
    ids: list[int]
    offsets: list[tuple[int, int]] = field(default_factory=list)


class TorchtextEngine:
    """Takes the place of a tokenizer of the library `tokenizers`, and has the same methods.

    Normalizer and vocabulary are those of the library; torchtext splits what is between them.
    """

    def __init__(self, kind: str, normalizer: Any) -> None:
        self._kind = kind
        self._split = _splitter(kind)
        self._characters = tokenizers.Tokenizer(tokenizers.models.WordLevel({}, unk_token="<unk>"))  # noqa: S106
        self._characters.normalizer = normalizer
        self._characters.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        self._ids: dict[str, int] = {}

    @property
    def model(self) -> Any:
        return self._characters.model

    @model.setter
    def model(self, model: Any) -> None:
        self._characters.model = model
        self._ids = self._characters.get_vocab()

    @classmethod
    def from_str(cls, text: str) -> "TorchtextEngine":
        """Takes what `to_str` gave.

        Raises:
            ConfigError: torchtext, or the package that its tokenizer needs, cannot be used here.
            ValueError: it is damaged.
        """
        content = json.loads(text)
        kind, ids = content["pre_tokenizer"]["type"], content["model"]["vocab"]
        if kind.removeprefix(PREFIX) not in PACKAGES or sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"{kind!r} is no tokenizer of torchtext, or ids are missing")
        library = tokenizers.Tokenizer.from_str(json.dumps({**content, "pre_tokenizer": None}))
        engine = cls(kind, library.normalizer)
        engine.model = library.model
        return engine

    def to_str(self) -> str:
        """Returns JSON of the form of `tokenizers`, with a pre-tokenizer that only this module knows."""
        content = {**json.loads(self._characters.to_str()), "pre_tokenizer": {"type": self._kind}}
        return json.dumps(content, ensure_ascii=False)

    def get_vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return self._ids

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        normalize, unknown = self._characters.normalizer.normalize_str, self._ids.get("<unk>", 0)
        tokens = [self._split(normalize(text)) for text in texts]
        return [Encoding(several, [self._ids.get(token, unknown) for token in several]) for several in tokens]

    encode_batch_fast = encode_batch

    def encode(self, text: str) -> Encoding:
        """Also finds the tokens in the text, which torchtext itself does not report.

        Raises:
            ConfigError: the text does not contain a token as it is, so that its place cannot be known.
        """
        (encoding,) = self.encode_batch([text])
        searched = self._characters.normalizer.normalize_str(text)
        origin: list[tuple[int, int]] = self._characters.encode(text).offsets
        places, stop = [], 0
        for token in encoding.tokens:
            start = searched.find(token.strip(), stop)  # some tokenizers keep the space next to a token
            if start < 0 or not token.strip():
                raise ConfigError(
                    f"{self._kind} gives the token {token!r}, which the text does not contain in this form, so that it "
                    f"cannot be explained; a run with text.tokenizer words can explain every text"
                )
            stop = start + len(token.strip())
            places.append((origin[start][0], origin[stop - 1][1]))
        return Encoding(encoding.tokens, encoding.ids, places)


def is_from_torchtext(text: str) -> bool:
    """Whether the content of a `tokenizer.json` is what `TorchtextEngine.to_str` gave."""
    return '"pre_tokenizer": {"type": "torchtext/' in text  # in a token, quotes would be escaped


def import_torchtext(setting: str) -> Any:
    """Returns the package, without the warning that it prints when it is imported.

    Args:
        setting: what needs it, for the message.

    Raises:
        ConfigError: it is not installed, or not made for the torch that is.
    """
    try:
        import torchtext

        torchtext.disable_torchtext_deprecation_warning()
        import torchtext.data.utils
        import torchtext.vocab
    except (ImportError, OSError, AttributeError) as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "torchtext"
        found = "is not installed" if is_missing else f"cannot be used with torch {importlib.metadata.version('torch')}"
        raise ConfigError(
            f"{setting} needs torchtext 0.18.0, which {found}; it works with torch 2.3 alone, so make a virtual "
            f"environment with Python 3.11 or 3.12 and run there: pip install 'bilstm-cls[torchtext]'"
        ) from error
    return torchtext


def _splitter(kind: str) -> Callable[[str], list[str]]:
    """Returns torchtext's function from a text to tokens."""
    name, setting = kind.removeprefix(PREFIX), f"text.tokenizer {kind}"
    torchtext, package = import_torchtext(setting), PACKAGES[name]
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{setting} needs the package {package}; run: pip install {package}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where torchtext prints that a package is missing
            split: Callable[[str], list[str]] = torchtext.data.utils.get_tokenizer(None if name == "split" else name)
    except (ImportError, OSError, AttributeError) as error:
        raise ConfigError(f"{setting} cannot be used ({str(error).partition(chr(10))[0]})") from error
    return split


def vectors_file(init: str) -> Path:
    """Returns where torchtext keeps the text file of vectors such as `torchtext/glove.6B.100d`, below this directory.

    Raises:
        DataError: it is not there.
    """
    family, _, name = init.removeprefix(PREFIX).partition(".")
    if family == "glove":
        path = CACHE / f"glove.{name}.txt"
        archive = name if name[0] in "48" else name.rpartition(".")[0]
        url = f"https://nlp.stanford.edu/data/glove.{archive}.zip"
    else:
        path = CACHE / f"wiki.{name.rpartition('.')[0]}.vec"
        url = f"https://dl.fbaipublicfiles.com/fasttext/vectors-wiki/{path.name}"
    if not path.is_file():
        raise DataError(f"{path}: missing; it is from {url}")
    return path
