"""Cards on a running stack: an outside bank that keeps silent, closes, freezes, and says what is not so.

The settings are short: the bank has half a second to answer, and after three silences people have to look.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from countinghouse.acquirer.v1 import acquirer_pb2 as bank
from countinghouse.payment.v1 import payment_pb2 as pb
from services.devstack.stack import ACQUIRER_INSTANCE, Stack
from services.kernel.principal import Role
from services.testkit.client import CallResult, new_id
from services.testkit.harness import Harness, open_client
from tests.e2e.checked import at_acquirer, charges, checked_books, refusal, states
from tests.e2e.command import command_line, document
from tests.e2e.conftest import SETTINGS, options

ONE, TWO = "payment-1", "payment-2"
BANK_SETTINGS = {"acquirer_timeout_s": 0.5, "acquirer_asks": 3}
#: How many orders are settled at once, each of which the bank charges without a word.
AT_ONCE = 6
_LOOK_S = 0.05
_WAIT_S = 40.0
CARD = "tok-mei"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harness(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """A stack with two payment instances and an impatient view of its bank."""
    data = tmp_path_factory.mktemp("cards") / "data"
    settings = SETTINGS | BANK_SETTINGS
    async with Stack(options(data, replicas={"payment": 2}, settings=settings)) as stack, Harness(stack) as harness:
        yield harness


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def _a_good_bank(harness: Harness) -> AsyncIterator[None]:
    """Nothing goes wrong with the bank before a test, and everything serves."""
    await harness.stack.wait_serving()
    await harness.set_acquirer_faults()
    yield
    await harness.stack.wait_serving()
    await harness.set_acquirer_faults()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what another process does by itself."""
    async with asyncio.timeout(_WAIT_S):
        while not await condition():  # noqa: ASYNC110  no event of ours
            await asyncio.sleep(_LOOK_S)


async def charged_without_a_word(harness: Harness, orders: int) -> None:
    """Orders whose cards are charged, and the bank says nothing the first time that it is asked for each."""
    drop = bank.Fault(kind=bank.FAULT_KIND_DROP_REPLY, method="Charge", times=1)
    await harness.set_acquirer_faults(drop, bank.Fault(kind=bank.FAULT_KIND_NOTICE_LOST))
    counter = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> tuple[str, CallResult]:
        async with counter:
            order_id, key = await harness.new_order(), new_id("settle")
            unheard = await harness.cashier.settle_once(
                order_id, key, card=CARD, at=(ONE, TWO)[number % 2], timeout_s=8.0
            )
            assert unheard.payment.state == pb.PAYMENT_STATE_UNKNOWN
            return order_id, await harness.cashier.settle(order_id, key, card=CARD, at=(TWO, ONE)[number % 2])

    outcomes = await asyncio.gather(*(one(number) for number in range(orders)))
    assert {seen.payment.state for _, seen in outcomes} == {pb.PAYMENT_STATE_SUCCEEDED}
    books = await checked_books(harness)
    for order_id, seen in outcomes:
        payment_id = seen.payment.payment_id
        assert charges(books, order_id) == [payment_id]
        assert at_acquirer(books, payment_id) == ["CHARGED"]


async def test_thirty_charges_with_lost_replies_are_resolved(harness: Harness) -> None:
    """All converge, none is charged twice, none is given up."""
    await charged_without_a_word(harness, 30)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_two_hundred_charges_with_lost_replies_are_resolved(harness: Harness) -> None:
    """The same, longer."""
    await charged_without_a_word(harness, 200)


