"""The process behind `countinghouse up --detach`: starts the stack, reports that once, and supervises it until stopped.

It is no command: `up` starts it as `python -m services.cli.detached DATA` and writes the options to its standard input,
where no list of processes shows a database's password. The directory is an argument so that one does name it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from services.kernel.json_input import parse_json


def main() -> None:
    """Run the process."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as in main.py
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from services.cli import program  # noqa: PLC0415

    program.run(_supervise)


def _supervise() -> None:
    from services.cli import arguments, stack  # noqa: PLC0415
    from services.devstack.stack import StackOptions  # noqa: PLC0415
    from services.devstack.state import StackRefused  # noqa: PLC0415

    try:
        given = parse_json(sys.stdin.read())
        options = StackOptions(
            **given
            | {
                "data": Path(given["data"]).absolute(),
                "services": tuple(given["services"]),
                "guards_off": tuple(given["guards_off"]),
            }
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StackRefused("NOT_A_COMMAND", "only `countinghouse up --detach` starts this program") from error
    arguments.run(stack.supervise(options, as_json=True, detached=True))


if __name__ == "__main__":
    main()
