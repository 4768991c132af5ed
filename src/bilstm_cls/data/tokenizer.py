"""Texts to token ids: how a text is split, and the vocabulary, both in one portable `tokenizer.json`.

The splitting and counting run in the Rust library `tokenizers`, on all cores and without Python per token. What the
JSON says is the whole truth: any program that reads `tokenizers` files gives the same ids from it, but for
`chinese_words`, whose texts are cut beforehand.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from bilstm_cls.data.chinese import CUT, import_rjieba, places_without_cuts, with_cuts
from bilstm_cls.data.torchtext_tokenizer import PACKAGES, PREFIX, TorchtextEngine, is_from_torchtext
from bilstm_cls.errors import CheckpointError, UserError

PADDING, UNKNOWN = "<pad>", "<unk>"
PADDING_ID, UNKNOWN_ID = 0, 1
DEFAULT_BPE_SIZE = 30000

MAX_CHARACTERS = 2**20
MAX_PIECE = 2**18
"""Characters that the library sees at once, and of one text. A word that is longer is several."""

Pipeline = tuple[list[Any], Any]
"""Normalizers in their order, and the pre-tokenizer that cuts the text into tokens."""

_LETTERS = r"[\p{L}\p{M}\p{N}_]"
_WORD = rf"{_LETTERS}+(?:['’]{_LETTERS}+)*"  # don't, l'amour, 90's
_NUMBER = r"\p{N}+(?:[.,:]\p{N}+)+"  # 3.5, 1,000, 9:30
_MARK = r"([^\s\p{L}\p{M}\p{N}_])\1*"  # !!!, ..., one emoji
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}々〆ー]"
_NO_CJK = rf"(?:(?!{_CJK}){_LETTERS})"
# str.lower() gives a capital sigma at the end of a word its own small form; the library's lower-casing does not.
_FINAL_SIGMA = normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς")
_BLANK = re.compile(r"(?<=\w) (?=\w)")
_BREAK = normalizers.Replace(Regex(r"<br\s*/?>"), " ")


def _basic_english() -> Pipeline:
    """What torchtext's `basic_english` gives, token for token: quotes go, seven marks stand alone, `;:` are blanks."""
    replaced = [
        normalizers.Replace('"', ""),
        normalizers.Replace("<br />", " "),
        normalizers.Replace(Regex("[;:]"), " "),
    ]
    blanks = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")
    marks = pre_tokenizers.Split(Regex("['.,()!?]"), "isolated")
    return replaced, pre_tokenizers.Sequence([blanks, marks])


def _words() -> Pipeline:
    return [_BREAK], _matches(rf"{_NUMBER}|{_WORD}|{_MARK}")


def _whitespace() -> Pipeline:
    return [], pre_tokenizers.WhitespaceSplit()


def _characters() -> Pipeline:
    return [_BREAK], _matches(r"\S")


def _cjk() -> Pipeline:
    word = rf"{_NO_CJK}+(?:['’]{_NO_CJK}+)*"
    return [_BREAK], _matches(rf"{_CJK}|{_NUMBER}|{word}|{_MARK}")


def _chinese_words() -> Pipeline:
    normalizer, words = _words()
    return normalizer, pre_tokenizers.Sequence([pre_tokenizers.Split(CUT, "removed"), words])


def _bpe() -> Pipeline:
    return [_BREAK], pre_tokenizers.ByteLevel(add_prefix_space=True)


TOKENIZERS: dict[str, Callable[[], Pipeline]] = {
    "basic_english": _basic_english,
    "words": _words,
    "whitespace": _whitespace,
    "characters": _characters,
    "cjk": _cjk,
    "chinese_words": _chinese_words,
    "bpe": _bpe,
}


def splitters(kind: str) -> dict[str, str]:
    """Returns the installed packages that split texts for this kind of tokenizer, and their versions.

    Another version may split otherwise.
    """
    packages = ["tokenizers"]
    if kind == "chinese_words":
        packages.append("rjieba")
    elif kind.startswith(PREFIX):
        packages += ["torchtext", PACKAGES[kind.removeprefix(PREFIX)] or "torchtext"]
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):  # what needs it says so
            versions[package] = metadata.version(package)
    return versions


