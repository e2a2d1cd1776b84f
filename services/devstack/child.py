"""One child process, from its first instruction until the kernel has released it.

    spawn() ──▶ running ──ends──▶ reaped (returncode known, `wait` returns)
                 │    ▲
          SIGSTOP│    │SIGCONT        a stopped process is not treated as a dead one
                 ▼    │
                stopped

Invariants
1. Nothing can intervene between the fork and its record: `spawn` never waits, so a cancelled task
   leaves no child.
2. Every child is reaped, by a thread that waits for it alone.
3. Each has a session of its own, so a Ctrl-C at the terminal reaches the supervisor and not them.
4. On Linux the kernel kills a child whose supervisor is gone, however it ended. Elsewhere only an orderly end
   stops the children.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
#: A log file this large is put aside at the next start; the one put aside before is dropped.
_MAX_LOG_BYTES = 10 << 20
_LAST_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Args:
        environment: The whole of it; nothing is inherited.
        log: Where standard output and standard error go, appended.
        user: The user to run as; None: the current one.
        stop_signal: The signal that ends it in good order.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM


class Child:
    """A running process, or what is known of one that has ended. Made by `spawn`."""

    def __init__(self, process: subprocess.Popen[bytes], command: Command, log_start: int) -> None:
        self._process = process
        self._log = command.log
        self._stop_signal = command.stop_signal
        self._log_start = log_start
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._reap, name=f"reap-{process.pid}", daemon=True).start()

    @classmethod
    def spawn(cls, command: Command) -> Child:
        """Start the process. Call it on the thread that outlives the child: the kernel ties them together.

        Raises:
            OSError: The program cannot be run.
        """
        _put_aside(command.log)
        with os.fdopen(os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            log_start = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(  # noqa: S603  our own argument lists
                command.arguments,
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  two system calls, no lock
                **identity(command.user),
            )
            try:
                return cls(process, command, log_start)
            except BaseException:  # no thread waits for it, so its end would never be noticed
                process.kill()
                process.wait()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it lives."""
        return self._process.returncode

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._ended.is_set()

    async def wait(self) -> int:
        """Wait until it is gone; return its exit code, or minus the signal that ended it."""
        await self._ended.wait()
        return self._process.wait()  # reaped already: this only reads what the other thread has got

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, and after `grace_s` seconds ends it. Returns when it is gone."""
        self.signal(self._stop_signal)
        self.signal(signal.SIGCONT)  # a stopped process would not receive the first
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()

    def last_log_line(self, prefix: str = "") -> str:
        """Return the last line it wrote, if possible one that begins with `prefix`; empty if it wrote none."""
        try:
            with self._log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _LAST_LINE_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        chosen = [line for line in lines if line.startswith(prefix)] or lines
        return chosen[-1].strip() if chosen else ""

    def _reap(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop has been closed: no task waits any more
            self._loop.call_soon_threadsafe(self._ended.set)


def identity(user: str | None) -> dict[str, Any]:
    """Return what makes a new process run as `user`, with that user's groups only; None: as the current user."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


def _put_aside(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)

    def _die_with(supervisor: int) -> Callable[[], None] | None:
        """Return what the child runs before its program: a request to be killed when `supervisor` ends."""

        def ask() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != supervisor:  # gone between the fork and the request
                os._exit(1)

        return ask

else:

    def _die_with(_supervisor: int) -> Callable[[], None] | None:
        """Only Linux offers this."""
        return None
