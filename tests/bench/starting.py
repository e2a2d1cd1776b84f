"""Starting: how long `countinghouse up` takes, what it then weighs, and how long `--help` takes."""

from __future__ import annotations

import asyncio
import signal
import statistics
import sys
import time
from pathlib import Path

import psutil

from services.devstack import state
from tests.bench.figures import Figure
from tests.e2e.command import start_command_line

_STARTS = 3
_HELPS = 5
#: After this long nothing of the start is still going on.
_IDLE_S = 5.0
_MB = 1 << 20


async def measure(folder: Path) -> list[Figure]:
    """Starts the command as a person would, again and again.

    Args:
        folder: For the data of the stacks.
    """
    ready_s = []
    weights: dict[str, tuple[float, float]] = {}
    for number in range(_STARTS):
        data = folder / f"up-{number}"
        began_s = time.perf_counter()
        process = await start_command_line("up", "--json", "--data", str(data))
        try:
            if process.stdout is None:
                raise RuntimeError("its output cannot be read")
            await process.stdout.readuntil(b"\n}\n")
            ready_s.append(time.perf_counter() - began_s)
            if number == _STARTS - 1:
                await asyncio.sleep(_IDLE_S)
                weights = _weigh(data)
        finally:
            process.send_signal(signal.SIGINT)
            await process.communicate()
    rss, pss = (sum(weight[kind] for weight in weights.values()) for kind in (0, 1))
    return [
        Figure(
            "up_median_s", f"`countinghouse up` to ready, fresh, median of {_STARTS}", statistics.median(ready_s), "s"
        ),
        Figure("up_slowest_s", f"`countinghouse up` to ready, fresh, slowest of {_STARTS}", max(ready_s), "s", "≤ 8"),
        *(
            Figure(f"memory_{name}_{kind}_mb", f"memory, idle, {name}: {kind.upper()}", value, "MB")
            for name, weight in weights.items()
            for kind, value in zip(("rss", "pss"), weight, strict=True)
        ),
        Figure("memory_rss_mb", "memory, idle, ZooKeeper and the services: RSS", rss, "MB", "≤ 450"),
        Figure("memory_pss_mb", "memory, idle, ZooKeeper and the services: PSS", pss, "MB"),
        Figure("help_median_s", f"`countinghouse --help`, median of {_HELPS}", await _help_s(), "s", "≤ 0.4"),
    ]


def _weigh(data: Path) -> dict[str, tuple[float, float]]:
    """Megabytes of each process: resident, and its proportional share of what processes have in common."""
    found = state.require(data)
    pids = {"zookeeper": found.zookeeper_pid} | {instance.name: instance.pid for instance in found.instances}
    weights = {}
    for name, pid in pids.items():
        memory = psutil.Process(pid).memory_full_info()
        weights[name] = (memory.rss / _MB, getattr(memory, "pss", memory.rss) / _MB)
    return weights


async def _help_s() -> float:
    program = Path(sys.executable).with_name("countinghouse")
    arguments = [str(program)] if program.exists() else [sys.executable, "-m", "services.cli.main"]
    lasted_s = []
    for _ in range(_HELPS):
        began_s = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*arguments, "--help", stdout=asyncio.subprocess.DEVNULL)
        if await process.wait() != 0:
            raise RuntimeError("--help failed")
        lasted_s.append(time.perf_counter() - began_s)
    return statistics.median(lasted_s)
