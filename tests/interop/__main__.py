"""Real Dubbo beside Countinghouse: `make interop`, or `python -m tests.interop [--json] [--only NAME]`.

Java, Go, Python and JavaScript programs written with Apache Dubbo call our services, found through ZooKeeper, and are
found and called by our client. One line for each part; the last line counts them. Exit code 1 if a part failed, 2 if
there is no such part. What a part needs and cannot have here makes it skipped, with the reason.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvloop

from services.cli import output
from tests.interop import tally
from tests.interop.harness import Harness
from tests.interop.parts import PARTS
from tests.interop.tally import Part, Result
from tests.interop.toolchain import ROOT, Workshop


async def run_parts(parts: Sequence[Part[Harness]], data: Path, *, as_json: bool) -> list[Result]:
    """Runs the parts; says what goes on and what became of each on standard output, or beside the document."""
    say = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    async with Harness(data, Workshop(ROOT / ".interop", say), say) as harness:
        return await tally.run(parts, harness, say)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description="Real Dubbo beside Countinghouse.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help=f"only this part, or only these: {_names()}"
    )
    arguments = parser.parse_args()
    try:
        parts = tally.chosen(PARTS, arguments.only)
    except KeyError as unknown:
        parser.error(f"there is no part {unknown}; there are {_names()}")
    logging.getLogger("coordination").setLevel(logging.ERROR)  # providers are stopped on purpose
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with tempfile.TemporaryDirectory(prefix="countinghouse-interop-") as folder:
        results = uvloop.run(run_parts(parts, Path(folder) / "data", as_json=arguments.json))
    if arguments.json:
        output.print_json(tally.document(results))
    else:
        print(tally.count(results))
    raise SystemExit(tally.exit_code(results))


def _names() -> str:
    return ", ".join(part.name for part in PARTS)


if __name__ == "__main__":
    main()
