"""Measure settles of distinct orders, ours beside what others would use and beside pgbench: `make bench-settle`.

One run, in interleaved rounds, on PostgreSQL with fsync and on SQLite, everything on this machine's cores. Exit code 1:
an order was not settled exactly once. How fast is no matter of the exit code: numbers depend on the machine and on what
else it does, so look at the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from services.cli import output
from services.kernel.clock import SystemClock, rfc3339
from tests.bench.settles import report
from tests.bench.settles.results import SYSTEMS, summary
from tests.bench.settles.run import Outcome, Plan, Run

_FULL, _QUICK = Plan(rounds=3, seconds=3.0), Plan(rounds=1, seconds=1.0)
_ROOT = Path(__file__).parents[3]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.settles", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute in all")
    parser.add_argument("--rounds", type=int, help="how many are counted")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with charts, too")
    parser.add_argument(
        "--only", action="append", choices=SYSTEMS, metavar="SYSTEM", help="measure this one; may be repeated"
    )
    actions = parser.add_subparsers(dest="action", required=False, metavar="")
    table = actions.add_parser("table", help="print the table of a JSON document that --json printed")
    table.add_argument("file", type=Path, metavar="FILE")
    table.add_argument(
        "--short", action="store_true", help="as README.md has it; without: tests/bench/settles/README.md"
    )
    arguments = parser.parse_args()
    if arguments.action == "table":
        document = json.loads(arguments.file.read_text())
        sys.stdout.write(report.markdown(document, short=arguments.short) + "\n")
        return
    plan = _QUICK if arguments.quick else _FULL
    plan = replace(plan, rounds=arguments.rounds or plan.rounds, systems=tuple(arguments.only or SYSTEMS))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    facts = basic_facts("tests.bench.settles")
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="countinghouse-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL, when root starts it, runs as a user who must pass through
        # On asyncio's own loop: uvloop starts no process as another user, which PostgreSQL must be under root.
        outcome = asyncio.run(Run(plan, _tell).run(Path(folder)))
    facts |= {
        "PostgreSQL": ", ".join(f"{name} {value}" for name, value in outcome.settings.items()),
        "load average after": _load_average(),
        "measured": f"{plan.rounds} rounds, {plan.seconds:g} s each; {time.monotonic() - began_s:.0f} s in all",
        "settled": f"{outcome.settled:,} orders, each exactly once" if not outcome.problems else "see the problems",
    }
    if arguments.html:
        arguments.html.write_text(report.html(outcome, facts, facts["command"]))
    if arguments.json:
        output.print_json(report.document(outcome, facts))
    else:
        _print(outcome, facts)
    sys.exit(1 if outcome.problems else 0)


def _print(outcome: Outcome, facts: dict[str, str]) -> None:
    output.print_table("Settles", report.COLUMNS, report.rows(summary(outcome.measurements)))
    for name, share in report.against_ceiling(outcome).items():
        output.print_line(f"8 callers ÷ pgbench with 8 clients: {name} {share:.2f} ×")
    for name, share in report.ours_against(outcome).items():
        output.print_line(f"32 callers: ours, PostgreSQL ÷ {name} {share:.2f} ×")
    if beside := report.beside_batch_run(outcome.measurements):
        output.print_line(f"cashiers' p99 beside a batch run ÷ without: {beside:.2f} ×")
    for name, value in facts.items():
        output.print_line(f"{name}: {value}")
    for name, reason in outcome.skipped.items():
        output.print_line(f"SKIPPED: {name}: {reason}")
    for problem in outcome.problems[:20]:
        output.print_line(f"PROBLEM: {problem}")


def basic_facts(program: str) -> dict[str, str]:
    """Return what a reader needs to compare this run of a program with another."""
    return {
        "date": rfc3339(SystemClock().now_ms()),
        "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
        "commit": _commit(),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "load average before": _load_average(),
    }


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _load_average() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    main()
