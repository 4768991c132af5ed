"""Records of comma-separated values, in which none swallows another unseen.

A quote too many or too few makes the csv grammar take the rows after it for text. Two rules keep that from passing:
the quotes of every record must pair up, and after a bad record reading goes on at the line after its *first*, unless
the bad record's text seems to go on, and then where sound records follow.
"""

import csv
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice

from bilstm_cls.data.readers.decoding import BLANK, MAX_CHARACTERS, TOO_LONG, TextLines, decoding_fault

LOOKAHEAD = 50
"""Lines after a bad record among which its end is looked for."""

_QUOTES = re.compile('"+')
_ODD = "its quotes do not pair up (a field with a quote has quotes around it, and the quote twice)"
_CSV_WORDS = {
    "expected after": "a quote closes in the middle of a field (inside quotes, a quote is written twice)",
    "unexpected end": "a quote opens here and never closes",
    "field larger": f"a field is {TOO_LONG} (does a quote open here and never close?)",
    "new-line character": "a carriage return outside quotes",
}

Row = tuple[int, list[str] | str]
"""The line where a record starts, and its fields or what is wrong with it."""


Suspect = tuple[int, int, list[list[str]]]
"""The line where a record starts, how many it has, and those of all but one that are rows when read alone."""


def csv_records(
    lines: TextLines, choose_delimiter: Callable[[str], str], on_suspect: Callable[[Suspect], None]
) -> Iterator[Row]:
    """Yields the records of a csv file; blank lines at its end are none.

    Args:
        lines: the file's lines.
        choose_delimiter: chooses the delimiter from the first line.
        on_suspect: called with a sound record whose lines could be rows: between two wrong quotes, to the grammar, lies
            one text.
    """
    if csv.field_size_limit() < MAX_CHARACTERS:
        csv.field_size_limit(MAX_CHARACTERS)  # for the whole process; the default of 128 KiB is less than a long text
    window = _Window(lines)
    window.extend()
    delimiter = choose_delimiter(window.lines[0])
    num_blank = 0
    for line, row in _Records(window, delimiter, on_suspect).rows():
        if not row:
            num_blank += 1
            continue
        while num_blank:
            yield line - num_blank, BLANK
            num_blank -= 1
        yield line, row


class _Window:
    """The lines from the record being read to some way ahead.

    Attributes:
        lines: with their line feeds.
        start: position in `lines` of the record being read.
        number: the line of `lines[0]` in the file, counted from 1.
        source: where they come from.
        is_more: whether `source` may have more.
    """

    def __init__(self, source: TextLines) -> None:
        self.lines: list[str] = []
        self.start = 0
        self.number = 1
        self.source = source
        self.is_more = True
        self._blocks = source.blocks()

    def extend(self) -> None:
        """Drops what is read and doubles what is left, at least, as far as there is more."""
        self.number += self.start
        self.lines = self.lines[self.start :]
        self.start = 0
        num_wanted = 2 * len(self.lines) + 1
        while self.is_more and len(self.lines) < num_wanted:
            block = next(self._blocks, None)
            self.is_more = block is not None
            # The parser has to see the line feeds inside quotes.
            self.lines += [line + "\n" for line in block or ()]


