"""Measures on this machine what the issue sets targets for: `make bench`, or `python -m tests.bench [--json]`.

It asserts nothing: numbers depend on the machine and on what else it does. Compare two runs of the same minute.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from services.cli import output
from services.devstack.stack import Stack, StackOptions
from tests.bench import discovering, locking, reconciling, settling, starting
from tests.bench.figures import Figure


async def measure(folder: Path) -> list[Figure]:
    """All of it, one after the other."""
    figures = await starting.measure(folder)
    figures += await discovering.measure()
    figures += reconciling.measure()
    async with Stack(StackOptions(folder / "stack", zookeeper_plaintext=True)) as stack:
        figures += await settling.measure(stack)
        figures += await locking.measure(stack.zookeeper)
    return figures


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with tempfile.TemporaryDirectory(prefix="countinghouse-bench-") as folder:
        figures = uvloop.run(measure(Path(folder)))
    if arguments.json:
        output.print_json({figure.key: round(figure.value, 3) for figure in figures})
    else:
        output.print_table("Bench", ("what", "measured", "target"), _rows(figures))


def _rows(figures: Sequence[Figure]) -> list[tuple[str, str, str]]:
    return [(figure.what, figure.shown, figure.target) for figure in figures]


if __name__ == "__main__":
    main()