class TestNoAnswer:
    """The bank keeps silent, in each of its ways."""

    async def test_worker_resolves_an_unknown_payment(self, harness: Harness) -> None:
        """Nobody asks again; the payment succeeds all the same, and the caller finds it with GetPayment."""
        order_id, key = await harness.new_order(), new_id("settle")
        drop = bank.Fault(kind=bank.FAULT_KIND_DROP_REPLY, method="Charge", times=1)
        await harness.set_acquirer_faults(drop, bank.Fault(kind=bank.FAULT_KIND_NOTICE_LOST))
        unheard = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
        assert (unheard.state, unheard.attempt) == (pb.PAYMENT_STATE_UNKNOWN, 1)
        await until(lambda: is_in(harness, unheard.payment_id, pb.PAYMENT_STATE_SUCCEEDED))
        books = await checked_books(harness)
        assert at_acquirer(books, unheard.payment_id) == ["CHARGED"]

    async def test_notice_lets_the_worker_ask_at_once(self, harness: Harness) -> None:
        """Told late and twice; each notice is harmless, and the payment is charged once."""
        order_id, key = await harness.new_order(), new_id("settle")
        slow = bank.Fault(kind=bank.FAULT_KIND_DELAY_BEFORE, method="Charge", times=1, delay_ms=1_000)
        await harness.set_acquirer_faults(slow, bank.Fault(kind=bank.FAULT_KIND_NOTICE_TWICE))
        unheard = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
        assert unheard.state == pb.PAYMENT_STATE_UNKNOWN
        await until(lambda: is_in(harness, unheard.payment_id, pb.PAYMENT_STATE_SUCCEEDED))
        books = await checked_books(harness)
        assert at_acquirer(books, unheard.payment_id) == ["CHARGED"]

    async def test_frozen_acquirer_leaves_a_payment_unknown_until_it_wakes(self, harness: Harness) -> None:
        """SIGSTOP: the caller is told UNKNOWN within the deadline; SIGCONT, and it is charged once."""
        order_id, key = await harness.new_order(), new_id("settle")
        harness.stack.kill(ACQUIRER_INSTANCE, signal.SIGSTOP)
        try:
            unheard = (await harness.cashier.settle_once(order_id, key, card=CARD)).payment
            assert unheard.state == pb.PAYMENT_STATE_UNKNOWN
        finally:
            harness.stack.kill(ACQUIRER_INSTANCE, signal.SIGCONT)
        assert (await harness.cashier.settle_ok(order_id, key, card=CARD)).state == pb.PAYMENT_STATE_SUCCEEDED
        books = await checked_books(harness)
        assert at_acquirer(books, unheard.payment_id) == ["CHARGED"]

    async def test_decline_is_definitive_and_the_order_is_free(self, harness: Harness) -> None:
        """The next attempt has the next key."""
        order_id, key = await harness.new_order(), new_id("settle")
        request = harness.cashier.settle_request(order_id, key, card="tok-declined")
        declined = await harness.cashier.call_until_answered(request, at=ONE)
        assert declined.error is not None
        assert declined.error.reason == "CARD_DECLINED"
        payment = await harness.cashier.settle_ok(order_id, card=CARD, at=TWO)
        assert payment.acquirer_key == f"{payment.payment_id}:2"
        await checked_books(harness)


async def test_exit_code_shows_whether_a_card_paid(harness: Harness) -> None:
    """An acquirer that is down leaves it open (3), the request id it named ends it (0), a declined card is 4."""
    order_id, data = await harness.new_order(), str(harness.stack.data)
    settle = ("settle", order_id, "--source", "card", "--card", "tok-mei", "--as", "cashier:li", "--data", data)
    await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
    unknown = await command_line(*settle)
    assert unknown.returncode == 3, unknown.stderr
    named = re.search(r"--request-id (\S+)", unknown.stdout)
    assert named, unknown.stdout
    await harness.set_acquirer_faults()
    while (paid := await command_line(*settle, "--request-id", named[1])).returncode == 3:
        pass  # the worker is asking at this moment
    assert paid.returncode == 0, paid.stderr
    assert "SUCCEEDED" in paid.stdout
    other = await harness.new_order()
    declined = await command_line("settle", other, *settle[2:5], "tok-declined", *settle[6:])
    assert declined.returncode == 4, declined.stderr
    assert "declined" in (declined.stdout + declined.stderr).lower()


async def test_check_while_the_acquirer_is_silent_is_unknown_and_names_the_payment(
    harness: Harness, tmp_path: Path
) -> None:
    """Charged, and no answer: nothing is wrong, and it is ok once the acquirer answers again.

    The log is read from the acquirer's database, or as JSON lines that the acquirer tells.
    """
    order_id, key, data = await harness.new_order(), new_id("settle"), ("--data", str(harness.stack.data))
    await harness.set_acquirer_faults(
        bank.Fault(kind=bank.FAULT_KIND_DROP_REPLY, method="Charge"),
        bank.Fault(kind=bank.FAULT_KIND_DOWN, method="GetCharge"),  # the reply to a read cannot be dropped
    )
    payment = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
    assert payment.state == pb.PAYMENT_STATE_UNKNOWN
    checked = await command_line("check", "--settle-s", "0", *data)
    assert checked.returncode == 2, checked.stdout
    assert f"unknown: nothing left over: payment {payment.payment_id} is UNKNOWN: still open" in checked.stdout
    assert "VIOLATED" not in checked.stdout
    await harness.set_acquirer_faults()
    assert (await harness.cashier.settle_ok(order_id, key, card=CARD)).state == pb.PAYMENT_STATE_SUCCEEDED
    checked = await command_line("check", *data)
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"^acquirer agrees with ledger +[1-9]\d* +ok$", checked.stdout, re.MULTILINE)
    told = await command_line("acquirer", "log", "--jsonl", *data)
    assert told.returncode == 0, told.stderr
    (tmp_path / "log.jsonl").write_text(told.stdout)
    named = await command_line("check", "--acquirer-log", str(tmp_path / "log.jsonl"), *data)
    assert named.returncode == 0, named.stdout
    (tmp_path / "log.jsonl").write_text("".join(told.stdout.splitlines(keepends=True)[1:]))
    cut = await command_line("check", "--acquirer-log", str(tmp_path / "log.jsonl"), *data)
    assert cut.returncode == 1
    assert "broken: acquirer log whole: " in cut.stdout


