"""ZooKeeper, providers and consumers that have nothing but IPv6."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordination.discovery import Discovery
from coordination.registry import Registry
from coordination.session import Session
from tests.integration.echo import Echo, Stub, channel_to
from tests.integration.provider import provider_url
from tests.integration.zookeeper import ZooKeeper
from tests.ipv6 import needs_ipv6

pytestmark = needs_ipv6
INTERFACE = "test.IPv6"


@pytest.mark.parametrize("spelling", ["[::1]:{port}", "zookeeper://[::1]:{port}", "[0:0:0:0:0:0:0:1]:{port}"])
async def test_provider_is_registered_found_and_called_over_ipv6(zookeeper_on_ipv6: ZooKeeper, spelling: str) -> None:
    """ZooKeeper listens on ::1 and nowhere else; the provider's URL has its address in brackets, as Dubbo's has."""
    echo = Echo()
    hosts = spelling.format(port=zookeeper_on_ipv6.hosts.rpartition(":")[2])
    async with Session(hosts, timeout_s=4.0, name="test") as session, echo.serving(INTERFACE, host="::1") as port:
        await session.wait_connected(20.0)
        registry, discovery = Registry(session), Discovery(session)
        try:
            assert await registry.register(provider_url(port, INTERFACE, host="::1"))
            names = await session.get_children(f"/dubbo/{INTERFACE}/providers")
            assert names[0].startswith(f"tri%3A%2F%2F%5B%3A%3A1%5D%3A{port}%2F")
            directory = await discovery.subscribe(INTERFACE, timeout_s=10.0)
            assert [endpoint.address for endpoint in directory.endpoints] == [f"[::1]:{port}"]
            async with channel_to(directory) as channel:
                assert await Stub(channel, INTERFACE).charge(b"hi", timeout=5.0) == b"hi"
        finally:
            await discovery.close()
            await registry.close()


@pytest.fixture
def zookeeper_on_ipv6(tmp_path: Path) -> Iterator[ZooKeeper]:
    server = ZooKeeper(tmp_path, host="::1")
    server.start()
    yield server
    server.stop()
