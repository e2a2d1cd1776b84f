"""The composition root of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette

from coordination.channel import DiscoveredChannel
from coordination.rules import Overrides
from coordination.session import Session
from services.gateway.app import make_app
from services.gateway.breaking import Breaking, Processes
from services.gateway.calls import ChannelCalls
from services.gateway.own_sources import Faults, Instances, LockQueues, open_queues
from services.gateway.routes import Routes, public_routes
from services.gateway.runs import Runs, RunStore
from services.gateway.sign_in import SignIn
from services.gateway.sources import ORDERS, PAYMENTS, StubSource
from services.gateway.traffic import Traffic
from services.gateway.watching import Source
from services.kernel.principal import Principal
from services.runtime.grpc.tls import Dialer

SERVICES: Final = ("order", "payment", "ledger")
_CHECK_TIMEOUT_S: Final = 5.0


@asynccontextmanager
async def open_gateway(
    channels: Mapping[str, DiscoveredChannel],
    dialer: Dialer,
    session: Session | None,
    *,
    people: Sequence[Principal] = (),
    sign: Callable[[Principal], str] | None = None,
    processes: Processes | None = None,
    check_operator: Callable[[str], Awaitable[None]] | None = None,
    runs: RunStore | None = None,
) -> AsyncIterator[Starlette]:
    """Return the application, and what it needs while it is served.

    Args:
        channels: By service.
        dialer: Connects to single instances of them.
        session: Of the operator, to see the locks; None: they are not shown.
        people: In development: whom a browser may sign in as without a token.
        sign: Returns the token of one of them.
        processes: In development: those of the stack, to which an operator may do something; None: nothing.
        check_operator: Raises unless a header `Bearer …` is an operator's.
        runs: In development: the runs that an operator may begin; None: none.
    """
    routes = public_routes()
    calls = ChannelCalls({channel.directory.interface: channel for channel in channels.values()})
    is_caller, is_staff = _check(calls, routes, "ListOrders"), _check(calls, routes, "ListJournals")
    directories = {service: channel.directory for service, channel in channels.items()}
    watched = [StubSource(ORDERS, directories["order"], dialer), StubSource(PAYMENTS, directories["payment"], dialer)]
    async with _lock_queues(session, is_staff) as queues:
        try:
            faults = Faults(is_staff)
            sources: list[Source] = [*watched, *queues, Instances(directories, is_staff), faults]
            breaking = None
            if processes is not None and check_operator is not None:
                rules = Traffic(directories, Overrides(session)) if session is not None else None
                breaking = Breaking(processes, check_operator, faults.tell, Runs(runs) if runs else None, rules)
            yield make_app(routes, calls, sources, SignIn(is_caller, people, sign), breaking)
        finally:
            for source in watched:
                await source.close()


@asynccontextmanager
async def _lock_queues(
    session: Session | None, may_see: Callable[[str], Awaitable[None]]
) -> AsyncIterator[list[Source]]:
    """Follow the queues for locks while inside."""
    if session is None:
        yield []
        return
    async with open_queues(session) as watch:
        locks = LockQueues(watch, may_see)
        following = asyncio.create_task(locks.run())
        try:
            yield [locks]
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _check(calls: ChannelCalls, routes: Routes, method: str) -> Callable[[str], Awaitable[None]]:
    """Return what raises unless the services take a header for a method that lists something."""
    (route,) = [each for each in routes.documented if each.method.name == method]
    request: Any = route.request_type

    async def check(authorization: str) -> None:
        await calls.call(route, request(page_size=1), authorization, _CHECK_TIMEOUT_S)

    return check
