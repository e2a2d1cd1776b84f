"""The `countinghouse` command: from the first instruction to the exit code.

Errors are one sentence on standard error that says what to do; with --json also a document on standard output.
Exit codes: 0 done; 1 refused or failed; 2 not to be had as asked (usage, no stack, nothing to start one
from); 130 interrupted. An interruption while modules are still being imported is one like any other, so this one
imports nothing of ours before `main`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.kernel.errors import CountinghouseError

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130


def main() -> None:
    """The program."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own words are not for the terminal
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see services/devstack
    try:
        _run()
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _run() -> None:
    from services.cli.commands import PROGRAM, app  # noqa: PLC0415
    from services.kernel.errors import CountinghouseError  # noqa: PLC0415

    try:
        app(prog_name=PROGRAM)
    except CountinghouseError as error:
        _end_with(error)
    except Exception as error:
        translated = _translated(error)
        if translated is None:
            raise
        _end_with(translated)


def _end_with(error: CountinghouseError) -> None:
    from services.cli import output  # noqa: PLC0415
    from services.devstack.state import StackRefused  # noqa: PLC0415

    if "--json" in sys.argv and not isinstance(error, StackRefused):
        output.print_json({"error": {"reason": error.reason, "message": error.message, "metadata": error.metadata}})
    print(f"countinghouse: {error.message}", file=sys.stderr)
    raise SystemExit(_REFUSED if isinstance(error, StackRefused) else _FAILED) from error


def _translated(error: Exception) -> CountinghouseError | None:
    """ZooKeeper's errors as ours; None for what nobody expected."""
    from coordination.errors import CoordinationError  # noqa: PLC0415
    from services.kernel.errors import Unavailable  # noqa: PLC0415

    if isinstance(error, CoordinationError):
        return Unavailable("ZOOKEEPER_UNAVAILABLE", f"ZooKeeper did not answer as it should: {error}; try again")
    return None


if __name__ == "__main__":
    main()
