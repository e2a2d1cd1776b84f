"""The processes of a stack, as the gateway finds and signals them; and who may."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.cli.breaking import OperatorCheck, StackProcesses
from services.devstack.keys import Keys
from services.devstack.state import StackRefused
from services.kernel.clock import SystemClock
from services.kernel.errors import FailedPrecondition, NotFound, PermissionDenied, Unauthenticated
from services.kernel.principal import Principal, Role
from tests.unit.cli.stacks import described_as_running

OPS = Principal("ops", Role.OPERATOR)


@pytest.fixture
async def process() -> AsyncIterator[asyncio.subprocess.Process]:
    """One that does nothing until it is killed."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


@contextmanager
def running(data: Path, pid: int) -> Iterator[StackProcesses]:
    """A stack whose payment-1 is this process."""
    with described_as_running(data, "payment-1", pid):
        yield StackProcesses(data)


async def until(processes: StackProcesses, state: str) -> None:
    async with asyncio.timeout(30):
        while [each["state"] for each in processes.listed()] != [state]:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.01)


async def test_process_is_frozen_resumed_and_killed(tmp_path: Path, process: asyncio.subprocess.Process) -> None:
    with running(tmp_path, process.pid) as processes:
        await until(processes, "running")
        processes.act("payment-1", "stop")
        await until(processes, "stopped")
        processes.act("payment-1", "resume")
        await until(processes, "running")
        processes.act("payment-1", "kill")
        assert await process.wait() == -signal.SIGKILL
        await until(processes, "gone")


def test_process_that_is_not_running_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, 0) as processes:
        assert [each["state"] for each in processes.listed()] == ["gone"]
        with pytest.raises(FailedPrecondition) as refusal:
            processes.act("payment-1", "kill")
    assert refusal.value.reason == "PROCESS_GONE"


def test_process_of_no_stack_is_not_touched(tmp_path: Path) -> None:
    with running(tmp_path, 0) as processes, pytest.raises(NotFound) as refusal:
        processes.act("init", "kill")
    assert refusal.value.reason == "PROCESS_UNKNOWN"
    with pytest.raises(StackRefused):
        StackProcesses(tmp_path / "none").listed()


async def test_operator_alone_may(tmp_path: Path) -> None:
    keys = Keys(tmp_path, SystemClock())
    check = OperatorCheck(tmp_path)
    await check(f"Bearer {keys.sign(Principal('ops', Role.OPERATOR))}")
    for role in (Role.CASHIER, Role.ACCOUNTANT, Role.AUDITOR, Role.CUSTOMER):
        with pytest.raises(PermissionDenied):
            await check(f"Bearer {keys.sign(Principal('ops', role))}")
    for forged in ("", "Bearer rubbish", f"Bearer {Keys(tmp_path / 'other', SystemClock()).sign(OPS)}"):
        with pytest.raises(Unauthenticated):
            await check(forged)
