"""What torchtext 0.18 brings: the tokenizers of `get_tokenizer`, and its GloVe and fastText vectors.

It works with torch 2.3 alone (the extra `torchtext`), so that nothing else imports it.
"""

import contextlib
import html
import importlib.metadata
import importlib.util
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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

_DROPPED = {"basic_english": (r'(?:<br />|[\s;:"])*', '"*')}
"""What a tokenizer leaves out between tokens, and within one; the others leave out `_SPACES`."""
_SPACES = (r"[\s\x00-\x1f]*", "")


@dataclass(frozen=True)
class Encoding:
    """One text: its tokens, their ids and, where they were asked for, their places in the text's characters."""

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
        """The vocabulary."""
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
        dropped, within = _DROPPED.get(self._kind.removeprefix(PREFIX), _SPACES)
        places, position = [], 0
        for token in encoding.tokens:
            # Some tokenizers write & as &amp;, and some keep the space next to a token as a part of it.
            forms = [form for form in (token, html.unescape(token), token.strip()) if form]
            pattern = "|".join(within.join(map(re.escape, form)) for form in forms)
            found = re.compile(f"{dropped}({pattern})").match(searched, position)
            if found is None:
                raise ConfigError(
                    f"{self._kind} gives the token {token!r}, which the text does not contain in this form, so that it "
                    f"cannot be explained; a run with text.tokenizer words can explain every text"
                )
            position = found.end()
            places.append((origin[found.start(1)][0], origin[position - 1][1]))
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
        # What torchtext prints about a missing package would go to the output.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split: Callable[[str], list[str]] = torchtext.data.utils.get_tokenizer(None if name == "split" else name)
    except (ImportError, OSError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        command = "python -m spacy download en_core_web_sm" if name == "spacy" else f"pip install --upgrade {package}"
        raise ConfigError(f"{setting} cannot be used ({reason}); run: {command}") from error
    return split


def torchtext_vectors(init: str) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yields tokens and vectors of torchtext's `GloVe` (Pennington et al. 2014) or `FastText` (Bojanowski et al. 2017),
    from its cache or else by its download.

    Args:
        init: such as `torchtext/glove.6B.100d` or `torchtext/fasttext.en.300d`.

    Raises:
        ConfigError: torchtext cannot be used here.
        DataError: the vectors cannot be downloaded or read.
    """
    import ssl
    import zipfile
    from pickle import UnpicklingError  # what torch raises for a cache that is more than plain tensors
    from unittest import mock

    from bilstm_cls.data.hub import OFFLINE_VARIABLE, is_offline  # not above: a bundle lacks what it needs

    vocab = import_torchtext(f"embedding.init {init}").vocab
    family, *names, dim = init.removeprefix(PREFIX).split(".")
    name = ".".join(names)
    if family == "glove":
        file, make = f"glove.{name}.{dim}.txt", partial(vocab.GloVe, name=name, dim=dim.removesuffix("d"))
    else:
        file, make = f"wiki.{name}.vec", partial(vocab.FastText, language=name)
    is_here = any(path.is_file() for path in (Path(file), CACHE / file, CACHE / f"{file}.pt"))
    if not is_here and is_offline():
        raise DataError(f"{CACHE / file}: missing; put it there, or unset {OFFLINE_VARIABLE} to download it")
    module, verified = vocab.vectors, ssl.create_default_context
    try:
        with (  # it stops verifying certificates, runs what a pickled cache says, and draws bars without a terminal
            mock.patch.multiple(ssl, _create_unverified_context=verified, _create_default_https_context=verified),
            mock.patch.object(module.torch, "load", partial(module.torch.load, weights_only=True)),
            mock.patch.object(module, "tqdm", partial(module.tqdm, disable=None)),
        ):
            vectors = make(cache=str(CACHE))
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{init}: torchtext cannot load it; look for what is damaged in {CACHE} ({reason})") from error
    yield from zip(vectors.itos, vectors.vectors.numpy(), strict=True)
