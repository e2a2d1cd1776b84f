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

from services.devstack import keys, managed_process
from services.devstack import stack as stack_module
from services.devstack.child import Child, Command
from services.devstack.keys import Keys
from services.devstack.managed_process import ManagedProcess
from services.devstack.secret_distributor import SecretDistributor
from services.devstack.stack import Stack, StackOptions
from services.devstack.state import InstanceState, StackLock, StackState
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError

NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "some/file")


class Supervised:
    """What a process is told of its stack, and what it says."""

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.said: list[str] = []
        self.failure: CountinghouseError | None = None
        self._news = asyncio.Event()

    def changed(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def tell(self, sentence: str) -> None:
        self.said.append(sentence)

    def fail(self, error: CountinghouseError) -> None:
        self.failure = error

    async def restarts_allowed(self) -> None: ...

    async def until(self, process: ManagedProcess, state: InstanceState) -> None:
        async with asyncio.timeout(15):
            while process.state is not state:
                await self._news.wait()


async def serves_at_once(_process: ManagedProcess, _child: Child) -> str:
    return "here"


@asynccontextmanager
async def running(stack: Supervised, tmp_path: Path, ready: Any = serves_at_once) -> AsyncIterator[ManagedProcess]:
    command = Command((sys.executable, "-c", "import time; time.sleep(600)"), {}, tmp_path / "log")
    process = ManagedProcess(
        stack, "zookeeper", service="zookeeper", interface="", command=command, ready=ready, grace_s=1.0
    )
    task = asyncio.create_task(process.run())
    try:
        yield process
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
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

    async def ready(_process: ManagedProcess, _child: Child) -> str:
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

    def write(state: StackState, _data: Path) -> None:
        if full:
            raise NO_SPACE
        described.append(state)

    monkeypatch.setattr(StackState, "write", write)
    monkeypatch.setattr(stack_module, "_DESCRIBE_AGAIN_S", 0.01)
    said: list[str] = []
    stack = Stack(StackOptions(tmp_path, services=()), tell=said.append)
    stack._lock = StackLock(tmp_path)
    stack._ready = True
    command = Command((sys.executable, "-c", "import time; time.sleep(600)"), {}, tmp_path / "log")
    process = ManagedProcess(
        stack, "zookeeper", service="zookeeper", interface="", command=command, ready=serves_at_once, grace_s=1.0
    )
    stack._servers["zookeeper"] = process
    stack._run(process)
    stack._closing.append(process.stop)
    try:
        await stack.wait_server("zookeeper")
        first = process.pid
        process.signal(signal.SIGKILL)
        await stack.wait_until(lambda: process.state is InstanceState.SERVING and process.pid != first, 15)
        assert sum("stack.json" in sentence for sentence in said) == 1  # not once a second
        full = False
        async with asyncio.timeout(15):
            while not described:  # noqa: ASYNC110  a timer of its own
                await asyncio.sleep(0.01)
        assert described[-1].zookeeper_pid == process.pid
    finally:
        await stack.stop()


async def test_stack_whose_watcher_cannot_be_told_goes_on(tmp_path: Path) -> None:
    """Its terminal is gone, or the file that takes its words is on a full disk."""

    def tell(_sentence: str) -> None:
        raise BrokenPipeError

    Stack(StackOptions(tmp_path), tell=tell).tell("a process ended")


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
    distributor = SecretDistributor(tmp_path, ["order"], SystemClock())
    distributor.distribute()
    monkeypatch.setattr("services.devstack.keys.SERVICE_TOKEN_TTL_S", -1)  # every token is old
    write = SecretDistributor._write

    def fail(*_: object) -> None:
        raise NO_SPACE

    monkeypatch.setattr(SecretDistributor, "_write", fail)
    with pytest.raises(OSError, match="No space"):
        distributor.renew()
    monkeypatch.setattr(SecretDistributor, "_write", write)
    monkeypatch.setattr("services.devstack.keys.SERVICE_TOKEN_TTL_S", 12 * 3600)  # none is old any more
    assert distributor.renew() == []
    kept = (tmp_path / "operator" / "keys" / "order.token").read_bytes()
    assert (tmp_path / "order" / "service.token").read_bytes() == kept