class Tokenizer:
    """Splits texts and looks tokens up. `<pad>` has id 0 and `<unk>` id 1, and no text gives id 0."""

    def __init__(self, engine: tokenizers.Tokenizer | TorchtextEngine, *, is_chinese: bool = False) -> None:
        self._engine = engine
        self._whole = _cut if is_chinese else without_surrogates
        self._is_chinese = is_chinese

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        kind: str = "words",
        lowercase: bool = True,
        min_freq: int = 1,
        max_vocab_size: int | None = None,
    ) -> "Tokenizer":
        """Learns the vocabulary of texts: the most frequent tokens, equally frequent ones in alphabetical order.

        Args:
            texts: of the train split only.
            kind: a key of `TOKENIZERS`, or `torchtext/` and a key of `PACKAGES`.
            lowercase: whether `A` and `a` are the same.
            min_freq: times a token must occur.
            max_vocab_size: tokens kept, `<pad>` and `<unk>` included; None keeps all (30,000 for `bpe`).

        Raises:
            ConfigError: the kind is torchtext's, and that cannot be used here, or rjieba is needed and not installed.
        """
        if kind.startswith(PREFIX):
            return cls(
                TorchtextEngine.train(
                    map(without_surrogates, texts),
                    kind=kind,
                    lowercase=lowercase,
                    min_freq=min_freq,
                    max_vocab_size=max_vocab_size,
                    specials=(PADDING, UNKNOWN),
                )
            )
        normalizer, pre_tokenizer = TOKENIZERS[kind]()
        lower = [_FINAL_SIGMA, normalizers.Lowercase()] if lowercase else []
        options: dict[str, Any] = {
            "min_frequency": min_freq,
            "special_tokens": [PADDING, UNKNOWN],
            "show_progress": False,
        }
        if kind == "bpe":
            engine = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN))
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            size = max_vocab_size or DEFAULT_BPE_SIZE
            trainer: Any = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, **options)
        else:
            engine = tokenizers.Tokenizer(models.WordLevel({UNKNOWN: UNKNOWN_ID}, unk_token=UNKNOWN))
            trainer = trainers.WordLevelTrainer(vocab_size=max_vocab_size or 2**31, **options)
        engine.normalizer = normalizers.Sequence([*lower, *normalizer])
        engine.pre_tokenizer = pre_tokenizer
        is_chinese = kind == "chinese_words"
        engine.train_from_iterator(map(_cut if is_chinese else without_surrogates, texts), trainer)
        trained = tokenizers.Tokenizer.from_str(_without_special_tokens(engine.to_str()))
        return cls(trained, is_chinese=is_chinese)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Takes what `to_json` gave.

        Raises:
            ConfigError: it is torchtext's, and that cannot be used here, or rjieba is needed and not installed.
            ValueError: it is no tokenizer of this program.
        """
        try:
            engine = TorchtextEngine.from_str(text) if is_from_torchtext(text) else tokenizers.Tokenizer.from_str(text)
        except UserError:
            raise
        except Exception as error:
            raise ValueError(f"not a tokenizer: {error}") from error
        if (engine.token_to_id(PADDING), engine.token_to_id(UNKNOWN)) != (PADDING_ID, UNKNOWN_ID):
            raise ValueError(f"{PADDING} must have id {PADDING_ID} and {UNKNOWN} id {UNKNOWN_ID}")
        is_chinese = _is_chinese(engine)
        if is_chinese:
            import_rjieba()  # now and not at the first text
        return cls(engine, is_chinese=is_chinese)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a `tokenizer.json`.

        Raises:
            CheckpointError: it is missing or damaged.
            ConfigError: it is torchtext's, and that cannot be used here, or rjieba is needed and not installed.
        """
        try:
            return cls.from_json(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: file is missing") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error

    def to_json(self) -> str:
        """Returns the content of `tokenizer.json`."""
        return str(self._engine.to_str())

    def __len__(self) -> int:
        return int(self._engine.get_vocab_size())

    @property
    def tokens(self) -> list[str]:
        """All tokens by id."""
        ids = self._engine.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of every text, on all cores; a text without tokens has none.

        The library holds some 300 bytes a token until it has answered, so it gets `MAX_CHARACTERS` at once and no more.
        """
        ids: list[list[int]] = [[] for _ in texts]
        for group in _groups(map(self._whole, texts)):
            encodings: list[Any] = self._engine.encode_batch_fast([piece for _, piece in group])
            for (place, _), encoding in zip(group, encodings, strict=True):
                ids[place] += _without_padding(encoding.ids)
        return ids

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of one text and, for each, where it begins and ends in the text's characters.

        Raises:
            ConfigError: a tokenizer of torchtext gave a token that does not stand in the text as it is.
        """
        whole = self._whole(text)
        encoding = self._engine.encode(whole)
        offsets: list[tuple[int, int]] = encoding.offsets
        if self._is_chinese:
            places = places_without_cuts(whole)
            offsets = [(places[start], places[stop]) for start, stop in offsets]
        return _without_padding(encoding.ids), offsets


def without_surrogates(text: str) -> str:
    """Returns the text with every half of a character replaced by `?`: UTF-8 has no bytes for them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str) -> str:
    return with_cuts(without_surrogates(text))


def _is_chinese(engine: tokenizers.Tokenizer | TorchtextEngine) -> bool:
    given, own = getattr(engine, "pre_tokenizer", None), _chinese_words()[1]
    return given is not None and bool(given.__getstate__() == own.__getstate__())


def _groups(texts: Iterable[str]) -> Iterator[list[tuple[int, str]]]:
    """Yields pieces of texts, each with the place of its text, as many together as the library is to see at once."""
    group: list[tuple[int, str]] = []
    room = MAX_CHARACTERS
    for place, text in enumerate(texts):
        for piece in _pieces(text) if len(text) > MAX_PIECE else (text,):
            if len(piece) > room and group:
                yield group
                group, room = [], MAX_CHARACTERS
            group.append((place, piece))
            room -= len(piece)
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    """Cuts a very long text before blanks between words, which no token spans; anywhere where there is none."""
    start = 0
    while len(text) - start > MAX_PIECE:
        blank = stop = start + MAX_PIECE
        while blank > start and not _BLANK.match(text, blank):
            blank = max(start, text.rfind(" ", start, blank))
        stop = blank if blank > start else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def _without_padding(ids: list[int]) -> list[int]:
    """A text that spells `<pad>` out has an unknown token there."""
    return [token_id or UNKNOWN_ID for token_id in ids] if PADDING_ID in ids else ids


def _matches(pattern: str) -> Any:
    """A pre-tokenizer whose tokens are the matches of a pattern; what lies between them is dropped."""
    return pre_tokenizers.Split(Regex(pattern), "removed", invert=True)


def _without_special_tokens(text: str) -> str:
    """Takes away the rule that `<pad>` or `<unk>` inside a text stands for the token of that name.

    A text that spells them out also moves them from their places, where the vocabulary is counted: back they go.
    """
    content = json.loads(text)
    content["added_tokens"] = []
    ids: dict[str, int] = content["model"]["vocab"]
    tokens = sorted(ids, key=lambda token: (token not in (PADDING, UNKNOWN), token == UNKNOWN, ids[token]))
    content["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    return json.dumps(content, ensure_ascii=False)