class _Records:
    def __init__(self, window: _Window, delimiter: str, on_suspect: Callable[[Suspect], None]) -> None:
        self._window = window
        self._on_suspect = on_suspect
        self._delimiter = delimiter
        self._width = 0
        mark = re.escape(delimiter)
        self._field_start = re.compile(f'(?:^|{mark})"')
        self._quoted_field = re.compile(rf'(?:^|{mark})"[^"]*(?:""[^"]*)*"(?={mark}|\r?\n)')

    def rows(self) -> Iterator[Row]:
        """Yields each record; a blank line as an empty one."""
        window = self._window
        while window.is_more or window.start < len(window.lines):
            needs_more = yield from self._rows_of_window()
            if needs_more:
                window.extend()

    def _rows_of_window(self) -> Generator[Row, None, bool]:
        """Yields records while the parser is in step with the file. Returns whether it lacks lines to go on."""
        window, lines, offset = self._window, self._window.lines, self._window.start
        reader = csv.reader(islice(lines, offset, None), delimiter=self._delimiter, strict=True)
        try:
            for row in reader:
                start, end = window.start, offset + reader.line_num
                is_odd = (lines[start] if end - start == 1 else "".join(lines[start:end])).count('"') & 1
                if is_odd or (len(row) != self._width and row):
                    if is_odd or self._width:
                        fault = _ODD if is_odd else ragged(len(row), self._width, num_lines=end - start)
                        yield self._leave_bad_record(fault, end - start)
                        if window.lines is lines and window.start == end:
                            continue
                        return False
                    self._width = len(row)
                if end - start > 1:
                    self._suspect(start, lines[start:end])
                damage = self._damage(lines[start:end]) if window.source.is_damaged else None
                yield window.number + start, damage or row
                window.start = end
        except csv.Error as error:
            # A quote that is open at the end of the window may close in the lines after it.
            if window.is_more and "unexpected end" in str(error):
                return True
            fault = next((words for part, words in _CSV_WORDS.items() if part in str(error)), str(error))
        else:
            return True
        yield self._leave_bad_record(fault, 1)
        return False

    def _leave_bad_record(self, fault: str, num_lines: int) -> Row:
        """Moves behind a bad record, of `num_lines` to the grammar, and returns what to say of it."""
        window = self._window
        if len(window.lines) - window.start <= 2 * LOOKAHEAD:
            window.extend()
        line = window.number + window.start
        num_lines = self._num_lines_of_bad_record(window.lines[window.start : window.start + 2 * LOOKAHEAD], num_lines)
        window.start += num_lines
        return line, fault if num_lines == 1 else f"{fault}, in lines {line} to {line + num_lines - 1}"

    def _suspect(self, start: int, lines: Sequence[str]) -> None:
        rows = [line.replace('"', "").removesuffix("\n").split(self._delimiter) for line in lines]
        # Where the last field alone goes on, the first line holds all others and is like a row; else the last may be.
        is_last_open = len(rows[0]) == self._width and self._delimiter not in lines[0].rpartition('"')[2]
        if alone := [row for row in (rows[1:] if is_last_open else rows[:-1]) if len(row) == self._width]:
            self._on_suspect((self._window.number + start, len(lines), alone))

    def _damage(self, lines: Sequence[str]) -> str | None:
        is_cut = any(len(line) > MAX_CHARACTERS for line in lines)
        return TOO_LONG if is_cut else decoding_fault("".join(lines), self._window.source.encoding)

    def _num_lines_of_bad_record(self, lines: Sequence[str], num_lines: int) -> int:
        """Returns 1, unless a text seems to go on after the first line: then, how many until sound records follow.

        Args:
            lines: from the bad record on.
            num_lines: of the record, as far as the csv grammar could tell.
        """
        opens = self._field_start.search(self._quoted_field.sub("", lines[0]))
        goes_on = opens or num_lines > 1 or _closes_first("".join(lines[1:LOOKAHEAD]), self._delimiter)
        if not self._width or not goes_on or self._are_sound(lines[1:]):
            return 1
        counts = range(2, min(LOOKAHEAD, len(lines)) + 1)
        return next((number for number in counts if self._are_sound(lines[number:])), 1)

    def _are_sound(self, lines: Sequence[str]) -> bool:
        """Whether lines begin with so many sound records that it is no accident, or hold nothing else."""
        # Any line of a text is a record where there is one column.
        num_wanted = 3 if self._width > 1 else LOOKAHEAD
        num_read = 0
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        try:
            for row in islice(reader, num_wanted):
                unquoted = self._quoted_field.sub("", "".join(lines[num_read : reader.line_num]))
                if len(row) != self._width or '"' in unquoted:
                    return False
                num_read = reader.line_num
        except csv.Error:
            return False
        return True


def _closes_first(text: str, delimiter: str) -> bool:
    """Whether the first quote in some lines that tells closes a field, rather than opens one."""
    for run in _QUOTES.finditer(text):
        before = text[run.start() - 1] if run.start() else "\n"
        opens = before in (delimiter, "\n")
        closes = text[run.end()] in (delimiter, "\r", "\n")
        is_odd = len(run[0]) % 2 == 1
        if opens and ((is_odd and not closes) or (closes and len(run[0]) == 2)):  # the latter is an empty field
            return False
        if closes and is_odd and (before == "\n" or not opens):
            return True
    return False


def ragged(num_fields: int, width: int, *, num_lines: int = 1) -> str:
    """Says that a row is wider or narrower than the first."""
    fields = f"{num_fields} field{'s' * (num_fields != 1)}"
    span = f" over {num_lines} lines (is a quote missing?)" if num_lines > 1 else ""
    return f"{fields}{span}, but the first row has {width}"
