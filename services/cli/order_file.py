"""The orders that a CSV file names, as spreadsheets and other programs write such files.

    bytes ──▶ physical lines ──▶ records of csv ──▶ OrderLine, or BadLine with the reason

Rules
1. UTF-8 with or without a byte order mark; fields apart by comma, semicolon or tab; the first line that is not blank
   names the columns. Only the columns `order_id`, `amount` and `currency` are read.
2. A line that cannot be read is a `BadLine`, and the rest goes on. After a quote that does not match, reading goes on
   with the next physical line, so that a stray quote hides no order.
3. A line has as many fields as the header: one that was cut off may name another order.
4. Nothing of a line is repeated in a reason: it may be a card number.
5. Only one record is held in memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from services.kernel.card_numbers import refuse_card_number
from services.kernel.errors import InvalidArgument
from services.kernel.ids import check_name

_DELIMITERS: Final = (",", ";", "\t")
#: What a spreadsheet writes above the header to name the delimiter.
_DELIMITER_LINE: Final = re.compile(r'"?sep=([,;\t])"?\s*')
#: Names of the column, without case, blanks, hyphens and underscores; the first that is there is read.
_ORDER_COLUMNS: Final = ("orderid", "order")
_AMOUNT_COLUMNS: Final = ("amount",)
_CURRENCY_COLUMNS: Final = ("currency", "currencycode")
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
#: What `surrogateescape` makes of bytes that are not UTF-8.
_UNDECODED: Final = re.compile("[\udc80-\udcff]")
_LONGEST_LINE: Final = 65_536
#: Physical lines of one record at most: a quoted field may have line ends.
_MOST_LINES: Final = 50
_QUOTES: Final = "its quotes do not match"


@dataclass(frozen=True, slots=True)
class OrderLine:
    """An order that the file names.

    Args:
        number: Of its first physical line, from 1.
        amount: As written; empty: the file says none.
        currency: ISO 4217 code; empty: the file says none.
    """

    number: int
    order_id: str
    amount: str = ""
    currency: str = ""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that names no order that can be settled."""

    number: int
    reason: str


class OrderFile:
    """A CSV file of orders; each iteration reads it from its beginning.

    Raises:
        InvalidArgument: FILE_MALFORMED: it is no such file.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = _read_header(path)

    def __iter__(self) -> Iterator[OrderLine | BadLine]:
        header = self._header
        with _open(self.path) as lines:
            while (line := lines.take()) is not None:
                if line.number <= header.ends_at:
                    continue
                if line.fault:
                    yield BadLine(line.number, line.fault)
                    continue
                fields, further = _parse(lines, line, header.delimiter)
                row = BadLine(line.number, _QUOTES) if fields is None else header.row(line.number, fields)
                if isinstance(row, BadLine):
                    lines.give_back(further)
                if row is not None:
                    yield row

    def digest(self) -> str:
        """Return a hash of the content, in hexadecimal digits."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class _Header:
    """Where a record has what is read.

    Args:
        ends_at: Number of the last physical line of the header.
        width: Number of columns that have a name.
        amount, currency: None: there is no such column.
    """

    ends_at: int
    delimiter: str
    width: int
    order: int
    amount: int | None
    currency: int | None

    def row(self, number: int, fields: Sequence[str]) -> OrderLine | BadLine | None:
        """Return what a record says; None: it is blank."""
        cells = [field.strip() for field in fields]
        if not any(cells):
            return None
        if len(cells) < self.width or any(cells[self.width :]):
            return BadLine(number, f"it has {_count(len(cells), 'field')}, and the header has {self.width}")
        try:
            order_id = check_name(refuse_card_number(cells[self.order], "order_id"), "order_id")
            amount = refuse_card_number("" if self.amount is None else cells[self.amount], "amount")
        except InvalidArgument as error:
            return BadLine(number, error.message)
        currency = "" if self.currency is None else cells[self.currency].upper()
        return OrderLine(number, order_id, amount, currency)


