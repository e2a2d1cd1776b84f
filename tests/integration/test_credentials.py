"""A channel over TLS: credentials that are renewed, and providers with a second port."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from coordination.channel import endpoint_pool
from services.runtime.grpc.tls import Dialer
from tests.certificates import CertificateIssuer
from tests.integration.echo import Context, Echo, Stub, channel_to, dead_port, directory_of

_PATIENCE_S = 20.0


@pytest.fixture
def issuer(tmp_path: Path) -> CertificateIssuer:
    return CertificateIssuer(tmp_path / "ours")


async def test_calls_after_a_renewal_use_new_connections_and_those_under_way_come_to_their_end(
    issuer: CertificateIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sees which certificate each call came with."""
    monkeypatch.setattr(endpoint_pool, "REMOVED_ENDPOINT_TTL_S", 0.0)
    echo, began, go_on = Echo(), asyncio.Event(), asyncio.Event()
    shown: list[str] = []

    async def note(context: Context) -> None:
        identity = serving.identity_of(context.auth_context(), time.time())
        shown.append(identity.instance if identity else "")
        if len(shown) == 1:
            began.set()
            await go_on.wait()

    echo.before_answer = note
    given = [issuer.files("payment").client_credentials()]
    serving = issuer.files("order")
    demanding = serving.server_credentials(demand_certificate=True)
    options = Dialer(issuer.files()).options("order")
    async with (
        asyncio.timeout(_PATIENCE_S),
        echo.serving(credentials=demanding) as port,
        channel_to(directory_of(port), credentials=lambda: given[-1], options=options) as channel,
    ):
        first = asyncio.ensure_future(Stub(channel).charge(b"first", timeout=_PATIENCE_S))
        await began.wait()
        given.append(issuer.files("ledger").client_credentials())
        assert await Stub(channel).charge(b"second", timeout=_PATIENCE_S) == b"second"
        assert shown == ["payment-1", "ledger-1"]
        go_on.set()
        assert await first == b"first"
        connection = channel._pool.connections
        assert await Stub(channel).charge(b"third", timeout=_PATIENCE_S) == b"third"
        assert len(connection) == 1
        await asyncio.gather(*channel._pool._replaced)
    assert shown == ["payment-1", "ledger-1", "ledger-1"]


async def test_closed_channel_closes_the_connections_that_were_replaced(issuer: CertificateIssuer) -> None:
    given = [issuer.files().client_credentials()]
    serving = issuer.files("order").server_credentials(demand_certificate=False)
    options = Dialer(issuer.files()).options("order")
    async with Echo().serving(credentials=serving) as port:
        async with channel_to(directory_of(port), credentials=lambda: given[-1], options=options) as channel:
            await Stub(channel).charge(b"one", timeout=_PATIENCE_S)
            given.append(issuer.files().client_credentials())
            await Stub(channel).charge(b"two", timeout=_PATIENCE_S)
            (replaced,) = channel._pool._replaced.values()
        assert replaced.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_endpoint_is_called_at_the_address_that_the_channel_makes_of_it() -> None:
    """Registered under a port where no server listens; the other one is a parameter of its URL."""
    async with (
        Echo().serving() as port,
        channel_to(
            directory_of(dead_port(), second=str(port)),
            address_of=lambda endpoint: f"127.0.0.1:{endpoint.registered.parameters['second']}",
        ) as channel,
    ):
        assert await Stub(channel).charge(b"hi", timeout=_PATIENCE_S) == b"hi"
