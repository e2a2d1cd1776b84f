"""The runs of a stack's directory. A script stands for the command `countinghouse`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.runs import StackRuns
from services.gateway.runs import WantedRun
from services.kernel.errors import Aborted, NotFound
from tests.fakes.clock import ManualClock

ACT = WantedRun("demo", "double click", ("ticket",))
VIOLATED = (
    '{"verdict": "violated", "seed": 5, "acts": [{"detail": "10 charges"}], '
    '"checks": [{"name": "one charge per key", "violations": ["k was charged twice"]}]}'
)


@pytest.fixture
def runs_of(tmp_path: Path) -> Callable[..., StackRuns]:
    """Runs whose command is a script; it notes its arguments in `asked`."""

    def made(script: str, clock: ManualClock | None = None) -> StackRuns:
        program = tmp_path / "program"
        program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n{script}\n')
        program.chmod(0o755)
        return StackRuns(tmp_path / "runs", clock or ManualClock(), program=(str(program),))

    return made


async def ended(runs: StackRuns) -> dict[str, Any]:
    """The newest run, once it has ended."""
    async with asyncio.timeout(30):
        while runs.listed()[0]["state"] == "running":  # noqa: ASYNC110  another process
            await asyncio.sleep(0.01)
    return runs.listed()[0]


async def test_violation_that_the_checker_found_is_shown(runs_of: Callable[..., StackRuns], tmp_path: Path) -> None:
    runs = runs_of(f"echo '{VIOLATED}'; exit 1")
    await runs.begin(ACT)
    found = await ended(runs)
    assert (found["state"], found["violations"]) == ("violated", ["one charge per key: k was charged twice"])
    assert (found["detail"], found["seed"], found["report"]) == ("10 charges", 5, False)
    assert found["command"] == "demo --act 'double click' --guards-off ticket"
    assert (tmp_path / "asked").read_text() == "demo --act double click --guards-off ticket --json\n"


async def test_page_of_a_chaos_run_is_kept(runs_of: Callable[..., StackRuns], tmp_path: Path) -> None:
    into_data = 'for each; do [ "$before" = --data ] && echo page > "$each/report.html"; before=$each; done'
    runs = runs_of(f'{into_data}\necho \'{{"verdict": "ok"}}\'')
    await runs.begin(WantedRun("chaos", seed=7))
    found = await ended(runs)
    assert (found["state"], found["report"]) == ("ok", True)
    assert runs.report(found["id"]) == b"page\n"
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("chaos run --seed 7 --minutes 0.5 --database sqlite --data ")
    with pytest.raises(NotFound):
        runs.report("0-demo")


async def test_one_run_goes_on_at_a_time(runs_of: Callable[..., StackRuns]) -> None:
    """Ended with the gateway, it is shown as that afterwards."""
    runs = runs_of("exec sleep 60")
    await runs.begin(ACT)
    with pytest.raises(Aborted):
        await runs.begin(ACT)
    await runs.close()
    assert runs.listed()[0]["state"] == "failed"


async def test_run_that_printed_no_result_says_why(runs_of: Callable[..., StackRuns]) -> None:
    runs = runs_of("echo 'ZooKeeper is not installed' >&2; exit 2")
    await runs.begin(ACT)
    found = await ended(runs)
    assert (found["state"], found["detail"]) == ("failed", "ZooKeeper is not installed")


async def test_runs_of_before_are_listed_newest_first_and_twenty_are_kept(runs_of: Callable[..., StackRuns]) -> None:
    clock = ManualClock()
    runs = runs_of('echo \'{"verdict": "ok"}\'', clock)
    for _ in range(22):
        clock.advance(1)
        await runs.begin(ACT)
        await ended(runs)
    begun = [each["begunAtMs"] for each in runs_of("exit 0").listed()]
    assert begun == sorted(begun, reverse=True)
    assert len(begun) == 20
