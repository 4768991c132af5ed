"""Which columns hold the text and the label: by name, or by position in a file without a header."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bilstm_cls.errors import DataError, cut

_POSITION = re.compile(r"#[1-9][0-9]*")
MAX_SHOWN = 20

LABEL_NAMES = (
    "label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "y", "stars", "star_rating",
    "rating", "score", "polarity", "emotion", "tag", "labelname", "label_name", "label_text", "class_name", "classname",
    "airline_sentiment", "class_index", "klass", "genre", "language", "lang", "is_spam", "spam", "toxic", "output",
)  # fmt: skip
"""What label columns are usually called, the surest first."""
BODY_NAMES = (
    "text", "review", "review_text", "reviewtext", "review_body", "sentence", "content", "body", "comment",
    "comment_text", "message", "tweet", "utterance", "description", "document", "article", "post", "question", "query",
    "question_text", "abstract", "headline", "sms", "phrase", "news", "email", "input", "data",
)  # fmt: skip
"""What text columns are usually called, the surest first."""
TITLE_NAMES = ("title", "subject", "summary", "headline", "review_title", "question_title")
"""What stands above a text."""
NO_LABEL = "the label is empty"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What to take from a file, and how to decode it.

    Attributes:
        text_columns: columns of the text; several are joined by a line feed. With names `#1`, `#2`, ... for all given
            columns, a csv or tsv file has no header, and columns are positions counted from 1.
        label_column: column of the label; None where labels are not wanted, and every label is None then.
        encoding: any text codec, or `auto`.
        keep_record: whether an example's `record` gets all fields of its row in order.
    """

    text_columns: tuple[str, ...] = ("text",)
    label_column: str | None = "label"
    encoding: str = "utf-8"
    keep_record: bool = False

    @property
    def is_headerless(self) -> bool:
        """Whether every given column is a position."""
        names = [*self.text_columns, *([self.label_column] if self.label_column is not None else [])]
        return bool(names) and all(_POSITION.fullmatch(name) for name in names)


@dataclass(frozen=True, slots=True)
class Columns:
    """A table's columns.

    Attributes:
        names: of all columns in order.
        texts: positions of the text columns, from 0.
        label: position of the label column, or None where labels are not wanted.
    """

    names: tuple[str, ...]
    texts: tuple[int, ...]
    label: int | None


def choose_columns(first_row: Sequence[str], options: ReadOptions, where: str) -> Columns:
    """Finds the wanted columns in a table's first row.

    Args:
        first_row: the header, or any row of a file without one.
        options: the wanted columns.
        where: path and line for complaints.

    Raises:
        DataError: a wanted column is not there, or a name is there twice.
    """
    positions = [f"#{number}" for number in range(1, len(first_row) + 1)]
    # A column without a name, such as that of a row index, goes by its position.
    names = [name.strip() or position for name, position in zip(first_row, positions, strict=True)]
    if options.is_headerless:
        names = positions
    elif any("\0" in name for name in names):
        raise DataError(f"{where}: the header holds NUL; if the file is UTF-16, set data.encoding to utf-16-le or auto")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise DataError(f"{where}: column {quoted(repeated[0])} is there twice; rename one")
    require_columns(names, options, where)
    label = options.label_column
    return Columns(
        names=tuple(names),
        texts=tuple(names.index(name) for name in options.text_columns),
        label=None if label is None else names.index(label),
    )


def require_columns(names: Sequence[str], options: ReadOptions, where: str) -> None:
    """Raises a DataError that says which columns there are if a wanted one is not among them."""
    wanted = [(name, "text") for name in options.text_columns]
    wanted += [] if options.label_column is None else [(options.label_column, "label")]
    for name, kind in wanted:
        if name not in names:
            raise DataError(f"{where}: {_no_column(name, kind, names)}")


def _no_column(name: str, kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(quoted, names[:MAX_SHOWN]))
    shown += f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    folded = {known.casefold(): known for known in reversed(names)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    advice = f"did you mean {quoted(folded[near[0]])}?" if near else "name another"
    key = f"data.{kind}_column{'s' * (kind == 'text')} or --{kind}-column"
    return f"no {kind} column {quoted(name)} among {shown}; {advice} ({key})"


def quoted(value: object) -> str:
    """Returns a value by `repr`, cut to fit on a line."""
    return cut(repr(value))
