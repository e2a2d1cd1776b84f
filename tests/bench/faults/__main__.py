"""Who charges twice? The demo's faults, brought about with ours and with what others would use: `make bench-faults`.

Every system has two instances and charges cards at the acquirer of our stack, each as its documentation says and with
its own idempotency on. How often the card was charged is read from the acquirer's log: once, twice, never or unknown. A
cell in bold also names where the order stands, which contradicts the charge. Exit code 1: ours did.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from services.cli import output
from services.devstack.options import POSTGRESQL
from services.devstack.stack import Stack, StackOptions
from services.testkit.harness import Harness
from tests.bench.faults import report
from tests.bench.faults.faults import FAULTS, bring_about
from tests.bench.faults.outcomes import Outcome
from tests.bench.faults.systems import OURS, SYSTEMS, System, ours, running
from tests.bench.settles.__main__ import basic_facts
from tests.bench.settles.peers import PEERS, Server


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults", description=__doc__)
    parser.add_argument("--only", action="append", choices=SYSTEMS, metavar="SYSTEM", help="this one; may be repeated")
    parser.add_argument("--fault", action="append", choices=FAULTS, metavar="FAULT", help="this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    facts = basic_facts("tests.bench.faults")
    with tempfile.TemporaryDirectory(prefix="countinghouse-faults-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL, when root starts it, runs as a user who must pass through
        running_all = run(Path(folder), arguments.only or SYSTEMS, arguments.fault or tuple(FAULTS))
        cells, skipped = asyncio.run(running_all)
    shown = [name for name in SYSTEMS if any(name in row for row in cells.values())]
    if arguments.json:
        output.print_json(report.document(cells, facts, skipped))
    else:
        sys.stdout.write(report.markdown(cells, shown) + "\n\n")
        for name, value in [*facts.items(), *((f"SKIPPED: {name}", reason) for name, reason in skipped.items())]:
            output.print_line(f"{name}: {value}")
    sys.exit(0 if all(row[OURS].agrees for row in cells.values() if OURS in row) else 1)


async def run(
    folder: Path, systems: tuple[str, ...], faults: tuple[str, ...]
) -> tuple[dict[str, dict[str, Outcome]], dict[str, str]]:
    """Return the outcomes by fault and system, and why a system was skipped, by its name."""
    cells: dict[str, dict[str, Outcome]] = {fault: {} for fault in faults}
    skipped: dict[str, str] = {}
    options = StackOptions(
        folder / "stack", database=POSTGRESQL, replicas={"payment": 2}, failpoints=True, plaintext=True
    )
    async with AsyncExitStack() as resources:
        stack = await resources.enter_async_context(Stack(options))
        harness = await resources.enter_async_context(Harness(stack))
        server = Server.of(stack)
        tested: list[System] = []
        if OURS in systems:
            tested.append(await resources.enter_async_context(ours(harness)))
        for kind in PEERS:
            if kind.name not in systems:
                continue
            if lacking := kind.lacking():
                skipped[kind.name] = lacking
            else:
                tested.append(await resources.enter_async_context(running(kind, server, harness)))
        for fault in faults:
            for system in tested:
                outcome = await bring_about(fault, system, harness, sum(map(len, cells.values())))
                cells[fault][system.name] = outcome
                sys.stderr.write(f"{fault}: {system.name}: {outcome.shown()} ({outcome.detail})\n")
    return cells, skipped


if __name__ == "__main__":
    main()
