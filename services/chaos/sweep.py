"""Many runs, one seed each: every one a process and a stack of its own, so that none can help or harm another.

    seeds ──▶ so many at a time: `countinghouse chaos run --seed N --json` ──▶ one line each ──▶ how many were ok

What a run that is ok has left behind is removed; of the others the history, the report and the stack's data stay.
"""

from __future__ import annotations

import asyncio
import json
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

_STOP_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed.

    Args:
        told: What the run printed; empty if it ended without a word.
        folder: What it left behind.
    """

    seed: int
    verdict: Verdict
    reasons: tuple[str, ...]
    took_s: float
    told: dict[str, Any]
    folder: Path

    def line(self) -> str:
        """In one line; those that follow say why it is not ok."""
        calls, rested_s = self.told.get("calls", 0), self.told.get("at_rest_after_s", 0.0)
        said = f"seed {self.seed}: {self.verdict.value}, {calls} calls, at rest after {rested_s} s; {self.took_s:.0f} s"
        if self.verdict is Verdict.OK:
            return said
        return "\n".join([said, *(f"  {reason}" for reason in self.reasons), f"  kept: {self.folder}"])


async def run_seeds(
    seeds: Sequence[int],
    options: Sequence[str],
    folder: Path,
    clock: Clock,
    *,
    at_once: int,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Runs them all.

    Args:
        options: Further options of `countinghouse chaos run`.
        folder: Where each run gets a folder of its own.
        tell: Told of each as it ends.
    """
    room = asyncio.Semaphore(at_once)

    async def one(seed: int) -> Outcome:
        async with room:
            outcome = await _run(seed, options, folder / f"seed-{seed}", clock)
        if outcome.verdict is Verdict.OK:
            await asyncio.to_thread(shutil.rmtree, outcome.folder)
        tell(outcome)
        return outcome

    async with asyncio.TaskGroup() as runs:
        tasks = [runs.create_task(one(seed)) for seed in seeds]
    return [task.result() for task in tasks]


async def _run(seed: int, options: Sequence[str], folder: Path, clock: Clock) -> Outcome:
    """One run. Whatever it prints for people goes to a file beside its history."""
    began_s = clock.monotonic_s()
    folder.mkdir(parents=True)  # noqa: ASYNC240  a moment
    folder.chmod(0o755)  # noqa: ASYNC240  PostgreSQL, run as somebody else, has to pass through
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
    told = _read(printed)
    if "verdict" in told:
        return Outcome(seed, Verdict(told["verdict"]), tuple(told["reasons"]), took_s, told, folder)
    refusal = told.get("error", {}).get("message", "see run.log")
    reasons = (f"it ended with exit code {process.returncode} and without a verdict: {refusal}",)
    return Outcome(seed, Verdict.UNKNOWN, reasons, took_s, {}, folder)


def _read(printed: bytes) -> dict[str, Any]:
    """What a run printed; empty, if that is no JSON."""
    try:
        told = json.loads(printed)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Lets a run stop its stack."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
