"""The checker on a simulation of 100,000 calls at 5,000 orders: `make bench-check`.

It is made first, with lost replies and dead processes, and put where the command looks: a history and three
SQLite files. Then `countinghouse check` is run on them as a user runs it, and its parts are measured one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.checker.checks.orders import orders_linearizable
from services.checker.history import History, read_history
from services.checker.registry import run_checks
from services.checker.snapshot import Snapshot, settled_snapshot
from services.cli import output
from services.kernel.clock import SystemClock
from tests.bench.figures import Figure
from tests.unit.checker.archive import archive, record
from tests.unit.checker.simulation import Simulation

_T = TypeVar("_T")
_ORDERS, _CALLS_EACH = 5_000, 20
_SEED = 7
_LIMIT_S = 10.0


def measure(folder: Path, orders: int) -> list[Figure]:
    """Simulate, and measure the check as a whole and in parts."""
    dataset = Simulation(_SEED, orders=orders, calls=_CALLS_EACH - 1, at_once=16).run()
    calls = len(dataset.calls)
    file = folder / "history.jsonl"
    _, record_s = _timed(lambda: record(file, dataset.calls))
    urls = asyncio.run(archive(folder, dataset))
    whole_s = _command_s(folder, file)
    history, history_s = _timed(lambda: read_history(file))
    reading, books_s = _timed(lambda: asyncio.run(settled_snapshot(urls, _LIMIT_S, SystemClock())))
    _, checks_s = _timed(lambda: run_checks(reading.snapshot, history=history, now_ms=reading.at_ms))
    _, orders_s = _timed(lambda: _orders(history, reading.snapshot))
    rows = sum(len(getattr(reading.snapshot, name) or ()) for name in reading.snapshot.__slots__)
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return [
        Figure("check_calls", f"calls at {orders:,} orders", calls, ""),
        Figure("check_rows", "rows in three databases", rows, ""),
        Figure("check_whole_s", "countinghouse check, all of it", whole_s, "s", "60 s"),
        Figure("check_peak_mib", "countinghouse check, memory at most", peak_mib, "MiB"),
        Figure("check_history_s", "reading the history", history_s, "s"),
        Figure("check_books_s", "reading the books, until they say the same twice", books_s, "s"),
        Figure("check_checks_s", "all checks", checks_s, "s"),
        Figure("check_orders_s", "of these, each order's calls", orders_s, "s"),
        Figure("check_record_us", "writing one event of the history", record_s / (2 * calls) * 1e6, "µs"),
    ]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checking", description=__doc__)
    parser.add_argument("--orders", type=int, default=_ORDERS, help=f"how many; {_CALLS_EACH} calls each")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="countinghouse-bench-") as folder:
        figures = measure(Path(folder), arguments.orders)
    if arguments.json:
        output.print_json({figure.key: round(figure.value, 3) for figure in figures})
    else:
        rows = [(figure.what, figure.shown, figure.target) for figure in figures]
        output.print_table("Bench", ("what", "measured", "target"), rows)


def _command_s(folder: Path, history: Path) -> float:
    """How long the command takes, from its start to its exit.

    Raises:
        CalledProcessError: It found something wrong.
    """
    command = [sys.executable, "-m", "services.cli.main", "check", "--data", str(folder), "--history", str(history)]
    began_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def _orders(history: History, snapshot: Snapshot) -> None:
    orders_linearizable(history, snapshot, SystemClock(), limit_s=_LIMIT_S, on_progress=lambda _done, _of: None)


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    began_s = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began_s


if __name__ == "__main__":
    main()
