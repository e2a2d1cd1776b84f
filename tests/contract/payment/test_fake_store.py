"""The fake passes what the databases pass, so tests that use it say something about them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from services.kernel.guards import Guards
from services.kernel.idempotency import RequestKey, RequestState
from tests.contract.payment.store_contract import PaymentStoreContract
from tests.contract.payment.subject import Make
from tests.fakes.payment_store import Event, FakePaymentStore, FakeRequestRecords, OutboxMessage


@dataclass(frozen=True, slots=True)
class InMemory:
    """The fake as a subject."""

    store: FakePaymentStore
    requests: FakeRequestRecords

    async def history(self, payment_id: str) -> list[Event]:
        return [event for event in self.store.events if event.payment_id == payment_id]

    async def messages(self) -> list[OutboxMessage]:
        return sorted(self.store.outbox.values(), key=lambda message: (message.payment_id, message.action))

    async def request(self, key: RequestKey) -> tuple[RequestState, int]:
        row = self.store.requests.rows[key]
        return row.state, row.attempt


class TestFakePaymentStore(PaymentStoreContract):
    """The suite on the fake."""

    @pytest.fixture
    def make(self) -> Make:
        async def make(guards: Guards | None = None) -> InMemory:
            store = FakePaymentStore(guards)
            return InMemory(store, FakeRequestRecords(store))

        return make
