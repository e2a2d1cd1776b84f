"""The fake passes what the databases pass, so tests that use it say something about them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from tests.contract.order.store_contract import Make, OrderStoreContract
from tests.fakes.order_store import Event, FakeOrderStore


@dataclass(frozen=True, slots=True)
class InMemory:
    """The fake as a subject."""

    store: FakeOrderStore

    async def history(self, order_id: str) -> list[Event]:
        return [event for event in self.store.events if event.order_id == order_id]

    async def fence(self, order_id: str) -> Fence:
        return self.store.fences.get(order_id, NO_FENCE)


class TestFakeOrderStore(OrderStoreContract):
    """The suite on the fake."""

    @pytest.fixture
    def make(self) -> Make:
        async def make(guards: Guards | None = None) -> InMemory:
            return InMemory(FakeOrderStore(guards))

        return make
