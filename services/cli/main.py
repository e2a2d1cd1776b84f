"""The `countinghouse` command: from the first instruction to the exit code.

An interruption while modules are still being imported is one like any other, so this one imports nothing of ours
before `main`.
"""

from __future__ import annotations

import os

_INTERRUPTED = 130


def main() -> None:
    """Run the command that was typed, and exit."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log is not for the terminal
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see services/devstack
    try:
        from services.cli import program  # noqa: PLC0415

        program.run(program.command_line)
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


if __name__ == "__main__":
    main()
