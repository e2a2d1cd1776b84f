"""What became of each line of a run, and the CSV file that says so.

The lines of a batch are written at once, as soon as their outcome is known: a kill leaves whole lines. The file of an
earlier start is written anew; any other file is left alone.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.printable import escape

#: The first line, by which a file is known as one of ours.
_HEADER: Final = b"line,order_id,outcome,reason,payment_id\n"


class Outcome(StrEnum):
    """What became of a line."""

    SETTLED = "settled"
    REPLAYED = "already settled in this run"
    SKIPPED = "skipped"
    REFUSED = "refused"
    OPEN = "open"
    BAD_LINE = "bad line"
    WOULD_BE_SETTLED = "would be settled"
    WOULD_BE_SKIPPED = "would be skipped"

    @property
    def is_finding(self) -> bool:
        """Whether people have to look at the line."""
        return self not in (Outcome.SETTLED, Outcome.REPLAYED, Outcome.WOULD_BE_SETTLED)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line.

    Args:
        line: Its number in the file.
        order_id: Empty: the line names none.
        reason: Why it was not settled; empty if it was.
        payment_id: The payment that settled the order; empty: not known.
        asked: Whether the services were asked about it, or need not be.
    """

    line: int
    order_id: str
    outcome: Outcome
    reason: str = ""
    payment_id: str = ""
    asked: bool = True


class ResultNotWritten(CountinghouseError):
    """The result file could not be written: a full disk, say."""


class ResultFile:
    """A result file that is open. Made by `open_result`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        self._write(_HEADER)

    def add(self, results: Sequence[Result]) -> None:
        """Write some lines.

        Raises:
            ResultNotWritten: RESULT_NOT_WRITTEN.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for each in results:
            cells = (each.order_id, each.outcome, each.reason, each.payment_id)
            writer.writerow((each.line, *(escape(cell) for cell in cells)))
        self._write(text.getvalue().encode())

    def _write(self, content: bytes) -> None:
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError as error:
            raise ResultNotWritten(
                "RESULT_NOT_WRITTEN",
                f"the result file {self._path} could not be written: {error.strerror}",
            ) from error


@contextmanager
def open_result(path: Path) -> Iterator[ResultFile]:
    """Open a result file, and empty it.

    Raises:
        InvalidArgument: RESULT_REFUSED: it is another file, or another run writes it.
        OSError: It cannot be opened.
        ResultNotWritten: RESULT_NOT_WRITTEN.
    """
    if path.exists() and not path.is_file():
        raise _refused(f"{path} is no file")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(f"another run is writing {path}") from None
        if os.pread(descriptor, len(_HEADER), 0) not in (b"", _HEADER):
            raise _refused(f"{path} is there, and is no result of a run; name another file")
        yield ResultFile(path, descriptor)
    finally:
        os.close(descriptor)


def _refused(message: str) -> InvalidArgument:
    return InvalidArgument.of_field("RESULT_REFUSED", "result", message)
