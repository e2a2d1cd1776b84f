"""Services on IPv6: they listen, register in brackets, are found and dialled, in every spelling of an address."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from coordination.registry import Registry
from coordination.session import Session
from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli.metrics import read_page
from services.runtime.grpc.identity import server_name
from services.runtime.grpc.probe import state
from services.testkit.client import new_id
from services.testkit.harness import Harness
from tests.e2e.checked import at_acquirer, checked_books
from tests.e2e.conftest import FreshStack
from tests.integration.echo import Cable
from tests.ipv6 import needs_ipv6

pytestmark = [needs_ipv6, pytest.mark.long]
HOSTS = {"order-1": "::", "ledger-1": "[::1]", "payment-1": "::1"}
ADVERTISED = {"order-1": "127.0.0.1", "ledger-1": "[::1]", "payment-1": "[::1]"}  # :: is called as ZooKeeper is


@pytest.mark.timeout(150)
async def test_card_payment_passes_over_ipv6(fresh_stack: FreshStack) -> None:
    """One service listens on ::, one on [::1], one on ::1, and the acquirer is reached at [::1]. All register under the
    address that they can be called at, metrics included; an order is settled by card."""
    cable = Cable(0)
    async with cable.laid("::1") as port:
        settings: dict[str, dict[str, Any]] = {
            instance: {"listen_host": host, "metrics_host": host} for instance, host in HOSTS.items()
        }
        settings["payment-1"]["acquirer_address"] = f"[::1]:{port}"
        async with fresh_stack(settings_of=settings) as stack, Harness(stack) as harness:
            cable.port = int(stack.acquirer.rpartition(":")[2])
            async with Session(
                stack.zookeeper, timeout_s=4.0, name="test", security=stack.zookeeper_security()
            ) as session:
                listings = await Registry(session).ls(timeout_s=10.0)
            urls = {url.parameters["instance"]: url for listing in listings for url in listing.providers}
            for instance, host in ADVERTISED.items():
                url = urls[instance]
                assert url.address.startswith(f"{host}:")
                assert f"tri://{host}:" in str(url)
                assert url.parameters["metrics"].startswith(f"{host}:")
                assert "coordination_" in await asyncio.to_thread(read_page, url.parameters["metrics"], 5.0)
                ca_file, name = str(stack.data / "keys" / "ca.pem"), server_name(instance.rpartition("-")[0])
                assert await asyncio.to_thread(state, url.address, ca_file=ca_file, name=name) == "SERVING"
            async with stack.dialer().open(f"[::1]:{urls['order-1'].port}", "order") as channel:
                await channel.channel_ready()  # :: is all addresses, of either kind
                assert channel.get_state() is grpc.ChannelConnectivity.READY
            key = new_id("settle")
            seen = await harness.cashier.call(
                harness.cashier.settle_request(await harness.new_order(), key, card="tok-mei"),
                at="payment-1",
                timeout_s=8.0,
            )
            assert seen.payment.state == pb.PAYMENT_STATE_SUCCEEDED
            assert cable.connections >= 1
            assert at_acquirer(await checked_books(harness), seen.payment.payment_id) == ["CHARGED"]
