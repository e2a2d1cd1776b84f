"""What the operations need from outside. Adapters: `store.py`, `servicer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.kernel.errors import CountinghouseError
from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.order.model import Change, Order, OrderEvent, OrderState
from services.runtime.change_feed import ChangeFeed
from services.runtime.ports import AnswerStore

#: One item's result of a step that takes a list: the order as it stands, or why it was refused.
MoveOutcome = Order | CountinghouseError


@dataclass(frozen=True, slots=True)
class Listed:
    """An order in a list.

    Args:
        place: Grows from the oldest order to the newest.
    """

    place: int
    order: Order


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """Which orders to list; None: all."""

    customer_id: str | None = None
    state: OrderState | None = None


class Responses(Protocol):
    """How answers are encoded, so that a replay is the same to the byte."""

    def created(self, order: Order) -> StoredResponse:
        """Return the answer to a creation."""
        ...

    def cancelled(self, order: Order) -> StoredResponse:
        """Return the answer to a cancellation."""
        ...

    def refusal(self, error: CountinghouseError) -> StoredResponse:
        """Return the answer that is a definitive refusal."""
        ...


class OrderStore(AnswerStore, Protocol):
    """Where orders are kept. Every method is one whole step: all of it happens, or none.

    The four moves of a payment raise the fence of the order first, whatever becomes of the move: a smaller one
    than the order has seen is refused with StaleFence, an equal one is the same holder asking again. The result
    has one entry for each change, in the order asked for; one refused change does not hinder the others.

    Attributes:
        feed: Is told of every order that was made or changed, as it stands since.
    """

    feed: ChangeFeed[Order]

    async def create(self, request: KeyedRequest, order: Order, response: StoredResponse) -> Answer | None:
        """Make an order, and store the response to it; None: its id is taken, and nothing was done.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def cancel(
        self, request: KeyedRequest, before: Order, after: Order, reason: str, response: StoredResponse
    ) -> Answer | None:
        """Write `after` over `before`, and store the response to it; None: the order has changed, nothing was done.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def claim(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        """UNPAID → PAYING; any other order as it stands. Refusals: NotFound, StaleFence."""
        ...

    async def complete(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        """PAYING → PAID. Refusals: NotFound, StaleFence, FailedPrecondition ILLEGAL_STATE."""
        ...

    async def release(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        """PAYING → UNPAID; any other order as it stands. Refusals: NotFound, StaleFence."""
        ...

    async def reopen(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        """PAID → UNPAID, next round; any other order as it stands. Refusals: NotFound, StaleFence."""
        ...

    async def get(self, order_id: str) -> Order | None:
        """Return one order; None: there is none."""
        ...

    async def history(self, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        """Return the changes of an order behind the version `after`, the oldest first."""
        ...

    async def page(self, which: OrderFilter, *, limit: int, after: int | None) -> list[Listed]:
        """Return at most `limit` orders, newest first.

        Args:
            after: The place after which to begin; None: at the newest.
        """
        ...
