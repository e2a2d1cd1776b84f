"""From a program to its exit code, whatever it raises.

Errors are one sentence on standard error with the remedy; with --json also a document on standard output. The exit
codes are in `exit_codes.py`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from coordination.errors import CoordinationError
from services.cli import output, streams
from services.cli.commands import PROGRAM, app
from services.cli.exit_codes import ExitCode, Interrupted, NotPaid, WrongUsage
from services.devstack.state import SigningKeyMissing, StackRefused
from services.kernel.errors import CountinghouseError, OutcomeUnknown, Unavailable
from services.kernel.printable import escape


def run(program: Callable[[], None]) -> None:
    """Run a program to its exit code, whatever it raises.

    Raises:
        SystemExit: Always.
    """
    streams.prepare()
    code = _code_of(program)
    sys.stdout.flush()
    if error := streams.failure():  # a full disk, say
        print(f"countinghouse: the answer could not be written: {error.strerror}", file=sys.stderr)
        code = code or ExitCode.ANSWER_LOST
    raise SystemExit(code)


def command_line() -> None:
    """Run the command that was typed."""
    _check_text()
    app(prog_name=PROGRAM)


def _check_text() -> None:
    """Refuse arguments and settings that are no text: every id, name and token goes into UTF-8 sooner or later.

    Raises:
        StackRefused: NOT_TEXT.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith("COUNTINGHOUSE_")}
    for name, value in (*((f"argument {place}", each) for place, each in enumerate(sys.argv)), *settings.items()):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise StackRefused("NOT_TEXT", f"{name} is not text in UTF-8; write it in UTF-8") from None


def _code_of(program: Callable[[], None]) -> int:
    try:
        program()
    except SystemExit as end:
        return _number_of(end)
    except CountinghouseError as error:
        return _end_with(error)
    except Exception as error:
        translated = _translated(error)
        if translated is not None:
            return _end_with(translated)
        traceback.print_exception(error)
        return ExitCode.DEFECT
    return ExitCode.DONE


def _number_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _end_with(error: CountinghouseError) -> int:
    """Print the error; return the exit code."""
    if "--json" in sys.argv and not isinstance(error, StackRefused):
        output.print_json(_document(error))
    print(f"countinghouse: {escape(error.message)}", file=sys.stderr)
    if isinstance(error, Interrupted):
        return ExitCode.INTERRUPTED
    if isinstance(error, (StackRefused, SigningKeyMissing, WrongUsage)):
        return ExitCode.NOT_RUN
    if isinstance(error, NotPaid):
        return ExitCode.NOT_PAID
    return ExitCode.OUTCOME_UNKNOWN if isinstance(error, OutcomeUnknown) else ExitCode.FAILED


def _document(error: CountinghouseError) -> dict[str, object]:
    """Return the error as JSON; `replayed` and `request_id` of a stored refusal are where a stored result has them."""
    shown = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
    if "replayed" not in error.metadata:
        return {"error": shown}
    key = {name: value for name, value in error.metadata.items() if name == "request_id"}
    return {"error": shown, "replayed": True, **key}


def _translated(error: Exception) -> CountinghouseError | None:
    """ZooKeeper's and the system's errors as ours; None for an unexpected one."""
    if isinstance(error, CoordinationError):
        return Unavailable("ZOOKEEPER_UNAVAILABLE", f"ZooKeeper did not answer as it should: {error}; try again")
    if isinstance(error, OSError) and error.filename is not None:
        return StackRefused("FILE_REFUSED", f"{os.fsdecode(error.filename)}: {error.strerror}")
    return None
