"""A data directory whose stack runs, as far as a command that only reads its description can see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.devstack.state import Instance, InstanceState, StackLock, StackState


@contextmanager
def described_as_running(data: Path, name: str, pid: int = 0) -> Iterator[None]:
    """A stack of one process, which has no address; and no process id, unless it is given."""
    lock = StackLock(data)
    lock.take()
    instance = Instance(name, name.rpartition("-")[0], "", pid, "", InstanceState.SERVING)
    StackState(1, True, "127.0.0.1:1", 0, (instance,)).write(data)
    try:
        yield
    finally:
        lock.give_up()
