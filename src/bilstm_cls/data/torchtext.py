"""The tokenizers of torchtext 0.18, which works with torch 2.3 alone (the extra `torchtext`), and its vector files."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from bilstm_cls.errors import ConfigError

PREFIX = "torchtext/"

CUT = "\x1f"  # the mark between tokens that are cut beforehand, which is no part of any token
CACHE = Path(".vector_cache")  # where torchtext keeps vectors, in the working directory


class TorchtextCutter:
    """Puts a mark between the tokens that torchtext gives for a text, which the library's normalizer has changed."""

    def __init__(self, kind: str, normalizer: Any) -> None:
        self._kind, self._normalizer = kind, normalizer
        self._split = _splitter(kind)

    def __call__(self, text: str) -> str:
        """Returns the tokens with marks between them. A mark that the text itself holds becomes a space."""
        return CUT.join(self._split(self._normalizer.normalize_str(text.replace(CUT, " "))))

    def engine(self) -> tokenizers.Tokenizer:
        """Returns a tokenizer of marked texts, without a vocabulary."""
        engine = tokenizers.Tokenizer(tokenizers.models.WordLevel({}, unk_token="<unk>"))  # noqa: S106
        engine.pre_tokenizer = tokenizers.pre_tokenizers.Split(CUT, "removed")
        return engine

    @classmethod
    def from_json(cls, text: str) -> tuple[tokenizers.Tokenizer, "TorchtextCutter"]:
        """Returns a tokenizer of marked texts, and what marks them, from what `to_json` gave; errors as of `_splitter`.

        A damaged text raises `ValueError`, or any other error of the library.
        """
        content = json.loads(text)
        kind, ids = content["pre_tokenizer"]["type"], content["model"]["vocab"]
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError("ids are missing")
        library = tokenizers.Tokenizer.from_str(json.dumps({**content, "pre_tokenizer": None}))
        cutter = cls(kind, library.normalizer)
        engine = cutter.engine()
        engine.model = library.model
        return engine, cutter

    def to_json(self, engine: tokenizers.Tokenizer) -> str:
        """Returns JSON of the form of `tokenizers`, with a pre-tokenizer that only this module knows."""
        changes = {"normalizer": json.loads(self._normalizer.__getstate__()), "pre_tokenizer": {"type": self._kind}}
        return json.dumps({**json.loads(engine.to_str()), **changes}, ensure_ascii=False)


def _splitter(kind: str) -> Callable[[str], list[str]]:
    """Returns torchtext's function from a text to tokens, without what it prints; `ConfigError` where it cannot be."""
    name = kind.removeprefix(PREFIX)
    try:
        import torchtext

        torchtext.disable_torchtext_deprecation_warning()
        import torchtext.data.utils

        with contextlib.redirect_stdout(io.StringIO()):
            split: Callable[[str], list[str]] = torchtext.data.utils.get_tokenizer(None if name == "split" else name)
    except (ImportError, OSError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"text.tokenizer {kind} cannot be used ({str(error).partition(chr(10))[0]}); it needs torch 2.3, so in a "
            f"virtual environment with Python 3.11 or 3.12 run: pip install 'bilstm-cls[torchtext]'"
        ) from error
    return split


def vectors_file(init: str) -> Path:
    """Returns where torchtext, which downloads them, keeps vectors such as `torchtext/glove.6B.100d`."""
    family, _, name = init.removeprefix(PREFIX).partition(".")
    return CACHE / (f"glove.{name}.txt" if family == "glove" else f"wiki.{name.rpartition('.')[0]}.vec")
