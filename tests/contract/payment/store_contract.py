"""What every payment store does. Each adapter, the fake included, runs all of it as a subclass."""

from __future__ import annotations

from tests.contract.payment.cards_contract import CardsContract
from tests.contract.payment.guards_contract import GuardsContract
from tests.contract.payment.reading_contract import OutboxContract, ReadingContract
from tests.contract.payment.requests_contract import ExpiryContract, RequestsContract
from tests.contract.payment.transitions_contract import (
    DelegationsContract,
    FeedContract,
    ParkingContract,
    ReversalContract,
    TransitionsContract,
)


class PaymentStoreContract(
    RequestsContract,
    ExpiryContract,
    TransitionsContract,
    DelegationsContract,
    FeedContract,
    ReversalContract,
    ParkingContract,
    CardsContract,
    OutboxContract,
    ReadingContract,
    GuardsContract,
):
    """Subclasses bring a fixture `make`: an async callable that takes guards and gives a Subject on an empty store."""