class TestAcquirerDown:
    """The bank is closed for so long that people have to look."""

    async def test_unanswered_payment_needs_attention_and_is_reversed(self, harness: Harness) -> None:
        """Still UNKNOWN, listed on the command line; an accountant reverses it, a late charge meets the tombstone, and
        the order can be settled again.
        """
        order_id, key = await harness.new_order(), new_id("settle")
        await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
        payment = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
        assert payment.state == pb.PAYMENT_STATE_UNKNOWN
        await until(lambda: needs_attention(harness, payment.payment_id))
        done = await command_line("payment", "attention", "--json", "--data", str(harness.stack.data))
        (listed,) = document(done)["payments"]
        assert (listed["payment_id"], listed["state"]) == (payment.payment_id, "PAYMENT_STATE_UNKNOWN")
        assert listed["attention"] == "ACQUIRER_DOWN"
        await harness.set_acquirer_faults()
        undone = (await harness.accountant.reverse(payment.payment_id, at=TWO)).payment
        assert (undone.state, undone.journal_id) == (pb.PAYMENT_STATE_REVERSED, "")
        async with open_client(harness.stack, "payment-service", Role.SERVICE) as late:
            request = bank.ChargeRequest(
                key=payment.acquirer_key, card="tok-mei", amount=payment.amount, reference=payment.payment_id
            )
            answer = await late.ask(request)
        assert answer.charge.state == bank.CHARGE_STATE_TOMBSTONE
        refused = await harness.cashier.settle(order_id, key, card=CARD)
        assert refused.error is not None
        assert refused.error.reason == "PAYMENT_REVERSED"
        again = await harness.cashier.settle_ok(order_id, card=CARD, at=TWO)
        assert (again.state, again.round) == (pb.PAYMENT_STATE_SUCCEEDED, 1)
        books = await checked_books(harness)
        assert at_acquirer(books, payment.payment_id) == ["TOMBSTONE"]

    async def test_reversal_during_an_outage_ends_after_it(self, harness: Harness) -> None:
        """It had charged the card without a word. REVERSING until it opens; then the money is back, and the order
        is in its next round.
        """
        order_id, key = await harness.new_order(), new_id("settle")
        drop = bank.Fault(kind=bank.FAULT_KIND_DROP_REPLY, method="Charge", times=1)
        await harness.set_acquirer_faults(drop, bank.Fault(kind=bank.FAULT_KIND_NOTICE_LOST))
        payment = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
        await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
        assert payment.state == pb.PAYMENT_STATE_UNKNOWN
        request = pb.ReverseRequest(request_id=new_id("reverse"), payment_id=payment.payment_id, reason="wrong order")
        pending = (await harness.accountant.call(request, at=TWO, timeout_s=8.0)).payment
        assert pending.state == pb.PAYMENT_STATE_REVERSING
        await harness.set_acquirer_faults()
        await until(lambda: is_in(harness, payment.payment_id, pb.PAYMENT_STATE_REVERSED))
        books = await checked_books(harness)
        assert at_acquirer(books, payment.payment_id) == ["REFUNDED"]
        (order,) = [row for row in books.orders if row["order_id"] == order_id]
        assert (order["state"], order["round"]) == ("UNPAID", 2)


