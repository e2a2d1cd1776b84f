"""grpc.health.v1: liveness and readiness as two answers.

| name asked for | question | SERVING | otherwise |
|---|---|---|---|
| empty | liveness | from listening until asked to stop | start the process again |
| the interface | readiness | while the database answers and can be written, and ZooKeeper, if needed, | wait |

A dependency that is away is no reason to start a process again: while ZooKeeper is frozen, what needs no lock is served
all the same, and a new process would serve no more than the old one.

A database whose file was removed is noticed at the next look. One that cannot be written (its disk is full, it can only
be read) is noticed by the calls that fail, or by the monitor's own write every WRITE_EVERY_S. From then on it writes at
every look, until that works again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from coordination.session import Session, SessionState
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.runtime.database.database import Database

_INTERVAL_S = 0.5
_PING_TIMEOUT_S = 2.0
#: A write costs the disk a flush; in a database that is used, a call fails sooner than this.
WRITE_EVERY_S = 5.0
#: The name of the server as a whole.
_LIVENESS = ""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

log = structlog.get_logger()


class HealthMonitor:
    """Watch what the service depends on, and update the health service.

    Args:
        session: None: the program needs no ZooKeeper.
        interface: The service whose readiness is reported.
        write: Writes to the database for the sake of writing.
        clock: Of which only the monotonic time is used.

    Attributes:
        ready: Set once the service has been ready.
    """

    def __init__(
        self,
        servicer: HealthServicer,
        database: Database,
        session: Session | None,
        interface: str,
        write: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._servicer = servicer
        self._database = database
        self._session = session
        self._interface = interface
        self._write = write
        self._clock = clock
        self._write_at_s = clock.monotonic_s() + WRITE_EVERY_S
        self._serving: bool | None = None
        self.ready = asyncio.Event()

    async def watch(self) -> None:
        """Look repeatedly until cancelled."""
        await self._servicer.set(_LIVENESS, _SERVING)
        changed = asyncio.Event()
        unsubscribe = self._session.subscribe(lambda _change: changed.set()) if self._session else None
        try:
            while True:
                why_not = await self._why_not_ready()
                await self._tell(not why_not, why_not)
                changed.clear()
                try:
                    async with asyncio.timeout(_INTERVAL_S):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            if unsubscribe is not None:
                unsubscribe()

    async def stopping(self) -> None:
        """Answer from now on that this server takes no new calls."""
        await self._servicer.set(_LIVENESS, _NOT_SERVING)
        await self._tell(False)

    async def _why_not_ready(self) -> str:
        """Return why the service is not ready, for the log; empty: it is."""
        if self._session is not None and self._session.state is not SessionState.CONNECTED:
            return f"ZooKeeper: {self._session.state.name}"
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await self._database.ping()
                now_s = self._clock.monotonic_s()
                if self._database.writes_fail or now_s >= self._write_at_s:
                    self._write_at_s = now_s + WRITE_EVERY_S
                    await self._write()
        except CountinghouseError as error:
            return f"{error.reason}: {error.message}"
        except TimeoutError:
            return "the database does not answer"
        except Exception:
            log.exception("the database failed unexpectedly")
            return "the database failed unexpectedly"
        return ""

    async def _tell(self, serving: bool, why_not: str = "") -> None:
        if serving == self._serving:
            return
        self._serving = serving
        log.info("health", serving=serving, why_not=why_not)
        await self._servicer.set(self._interface, _SERVING if serving else _NOT_SERVING)
        if serving:
            self.ready.set()
