"""The fake passes what the databases pass, so tests that use it say something about them."""

from __future__ import annotations

import pytest

from services.acquirer.ports import ChargeStore
from tests.contract.acquirer.store_contract import ChargeStoreContract, Make
from tests.fakes.charge_store import FakeChargeStore


class TestFakeChargeStore(ChargeStoreContract):
    """The suite on the fake."""

    @pytest.fixture
    def make(self) -> Make:
        async def make() -> ChargeStore:
            return FakeChargeStore()

        return make
