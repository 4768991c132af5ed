"""Tokenizers and vocabulary of torchtext, in the place of those of the library `tokenizers`.

The last torchtext, 0.18.0, works with torch 2.3 alone, so it lives in an environment of its own: the extra `torchtext`.
No other module imports it.
"""

import contextlib
import html
import importlib.metadata
import importlib.util
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bilstm_cls.errors import ConfigError

PREFIX = "torchtext/"

PACKAGES: dict[str, str | None] = {
    "split": None,
    "basic_english": None,
    "toktok": "nltk",
    "moses": "sacremoses",
    "spacy": "spacy",
    "revtok": "revtok",
    "subword": "revtok",
}
"""Tokenizers of `torchtext.data.utils.get_tokenizer`, and the package that each needs besides."""

_HEAD = '{"version": "1.0", "pre_tokenizer": {"type": "torchtext/'

_DROPPED = {"basic_english": (r'(?:<br />|[\s;:"])*', '"*')}
"""What a tokenizer leaves out between tokens, and within one; the others leave out `_BLANKS`."""
_BLANKS = (r"[\s\x00-\x1f]*", "")


@dataclass(frozen=True)
class Encoding:
    """One text: its ids and, where they were asked for, the places of its tokens in the text's characters."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class TorchtextEngine:
    """Stands where `Tokenizer` has an engine of the library `tokenizers`, and answers to the same names."""

    def __init__(self, kind: str, vocab: Any, *, lowercase: bool) -> None:
        self._kind = kind
        self._vocab = vocab
        self._lowercase = lowercase
        self._split = _splitter(kind)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        kind: str,
        lowercase: bool,
        min_freq: int,
        max_vocab_size: int | None,
        specials: Sequence[str],
    ) -> "TorchtextEngine":
        """Learns the vocabulary by `build_vocab_from_iterator`; the last of the specials stands for unknown tokens.

        Raises:
            ConfigError: torchtext, or the package that its tokenizer needs, cannot be used here.
        """
        split = _splitter(kind)
        vocab = import_torchtext(_setting(kind)).vocab.build_vocab_from_iterator(
            (split(text.lower() if lowercase else text) for text in texts),
            min_freq=min_freq,
            specials=list(specials),
            max_tokens=max_vocab_size,
        )
        vocab.set_default_index(len(specials) - 1)
        return cls(kind, vocab, lowercase=lowercase)

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
        vocab = import_torchtext(_setting(kind)).vocab.vocab(dict.fromkeys(sorted(ids, key=ids.__getitem__), 1))
        vocab.set_default_index(ids[content["model"]["unk_token"]])
        return cls(kind, vocab, lowercase=content["normalizer"] is not None)

    def to_str(self) -> str:
        """Returns JSON of the same form as that of `tokenizers`, with a pre-tokenizer that only this module knows."""
        tokens = self._vocab.get_itos()
        content = {
            "version": "1.0",
            "pre_tokenizer": {"type": self._kind},
            "normalizer": {"type": "Lowercase"} if self._lowercase else None,
            "model": {
                "type": "WordLevel",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "unk_token": tokens[self._vocab.get_default_index()],
            },
        }
        return json.dumps(content, ensure_ascii=False)

    def get_vocab_size(self) -> int:
        return len(self._vocab)

    def get_vocab(self) -> Mapping[str, int]:
        ids: Mapping[str, int] = self._vocab.get_stoi()
        return ids

    def token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def encode_batch_fast(self, texts: Sequence[str]) -> list[Encoding]:
        return [Encoding(self._vocab.lookup_indices(self._tokens(text)), []) for text in texts]

    def encode(self, text: str) -> Encoding:
        """Also finds the tokens in the text, which torchtext itself does not tell.

        Raises:
            ConfigError: a token does not stand in the text as it is, so that its place cannot be known.
        """
        tokens = self._tokens(text)
        return Encoding(self._vocab.lookup_indices(tokens), self._places(text, tokens))

    def _tokens(self, text: str) -> list[str]:
        return self._split(text.lower() if self._lowercase else text)

    def _places(self, text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
        """Finds each token behind the one before it; between them stands nothing but what the tokenizer drops."""
        searched = text.lower() if self._lowercase else text
        origin = [i for i, c in enumerate(text) for _ in (c.lower() if self._lowercase else c)]
        dropped, within = _DROPPED.get(self._kind.removeprefix(PREFIX), _BLANKS)
        places, position = [], 0
        for token in tokens:
            # Some tokenizers write & as &amp;, and some keep the blank beside a token as a part of it.
            forms = [form for form in (token, html.unescape(token), token.strip()) if form]
            pattern = "|".join(within.join(map(re.escape, form)) for form in forms)
            found = re.compile(f"{dropped}({pattern})").match(searched, position)
            if found is None:
                raise ConfigError(
                    f"{self._kind} gives the token {token!r}, which does not stand so in the text, so that the text "
                    f"cannot be explained; a run with text.tokenizer words can explain every text"
                )
            position = found.end()
            places.append((origin[found.start(1)], origin[position - 1] + 1))
        return places


def is_from_torchtext(text: str) -> bool:
    """Whether the content of a `tokenizer.json` is what `TorchtextEngine.to_str` gave."""
    return text.startswith(_HEAD)


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
    name = kind.removeprefix(PREFIX)
    torchtext, package = import_torchtext(_setting(kind)), PACKAGES[name]
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{_setting(kind)} needs the package {package}; run: pip install {package}")
    try:
        # What torchtext prints about a missing package would go to the output.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split: Callable[[str], list[str]] = torchtext.data.utils.get_tokenizer(None if name == "split" else name)
    except (ImportError, OSError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        command = "python -m spacy download en_core_web_sm" if name == "spacy" else f"pip install --upgrade {package}"
        raise ConfigError(f"{_setting(kind)} cannot be used ({reason}); run: {command}") from error
    return split


def _setting(kind: str) -> str:
    return f"text.tokenizer {kind}"
