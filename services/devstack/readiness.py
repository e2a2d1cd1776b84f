"""When an instance is ready: grpc.health answers SERVING for its interface at the address registered in ZooKeeper.

Both are asked, since either alone has been wrong elsewhere: a server may answer before it can be found, and a
registration may outlive its server by a session timeout.
"""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordination.discovery import Discovery
from coordination.session import Session, SessionState
from coordination.session.security import Security
from services.runtime.grpc.enum_names import name_of
from services.runtime.grpc.service_client import service_of
from services.runtime.grpc.tls import Dialer

#: Not a state of grpc.health: no server answered in time.
UNREACHABLE: Final = "UNREACHABLE"
SERVING: Final = "SERVING"
_RETRY_S = 0.05
_CHECK_TIMEOUT_S = 1.0


async def health(
    dialer: Dialer, address: str, service: str, timeout_s: float = _CHECK_TIMEOUT_S, *, interface: str = ""
) -> str:
    """Return what grpc.health of a service answers at `address`: SERVING, NOT_SERVING, UNKNOWN, or UNREACHABLE.

    Args:
        interface: Whose readiness is asked for; empty: the liveness of the process. See `runtime/grpc/health.py`.
    """
    async with dialer.open(address, service) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # its stubs lack it
                health_pb2.HealthCheckRequest(service=interface), timeout=timeout_s, wait_for_ready=False
            )
        except grpc.aio.AioRpcError:
            return UNREACHABLE
    return name_of(health_pb2.HealthCheckResponse.ServingStatus, answer.status)


class Readiness:
    """Finds the instances of one stack through its ZooKeeper.

    Args:
        dialer: Connects to them.
        zookeeper: `host:port`; need not answer yet.
        security: How it is come to.
    """

    def __init__(self, dialer: Dialer, zookeeper: str, session_timeout_s: float, security: Security) -> None:
        self._dialer = dialer
        self._session = Session(zookeeper, timeout_s=session_timeout_s, name="stack", security=security)
        self._discovery = Discovery(self._session)

    async def start(self) -> None:
        """Begin to look."""
        await self._session.start()

    @property
    def connected(self) -> bool:
        """Whether ZooKeeper answers."""
        return self._session.state is SessionState.CONNECTED

    async def wait_serving(self, interface: str, pid: int) -> str:
        """Wait until process `pid` is registered and SERVING; return its address."""
        directory = await self._discovery.subscribe(interface, timeout_s=0)
        news = asyncio.Event()
        unsubscribe = directory.subscribe(news.set)
        try:
            while True:
                news.clear()
                for endpoint in directory.registered:  # also one that a rule disables is ready
                    if endpoint.url.parameters.get("pid") == str(pid):
                        await until_serving(self._dialer, endpoint.address, service_of(interface), interface)
                        return endpoint.address
                await news.wait()
        finally:
            unsubscribe()

    async def close(self) -> None:
        """Stop looking."""
        await self._discovery.close()
        await self._session.close()


async def until_serving(dialer: Dialer, address: str, service: str, interface: str = "") -> None:
    """Wait until grpc.health of a service answers SERVING for `interface` at `address`."""
    # Its Watch may not be up either.
    while await health(dialer, address, service, interface=interface) != SERVING:  # noqa: ASYNC110
        await asyncio.sleep(_RETRY_S)
