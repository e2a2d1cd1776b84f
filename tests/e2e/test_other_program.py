"""Addresses in the registry at which another service of the house listens: nobody who calls notices."""

from __future__ import annotations

from functools import partial

import pytest

from coordination.discovery import Directory
from coordination.registry import Registry
from coordination.session import Session
from countinghouse.payment.v1 import payment_pb2
from services.devstack.state import INTERFACES
from services.testkit.harness import Harness
from tests.e2e.checked import checked_books
from tests.e2e.clients import clients_of
from tests.e2e.conftest import FreshStack
from tests.e2e.load import Load
from tests.integration.provider import provider_url
from tests.integration.zookeeper import until

#: Whose address is registered under which service, too.
REGISTERED = {"order": "ledger", "ledger": "order", "payment": "ledger"}
SETTLES, READS = 20, 100


def both(directory: Directory) -> bool:
    """Whether a service's own address and the other one are known."""
    return len(directory.endpoints) == 2


@pytest.mark.long
@pytest.mark.timeout(150)
async def test_address_registered_for_another_service_fails_no_call(fresh_stack: FreshStack) -> None:
    """Every service has one such address beside its own. Each order is settled, each read is answered, at the first
    attempt of its caller; the books are right."""
    async with (
        fresh_stack() as stack,
        Harness(stack) as harness,
        Session(stack.zookeeper, name="test", security=stack.zookeeper_security()) as session,
    ):
        registry = Registry(session)
        for service, other in REGISTERED.items():
            port = int(stack.instance(f"{other}-1").address.rpartition(":")[2])
            assert await registry.register(provider_url(port, INTERFACES[service]), timeout_s=10.0)
        load = Load()
        async with clients_of(stack, load) as clients:
            for directory in clients.directories:
                await until(partial(both, directory))
            for _ in range(SETTLES):
                payment = await clients.settle(await clients.new_order())
                assert payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
            for _ in range(READS):
                await clients.look_at_an_order()
                await clients.look_at_a_payment()
                await clients.look_at_an_account()
        await registry.close()
        assert [outcome for outcome in load.outcomes if outcome.code != "OK"] == []
        await checked_books(harness)
