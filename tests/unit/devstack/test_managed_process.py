"""What supervises goes on, whatever becomes of what it supervises."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.devstack import keys, managed_process, state
from services.devstack.child import Child, Command
from services.devstack.keys import Keys
from services.devstack.managed_process import ManagedProcess
from services.devstack.secret_distributor import SecretDistributor
from services.devstack.state import InstanceState, StackState, StateWriter
from services.devstack.supervision import Supervision
from services.kernel.clock import SystemClock

NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "some/file")


class Supervised(Supervision):
    """Keeps what is told."""

    def __init__(self, *, ready: bool = True) -> None:
        self.said: list[str] = []
        super().__init__(self.said.append)
        self.ready = ready

    async def until(self, process: ManagedProcess, state: InstanceState) -> None:
        async with asyncio.timeout(15):
            while process.state is not state:
                await self._changed.wait()


async def serves_at_once(_child: Child) -> str:
    return "here"


@asynccontextmanager
async def running(stack: Supervision, tmp_path: Path, ready: Any = serves_at_once) -> AsyncIterator[ManagedProcess]:
    command = Command((sys.executable, "-c", "import time; time.sleep(600)"), {}, tmp_path / "log")
    process = ManagedProcess(
        stack, "zookeeper", service="zookeeper", interface="", command=command, ready=ready, grace_s=1.0
    )
    stack.run(process.run())
    try:
        yield process
    finally:
        await stack.close()
        await process.stop()


async def test_process_that_cannot_be_started_for_want_of_space_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log file, a fork: what is full now will not be for ever."""
    failures = [NO_SPACE] * 5
    spawn = Child.spawn

    def spawn_later(command: Command) -> Child:
        if failures:
            raise failures.pop()
        return spawn(command)

    monkeypatch.setattr(Child, "spawn", spawn_later)
    monkeypatch.setattr(managed_process, "_FIRST_PAUSE_S", 0.001)
    stack = Supervised()
    async with running(stack, tmp_path) as process:
        await stack.until(process, InstanceState.SERVING)
    assert stack.said[0] == "zookeeper cannot be run: No space left on device: some/file; starting it again"
    assert process.restarts == 5


async def test_process_that_cannot_be_started_before_its_stack_was_ready_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(_command: Command) -> Child:
        raise NO_SPACE

    monkeypatch.setattr(Child, "spawn", spawn)
    monkeypatch.setattr(managed_process, "_FIRST_PAUSE_S", 0.001)
    stack = Supervised(ready=False)
    async with running(stack, tmp_path) as process:
        await stack.until(process, InstanceState.REFUSED)
        assert stack.failure is not None
        assert "No space left on device" in stack.failure.message


async def test_process_whose_readiness_cannot_be_seen_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed_process, "_WATCH_AGAIN_S", 0.001)
    failures: list[Exception] = [NO_SPACE, RuntimeError("can't start new thread")]

    async def ready(_child: Child) -> str:
        if failures:
            raise failures.pop()
        return "here"

    stack = Supervised()
    async with running(stack, tmp_path, ready) as process:
        await stack.until(process, InstanceState.SERVING)
    assert process.address == "here"


async def test_process_that_was_killed_is_started_again_while_its_stack_cannot_be_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk took stack.json, and with it the supervision of ZooKeeper."""
    described: list[StackState] = []
    full = True

    def write(written: StackState, _data: Path) -> None:
        if full:
            raise NO_SPACE
        described.append(written)

    monkeypatch.setattr(StackState, "write", write)
    monkeypatch.setattr(state, "_WRITE_AGAIN_S", 0.01)
    said: list[str] = []
    writer = StateWriter(tmp_path, lambda: StackState(1, True, "", process.pid, ()), said.append)
    supervision = Supervision(said.append, writer.write)
    supervision.ready = True
    async with running(supervision, tmp_path) as process:
        await supervision.wait_until(lambda: process.state is InstanceState.SERVING, 15)
        first = process.pid
        process.signal(signal.SIGKILL)
        await supervision.wait_until(lambda: process.state is InstanceState.SERVING and process.pid != first, 15)
        assert sum("stack.json" in sentence for sentence in said) == 1  # not once a second
        full = False
        async with asyncio.timeout(15):
            while not described:  # noqa: ASYNC110  a timer of its own
                await asyncio.sleep(0.01)
        assert described[-1].zookeeper_pid == process.pid
    writer.close()


async def test_supervision_whose_watcher_fails_goes_on() -> None:
    """Its terminal is gone, or the file that takes its words is on a full disk."""

    def tell(_sentence: str) -> None:
        raise BrokenPipeError

    Supervision(tell).tell("a process ended")


async def test_tokens_that_cannot_be_renewed_are_renewed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0.001)
    failures = [NO_SPACE, NO_SPACE]
    renewed = asyncio.Event()

    def renew(_keys: Keys) -> list[str]:
        if failures:
            raise failures.pop()
        renewed.set()
        return []

    monkeypatch.setattr(Keys, "renew", renew)
    said: list[str] = []
    keeping = asyncio.create_task(Keys(tmp_path, SystemClock()).keep_fresh(said.append))
    async with asyncio.timeout(15):
        await renewed.wait()
    keeping.cancel()
    assert len(said) == 2


def test_token_that_could_not_be_handed_out_is_handed_out_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributor = SecretDistributor(tmp_path, {"payment": 1}, SystemClock())
    distributor.distribute()
    monkeypatch.setattr("services.devstack.keys.SERVICE_TOKEN_TTL_S", -1)  # every token is old
    write = SecretDistributor._write

    def fail(*_: object, **__: object) -> None:
        raise NO_SPACE

    monkeypatch.setattr(SecretDistributor, "_write", fail)
    with pytest.raises(OSError, match="No space"):
        distributor.renew()
    monkeypatch.setattr(SecretDistributor, "_write", write)
    monkeypatch.setattr("services.devstack.keys.SERVICE_TOKEN_TTL_S", 900)  # none is old any more
    assert distributor.renew() == []
    kept = (tmp_path / "operator" / "keys" / "tokens" / "payment" / "order.token").read_bytes()
    assert (tmp_path / "payment" / "order.token").read_bytes() == kept
