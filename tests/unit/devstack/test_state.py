"""What a data directory says of its stack."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from services.devstack import state
from services.devstack.state import Instance, InstanceState, StackLock, StackRefused, StackState

#: No process has this id.
ENDED = 2**22 + 1

STATE = StackState(
    supervisor=1,
    detachable=True,
    zookeeper="127.0.0.1:2181",
    zookeeper_pid=2,
    instances=(
        Instance("order-1", "order", "countinghouse.order.v1.OrderService", 3, "127.0.0.1:4", InstanceState.SERVING),
    ),
    failpoints=True,
    guards_off=("lock",),
)


def test_running_stack_is_read_as_it_was_written(tmp_path: Path) -> None:
    lock = StackLock(tmp_path)
    lock.take()
    STATE.write(tmp_path)
    assert state.read(tmp_path) == STATE
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600
    lock.give_up()


def test_description_without_a_supervisor_is_of_no_stack(tmp_path: Path) -> None:
    """A supervisor that was killed leaves its file; the lock tells the truth."""
    lock = StackLock(tmp_path)
    lock.take()
    STATE.write(tmp_path)
    lock.give_up()
    assert state.read(tmp_path) is None
    with pytest.raises(StackRefused, match="no stack is running"):
        state.require(tmp_path)


def test_second_supervisor_is_refused(tmp_path: Path) -> None:
    lock = StackLock(tmp_path)
    lock.take()
    with pytest.raises(StackRefused, match=r"is running on .* already"):
        StackLock(tmp_path).take()
    lock.give_up()
    lock.give_up()
    second = StackLock(tmp_path)
    second.take()
    second.give_up()


def test_directory_that_is_not_there_has_no_stack(tmp_path: Path) -> None:
    assert state.read(tmp_path / "none") is None


async def test_waiting_for_the_end_ends_with_the_lock(tmp_path: Path) -> None:
    lock = StackLock(tmp_path)
    lock.take()
    assert not await state.wait_gone(tmp_path, ENDED, 0.1)
    asyncio.get_running_loop().call_later(0.1, lock.give_up)
    assert await state.wait_gone(tmp_path, ENDED, 5)


async def test_waiting_for_the_end_waits_for_the_process_too(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    assert not await state.wait_gone(tmp_path, process.pid, 0.1)
    process.kill()
    assert await state.wait_gone(tmp_path, process.pid, 5)
    await process.wait()


def test_forgetting_is_idempotent(tmp_path: Path) -> None:
    STATE.write(tmp_path)
    state.forget(tmp_path)
    state.forget(tmp_path)
    assert not (tmp_path / "stack.json").exists()
