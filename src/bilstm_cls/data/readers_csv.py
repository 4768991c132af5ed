"""Records of comma-separated values, in which none swallows another unseen.

A quote too many or too few makes the csv grammar take the rows after it for text. Two rules keep that from passing:
the quotes of every record must pair up, and after a bad record reading goes on at the line after its *first*, unless
the next quote of the following lines is one that closes, so that they are still the bad record's text.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from bilstm_cls.data.readers_decoding import BLANK, MAX_CHARACTERS, TOO_LONG, TextLines, decoding_fault

LOOKAHEAD = 50
"""Lines after a bad record among which its end is looked for."""

_QUOTES = re.compile('"+')
_CSV_WORDS = {
    "expected after": "a quote closes in the middle of a field (inside quotes, a quote is written twice)",
    "unexpected end": "a quote opens here and never closes",
    "field larger": f"a field is {TOO_LONG} (does a quote open here and never close?)",
    "new-line character": "a carriage return outside quotes",
}

Row = tuple[int, list[str] | str]
"""The line where a record starts, and its fields or what is wrong with it."""


def csv_records(lines: TextLines, choose_delimiter: Callable[[str], str]) -> Iterator[Row]:
    """Yields the records of a csv file; blank lines at its end are none.

    Args:
        lines: the file's lines.
        choose_delimiter: chooses the delimiter from the first line.
    """
    if csv.field_size_limit() < MAX_CHARACTERS:
        csv.field_size_limit(MAX_CHARACTERS)  # for the whole process; the default of 128 KiB is less than a long text
    window = _Window(lines)
    if not window.extend():
        return
    delimiter = choose_delimiter(window.lines[0])
    num_blank = 0
    for line, row in _Records(window, delimiter).rows():
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
    """

    def __init__(self, source: TextLines) -> None:
        self.lines: list[str] = []
        self.start = 0
        self.number = 1
        self.source = source
        self._blocks = source.blocks()

    def extend(self) -> bool:
        """Drops what is read and doubles what is left, at least. Returns whether there was any more."""
        self.number += self.start
        self.lines = self.lines[self.start :]
        self.start = 0
        num_wanted = 2 * len(self.lines) + 1
        for block in self._blocks:
            # The parser has to see the line feeds inside quotes.
            self.lines += [line + "\n" for line in block]
            if len(self.lines) >= num_wanted:
                return True
        return False


class _Records:
    def __init__(self, window: _Window, delimiter: str) -> None:
        self._window = window
        self._delimiter = delimiter
        self._width = 0

    def rows(self) -> Iterator[Row]:
        """Yields each record; a blank line as an empty one."""
        window = self._window
        is_more = True
        while True:
            lines, offset = window.lines, window.start
            reader = csv.reader(islice(lines, offset, None), delimiter=self._delimiter, strict=True)
            try:
                for row in reader:
                    start, end = window.start, offset + reader.line_num
                    is_odd = (lines[start] if end - start == 1 else "".join(lines[start:end])).count('"') & 1
                    if is_odd or len(row) != self._width or window.source.is_damaged:
                        fault = self._fault(row, lines[start:end], is_odd=bool(is_odd))
                        if fault:
                            break
                    yield window.number + start, row
                    window.start = end
                else:
                    if not is_more:
                        return
                    is_more = window.extend()
                    continue
            except csv.Error as error:
                # A quote that is open at the end of the window may close in the lines after it.
                if is_more and "unexpected end" in str(error):
                    is_more = window.extend()
                    continue
                fault = next((words for part, words in _CSV_WORDS.items() if part in str(error)), str(error))
            yield window.number + window.start, fault
            if is_more and len(window.lines) - window.start <= LOOKAHEAD:
                is_more = window.extend()
            window.start += self._num_lines_of_bad_record(window.lines[window.start :][: LOOKAHEAD + 1])

    def _fault(self, row: Sequence[str], lines: Sequence[str], *, is_odd: bool) -> str | None:
        self._width = self._width or len(row)
        if is_odd:
            return "its quotes do not pair up (a field with a quote has quotes around it, and the quote twice)"
        if row and len(row) != self._width:
            return ragged(len(row), self._width, num_lines=len(lines))
        if self._window.source.is_damaged:
            is_cut = any(len(line) > MAX_CHARACTERS for line in lines)
            return TOO_LONG if is_cut else decoding_fault("".join(lines), self._window.source.encoding)
        return None

    def _num_lines_of_bad_record(self, lines: Sequence[str]) -> int:
        for number, line in enumerate(lines[1:], 1):
            closes = _closes_first(line, self._delimiter)
            if closes is not None:
                return number + 1 if closes and not self._are_rows(lines[1:number]) else 1
        return 1

    def _are_rows(self, lines: Sequence[str]) -> bool:
        """Whether lines are too much like rows to be the lines of a text: three or more, all of the right width."""
        try:
            rows = list(csv.reader(lines, delimiter=self._delimiter, strict=True))
        except csv.Error:
            return False
        return len(rows) >= 3 and self._width > 1 and all(len(row) == self._width for row in rows)


def _closes_first(line: str, delimiter: str) -> bool | None:
    """Whether the first quote of a line that tells closes a field (True) or opens one (False); None if none tells."""
    for run in _QUOTES.finditer(line):
        starts_line = run.start() == 0
        starts_field = starts_line or line[run.start() - 1] == delimiter
        ends_field = line[run.end()] in (delimiter, "\r", "\n")
        is_odd = len(run[0]) % 2 == 1
        if starts_field and not ends_field and is_odd:
            return False
        if starts_field and ends_field and len(run[0]) == 2:  # an empty field
            return False
        if ends_field and is_odd and (starts_line or not starts_field):
            return True
    return None


def ragged(num_fields: int, width: int, *, num_lines: int = 1) -> str:
    """Says that a row is wider or narrower than the first."""
    fields = f"{num_fields} field{'s' * (num_fields != 1)}"
    span = f" over {num_lines} lines (is a quote missing?)" if num_lines > 1 else ""
    return f"{fields}{span}, but the first row has {width}"
