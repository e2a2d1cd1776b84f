"""The order: its states, which payment may change them, and what must be true of it at any moment. No I/O.

                  claim                complete
     ┌▶ UNPAID ──────────▶ PAYING ──────────────▶ PAID
     │    │ ▲                │                     │
     │    │ └────────────────┘ release             │
     │    ▼ cancel             (declined)          │
     │  CANCELLED                                  │
     └─────────────────────────────────────────────┘ reopen (reversed): round + 1

Invariants
1. PAYING and PAID name exactly one payment; UNPAID and CANCELLED name none.
2. Only the payment that is named moves the order on; so a round is paid at most once.
3. `settled_by` and `settled_at_ms` are set when the order is PAID, and only then.
4. Every change raises `version` by one, from 1; what changes nothing raises nothing.
5. `round` grows by one with every reopening, from 1, and never otherwise.
6. The amount is the sum of the lines, if there are any, and never changes.

Each of `claim`, `complete`, `release`, `reopen` and `cancel` takes an order and gives it as it stands afterwards:
the very same object when nothing is to be changed. A move asked for again by the payment that has made it
already changes nothing. A store makes the move by one conditional update of the version and state seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from services.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.kernel.fence import Fence
from services.kernel.ids import check_text_form
from services.kernel.money import Money
from services.kernel.principal import Principal

MAX_LINES = 100
MAX_QUANTITY = 1_000_000


class OrderState(StrEnum):
    """Where an order stands."""

    UNPAID = "UNPAID"
    PAYING = "PAYING"
    PAID = "PAID"
    CANCELLED = "CANCELLED"


#: The machine as a table: from → to.
MOVES: dict[OrderState, frozenset[OrderState]] = {
    OrderState.UNPAID: frozenset({OrderState.PAYING, OrderState.CANCELLED}),
    OrderState.PAYING: frozenset({OrderState.PAID, OrderState.UNPAID}),
    OrderState.PAID: frozenset({OrderState.UNPAID}),
    OrderState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class OrderLine:
    """What was sold.

    Args:
        description: 1 to 200 characters.
        quantity: 1 to 1,000,000.
        unit_price: Price of one.

    Raises:
        InvalidArgument: FIELD_REQUIRED, FIELD_TOO_LONG, FIELD_MALFORMED or QUANTITY_OUT_OF_RANGE.
    """

    description: str
    quantity: int
    unit_price: Money

    def __post_init__(self) -> None:
        check_text_form(self.description, "description", limit=200, required=True)
        if not 1 <= self.quantity <= MAX_QUANTITY:
            raise InvalidArgument.of_field(
                "QUANTITY_OUT_OF_RANGE",
                "quantity",
                f"a quantity must be from 1 to {MAX_QUANTITY}, not {self.quantity}",
            )

    @property
    def price(self) -> Money:
        """What the whole line costs."""
        return self.unit_price.times(self.quantity)


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it stands. Times are Unix milliseconds.

    Args:
        payment_id: The payment that is PAYING or has PAID; empty otherwise.
        settled_by: The clerk who settled it; None unless PAID.
        settled_at_ms: When it was settled; 0 unless PAID.
    """

    order_id: str
    customer_id: str
    amount: Money
    lines: tuple[OrderLine, ...]
    created_at_ms: int
    updated_at_ms: int
    state: OrderState = OrderState.UNPAID
    version: int = 1
    round: int = 1
    payment_id: str = ""
    settled_by: Principal | None = None
    settled_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A move that a payment asks for. Times are Unix milliseconds.

    Args:
        payment_id: The payment that asks; also the key that makes a repeat harmless.
        fence: Of the order lock under which it asks.
        actor: On whose behalf; written into the history and, for `complete`, into `settled_by`.
        reason: Why, written into the history; empty: not given.
        at_ms: When it asks.
        settled_at_ms: When the money was recorded; for `complete` only.
    """

    order_id: str
    payment_id: str
    fence: Fence
    actor: Principal
    at_ms: int
    settled_at_ms: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """One change in the history of an order. Times are Unix milliseconds.

    Args:
        version: The order's version since this change, from 1.
        from_state: None: the order was made.
        payment_id: The payment that asked for the change; empty: none.
        reason: Why; empty: not given, or not recorded by the release of that time.
    """

    order_id: str
    version: int
    from_state: OrderState | None
    to_state: OrderState
    round: int
    payment_id: str
    fence: Fence
    actor: Principal
    at_ms: int
    reason: str = ""


def total(amount: Money | None, lines: Sequence[OrderLine]) -> Money:
    """Return the amount of an order.

    Args:
        amount: As the caller gives it; None: the sum of the lines.

    Raises:
        InvalidArgument: AMOUNT_REQUIRED, AMOUNT_MISMATCH, AMOUNT_OUT_OF_RANGE, CURRENCY_MISMATCH or
            TOO_MANY_LINES.
    """
    if len(lines) > MAX_LINES:
        raise InvalidArgument.of_field(
            "TOO_MANY_LINES", "lines", f"an order has at most {MAX_LINES} lines, not {len(lines)}; split it"
        )
    if not lines:
        if amount is None:
            raise InvalidArgument.of_field("AMOUNT_REQUIRED", "amount", "send an amount, or lines that add up to one")
        return amount
    owed = lines[0].price
    for line in lines[1:]:
        owed += line.price
    if amount is not None and amount != owed:
        raise InvalidArgument.of_field(
            "AMOUNT_MISMATCH",
            "amount",
            f"the amount is {amount} but the lines add up to {owed}; leave one of them out",
        )
    return owed


def claim(order: Order, change: Change) -> Order:
    """UNPAID → PAYING for the asking payment; any other order as it stands."""
    if _is_with(order, OrderState.PAYING, change) or OrderState.PAYING not in MOVES[order.state]:
        return order
    return _moved(order, OrderState.PAYING, change, payment_id=change.payment_id)


def complete(order: Order, change: Change) -> Order:
    """PAYING → PAID by the claiming payment.

    Raises:
        FailedPrecondition: ILLEGAL_STATE: this payment has no claim on the order.
    """
    if _is_with(order, OrderState.PAID, change):
        return order
    if not _is_with(order, OrderState.PAYING, change):
        raise illegal_state(order, f"cannot be completed by payment {change.payment_id}, which has no claim on it")
    paid = _moved(order, OrderState.PAID, change, payment_id=change.payment_id)
    return replace(paid, settled_by=change.actor, settled_at_ms=change.settled_at_ms)


def release(order: Order, change: Change) -> Order:
    """PAYING → UNPAID by the claiming payment, which was declined; any other order as it stands."""
    if not _is_with(order, OrderState.PAYING, change):
        return order
    return _moved(order, OrderState.UNPAID, change)


def reopen(order: Order, change: Change) -> Order:
    """PAID → UNPAID in the next round, for the paying payment was reversed; any other order as it stands."""
    if not _is_with(order, OrderState.PAID, change):
        return order
    return replace(_moved(order, OrderState.UNPAID, change), round=order.round + 1)


def cancel(order: Order, at_ms: int) -> Order:
    """UNPAID → CANCELLED.

    Raises:
        FailedPrecondition: ILLEGAL_STATE: it is not UNPAID.
    """
    if OrderState.CANCELLED not in MOVES[order.state]:
        raise illegal_state(order, "cannot be cancelled: only an UNPAID order can")
    return replace(order, state=OrderState.CANCELLED, version=order.version + 1, updated_at_ms=at_ms)


def illegal_state(order: Order, problem: str) -> FailedPrecondition:
    """Return the refusal of a move that the state of an order forbids."""
    return FailedPrecondition(
        "ILLEGAL_STATE",
        f"order {order.order_id} is {order.state} and {problem}",
        metadata={
            "order_id": order.order_id,
            "state": order.state,
            "payment_id": order.payment_id,
            "version": str(order.version),
            "guard": "state",
        },
    )


def order_exists(order_id: str) -> AlreadyExists:
    """Return the refusal of an order id that is taken."""
    return AlreadyExists(
        "ORDER_EXISTS",
        f"order {order_id} is there already; choose another id, or send none to have one made",
        metadata={"order_id": order_id},
    )


def order_not_found(order_id: str) -> NotFound:
    """Return the refusal of an order that does not exist, or that the caller may not see."""
    return NotFound("ORDER_NOT_FOUND", f"there is no order {order_id}; check the id", metadata={"order_id": order_id})


def _is_with(order: Order, state: OrderState, change: Change) -> bool:
    return order.state is state and order.payment_id == change.payment_id


def _moved(order: Order, state: OrderState, change: Change, *, payment_id: str = "") -> Order:
    """Return the order one version on, in a state that is not PAID."""
    return replace(
        order,
        state=state,
        version=order.version + 1,
        payment_id=payment_id,
        settled_by=None,
        settled_at_ms=0,
        updated_at_ms=change.at_ms,
    )
