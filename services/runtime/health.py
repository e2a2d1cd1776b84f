"""grpc.health.v1 with the real state: SERVING while the database answers and ZooKeeper knows us."""

from __future__ import annotations

import asyncio

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from coordination.session import Session, SessionState
from services.kernel.errors import CountinghouseError
from services.runtime.database import Database

_INTERVAL_S = 0.5
_PING_TIMEOUT_S = 2.0

log = structlog.get_logger()


class HealthMonitor:
    """Watches what the service stands on, and tells the health service.

    Args:
        names: Services whose state is told, besides the server as a whole (the empty name).
    """

    def __init__(self, servicer: HealthServicer, database: Database, session: Session, names: tuple[str, ...]) -> None:
        self._servicer = servicer
        self._database = database
        self._session = session
        self._names = ("", *names)
        self._serving: bool | None = None
        self.ready = asyncio.Event()

    async def watch(self) -> None:
        """Looks again and again; never ends by itself."""
        changed = asyncio.Event()
        unsubscribe = self._session.subscribe(lambda _change: changed.set())
        try:
            while True:
                await self._tell(await self._healthy())
                changed.clear()
                try:
                    async with asyncio.timeout(_INTERVAL_S):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            unsubscribe()

    async def stopping(self) -> None:
        """Tells everyone that this server takes no new calls."""
        await self._tell(False)

    async def _healthy(self) -> bool:
        if self._session.state is not SessionState.CONNECTED:
            return False
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await self._database.ping()
        except (CountinghouseError, TimeoutError):
            return False
        return True

    async def _tell(self, serving: bool) -> None:
        if serving == self._serving:
            return
        self._serving = serving
        log.info("health", serving=serving)
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._servicer.set(name, state)
        if serving:
            self.ready.set()
