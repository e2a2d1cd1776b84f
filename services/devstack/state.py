"""The description of a stack in its data directory, for the commands that did not start it.

    <data>/stack.lock     locked (flock) for as long as a supervisor lives, however it dies
    <data>/stack.json     processes and addresses, written anew at every change, mode 0600

The lock is the truth and the file a description: a file without a lock is of a stack that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from coordination.files import write_whole
from services.kernel.errors import CountinghouseError, Unauthenticated
from services.kernel.json_input import parse_json

#: The services and what they provide, in the order in which they are stopped.
INTERFACES = {
    "payment": "countinghouse.payment.v1.PaymentService",
    "order": "countinghouse.order.v1.OrderService",
    "ledger": "countinghouse.ledger.v1.LedgerService",
}

#: The acquirer is an outside system: it is not in the registry, and found by its address.
ACQUIRER = "acquirer"

#: A command that only looks holds the lock for a moment; a supervisor that meets it tries again.
_LOCK_ATTEMPTS = 10
_LOCK_PAUSE_S = 0.02
_GONE_POLL_S = 0.05
_WRITE_AGAIN_S = 1.0


class StackRefused(CountinghouseError):
    """The stack is not available; the message gives the remedy. The command line exits with 2."""


class SigningKeyMissing(Unauthenticated):
    """The data directory has no signing key: no stack was started on it. The command line exits with 2."""


class StackFailed(CountinghouseError):
    """The stack did not get ready."""


class InstanceState(StrEnum):
    """Where an instance stands, as its supervisor sees it.

    STARTING ──▶ SERVING ──ends──▶ RESTARTING ──▶ STARTING …
        └──exit code 2──▶ REFUSED           any ──stop──▶ STOPPED
    """

    #: Its process runs; it is not SERVING and registered yet.
    STARTING = "STARTING"
    #: It was seen SERVING and registered, and its process has not ended since.
    SERVING = "SERVING"
    #: Its process ended; the next begins after a pause, or when restarts are allowed again.
    RESTARTING = "RESTARTING"
    #: Its process refused to start.
    REFUSED = "REFUSED"
    #: Stopped with its stack.
    STOPPED = "STOPPED"


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of a service, at one moment.

    Args:
        name: `payment-1`; also its name in the registry and in locks.
        interface: The proto service it provides.
        pid: 0 while it has no process.
        address: `host:port` as it registered; empty before.
        restarts: How often it was started again.
    """

    name: str
    service: str
    interface: str
    pid: int
    address: str
    state: InstanceState
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class StackState:
    """A stack at one moment.

    Args:
        supervisor: Process id of its supervisor.
        detachable: Whether the supervisor is `countinghouse up`, which SIGTERM stops in good order.
        zookeeper: `host:port`.
        zookeeper_pid: 0 if it is not the stack's own.
        acquirer: `host:port`; empty: there is none.
        acquirer_pid: 0 while it has no process here.
        gateway: `host:port` of the gateway and its console; empty: there is none.
        plaintext: Whether the services are called without TLS.
        zookeeper_plaintext: Whether its ensemble is used without TLS and users, although the services have TLS.
    """

    supervisor: int
    detachable: bool
    zookeeper: str
    zookeeper_pid: int
    instances: tuple[Instance, ...]
    acquirer: str = ""
    acquirer_pid: int = 0
    gateway: str = ""
    failpoints: bool = False
    plaintext: bool = False
    zookeeper_plaintext: bool = False
    guards_off: tuple[str, ...] = ()

    def write(self, data: Path) -> None:
        """Write it for the other commands."""
        write_whole(data / "stack.json", json.dumps(asdict(self), indent=1).encode(), mode=0o600)


class StateWriter:
    """Writes `stack.json` at every change; while that fails, again and again until it is written.

    Args:
        describe: Return what to write.
        tell: Called with a sentence when it begins to fail.
    """

    def __init__(self, data: Path, describe: Callable[[], StackState], tell: Callable[[str], None]) -> None:
        self._data = data
        self._describe = describe
        self._tell = tell
        self._retry: asyncio.TimerHandle | None = None

    def write(self) -> None:
        """Write it now, or as soon as it can be written."""
        failing = self._retry is not None
        self.close()
        try:
            self._describe().write(self._data)
        except OSError as error:
            if not failing:
                self._tell(f"{self._data / 'stack.json'} cannot be written ({error.strerror}); trying again")
            self._retry = asyncio.get_running_loop().call_later(_WRITE_AGAIN_S, self.write)

    def close(self) -> None:
        """Stop trying. Idempotent."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


class StackLock:
    """The right to be the supervisor of a data directory."""

    def __init__(self, data: Path) -> None:
        self._path = data / "stack.lock"
        self._descriptor = -1

    def take(self) -> None:
        """Become the supervisor.

        Raises:
            StackRefused: STACK_RUNNING: there is one already.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_S)
            else:
                self._descriptor = descriptor
                return
        os.close(descriptor)
        raise StackRefused(
            "STACK_RUNNING",
            f"a stack is running on {self._path.parent} already; use it, stop it with `countinghouse down`, "
            "or name another --data",
        )

    def give_up(self) -> None:
        """Stop being the supervisor. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def running(data: Path) -> bool:
    """Return whether a supervisor is alive."""
    try:
        descriptor = os.open(data / "stack.lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read(data: Path) -> StackState | None:
    """Return the stack that runs on `data`; None: none does.

    Raises:
        StackRefused: STACK_UNREADABLE: its description is damaged.
    """
    if not running(data):
        return None
    try:
        stored: dict[str, Any] = parse_json((data / "stack.json").read_bytes())
        instances = tuple(
            Instance(**{**part, "state": InstanceState(part["state"])}) for part in stored.pop("instances")
        )
        guards_off = tuple(stored.pop("guards_off"))
        return StackState(instances=instances, guards_off=guards_off, **stored)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StackRefused(
            "STACK_UNREADABLE",
            f"{data / 'stack.json'} is not the description of a stack; end the stack's process and start it again",
        ) from error


def require(data: Path) -> StackState:
    """Return the stack that runs on `data`.

    Raises:
        StackRefused: STACK_NOT_RUNNING.
    """
    found = read(data)
    if found is None:
        raise StackRefused(
            "STACK_NOT_RUNNING",
            f"no stack is running on {data}; start one with `countinghouse up`, or name its --data",
        )
    return found


def forget(data: Path) -> None:
    """Remove the description of a stack that has stopped."""
    with contextlib.suppress(OSError):  # without its lock it is of a stack that is gone
        (data / "stack.json").unlink()


def _alive(pid: int) -> bool:
    """Return whether a process is more than an entry of the process table."""
    import psutil  # noqa: PLC0415  `status` does without

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def wait_gone(data: Path, supervisor: int, timeout_s: float) -> bool:
    """Wait until the supervisor has given up the lock and ended; False if not within `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            while running(data) or _alive(supervisor):  # noqa: ASYNC110  no event of ours
                await asyncio.sleep(_GONE_POLL_S)
    except TimeoutError:
        return False
    return True
