"""Delimited tables: how a file is written, which columns hold text and label, and its rows."""

import contextlib
import csv
import functools
import itertools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bilstm_cls.data.encoding import TextLines
from bilstm_cls.data.types import BLANK_LINE, BadRow, Example, SkippedLines, WrongValueError, label_of
from bilstm_cls.errors import DataError, shown

DELIMITERS = (" ::: ", ":::", "_!_", "|||", "::", "||", "\t", ";", "|", ",")
"""Of those that fit equally well the first, as the last are found in texts too."""
SAMPLE_LINES = 1000
SAMPLE_CHARACTERS = 2**20
MAX_PREAMBLE = 20
MAX_SHOWN = 20
NONE = "none"  # in a config: there is no such character; null leaves it to be found

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?')
_POSITION = re.compile(r"#[1-9][0-9]*")
_COMMENT = re.compile(r"#(\W|$)")  # a hashtag is text
_QUOTED = re.compile(r"""\s*(["']).*\1\s*""", re.DOTALL)
_ONE_CHARACTER = "\x1f"  # in the place of a delimiter of several, which the csv module does not know

Rows = Iterator[Example | BadRow]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written. None is to be found, `none` is no such character; once found, that is empty.

    `skip_lines` are before the header or first row; a `comment` begins a line that is no row; with `skip_spaces` a
    field begins after the spaces that follow a delimiter.
    """

    delimiter: str | None = None
    quotechar: str | None = None
    escapechar: str | None = None
    skip_lines: int | None = None
    comment: str | None = None
    skip_spaces: bool = False

    def unusual(self, format: str) -> dict[str, Any]:
        """Returns what files of the format do not usually have, as keys of `data.csv`."""
        marks = ("\t", "") if format == "tsv" else (",", '"')
        usual = asdict(Dialect(*marks, "", 0, "", self.skip_spaces))
        return {key: NONE if value == "" else value for key, value in asdict(self).items() if value != usual[key]}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What to take from a file, and how to decode it.

    With names `#1`, `#2`, ... for all given columns, a csv or tsv file has no header, and columns are positions counted
    from 1.
    """

    text_columns: tuple[str, ...] = ("text",)  # several are joined by a line feed
    label_column: str | Sequence[str] | None = "label"  # or columns of 1 and 0; None where labels are not wanted
    encoding: str = "utf-8"  # any text codec, or `auto`
    keep_record: bool = False  # whether an example's `record` gets all fields of its row in order
    csv: Dialect = Dialect()  # as far as it is known
    label_names: Mapping[str, str] | None = None  # of `read_label_names`, where labels are numbers of names
    separator: str | None = None  # between labels in one value where a text may have several; None where it has one

    @property
    def label_columns(self) -> tuple[str, ...]:
        column = self.label_column
        return () if column is None else (column,) if isinstance(column, str) else tuple(column)

    @property
    def wanted(self) -> tuple[str, ...]:
        return (*self.text_columns, *self.label_columns)

    @property
    def is_headerless(self) -> bool:
        """Whether every given column is a position."""
        return bool(self.wanted) and all(_POSITION.fullmatch(name) for name in self.wanted)


def find_dialect(
    sample: Sequence[str], given: Dialect, wanted: Sequence[str], *, is_tsv: bool
) -> tuple[Dialect, list[list[str]]]:
    """Finds what is not given: of all dialects tried, the one under which most lines of a sample are good rows.

    With `wanted`, the header is known to have these columns; of a tsv, quotes are characters like others as far as the
    sample allows. Also returns the rows of the sample that the dialect can read.
    """
    none: dict[str, Any] = {key: "" for key, value in asdict(given).items() if value == NONE}
    given = replace(given, **none)
    separator = _SEPARATOR_LINE.fullmatch(sample[0]) if sample and given.skip_lines is None else None
    start = given.skip_lines or (1 if separator else 0)
    known = given.delimiter or (separator[1] if separator else "\t" if is_tsv else None)
    rest, delimiters = "".join(sample), []
    for delimiter in DELIMITERS:  # what is only found within longer ones is none
        delimiters += [delimiter] if delimiter in rest or delimiter == "," else []
        rest = rest.replace(delimiter, "\n")
    trials = (
        Dialect(delimiter, quotechar, escapechar, start, given.comment or "", skip_spaces)
        for skip_spaces in (False, True)
        for delimiter in ([known] if known else delimiters)
        for quotechar in ([given.quotechar] if given.quotechar is not None else _quotechars(sample, delimiter, is_tsv))
        for escapechar in (["", "\\"] if given.escapechar is None else [given.escapechar])
    )
    best = max(trials, key=functools.partial(_score, sample[start:], {*wanted}))
    rows = {start + at: row for at, _, row in _sample_rows(sample[start:], best)}
    width = _usual_width(map(len, rows.values()))
    comments = [at for at, row in rows.items() if _COMMENT.match(row[0])]
    if given.comment is None and 2 * sum(len(rows[at]) != width for at in comments) >= max(1, len(comments)):
        best = replace(best, comment="# ")
    rows = {at: row for at, row in rows.items() if not best.comment or not row[0].startswith(best.comment)}
    if given.skip_lines is None and rows and not _score(sample[start:], {*wanted}, best)[0]:
        widths = [num_filled(row) for row in rows.values()]
        width = _usual_width(widths) if 2 * widths.count(_usual_width(widths)) > len(widths) else 0
        # A title is narrower than the table, or filled up with empty fields by a spreadsheet.
        heads = itertools.islice(rows.items(), MAX_PREAMBLE)
        head = next((at for at, row in heads if len(row) >= width and 2 * num_filled(row) > width), start)
        best = replace(best, skip_lines=head if head != next(iter(rows)) else start)
    return best, [row for at, row in rows.items() if at >= (best.skip_lines or 0)]


