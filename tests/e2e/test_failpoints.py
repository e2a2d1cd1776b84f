"""kill -9 at every failpoint of every service that passes it: one effect in the end, and a checker that finds nothing.

Each test brings its death about (or fails), asks again under the same key at another instance until there is a
definitive answer, waits until the books are quiet, and has them checked, with every answer given so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio

from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.type.v1 import money_pb2
from services.checker.books import Books
from services.demo.people import Seen
from services.devstack.supervisor import Stack
from tests.e2e.conftest import options
from tests.e2e.desk import new_id
from tests.e2e.teller import Teller, charges, payment_in, settle_request, states, teller_at

KILL = failpoint_pb2.FAILPOINT_ACTION_KILL
#: The one that dies, where it is a payment instance, and the one that is asked afterwards.
VICTIM, OTHER = "payment-1", "payment-2"
#: Calls until one has met the armed one of two instances: all miss it once in a million runs.
_CALLS, _ROUNDS = 3, 7
_MERCHANT = "wallet:merchant:CNY"

SETTLE_POINTS = [
    *(
        ("payment", point)
        for point in ("accepted", "locked", "claimed", "submitted", "posted", "recorded", "completed", "released")
    ),
    *(("order", point) for point in ("accepted", "claimed", "completed")),
    *(("ledger", point) for point in ("accepted", "posted")),
]
PAY_POINTS = [
    *(("payment", point) for point in ("accepted", "submitted", "posted", "recorded")),
    *(("ledger", point) for point in ("accepted", "posted")),
]
REVERSE_POINTS = [
    *(
        ("payment", point)
        for point in ("accepted", "locked", "submitted", "posted", "recorded", "completed", "released")
    ),
    ("order", "accepted"),
    *(("ledger", point) for point in ("accepted", "posted")),
]
#: From here on the response is stored: the retry must be given it, marked.
_STORED = ("recorded", "completed", "released")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def teller(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Teller]:
    """A stack with two instances of everything, and the merchant's wallet."""
    data = tmp_path_factory.mktemp("failpoints") / "data"
    async with (
        Stack(options(data, replicas={"payment": 2, "order": 2, "ledger": 2})) as stack,
        teller_at(stack) as teller,
    ):
        assert await teller.open_wallet("merchant") == _MERCHANT
        yield teller


@dataclass(frozen=True, slots=True)
class Press:
    """One thing that is asked for once.

    Args:
        subject: The order or payment it concerns; empty: not known before.
    """

    method: str
    request: pb.SettleRequest | pb.PayRequest | pb.ReverseRequest
    key: str
    subject: str
    #: Raises unless the books say that it was done exactly once.
    done: Callable[[Books, pb.Payment], None]


async def settling(teller: Teller) -> Press:
    """Li presses Settle on a fresh bill."""
    order_id, key = await teller.bill(), new_id("settle")

    def done(books: Books, payment: pb.Payment) -> None:
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        assert charges(books, order_id) == [payment.payment_id]
        (order,) = [row for row in books.orders if row["order_id"] == order_id]
        assert (order["state"], order["payment_id"]) == ("PAID", payment.payment_id)

    return Press("Settle", settle_request(teller.cashier, order_id, key), key, order_id, done)


async def paying(teller: Teller) -> Press:
    """Li pays a merchant from the drawer, with a ticket."""
    ticket_id = await teller.ticket(teller.cashier, OTHER)
    request = pb.PayRequest(
        ticket_id=ticket_id,
        source=pb.SOURCE_DRAWER,
        amount=money_pb2.Money(minor_units=700, currency_code="CNY"),
        payee_account_id=_MERCHANT,
    )

    def done(books: Books, payment: pb.Payment) -> None:
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        made = [str(row["payment_id"]) for row in books.payments if row["request_key"] == ticket_id]
        assert made == [payment.payment_id]
        assert [row["journal_id"] for row in books.journals if row["payment_id"] in made] == [payment.journal_id]

    return Press("Pay", request, ticket_id, "", done)


