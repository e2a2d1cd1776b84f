"""The order by itself: each move, each refusal, and what adds up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.kernel.errors import FailedPrecondition, InvalidArgument
from services.kernel.fence import Fence
from services.kernel.money import MAX_MINOR_UNITS, Money
from services.kernel.principal import Principal, Role
from services.order import model
from services.order.model import MAX_LINES, MAX_QUANTITY, MOVES, Change, Order, OrderLine, OrderState, total

LI = Principal("li", Role.CASHIER)
MOVES_BY_NAME: dict[str, Callable[..., Order]] = {
    "claim": model.claim,
    "complete": model.complete,
    "release": model.release,
    "reopen": model.reopen,
}


def new_order(state: OrderState = OrderState.UNPAID, payment_id: str = "") -> Order:
    order = Order("o1", "mei", Money(500, "CNY"), (), 1_000, 1_000, state=state, version=4, payment_id=payment_id)
    if state is OrderState.PAID:
        order = replace(order, settled_by=LI, settled_at_ms=900)
    return order


def change(payment_id: str = "p1") -> Change:
    return Change("o1", payment_id, Fence(1, 7), LI, at_ms=2_000, settled_at_ms=1_900)


ANY_ORDER = [
    new_order(),
    new_order(OrderState.CANCELLED),
    *(new_order(state, payment) for state in (OrderState.PAYING, OrderState.PAID) for payment in ("p1", "p2")),
]


def test_claim_gives_an_unpaid_order_to_the_payment() -> None:
    """UNPAID → PAYING names the payment and raises the version; nothing else changes."""
    assert model.claim(new_order(), change()) == replace(
        new_order(), state=OrderState.PAYING, payment_id="p1", version=5, updated_at_ms=2_000
    )


@pytest.mark.parametrize("order", [order for order in ANY_ORDER if order.state is not OrderState.UNPAID])
def test_claim_leaves_any_other_order_as_it_stands(order: Order) -> None:
    """Whoever asks, also the payment that holds it: the very same order comes back."""
    assert model.claim(order, change()) is order


def test_completion_records_clerk_and_time() -> None:
    """PAYING → PAID takes clerk and time from the change, not from the clock of the order service."""
    paid = model.complete(new_order(OrderState.PAYING, "p1"), change())
    assert (paid.state, paid.payment_id, paid.version) == (OrderState.PAID, "p1", 5)
    assert (paid.settled_by, paid.settled_at_ms, paid.updated_at_ms) == (LI, 1_900, 2_000)


def test_completion_repeated_changes_nothing() -> None:
    """The stored clerk and time stay, whatever the repeat says."""
    paid = new_order(OrderState.PAID, "p1")
    assert model.complete(paid, change()) is paid


@pytest.mark.parametrize(
    "order",
    [order for order in ANY_ORDER if order.payment_id != "p1"],
    ids=lambda order: f"{order.state}-{order.payment_id}",
)
def test_completion_without_a_claim_is_refused(order: Order) -> None:
    """ILLEGAL_STATE says where the order stands, with whom, and which guard refused."""
    with pytest.raises(FailedPrecondition) as refusal:
        model.complete(order, change())
    assert refusal.value.reason == "ILLEGAL_STATE"
    assert refusal.value.metadata == {
        "order_id": "o1",
        "state": order.state,
        "payment_id": order.payment_id,
        "version": "4",
        "guard": "state",
    }


def test_release_frees_the_order_in_the_same_round() -> None:
    """PAYING → UNPAID: a declined payment opens no new round."""
    freed = model.release(new_order(OrderState.PAYING, "p1"), change())
    assert (freed.state, freed.payment_id, freed.round, freed.version) == (OrderState.UNPAID, "", 1, 5)


def test_reopening_begins_the_next_round() -> None:
    """PAID → UNPAID forgets who settled, and counts the round."""
    again = model.reopen(new_order(OrderState.PAID, "p1"), change())
    assert (again.state, again.payment_id, again.round, again.version) == (OrderState.UNPAID, "", 2, 5)
    assert (again.settled_by, again.settled_at_ms) == (None, 0)


@pytest.mark.parametrize(("move", "from_state"), [(model.release, OrderState.PAYING), (model.reopen, OrderState.PAID)])
@pytest.mark.parametrize("order", ANY_ORDER, ids=lambda order: f"{order.state}-{order.payment_id}")
def test_only_the_payment_that_holds_an_order_gives_it_back(
    move: Callable[..., Order], from_state: OrderState, order: Order
) -> None:
    """Every other order is answered as it stands."""
    if (order.state, order.payment_id) != (from_state, "p1"):
        assert move(order, change()) is order


@pytest.mark.parametrize("order", ANY_ORDER, ids=lambda order: f"{order.state}-{order.payment_id}")
def test_only_an_unpaid_order_is_cancelled(order: Order) -> None:
    """UNPAID → CANCELLED; any other state is ILLEGAL_STATE."""
    if order.state is OrderState.UNPAID:
        cancelled = model.cancel(order, 2_000)
        assert (cancelled.state, cancelled.version, cancelled.updated_at_ms) == (OrderState.CANCELLED, 5, 2_000)
        return
    with pytest.raises(FailedPrecondition, match="only an UNPAID order") as refusal:
        model.cancel(order, 2_000)
    assert refusal.value.reason == "ILLEGAL_STATE"


@pytest.mark.parametrize(("order", "name"), list(itertools.product(ANY_ORDER, MOVES_BY_NAME)))
def test_every_move_is_in_the_table(order: Order, name: str) -> None:
    """No function makes a move that MOVES does not have, nor skips a version."""
    try:
        after = MOVES_BY_NAME[name](order, change())
    except FailedPrecondition:
        return
    if after is not order:
        assert after.state in MOVES[order.state]
        assert after.version == order.version + 1


def test_lines_add_up() -> None:
    """Without an amount the lines say what is owed; an equal amount is welcome."""
    lines = [OrderLine("tea", 2, Money(150, "CNY")), OrderLine("cake", 1, Money(200, "CNY"))]
    assert total(None, lines) == total(Money(500, "CNY"), lines) == Money(500, "CNY")
    assert total(Money(7, "CNY"), []) == Money(7, "CNY")


@pytest.mark.parametrize(
    ("amount", "lines", "reason"),
    [
        (None, [], "AMOUNT_REQUIRED"),
        (Money(499, "CNY"), [OrderLine("tea", 5, Money(100, "CNY"))], "AMOUNT_MISMATCH"),
        (Money(500, "EUR"), [OrderLine("tea", 5, Money(100, "CNY"))], "AMOUNT_MISMATCH"),
        (None, [OrderLine("tea", 1, Money(1, "CNY")), OrderLine("tea", 1, Money(1, "EUR"))], "CURRENCY_MISMATCH"),
        (None, [OrderLine("tea", 1, Money(1, "CNY"))] * (MAX_LINES + 1), "TOO_MANY_LINES"),
        (None, [OrderLine("gold", 2, Money(MAX_MINOR_UNITS, "CNY"))], "AMOUNT_OUT_OF_RANGE"),
        (None, [OrderLine("gold", 1, Money(MAX_MINOR_UNITS, "CNY"))] * 2, "AMOUNT_OUT_OF_RANGE"),
    ],
)
def test_lines_that_do_not_add_up_are_refused(amount: Money | None, lines: list[OrderLine], reason: str) -> None:
    """Each refusal names its reason and a field."""
    with pytest.raises(InvalidArgument) as refusal:
        total(amount, lines)
    assert refusal.value.reason == reason
    assert refusal.value.fields


@pytest.mark.parametrize(
    ("description", "quantity", "reason"),
    [
        ("", 1, "FIELD_REQUIRED"),
        ("x" * 201, 1, "FIELD_TOO_LONG"),
        ("a\nb", 1, "FIELD_MALFORMED"),
        ("tea", 0, "QUANTITY_OUT_OF_RANGE"),
        ("tea", -1, "QUANTITY_OUT_OF_RANGE"),
        ("tea", MAX_QUANTITY + 1, "QUANTITY_OUT_OF_RANGE"),
    ],
)
def test_line_has_limits(description: str, quantity: int, reason: str) -> None:
    """1 to 200 printable characters, 1 to 1,000,000 of it."""
    with pytest.raises(InvalidArgument) as refusal:
        OrderLine(description, quantity, Money(1, "CNY"))
    assert refusal.value.reason == reason


def test_values_at_the_limits_are_accepted() -> None:
    """The largest line, and as many lines as there may be."""
    line = OrderLine("x" * 200, MAX_QUANTITY, Money(1, "CNY"))
    assert total(None, [line] * MAX_LINES) == Money(MAX_QUANTITY * MAX_LINES, "CNY")
