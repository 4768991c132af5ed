"""What a look at a file shows, and the config that suits it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilstm_cls.config_file import dump_yaml
from bilstm_cls.errors import DataError, cut

MAX_LENGTH = 400
MAX_ROWS_FOR_BASELINES = 50_000
"""Above it they take minutes."""
IMBALANCE = 3.0
"""The most frequent label's count by the rarest's, above which labels are weighted."""


@dataclass(frozen=True)
class Sniffed:
    """What a look at a file shows.

    Attributes:
        format: a key of `READERS`.
        encoding: the codec.
        text_columns: given or guessed; empty for formats without columns.
        label_column: given or guessed; None for formats without columns.
        labels: how often each label came up, the most frequent first.
        rows: rows looked at that can be read.
        num_rows: rows in the whole file; estimated unless `is_whole`.
        is_whole: whether the look went to the end.
        num_bad_rows: rows looked at that cannot be read.
        first_bad_row: the first of them, in words.
        median_characters: the length of the middle text.
        longest_characters: the length of the longest text.
        is_cjk: whether Chinese, Japanese and Korean letters prevail, so that each is better a token of its own.
        num_tokens: of some texts, roughly, in ascending order: characters where `is_cjk`, else words.
    """

    format: str
    encoding: str
    text_columns: tuple[str, ...]
    label_column: str | None
    labels: dict[str, int]
    rows: int
    num_rows: int
    is_whole: bool
    num_bad_rows: int
    first_bad_row: str | None
    median_characters: int
    longest_characters: int
    is_cjk: bool
    num_tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Size:
    """Settings for data of up to so many rows."""

    max_rows: float
    held_out: float
    min_freq: int
    batch_size: int
    epochs: int
    patience: int


_SIZES = (
    _Size(200, 0.2, 1, 8, 30, 5),
    _Size(1_000, 0.1, 1, 16, 30, 5),
    _Size(5_000, 0.1, 1, 32, 15, 3),
    _Size(50_000, 0.1, 2, 64, 8, 2),
    _Size(200_000, 0.1, 2, 64, 5, 2),
    _Size(1_000_000, 0.05, 2, 128, 3, 2),
    _Size(float("inf"), 0.01, 3, 256, 2, 2),
)


def starter_config(found: Sniffed, path: Path) -> str:
    """Returns a commented config that trains on a file as it is, with settings that suit its size and texts.

    Raises:
        DataError: the path cannot be written in a config.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: cannot be written in a config; rename it in UTF-8") from None
    size = next(size for size in _SIZES if found.num_rows <= size.max_rows)
    sections = (_heading(found, path), _data(found, path, size), _text(found, size), _train(found, size))
    return "\n".join(line for section in sections for line in section) + "\n"


def _heading(found: Sniffed, path: Path) -> Iterator[str]:
    yield f"# A classifier for the texts of {cut(str(path))}."
    yield "# Train it: bilstm-cls train -c THIS_FILE    All keys: bilstm-cls config show -c THIS_FILE"
    rows = f"{found.rows:,} rows" if found.is_whole else f"{found.rows:,} of about {found.num_rows:,} rows"
    yield f"# Seen in {rows}: {len(found.labels)} labels; half of the texts are longer than"
    yield f"# {found.median_characters:,} characters, the longest has {found.longest_characters:,}."
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip(".-")[:80]
    yield f"name: {_yaml(name or 'run')}"
    yield "seed: 1"


def _data(found: Sniffed, path: Path, size: _Size) -> Iterator[str]:
    yield ""
    yield "data:"
    yield f"  train: {_yaml(str(path))}"
    yield f"  format: {found.format}"
    if found.label_column is not None:
        yield f"  text_columns: {_yaml(list(found.text_columns))}{'  # joined' * (len(found.text_columns) > 1)}"
        yield f"  label_column: {_yaml(found.label_column)}"
    yield f"  # {_labels_in_words(found)}"
    yield f"  encoding: {_yaml(found.encoding)}"
    if found.first_bad_row is not None:
        yield f"  # {found.num_bad_rows:,} of the rows seen cannot be read: mend them, or skip them. The first is"
        yield f"  # {_in_comment(found.first_bad_row)}"
    yield "  bad_rows: error  # or skip, which counts them"
    yield f"  valid: {size.held_out:g}  # of train, to choose the best epoch by; or a file"
    yield f"  test: {size.held_out:g}  # of train, judged once at the end; or a file, or null"


def _text(found: Sniffed, size: _Size) -> Iterator[str]:
    length = _max_length(found.num_tokens)
    share = sum(tokens > length for tokens in found.num_tokens) / len(found.num_tokens)
    kind = "cjk" if found.is_cjk else "words"
    yield ""
    yield "text:"
    yield f"  tokenizer: {kind}"
    yield "  lowercase: true"
    yield f"  min_freq: {size.min_freq}"
    yield "  max_vocab_size: 30000"
    yield f"  max_length: {length}  # tokens; {f'about {share:.1%} of the texts are cut' if share else 'all texts fit'}"


def _train(found: Sniffed, size: _Size) -> Iterator[str]:
    yield ""
    yield "embedding: {init: ppmi, dim: 100}  # or random, glove-6b-50d (English, dim 50), or a vectors file"
    yield "model: {hidden_size: 128, pooling: mean, dropout: 0.5}"
    yield ""
    yield "train:"
    yield f"  epochs: {size.epochs}"
    yield f"  batch_size: {size.batch_size}"
    yield "  learning_rate: 1e-3"
    yield f"  patience: {size.patience}  # epochs without a better score before stopping"
    if found.num_rows <= MAX_ROWS_FOR_BASELINES:
        yield "  baselines: true  # also judge two linear models, which this one has to beat"
    imbalance = max(found.labels.values()) / min(found.labels.values())
    if imbalance > IMBALANCE:
        yield f"  class_weights: balanced  # the most frequent label is {imbalance:.1f} times as frequent as the rarest"
        yield "  select_by: valid/macro_f1"


def _labels_in_words(found: Sniffed) -> str:
    total = sum(found.labels.values())
    shown = [f"{_in_comment(label)} {count / total:.1%}" for label, count in list(found.labels.items())[:8]]
    more = f" and {len(found.labels) - 8} more" if len(found.labels) > 8 else ""
    one = "; one label alone cannot be learned" if len(found.labels) == 1 else ""
    return f"Labels: {', '.join(shown)}{more}{one}."


def _max_length(num_tokens: tuple[int, ...]) -> int:
    """Returns a round number of tokens that few texts exceed; all fit where the longest is not much longer."""
    most, longest = num_tokens[int(0.98 * (len(num_tokens) - 1))], num_tokens[-1]
    length = longest if longest <= 1.5 * most else most
    step = 10 if length <= 100 else 50
    return min(MAX_LENGTH, max(20, -(-length // step) * step))


def _yaml(value: Any) -> str:
    """Returns a value as YAML on one line."""
    return dump_yaml([value]).strip()[1:-1]


def _in_comment(text: str) -> str:
    """Returns a text without line breaks and whatever else YAML does not take in a comment."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