async def reversing(teller: Teller) -> Press:
    """Wang undoes the settlement of a fresh bill."""
    order_id, key = await teller.bill(), new_id("reverse")
    settled = payment_in(await teller.settle_at(teller.cashier, OTHER, order_id))
    request = pb.ReverseRequest(request_id=key, payment_id=settled.payment_id, reason="wrong bill")

    def done(books: Books, payment: pb.Payment) -> None:
        assert payment.state == pb.PAYMENT_STATE_REVERSED
        assert charges(books, order_id) == [settled.payment_id]
        undoing = [row["journal_id"] for row in books.journals if row["reversal_of"] == settled.journal_id]
        assert undoing == [payment.reversal_journal_id]
        assert states(books, [settled.payment_id]) == ["REVERSED"]
        (order,) = [row for row in books.orders if row["order_id"] == order_id]
        assert (order["state"], order["round"]) == ("UNPAID", 2)

    return Press("Reverse", request, key, settled.payment_id, done)


async def press(teller: Teller, one: Press, instance: str) -> Seen:
    """Asks once."""
    person = teller.accountant if one.method == "Reverse" else teller.cashier
    return await person.ask(teller.address(instance), one.method, one.request, timeout_s=8.0)


async def answered(teller: Teller, one: Press) -> Seen:
    """Asks at the other instance under the same key until it is answered for good."""
    person = teller.accountant if one.method == "Reverse" else teller.cashier
    return await teller.until_answered(person, OTHER, one.method, one.request, one.key)


async def killed_at(
    teller: Teller, begin: Callable[[Teller], Awaitable[Press]], service: str, point: str
) -> list[tuple[Press, Seen]]:
    """Asks for things until an instance of `service` has died at `point`; what was asked, and the first answers.

    A payment instance is asked itself; whether the armed instance of another service is met is up to the balancer.
    """
    await teller.stack.wait_serving(timeout_s=30)
    victim = VICTIM if service == "payment" else f"{service}-1"
    pid = teller.stack.instance(victim).pid
    asked: list[tuple[Press, Seen]] = []
    if service == "payment":
        one = await begin(teller)
        await teller.arm(victim, point, KILL, one.subject)
        asked.append((one, await press(teller, one, VICTIM)))
        await teller.wait_died(victim, pid, within_s=10)
        return asked
    for _ in range(_ROUNDS):
        ready = [await begin(teller) for _ in range(_CALLS)]  # before arming: making a bill passes failpoints as well
        await teller.arm(victim, point, KILL, "")
        for one in ready:
            asked.append((one, await press(teller, one, VICTIM)))
            if await teller.failpoint(victim, point) is None:
                await teller.wait_died(victim, pid, within_s=10)
                return asked
        await teller.disarm(victim, point)
    raise AssertionError(f"{victim} was never met at {point}")


@pytest.mark.parametrize(("service", "point"), SETTLE_POINTS)
async def test_settle(teller: Teller, service: str, point: str) -> None:
    await lives_through_it(teller, settling, service, point)


@pytest.mark.parametrize(("service", "point"), PAY_POINTS)
async def test_pay(teller: Teller, service: str, point: str) -> None:
    await lives_through_it(teller, paying, service, point)


@pytest.mark.parametrize(("service", "point"), REVERSE_POINTS)
async def test_reverse(teller: Teller, service: str, point: str) -> None:
    await lives_through_it(teller, reversing, service, point)


async def lives_through_it(
    teller: Teller, begin: Callable[[Teller], Awaitable[Press]], service: str, point: str
) -> None:
    """The whole of a test."""
    asked = await killed_at(teller, begin, service, point)
    answers = await asyncio.gather(*(answered(teller, one) for one, _ in asked))
    first, again = asked[0][1], answers[0]
    if service == "payment":
        assert first.open, "its reply died with it"
        assert again.replayed or point not in _STORED
    books = await teller.checked_books()
    for (one, _), answer in zip(asked, answers, strict=True):
        one.done(books, payment_in(answer))
