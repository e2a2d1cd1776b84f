"""The fake passes what the databases pass, so tests that use it say something about them."""

from __future__ import annotations

import pytest

from services.kernel.guards import Guards
from tests.contract.ledger.store_contract import LedgerStoreContract, Make
from tests.fakes.ledger_store import FakeLedgerStore


class TestFakeLedgerStore(LedgerStoreContract):
    """The suite on the fake."""

    @pytest.fixture
    def make(self) -> Make:
        async def make(guards: Guards) -> FakeLedgerStore:
            return FakeLedgerStore(guards)

        return make
