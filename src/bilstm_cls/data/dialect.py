"""Rows of delimited tables: finds how a file is written, and reads it so that no row swallows another unseen."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bilstm_cls.data.encoding import MAX_CHARACTERS, TOO_LONG, TextLines

DELIMITERS = (":::", "|||", "::", "||", "\t", ";", "|", ",")
"""Of those that fit equally well the first, as the last are found in texts too."""
SAMPLE_LINES = 1000
SAMPLE_CHARACTERS = 2**20
NONE = "none"
"""In a config: there is no such character; null leaves it to be found."""

MAX_PREAMBLE = 20
_MAX_REREAD = 16 * MAX_CHARACTERS
"""Characters of lines read again after unclosed quotes, in all."""
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?')
_COMMENT = re.compile(r"#(\W|$)")  # a hashtag is text
_FAULTS = {
    "expected after": "a quote closes in the middle of a field (inside quotes, a quote is written twice)",
    "unexpected end": "a quote opens here and never closes",
    "field larger": f"a field is {TOO_LONG} (does a quote open here and never close?)",
    "new-line character": "a carriage return outside quotes",
}

Row = tuple[int, list[str] | str]
"""The line where a record starts, counted from 1, and its fields or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written. None is to be found, `none` is no such character; once found, that is empty.

    Attributes:
        delimiter: what parts the fields; with several characters, quotes have no meaning.
        quotechar: what is around a field that holds a delimiter, a quote or a line feed.
        escapechar: what takes the meaning from the next character.
        skip_lines: lines before the header, or before the first row.
        comment: what a line that is no row begins with.
        skip_spaces: whether a field begins after the spaces that follow a delimiter.
    """

    delimiter: str | None = None
    quotechar: str | None = None
    escapechar: str | None = None
    skip_lines: int | None = None
    comment: str | None = None
    skip_spaces: bool = False


@dataclass(frozen=True)
class _Trial:
    """How well a dialect fits a sample.

    Attributes:
        dialect: what was tried.
        num_good: lines that belong to rows of the usual width, none of whose fields has quotes left around it.
        width: fields of most rows.
        rows: fields of each row that is not against the grammar.
    """

    dialect: Dialect
    num_good: int
    width: int
    rows: list[list[str]]


def sample_lines(lines: TextLines) -> tuple[list[str], Iterator[list[str]]]:
    """Returns the first lines of a file, which decide its dialect, and the blocks of lines after them."""
    blocks = lines.blocks()
    sample: list[str] = []
    num_characters = 0
    for block in blocks:
        sample += block
        num_characters += sum(map(len, block))
        if len(sample) >= SAMPLE_LINES or num_characters >= SAMPLE_CHARACTERS:
            break
    return sample, blocks


def find_dialect(
    sample: Sequence[str], given: Dialect, wanted: Sequence[str], *, is_tsv: bool
) -> tuple[Dialect, list[list[str]]]:
    """Finds what is not given: of all dialects tried, the one under which most lines of a sample are good rows.

    Args:
        sample: the first lines of a file.
        given: what is known.
        wanted: columns that the header is known to have; empty where there may be no header.
        is_tsv: whether tabs part the fields and quotes are characters like others, as far as the sample allows.

    Returns:
        The dialect, and the rows of the sample that it can read.
    """
    separator = _SEPARATOR_LINE.fullmatch(sample[0]) if sample and given.skip_lines is None else None
    start = given.skip_lines or (1 if separator else 0)
    lines = [line + "\n" for line in sample[start:SAMPLE_LINES]]
    delimiter = given.delimiter or (separator[1] if separator else "\t" if is_tsv else None)
    plain = Dialect(
        delimiter,
        ("" if is_tsv else '"') if given.quotechar is None else given.quotechar.replace(NONE, ""),
        (given.escapechar or "").replace(NONE, ""),
        start,
        (given.comment or "").replace(NONE, ""),
    )
    trials = (_try(lines, replace(plain, delimiter=d)) for d in ([delimiter] if delimiter else DELIMITERS))
    best = max(trials, key=lambda trial: _fit(trial, wanted))
    if not best.num_good and delimiter is None:
        best = _try(lines, replace(plain, delimiter=","))
    delimiter = best.dialect.delimiter or ","
    changes: list[dict[str, Any]] = [{"skip_spaces": True}]
    changes += [{"escapechar": "\\"}] if given.escapechar is None else []
    if given.quotechar is None:
        begins = sum(line.startswith("'") or f"{delimiter}'" in line for line in lines)
        single = ["'"] if 2 * begins > len(lines) else []
        changes += [{"quotechar": c} for c in ['"', *single, *([""] if delimiter == "\t" else [])]]
    for change in changes:
        trial = _try(lines, replace(best.dialect, **change))
        best = trial if trial.num_good > best.num_good else best
    if given.skip_lines is None and best.width > 1 and not _fit(best, wanted)[0]:
        preamble = sum(1 for _ in itertools.takewhile(lambda line: delimiter not in line, lines[:MAX_PREAMBLE]))
        best = _try(lines[preamble:], replace(best.dialect, skip_lines=start + preamble))
    comments = [row for row in best.rows if _COMMENT.match(row[0])]
    if given.comment is None and 2 * sum(len(row) != best.width for row in comments) > len(comments):
        mark = "# " if all(row[0].startswith("# ") for row in comments) else "#"
        return replace(best.dialect, comment=mark), [row for row in best.rows if row not in comments]
    return best.dialect, best.rows


def _fit(trial: _Trial, wanted: Sequence[str]) -> tuple[bool, int]:
    """Returns whether the first row holds the wanted names, and then the good lines."""
    first = trial.rows[0] if trial.rows else []
    if not wanted or not {*wanted} <= {cell.strip().strip('"') for cell in first}:
        return False, trial.num_good
    return True, trial.num_good if len(first) == trial.width else 0


def _try(lines: Sequence[str], dialect: Dialect) -> _Trial:
    found = [(num_lines, row) for num_lines, row in _sample_rows(lines, dialect) if row]
    widths = Counter(len(row) for _, row in found)
    width = max(widths, key=lambda w: (widths[w] if w > 1 else 0, w), default=0)
    good = (num for num, row in found if len(row) == width > 1 and not any(map(_has_quotes, row)))
    return _Trial(dialect, sum(good), width, [row for _, row in found])


def _has_quotes(cell: str) -> bool:
    stripped = cell.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'"


def _sample_rows(lines: Sequence[str], dialect: Dialect) -> Iterator[tuple[int, list[str] | None]]:
    if not dialect.quotechar or len(dialect.delimiter or "") > 1:
        yield from ((1, split_row(line.rstrip("\r\n"), dialect)) for line in lines)
        return
    reader = _reader(iter(lines), dialect)
    before = 0
    row: list[str] | None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            row = None
        yield reader.line_num - before, row
        before = reader.line_num


def split_row(line: str, dialect: Dialect) -> list[str]:
    """Returns the fields of a line in which quotes have no meaning; those of a long delimiter without spaces."""
    delimiter = dialect.delimiter or ","
    cells = line.split(delimiter) if line else []
    return cells if len(delimiter) == 1 else [cell.strip() for cell in cells]


def _reader(lines: Iterator[str], dialect: Dialect) -> Any:
    return csv.reader(
        lines,
        delimiter=dialect.delimiter or ",",
        quotechar=dialect.quotechar,
        escapechar=dialect.escapechar or None,
        skipinitialspace=dialect.skip_spaces,
        strict=True,
    )


class TableRows:
    """Iterates over the records of a delimited table, header included.

    After a quote that does not close, or closes in the middle of a field, the reader is out of step with the file. As
    long as every record before had one line, the next is taken to begin on the next line; in a file with records of
    several lines, nothing after it can be trusted, and the rest is one bad row.

    Attributes:
        dialect: given or found.
    """

    def __init__(self, path: Path, encoding: str, given: Dialect, wanted: Sequence[str], *, is_tsv: bool) -> None:
        self._lines = TextLines(path, encoding)
        sample, blocks = sample_lines(self._lines)
        self.dialect, _ = find_dialect(sample, given, wanted, is_tsv=is_tsv)
        lines = itertools.chain(sample, itertools.chain.from_iterable(blocks))
        self._number = self.dialect.skip_lines or 0
        self._source = itertools.islice(lines, self._number, None)
        self._again: list[str] = []
        self.record: list[str] = []
        """The lines of the record that was read last."""

    def __iter__(self) -> Iterator[Row]:
        if self.dialect.quotechar and len(self.dialect.delimiter or "") == 1:
            if csv.field_size_limit() < MAX_CHARACTERS:
                csv.field_size_limit(MAX_CHARACTERS)  # for the whole process; 128 KiB is less than a long text
            yield from self._quoted_rows()
            return
        for line in self._source:
            self._number += 1
            self.record = [line]
            yield self._number, self._fault() or split_row(line.removesuffix("\r"), self.dialect)

    def _quoted_rows(self) -> Iterator[Row]:
        reader = _reader(self._next_lines(), self.dialect)
        is_one_line = True
        num_reread = 0
        while True:
            self.record = []
            start = self._number + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = next((words for part, words in _FAULTS.items() if part in str(error)), str(error))
                num_reread += sum(map(len, self.record[1:]))
                if not is_one_line or num_reread > _MAX_REREAD:
                    yield start, f"{fault}; the rest of the file after it is not read"
                    return
                self._again += [line.removesuffix("\n") for line in reversed(self.record[1:])]
                self._number = start
                reader = _reader(self._next_lines(), self.dialect)  # the old one may have seen the end
                yield start, fault
                continue
            if len(self.record) > 1 and not self.rows_within(len(row)):
                is_one_line = False
            yield start, self._fault() or row

    def _next_lines(self) -> Iterator[str]:
        while True:
            line = self._again.pop() if self._again else next(self._source, None)
            if line is None:
                return
            self._number += 1
            line += "\n"  # which the parser has to see inside quotes
            self.record.append(line)
            yield line

    def _fault(self) -> str | None:
        return self._lines.fault(self.record) if self._lines.is_damaged else None

    def has_odd_quotes(self) -> bool:
        """Whether the record holds a quote without another that closes it."""
        quotechar = self.dialect.quotechar
        return bool(quotechar and sum(line.count(quotechar) for line in self.record) % 2)

    def rows_within(self, width: int) -> list[list[str]]:
        """Returns the lines of the record that could be rows; to the grammar, two stray quotes make one text of many.

        They are none unless there are at least two: where a text holds no delimiter, one line always looks like a row.
        """
        delimiter, quotechar = self.dialect.delimiter or ",", self.dialect.quotechar or ""
        rows = [line.replace(quotechar, "").rstrip("\r\n").split(delimiter) for line in self.record]
        rows = [row for row in rows if len(row) == width]
        return rows if len(rows) > 1 else []
