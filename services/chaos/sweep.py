"""Run many seeds, each in a process and on a stack of its own, so that no run affects another.

    seeds ──▶ some at a time: `countinghouse chaos run --seed N --json` ──▶ one line each ──▶ how many were ok

What a run that is ok has left behind is removed; of the others the history, the report and the stack's data stay.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.checker.findings import Verdict
from services.kernel.clock import Clock
from services.kernel.json_input import parse_json

_STOP_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SeedResult:
    """The result of one seed.

    Args:
        document: What the run printed; empty if it printed no verdict.
        folder: Its history, its report and its stack's data.
    """

    seed: int
    verdict: Verdict
    reasons: tuple[str, ...]
    took_s: float
    document: dict[str, Any]
    folder: Path

    def line(self) -> str:
        """Return it in one line; more lines say why it is not ok."""
        calls, rested_s = self.document.get("calls", 0), self.document.get("at_rest_after_s", 0.0)
        said = f"seed {self.seed}: {self.verdict.value}, {calls} calls, at rest after {rested_s} s; {self.took_s:.0f} s"
        if self.verdict is Verdict.OK:
            return said
        return "\n".join([said, *(f"  {reason}" for reason in self.reasons), f"  kept: {self.folder}"])


async def sweep(
    seeds: Sequence[int],
    options: Sequence[str],
    folder: Path,
    clock: Clock,
    *,
    parallel: int,
    tell: Callable[[SeedResult], None],
) -> None:
    """Run all seeds.

    Args:
        options: Further options of `countinghouse chaos run`.
        folder: Each run gets a folder of its own in it.
        tell: Gets each result when its run ends.
    """
    limit = asyncio.Semaphore(parallel)

    async def run_one(seed: int) -> None:
        async with limit:
            result = await _run(seed, options, folder / f"seed-{seed}", clock)
        if result.verdict is Verdict.OK:
            await asyncio.to_thread(shutil.rmtree, result.folder)
        tell(result)

    async with asyncio.TaskGroup() as runs:
        for seed in seeds:
            runs.create_task(run_one(seed))


async def _run(seed: int, options: Sequence[str], folder: Path, clock: Clock) -> SeedResult:
    """Run one seed. What it prints on standard error goes to a file beside its history."""
    began_s = clock.monotonic_s()
    folder.mkdir(parents=True)  # noqa: ASYNC240  a moment
    folder.chmod(0o755)  # noqa: ASYNC240  PostgreSQL, run by another user, has to pass through
    command = (sys.executable, "-m", "services.cli.main", "chaos", "run", "--json")
    with (folder / "run.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*command, "--seed", str(seed), "--data", str(folder), *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            printed, _ = await process.communicate()
        except asyncio.CancelledError:
            await _stop(process)
            raise
    took_s = clock.monotonic_s() - began_s
    document = _read(printed)
    if "verdict" in document:
        return SeedResult(seed, Verdict(document["verdict"]), tuple(document["reasons"]), took_s, document, folder)
    refusal = document.get("error", {}).get("message", "see run.log")
    reasons = (f"it ended with exit code {process.returncode} and without a verdict: {refusal}",)
    return SeedResult(seed, Verdict.UNKNOWN, reasons, took_s, {}, folder)


def _read(printed: bytes) -> dict[str, Any]:
    """Return what a run printed; empty, if that is not JSON."""
    try:
        document = parse_json(printed)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Interrupt a run, and wait until it has stopped its stack."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