def _usual_width(widths: Iterable[int]) -> int:
    counts = Counter(widths)
    return max(counts, key=lambda width: (counts[width] if width > 1 else 0, width), default=0)


def num_filled(row: Sequence[str]) -> int:
    """Returns the number of fields before an empty end."""
    return max((position for position, cell in enumerate(row, 1) if cell.strip()), default=0)


def _quotechars(lines: Sequence[str], delimiter: str, is_tsv: bool) -> list[str]:
    usual = ["", '"'] if is_tsv else ['"', ""] if delimiter == "\t" or len(delimiter) > 1 else ['"']
    num_single = sum(line.startswith("'") or f"{delimiter}'" in line for line in lines)
    return [*usual, "'"] if 2 * num_single > len(lines) else usual


def _score(lines: Sequence[str], wanted: set[str], dialect: Dialect) -> tuple[bool, int, bool]:
    """Returns how well a dialect fits: whether the first row holds the wanted names, and the lines of good rows.

    These have the usual width and no quotes left around a field. Where there are none, commas are meant.
    """
    rows = list(_sample_rows(lines, dialect))
    width = _usual_width(len(row) for _, _, row in rows)
    has_wanted = bool(wanted and rows) and wanted <= {cell.strip().strip('"') for cell in rows[0][2]}
    good = sum(num for at, num, row in rows if len(row) == width > 1 and not _has_quotes(row, lines[at], dialect))
    good = 0 if has_wanted and len(rows[0][2]) != width else good
    return has_wanted, good, not good and dialect.delimiter == ","


def _has_quotes(row: Sequence[str], line: str, dialect: Dialect) -> bool:
    """Whether quotes around a field are left; those within others are text, as in `"'so'"`."""
    return any(map(_QUOTED.fullmatch, {*row}.intersection(line.rstrip("\r\n").split(dialect.delimiter))))


def _sample_rows(lines: Sequence[str], dialect: Dialect) -> Iterator[tuple[int, int, list[str]]]:
    """Yields place, lines and fields of a record; the next begins on the next line after one against the grammar."""
    reader = _reader(lines, dialect)
    while reader.line_num < len(lines):
        before = reader.line_num
        with contextlib.suppress(csv.Error):
            if row := next(reader):
                yield before, reader.line_num - before, row


def _reader(lines: Iterable[str], dialect: Dialect) -> Any:
    delimiter = dialect.delimiter or ","
    if len(delimiter) > 1:
        lines, delimiter = map(operator.methodcaller("replace", delimiter, _ONE_CHARACTER), lines), _ONE_CHARACTER
    return csv.reader(
        lines,
        delimiter=delimiter,
        quotechar=dialect.quotechar or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quotechar else csv.QUOTE_NONE,
        escapechar=dialect.escapechar or None,
        skipinitialspace=dialect.skip_spaces,
        strict=True,
    )


def sniffed(text: TextLines, given: Dialect, wanted: Sequence[str], *, is_tsv: bool) -> tuple[Dialect, Iterator[str]]:
    """Returns the dialect that `find_dialect` finds in the first lines, and all lines but those that it skips."""
    lines, sample, size = iter(text), [], 0
    for line in itertools.islice(lines, SAMPLE_LINES):
        sample.append(line)
        if (size := size + len(line)) > SAMPLE_CHARACTERS:
            break
    dialect, _ = find_dialect(sample, given, wanted, is_tsv=is_tsv)
    return dialect, itertools.islice(itertools.chain(sample, lines), dialect.skip_lines, None)