class _Line(NamedTuple):
    """A physical line; `fault` says why it cannot be read, if so."""

    number: int
    text: str
    fault: str


class _Lines:
    """The physical lines of a file, some of which may be given back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._number = 0
        self._given_back: deque[_Line] = deque()

    def take(self) -> _Line | None:
        """Return the next line; None: there is none."""
        if self._given_back:
            return self._given_back.popleft()
        text = self._text.readline(_LONGEST_LINE)
        if not text:
            return None
        self._number += 1
        if len(text) == _LONGEST_LINE and not text.endswith(("\n", "\r")):
            while (more := self._text.readline(_LONGEST_LINE)) and not more.endswith(("\n", "\r")):
                pass
            return _Line(self._number, "", f"it is longer than {_LONGEST_LINE} characters")
        if _UNDECODED.search(text):
            return _Line(self._number, "", "it is not UTF-8")
        return _Line(self._number, text, "")

    def give_back(self, lines: Sequence[_Line]) -> None:
        """Let these, which were taken last, be taken again."""
        self._given_back.extendleft(reversed(lines))


@contextmanager
def _open(path: Path) -> Iterator[_Lines]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield _Lines(text)


def _parse(lines: _Lines, first: _Line, delimiter: str) -> tuple[list[str] | None, list[_Line]]:
    """Return the fields of a record, None if its quotes do not match, and the lines after its first that it took."""
    further: list[_Line] = []

    def texts() -> Iterator[str]:
        yield first.text
        while len(further) < _MOST_LINES and (line := lines.take()) is not None:
            further.append(line)
            if line.fault:
                return
            yield line.text

    try:
        return next(csv.reader(texts(), delimiter=delimiter, strict=True), []), further
    except csv.Error:
        return None, further


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        if file.read(2) in _UTF16:
            raise _refused("it is UTF-16; save it as CSV in UTF-8")
    with _open(path) as lines:
        delimiters: tuple[str, ...] = _DELIMITERS
        while (line := lines.take()) is not None and not line.fault:
            if named := _DELIMITER_LINE.fullmatch(line.text):
                delimiters = (named[1],)
            elif line.text.strip(" \t\r\n,;"):
                break
        if line is None:
            raise _refused("it is empty; its first line has to name the columns")
        if line.fault:
            raise _refused(f"its line {line.number} has to name the columns, and {line.fault}")
        found = [header for delimiter in delimiters if (header := _header_by(lines, line, delimiter)) is not None]
    if not found:
        raise _refused(f"its line {line.number} names no column order_id")
    return max(found, key=lambda header: header.width)


def _header_by(lines: _Lines, line: _Line, delimiter: str) -> _Header | None:
    """Return the header, if with this delimiter it names a column of orders."""
    fields, further = _parse(lines, line, delimiter)
    lines.give_back(further)
    if fields is None:
        return None
    names = [re.sub(r"[\s_-]+", "", field).casefold() for field in fields]
    while names and not names[-1]:
        names.pop()
    order = _column(names, _ORDER_COLUMNS)
    if order is None:
        return None
    return _Header(
        ends_at=line.number + len(further),
        delimiter=delimiter,
        width=len(names),
        order=order,
        amount=_column(names, _AMOUNT_COLUMNS),
        currency=_column(names, _CURRENCY_COLUMNS),
    )


def _column(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Return the place of the first wanted name that is there; None: there is none.

    Raises:
        InvalidArgument: FILE_MALFORMED: two columns have it.
    """
    for name in wanted:
        if names.count(name) > 1:
            raise _refused(f"its header has more than one column {name}")
        if name in names:
            return names.index(name)
    return None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _refused(why: str) -> InvalidArgument:
    return InvalidArgument.of_field("FILE_MALFORMED", "file", f"this is no CSV file of orders: {why}")
