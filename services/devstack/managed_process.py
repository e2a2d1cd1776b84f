"""One process that should be running: an instance of a service, or a server such as ZooKeeper.

    STARTING ──▶ SERVING ──ends──▶ RESTARTING ──▶ STARTING …
        └──exit code 2──▶ REFUSED           any ──stop──▶ STOPPED

Invariants
1. A process that ends is started again, after a pause that grows while it never gets as far as SERVING; never after
   exit code 2, which is a refusal.
2. What fails on the way, such as a fork, a log file on a full disk or the look whether it serves, is reported and tried
   again. Only before the stack was ready is it given up after _START_FAILURES.

Which function makes each move
    _spawn   → STARTING                 _watch   STARTING → SERVING
    run      → RESTARTING, REFUSED      stop     → STOPPED
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from services.devstack.child import Child, Command
from services.devstack.state import Instance, InstanceState, StackFailed, StackRefused
from services.devstack.supervision import Supervision
from services.kernel.errors import CountinghouseError

_REFUSED = 2
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
#: After so many failures before anything served, trying again does not help.
_START_FAILURES = 3
_WATCH_AGAIN_S = 0.5


class ManagedProcess:
    """See the module.

    Args:
        interface: The proto service it provides; empty: none.
        ready: Wait until a child serves; return its address.
        grace_s: How long it may take to end after the signal.
    """

    def __init__(
        self,
        supervision: Supervision,
        name: str,
        *,
        service: str,
        interface: str,
        command: Command,
        ready: Callable[[Child], Awaitable[str]],
        grace_s: float,
    ) -> None:
        self.name = name
        self.service = service
        self.interface = interface
        self.command = command
        self.child: Child | None = None
        self.state = InstanceState.STARTING
        self.address = ""
        self.restarts = 0
        self._supervision = supervision
        self._ready = ready
        self._grace_s = grace_s
        self._failures = 0  # since it last served

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self.child.pid if self.child is not None and not self.child.ended else 0

    def instance(self) -> Instance:
        """Return its state now."""
        return Instance(self.name, self.service, self.interface, self.pid, self.address, self.state, self.restarts)

    async def run(self) -> None:
        """Keep the process running, until it refuses or the task is cancelled."""
        while True:
            last_line = ""
            try:
                failure, last_line = await self._run_once()
            except Exception as error:
                failure = f"cannot be run: {_words(error)}"
            if self.state is InstanceState.REFUSED:
                return
            self._failures += 1
            if not self._supervision.ready and self._failures >= _START_FAILURES:
                words = f"{failure}: {last_line}" if last_line else failure
                self._give_up(StackFailed("PROCESS_CRASHES", f"{self.name} {words}; see {self.command.log}"))
                return
            self._become(InstanceState.RESTARTING)
            self._supervision.tell(f"{self.name} {failure}; starting it again")
            await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10), _MAX_PAUSE_S))
            await self._supervision.restarts.wait()
            self.restarts += 1

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if there is a process."""
        if self.child is None or self.child.ended:
            return
        if number == signal.SIGKILL:
            self._become(InstanceState.RESTARTING)  # it does not serve from here on
        self.child.signal(number)

    async def stop(self) -> None:
        """End it; return when it is gone."""
        if self.child is not None:
            await self.child.stop(self._grace_s)
        self._become(InstanceState.STOPPED)

    async def _run_once(self) -> tuple[str, str]:
        """Start it and wait for its end; return how it ended, and its last log line."""
        child = self._spawn()
        watch = asyncio.create_task(self._watch(child))
        try:
            code = await child.wait()
        finally:
            watch.cancel()
        last_line = child.last_log_line(f"{self.service}: ")
        if code == _REFUSED:
            self._give_up(StackRefused("PROCESS_REFUSED", last_line or f"{self.name} refused to start"))
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return f"(pid {child.pid}) ended with {how}", last_line

    def _spawn(self) -> Child:
        self.child = Child.spawn(self.command)
        self.address = ""
        self._become(InstanceState.STARTING)
        return self.child

    async def _watch(self, child: Child) -> None:
        address = ""
        while not address and not child.ended:
            try:
                address = await self._ready(child)
            except Exception as error:
                self._supervision.tell(
                    f"{self.name} (pid {child.pid}) cannot be looked at: {_words(error)}; trying again"
                )
                await asyncio.sleep(_WATCH_AGAIN_S)
        if not child.ended and self.state is InstanceState.STARTING:
            if self._supervision.ready:
                self._supervision.tell(f"{self.name} (pid {child.pid}) is back at {address}")
            self.address = address
            self._failures = 0
            self._become(InstanceState.SERVING)

    def _give_up(self, error: CountinghouseError) -> None:
        self._supervision.fail(error)
        self._become(InstanceState.REFUSED)

    def _become(self, new: InstanceState) -> None:
        self.state = new
        self._supervision.changed()


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"