def _records(
    lines: Iterator[str], text: TextLines, dialect: Dialect, skipped: SkippedLines, *, is_labelled: bool
) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yields the line where a record starts, how many lines it has, and its fields or its fault.

    After a quote that does not close, or closes in the middle of a field, nothing can be trusted: the rest of the file
    is one bad row. Comments and blank lines are not yielded, but counted.
    """
    number = 0  # of the line that was read last
    record: list[str] = []  # its lines
    numbered = enumerate(lines, 1 + (dialect.skip_lines or 0))

    def no_comments() -> Iterator[str]:
        nonlocal number
        for number, line in numbered:
            if dialect.comment and not record and line.startswith(dialect.comment):
                skipped.add("comment line", number)
            else:
                record.append(line)
                yield line

    reader = _reader(no_comments(), dialect)
    while True:
        record.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row, quote = f"not csv ({error}; is a quote missing?)", dialect.quotechar
            if quote and any(quote in line for line in record):
                yield number - len(record) + 1, len(record), f"{row}; the rest of the file is not read"
                return
        row = text.fault(*record) or row
        start = number - len(record) + 1
        if any(map(str.strip, row if is_labelled else record)):
            yield start, len(record), row
        else:
            skipped.add(BLANK_LINE, start)


def _header_names(first_row: Sequence[str], options: ReadOptions, where: str) -> list[str]:
    cells = [cell.strip() for cell in first_row]
    names = column_names(cells)
    if options.is_headerless:
        names = [f"#{position}" for position in range(1, len(cells) + 1)]
    else:
        require_single(cells, options, where)
    require_columns(names, options, where)
    return names


def require_single(names: Sequence[str], options: ReadOptions, where: str) -> None:
    if repeated := next((name for name in options.wanted if names.count(name) > 1), None):
        raise DataError(f"{where}: column {shown(repeated)} is there twice; rename one")


def column_names(cells: Sequence[str]) -> list[str]:
    """Returns the names of a header; a cell that is empty, as of a row index, or a repetition goes by its position."""
    return [f"#{at + 1}" if not cell or cell in cells[:at] else cell for at, cell in enumerate(cells)]


def require_columns(names: Sequence[str], options: ReadOptions, where: str) -> None:
    missing = next((name for name in options.wanted if name not in names), None)
    if missing is not None:
        kind = "text" if missing in options.text_columns else "label"
        listed = ", ".join(map(shown, names[:MAX_SHOWN]))
        key = f"data.{kind}_column{'s' * (kind == 'text')} or --{kind}-column"
        raise DataError(f"{where}: no {kind} column {shown(missing)} among {listed}; name another ({key})")


def is_prose(values: Sequence[Any]) -> bool:
    """Whether most values differ and have several words."""
    num_words = [len(value.split()) for value in values if isinstance(value, str)]
    return sum(num_words) >= 4 * len(values) and len(set(map(str, values))) > 0.5 * len(values)


def read_table(path: Path, options: ReadOptions, *, is_tsv: bool) -> Rows:
    """Reads delimited values with a header, or by position; the dialect is found as far as it is not given.

    Raises DataError where the file is empty or unreadable, or a column is not there.
    """
    has_header = not options.is_headerless
    text, skipped = TextLines(path, options.encoding), SkippedLines(path)
    dialect, lines = sniffed(text, options.csv, options.wanted if has_header else (), is_tsv=is_tsv)
    if options.csv.skip_lines is None and dialect.skip_lines:
        skipped.add("line before the table", 1, dialect.skip_lines)
    body = _records(lines, text, dialect, skipped, is_labelled=bool(options.label_columns))
    number, _, first = next(body, (1, 1, "holds blank lines only"))
    if isinstance(first, str):
        raise DataError(f"{path}:{number}: {first}, in the {'header' if has_header else 'first row'}")
    names = _header_names(first, options, f"{path}:{number}")
    texts_at, labels_at = (list(map(names.index, wanted)) for wanted in (options.text_columns, options.label_columns))
    num_named, width, is_empty = num_filled(first), len(names), True
    cached_label = functools.lru_cache(10_000)(label_of)  # by what is written
    for line, num_lines, row in body if has_header else itertools.chain([(number, 1, first)], body):
        if row == first and has_header and width > 1:
            skipped.add("repeated header", line)
            continue
        is_empty = False
        try:
            fields = _fitted(row, width, num_named, num_lines)
            written = tuple([fields[at] for at in labels_at])
            label = cached_label(written, options.label_columns, options.separator) if written else None
        except WrongValueError as error:
            yield BadRow(str(path), line, str(error))
            continue
        record = dict(zip(names, fields, strict=True)) if options.keep_record else None
        yield Example("\n".join([fields[at] for at in texts_at]), label, str(path), line, record)
    if is_empty:
        raise DataError(f"{path}: has a header and no rows")
    yield from skipped.remarks()


def _fitted(row: list[str] | str, width: int, num_named: int, num_lines: int) -> list[str]:
    """Returns a row as wide as the table, or raises `WrongValueError` if more than empty fields would have to change.

    `num_named` are the columns before an empty end of the header, `num_lines` those of the record.
    """
    if isinstance(row, str):
        raise WrongValueError(row)
    if len(row) == width:
        return row
    if len(row) >= num_named and not any(map(str.strip, row[width:])):
        return (row + [""] * width)[:width]
    span = f" over {num_lines} lines (is a quote missing?)" if num_lines > 1 else ""
    advice = " (a field with the delimiter in it needs quotes)" if len(row) > width and not span else ""
    raise WrongValueError(f"{len(row)} field{'s' * (len(row) != 1)}{span}, but the first row has {width}{advice}")
