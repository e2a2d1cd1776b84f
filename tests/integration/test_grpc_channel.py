"""The options that every gRPC channel of the product has: what they are for, on real connections."""

from __future__ import annotations

import pytest
from grpc.aio import AioRpcError

from coordination.grpc_channel import OPTIONS, open_channel
from tests.integration.echo import Cable, Echo, Stub, dead_port

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy")
#: gRPC's own ping, which estimates the bandwidth, may be under way when the line dies: it would notice what the
#: keepalive is for.
NO_OTHER_PING = (("grpc.http2.bdp_probe", 0),)


async def answered(stub: Stub, *, timeout_s: float) -> bool:
    """Call again and again; False if nothing was answered in 40 calls. (On a busy machine a ping may be late, too.)"""
    for _ in range(40):
        try:
            return bool(await stub.put(b"hi", timeout=timeout_s) == b"hi")
        except AioRpcError:
            continue
    return False


async def test_silent_connection_is_replaced() -> None:
    """Both ends are open and nothing passes. A call fails by the pings and not by its deadline of minutes, and soon one
    is answered over a second connection."""
    echo = Echo()
    async with echo.serving() as port:
        cable = Cable(port)
        async with cable.laid() as relayed, open_channel(f"127.0.0.1:{relayed}", NO_OTHER_PING) as channel:
            stub = Stub(channel)
            await stub.put(b"warm", timeout=5.0)
            cable.lose_open_connections()
            with pytest.raises(AioRpcError) as caught:
                await stub.put(b"hi", timeout=600.0)
            assert "ping timeout" in (caught.value.details() or "").lower()
            assert await answered(stub, timeout_s=600.0)
            assert cable.connections >= 2


async def test_call_shorter_than_the_pings_leaves_no_dead_connection_behind() -> None:
    """Calls that run into their deadlines one after the other: soon one is answered over a second connection."""
    echo = Echo()
    async with echo.serving() as port:
        cable = Cable(port)
        async with cable.laid() as relayed, open_channel(f"127.0.0.1:{relayed}", NO_OTHER_PING) as channel:
            stub = Stub(channel)
            await stub.put(b"warm", timeout=5.0)
            cable.lose_open_connections()
            assert await answered(stub, timeout_s=0.5)
            assert cable.connections >= 2
            assert echo.carried_out >= 2


async def test_call_over_a_distant_network_is_answered() -> None:
    """To connect takes two round trips, of 0.4 s each."""
    echo = Echo()
    async with echo.serving() as port:
        cable = Cable(port, delay_s=0.2)
        async with cable.laid() as relayed, open_channel(f"127.0.0.1:{relayed}") as channel:
            assert await Stub(channel).put(b"hi", timeout=60.0) == b"hi"
            assert cable.connections == 1


async def test_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is meant for the web, and would see every payment."""
    for name in PROXIES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead_port()}")
    echo = Echo()
    async with echo.serving() as port, open_channel(f"127.0.0.1:{port}") as channel:
        assert await Stub(channel).put(b"hi", timeout=5.0) == b"hi"


async def test_message_over_the_limit_is_refused_on_our_side() -> None:
    """Neither sent nor taken."""
    echo = Echo()
    async with echo.serving() as port, open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(AioRpcError, match="larger than max"):
            await Stub(channel).put(bytes(OPTIONS["grpc.max_send_message_length"] + 1), timeout=5.0)
        assert echo.carried_out == 0