class TestParked:
    """The customer pays cash while the acquirer does not answer about the card."""

    async def test_cash_charges_no_card_and_a_parked_card_is_reversed_later(self, harness: Harness) -> None:
        """The cashier is told which payment is in the way, by an acquirer that would charge if it was asked to; parks
        it on the command line while the acquirer is down, and takes the cash; the tombstone comes afterwards.
        """
        order_id, key = await harness.new_order(), new_id("settle")
        await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
        card = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
        assert card.state == pb.PAYMENT_STATE_UNKNOWN
        await until(lambda: needs_attention(harness, card.payment_id))  # from here on no worker charges
        await harness.set_acquirer_faults()
        cash = harness.cashier.settle_request(order_id, new_id("settle"))
        refused = (await harness.cashier.call(cash, at=TWO, timeout_s=8.0)).error
        assert refused is not None
        assert (refused.reason, refused.metadata["payment_id"]) == ("ORDER_HALF_SETTLED", card.payment_id)
        await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
        parking = ("payment", "park", card.payment_id, "--reason", "pays cash", "--json")
        done = await command_line(*parking, "--data", str(harness.stack.data))
        assert document(done)["payment"]["state"] == "PAYMENT_STATE_PARKED"
        paid = (await harness.cashier.call_until_answered(cash, at=TWO)).payment
        assert paid.state == pb.PAYMENT_STATE_SUCCEEDED
        assert await is_in(harness, card.payment_id, pb.PAYMENT_STATE_PARKED)
        await harness.set_acquirer_faults()
        await until(lambda: is_in(harness, card.payment_id, pb.PAYMENT_STATE_REVERSED))
        again = await harness.cashier.settle(order_id, key, card=CARD)
        assert again.error is not None
        assert again.error.reason == "PAYMENT_PARKED"
        books = await checked_books(harness)
        assert at_acquirer(books, card.payment_id) == ["TOMBSTONE"]
        assert charges(books, order_id) == [paid.payment_id]

    async def test_parking_an_unanswered_reversal_lets_cash_settle_the_order(self, harness: Harness) -> None:
        """The acquirer charged without a word and is down. The accountant reverses the payment, the cashier parks it
        and takes cash; when the acquirer is back it refunds, and the reversal's request is refused as before.
        """
        order_id, key = await harness.new_order(), new_id("settle")
        drop = bank.Fault(kind=bank.FAULT_KIND_DROP_REPLY, method="Charge", times=1)
        await harness.set_acquirer_faults(drop, bank.Fault(kind=bank.FAULT_KIND_NOTICE_LOST))
        card = (await harness.cashier.settle_once(order_id, key, card=CARD, timeout_s=8.0)).payment
        await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
        undo = pb.ReverseRequest(request_id=new_id("reverse"), payment_id=card.payment_id, reason="wrong order")
        pending = (await harness.accountant.call(undo, at=TWO, timeout_s=8.0)).payment
        assert pending.state == pb.PAYMENT_STATE_REVERSING
        parking = pb.ParkRequest(request_id=new_id("park"), payment_id=card.payment_id, reason="pays cash")
        parked = await harness.cashier.call_until_answered(parking, at=ONE)
        assert parked.payment.state == pb.PAYMENT_STATE_PARKED
        cash = harness.cashier.settle_request(order_id, new_id("settle"))
        paid = (await harness.cashier.call_until_answered(cash, at=TWO)).payment
        assert paid.state == pb.PAYMENT_STATE_SUCCEEDED
        await harness.set_acquirer_faults()
        await until(lambda: is_in(harness, card.payment_id, pb.PAYMENT_STATE_REVERSED))
        refused = (await harness.accountant.call(undo, at=ONE, timeout_s=8.0)).error
        assert refused is not None
        assert refused.reason == "PAYMENT_PARKED"
        books = await checked_books(harness)
        assert at_acquirer(books, card.payment_id) == ["REFUNDED"]
        assert charges(books, order_id) == [paid.payment_id]


class TestNotices:
    """Who may say what became of a charge, and what comes of it."""

    async def test_forged_notice_changes_nothing(self, harness: Harness) -> None:
        """Nothing is believed: of a payment that ended, of one that does not exist, with the wrong outcome."""
        order_id, key = await harness.new_order(), new_id("settle")
        payment = await harness.cashier.settle_ok(order_id, key, card=CARD)
        async with open_client(harness.stack, "acquirer", Role.ACQUIRER) as forger:
            for told in (payment.acquirer_key, "pay_nothing:1"):
                request = pb.NotifyAcquirerRequest(key=told, outcome=pb.ACQUIRER_OUTCOME_DECLINED)
                await forger.ask(request)
            code, _ = await refusal(forger.call(pb.GetPaymentRequest(payment_id=payment.payment_id)))
        assert code == "PERMISSION_DENIED"
        books = await checked_books(harness)
        assert states(books, [payment.payment_id]) == ["SUCCEEDED"]

    async def test_notice_of_a_clerk_is_refused(self, harness: Harness) -> None:
        async with open_client(harness.stack, "li", Role.CASHIER) as clerk:
            request = pb.NotifyAcquirerRequest(key="k", outcome=pb.ACQUIRER_OUTCOME_CHARGED)
            code, _ = await refusal(clerk.call(request))
        assert code == "PERMISSION_DENIED"


async def is_in(harness: Harness, payment_id: str, state: pb.PaymentState.ValueType) -> bool:
    """Whether a payment has come to a state."""
    found = await harness.cashier.ask_until_ok(pb.GetPaymentRequest(payment_id=payment_id), at=TWO)
    return bool(found.payment.state == state)


async def needs_attention(harness: Harness, payment_id: str) -> bool:
    """Whether people have to look at a payment. Asked once: `ask_until_ok` goes on for as long as it is UNKNOWN."""
    seen = await harness.cashier.call(pb.GetPaymentRequest(payment_id=payment_id), at=TWO)
    return seen.error is None and bool(seen.payment.attention)
