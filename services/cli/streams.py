"""Standard output and standard error, made safe for untrusted text and for pipes that are closed.

Deceptive characters are escaped (`kernel/printable.py`), and those that the terminal's encoding lacks. A reader that
has gone (`| head`) ends no command and changes no exit code: money may have moved, and the code shows it. What is left
to print is dropped; commands that print for ever check `unread`. Output that cannot be written, as on a full disk, is
dropped likewise, and `failure` says why.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from services.kernel.printable import escape_output


class EscapingStream(io.TextIOWrapper):
    """A text stream that escapes, and that drops what is written after its reader has gone or a write has failed.

    Attributes:
        unread: Whether what is written is dropped.
        failure: Why a write failed; None: none did, or the reader has gone.
    """

    unread = False
    failure: OSError | None = None

    @classmethod
    def around(cls, stream: TextIO) -> EscapingStream:
        """Return a stream that takes the place of `stream`, with its encoding."""
        line_buffering = stream.isatty() or stream is sys.stderr
        buffer = stream.detach() if isinstance(stream, io.TextIOWrapper) else stream.buffer
        return cls(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=line_buffering)

    def write(self, text: str, /) -> int:
        """Write `text`, escaped."""
        try:
            super().write(escape_output(text))
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Send what is left in the buffer, and all that follows, nowhere: Python flushes once more when it ends."""
        if not self.unread and not isinstance(error, BrokenPipeError):
            self.failure = error
        self.unread = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def prepare() -> None:
    """Put these streams in the place of Python's."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed by our caller: a socket must not become output
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            descriptor = 1 if name == "stdout" else 2
            stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if not isinstance(stream, EscapingStream):
            setattr(sys, name, EscapingStream.around(stream))


def unread() -> bool:
    """Return whether what is written to standard output is dropped."""
    return bool(getattr(sys.stdout, "unread", False))


def written() -> bool:
    """Hand on what was printed; return whether standard output took all of it, or its reader has gone."""
    sys.stdout.flush()
    return failure() is None


def failure() -> OSError | None:
    """Return why standard output could not be written; None: it could, or its reader has gone."""
    failed: OSError | None = getattr(sys.stdout, "failure", None)
    return failed
