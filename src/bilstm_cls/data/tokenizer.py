"""Texts to token ids: how a text is split, and the vocabulary, both in one portable `tokenizer.json`.

The splitting runs in the Rust library `tokenizers`, on all cores. What the JSON says is the whole truth: any program
that reads `tokenizers` files gives the same ids from it, but for torchtext's tokenizers, which cut texts beforehand.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from bilstm_cls.data.torchtext import CUT, PREFIX, TorchtextCutter
from bilstm_cls.errors import CheckpointError, ConfigError, UserError

PADDING, UNKNOWN = "<pad>", "<unk>"
PADDING_ID, UNKNOWN_ID = 0, 1
DEFAULT_BPE_SIZE = 30000

MAX_CHARACTERS, MAX_PIECE = 2**20, 2**18  # that the library sees at once, and of one text
Cutter = Callable[[str], str]  # what a text goes through before: mostly `str`, which leaves it as it is

_LETTERS = r"[\p{L}\p{M}\p{N}_]"
_WORD = rf"{_LETTERS}+(?:['’]{_LETTERS}+)*"  # don't, l'amour, 90's
_NUMBER = r"\p{N}+(?:[.,:]\p{N}+)+"  # 3.5, 1,000, 9:30
_MARK = r"([^\s\p{L}\p{M}\p{N}_])\1*"  # !!!, ..., one emoji
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}々〆ー]"
_NO_CJK = rf"(?:(?!{_CJK}){_LETTERS})"
# str.lower() gives a capital sigma at the end of a word another small form; the library's lower-casing does not.
_FINAL_SIGMA = normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς")
_BETWEEN_TOKENS = re.compile(rf"{CUT}|(?<=\w) (?=\w)")
_BREAK = normalizers.Replace(Regex(r"<br\s*/?>"), " ")

_FORMS: dict[str, list[Any]] = {"none": [], "nfc": [normalizers.NFC()], "nfkc": [normalizers.NFKC()]}
_ENTITIES = {"&nbsp;": " ", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#0*39;|&apos;": "'", "&amp;": "&"}
_HTML = [
    normalizers.Replace(Regex(r"(?i)<(script|style)\b[^>]*>(?:(?!<\1\b)[\s\S])*?</\1\s*>"), " "),
    normalizers.Replace(Regex(r"<[/!]?[A-Za-z-][^<>]*>"), " "),
    *(normalizers.Replace(Regex(entity), character) for entity, character in _ENTITIES.items()),
]


def _matches(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "removed", invert=True)  # what lies between them


# What torchtext's `basic_english` gives, token for token: quotes go, seven marks are separate, `;:` are spaces.
_SPACES = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")
_BASIC_ENGLISH = (
    [normalizers.Replace('"', ""), normalizers.Replace("<br />", " "), normalizers.Replace(Regex("[;:]"), " ")],
    pre_tokenizers.Sequence([_SPACES, pre_tokenizers.Split(Regex("['.,()!?]"), "isolated")]),
)

TOKENIZERS: dict[str, tuple[list[Any], Any]] = {
    "basic_english": _BASIC_ENGLISH,
    "words": ([_BREAK], _matches(rf"{_NUMBER}|{_WORD}|{_MARK}")),
    "whitespace": ([], pre_tokenizers.WhitespaceSplit()),
    "characters": ([_BREAK], _matches(r"\S")),
    "cjk": ([_BREAK], _matches(rf"{_CJK}|{_NUMBER}|{_NO_CJK}+(?:['’]{_NO_CJK}+)*|{_MARK}")),
    "bpe": ([_BREAK], pre_tokenizers.ByteLevel(add_prefix_space=True)),
}
"""Normalizers in their order, and the pre-tokenizer that cuts a text into tokens."""


class Tokenizer:
    """Splits texts and looks tokens up. `<pad>` has id 0 and `<unk>` id 1, and no text gives id 0."""

    def __init__(self, engine: tokenizers.Tokenizer, cutter: Cutter) -> None:
        self._engine, self._cutter = engine, cutter

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        kind: str = "words",
        lowercase: bool = True,
        normalize: str = "none",
        strip_html: bool = False,
        min_freq: int = 1,
        max_vocab_size: int | None = None,
    ) -> "Tokenizer":
        """Learns the vocabulary of texts: the most frequent tokens, equally frequent ones in alphabetical order.

        `kind` is a key of `TOKENIZERS`, or `torchtext/` and a name that its `get_tokenizer` knows. The others are keys
        of the config; without a `max_vocab_size`, which `<pad>` and `<unk>` count to, all tokens are kept (30,000 for
        `bpe`). `ConfigError` where torchtext cannot be used.
        """
        engine, cutter = _engine(kind, lowercase, normalize, strip_html)
        pieces = (piece for text in texts for piece in _pieces(cutter(without_surrogates(text))))
        if kind == "bpe":
            return cls(_train_bpe(pieces, engine, min_freq, max_vocab_size or DEFAULT_BPE_SIZE), cutter)
        trainer = trainers.WordLevelTrainer(
            vocab_size=max_vocab_size or 10**9, min_frequency=min_freq, special_tokens=[], show_progress=False
        )
        engine.train_from_iterator(pieces, trainer)
        ids = engine.get_vocab()
        tokens = [token for token in sorted(ids, key=ids.__getitem__) if token not in (PADDING, UNKNOWN)]
        vocab = {token: i for i, token in enumerate([PADDING, UNKNOWN, *tokens][:max_vocab_size])}
        engine.model = models.WordLevel(vocab, unk_token=UNKNOWN)
        return cls(engine, cutter)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Takes what `to_json` gave, or raises `ValueError`, or `ConfigError` where torchtext cannot be used."""
        cutter: Cutter = str
        try:
            if f'"pre_tokenizer": {{"type": "{PREFIX}' in text:  # in a token, quotes would be escaped
                engine, cutter = TorchtextCutter.from_json(text)
            else:
                engine = tokenizers.Tokenizer.from_str(text)
        except UserError:
            raise
        except Exception as error:
            raise ValueError(f"not a tokenizer: {error}") from error
        if (engine.token_to_id(PADDING), engine.token_to_id(UNKNOWN)) != (PADDING_ID, UNKNOWN_ID):
            raise ValueError(f"{PADDING} must have id {PADDING_ID} and {UNKNOWN} id {UNKNOWN_ID}")
        return cls(engine, cutter)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a `tokenizer.json`, or raises `CheckpointError` where it is missing or damaged, or as `from_json`."""
        try:
            return cls.from_json(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: missing or damaged, it cannot be read ({error})") from error

    def to_json(self) -> str:
        cutter, engine = self._cutter, self._engine
        return cutter.to_json(engine) if isinstance(cutter, TorchtextCutter) else engine.to_str()

    def __len__(self) -> int:
        return int(self._engine.get_vocab_size())

    @property
    def tokens(self) -> list[str]:
        """All tokens by id."""
        ids = self._engine.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def with_words(self, words: Iterable[str], max_vocab_size: int | None) -> "Tokenizer":
        """Returns a tokenizer that also knows those of more words that are a token, as long as there is room."""
        engine = self._engine
        if not isinstance(engine.model, models.WordLevel):
            return self
        found = (engine.pre_tokenizer.pre_tokenize_str(engine.normalizer.normalize_str(word)) for word in words)
        vocab = engine.get_vocab()
        for token in (pieces[0][0] for pieces in found if len(pieces) == 1):
            if max_vocab_size is None or len(vocab) < max_vocab_size:
                vocab.setdefault(token, len(vocab))
        content = json.loads(self.to_json())
        content["model"]["vocab"] = vocab
        return Tokenizer.from_json(json.dumps(content, ensure_ascii=False))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of every text, on all cores; a text without tokens has none.

        The library holds some 300 bytes a token until it has answered, so it gets about `MAX_CHARACTERS` at once.
        """
        ids: list[list[int]] = []
        group: list[tuple[list[int], str]] = []  # pieces, each with the ids of its text
        room = MAX_CHARACTERS
        for text in texts:
            ids.append([])
            for piece in _pieces(self._cutter(without_surrogates(text))):
                group.append((ids[-1], piece))
                room -= len(piece)
                if room < 0:
                    self._encode(group)
                    room = MAX_CHARACTERS
        self._encode(group)
        return ids

    def _encode(self, group: list[tuple[list[int], str]]) -> None:
        encodings = self._engine.encode_batch_fast([piece for _, piece in group])
        for (ids, _), encoding in zip(group, encodings, strict=True):
            ids += _without_padding(encoding.ids)
        group.clear()

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of one text and, for each, where it begins and ends in the text's characters.

        `ConfigError` where the tokens are torchtext's, which does not say where they are.
        """
        if isinstance(self._cutter, TorchtextCutter):
            raise ConfigError("torchtext does not say where its tokens are; explain a run with text.tokenizer words")
        encoding = self._engine.encode(without_surrogates(text))
        return _without_padding(encoding.ids), encoding.offsets


def _engine(kind: str, lowercase: bool, normalize: str, strip_html: bool) -> tuple[tokenizers.Tokenizer, Cutter]:
    """Returns a tokenizer of the library without a vocabulary, and what its texts go through before."""
    first = [*_FORMS[normalize], *(_HTML if strip_html else [])]
    first += [_FINAL_SIGMA, normalizers.Lowercase()] if lowercase else []
    if kind.startswith(PREFIX):
        cutter = TorchtextCutter(kind, normalizers.Sequence(first))
        return cutter.engine(), cutter
    changes, pre_tokenizer = TOKENIZERS[kind]
    engine = tokenizers.Tokenizer(models.WordLevel({UNKNOWN: UNKNOWN_ID}, unk_token=UNKNOWN))
    engine.normalizer = normalizers.Sequence([*first, *changes])
    engine.pre_tokenizer = pre_tokenizer
    return engine, str


def _train_bpe(texts: Iterable[str], engine: tokenizers.Tokenizer, min_freq: int, size: int) -> tokenizers.Tokenizer:
    engine.model = models.BPE(unk_token=UNKNOWN)
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=min_freq, special_tokens=[PADDING, UNKNOWN], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator(texts, trainer)
    content = json.loads(engine.to_str())
    content["added_tokens"] = []  # or `<pad>` inside a text would be the token of that name
    return tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def without_surrogates(text: str) -> str:
    """Returns the text with every lone surrogate replaced by `?`: UTF-8 has no bytes for them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _pieces(text: str) -> Iterator[str]:
    """Cuts a very long text where no token is cut: at a mark, or before a space between words; else anywhere."""
    start = 0
    while len(text) - start > MAX_PIECE:
        places = _BETWEEN_TOKENS.finditer(text, start + 1, start + MAX_PIECE + 2)
        stop = max((place.start() for place in places), default=start + MAX_PIECE)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _without_padding(ids: list[int]) -> list[int]:
    """A text that spells `<pad>` out has an unknown token there."""
    return [token_id or UNKNOWN_ID for token_id in ids] if PADDING_ID in ids else ids
