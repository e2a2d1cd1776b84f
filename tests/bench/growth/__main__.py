"""Measure what growth costs: orders in the books, callers of one order, providers, settles, payments under way.

`make bench-growth`. Exit code 1: an order was not settled exactly once, or a checker found a violation. How fast is no
matter of the exit code: numbers depend on the machine and on what else it does, so look at how they grow.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from services.cli import output
from services.devstack.options import POSTGRESQL, SQLITE
from tests.bench.growth import report
from tests.bench.growth.parts import PARTS, Plan
from tests.bench.growth.results import Part
from tests.bench.settles.__main__ import basic_facts

_QUICK = Plan(
    POSTGRESQL,
    books=(100, 1_000),
    settles=20,
    rounds=1,
    callers=(1, 32),
    providers=(1, 8),
    memory=10_000,
    under_way=(1, 32),
)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers, two minutes in all")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help="this part; may be repeated")
    parser.add_argument("--database", choices=(POSTGRESQL, SQLITE), default=POSTGRESQL, help="default: %(default)s")
    parser.add_argument("--books", type=int, nargs="+", metavar="ORDERS", help="orders in the books, in rising order")
    parser.add_argument("--settles", type=int, metavar="ORDERS", help="orders that the part memory settles")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with charts, too")
    arguments = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    plan = replace(_QUICK if arguments.quick else Plan(POSTGRESQL), database=arguments.database)
    plan = replace(plan, books=tuple(arguments.books or plan.books), memory=arguments.settles or plan.memory)
    facts = basic_facts("tests.bench.growth") | {"database": plan.database}
    # On asyncio's own loop: uvloop starts no process as another user, which PostgreSQL must be under root.
    parts = asyncio.run(run(plan, arguments.only or list(PARTS)))
    if arguments.html:
        arguments.html.write_text(report.html(parts, facts, facts["command"]))
    if arguments.json:
        output.print_json(report.document(parts, facts))
    else:
        output.print_table("Growth", report.COLUMNS, report.rows(parts))
        for name, value in facts.items():
            output.print_line(f"{name}: {value}")
        for problem in [problem for part in parts for problem in part.problems][:20]:
            output.print_line(f"PROBLEM: {problem}")
    sys.exit(1 if any(part.problems for part in parts) else 0)


async def run(plan: Plan, names: list[str]) -> list[Part]:
    """Measure some parts, one after the other, each on stacks of its own."""
    parts = []
    for name in names:
        with _folder() as folder:
            parts.append(await PARTS[name](folder, plan, _tell))
    return parts


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="countinghouse-growth-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL, when root starts it, runs as a user who must pass through
        yield folder


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    main()
