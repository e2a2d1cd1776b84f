"""What other programs answer, as the payment service takes it: checked as far as it can be, and never trusted raw."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.type.v1 import clerk_pb2, money_pb2
from services.kernel.clock import CallDeadline, SystemClock
from services.kernel.errors import CountinghouseError, FailedPrecondition, NotFound, OutcomeUnknown
from services.kernel.fence import Fence
from services.kernel.idempotency import RequestKey
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment.card import terms_of
from services.payment.model import REVERSE, SETTLE, Payment, PaymentState, Reversal, Source
from services.payment.peers import AcquirerPeer, LedgerPeer, OrderPeer
from services.payment.ports import ChargeStatus, ChargeTerms, KeyState
from services.runtime.grpc import status

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
AMOUNT = Money(1250, "CNY")
FENCE = Fence(1, 1)


def payment() -> Payment:
    made = Payment.created("p1", RequestKey(LI, SETTLE, "s1"), "o1", Source.CARD, LI, "", 1, "tok-mei")
    return replace(
        made,
        round=1,
        amount=AMOUNT,
        payer_account_id="acquirer:CNY",
        payee_account_id="sales:CNY",
        acquirer_key="p1:1",
        journal_id="jnl_1",
    )


def soon() -> CallDeadline:
    return CallDeadline.after(10, SystemClock())


class Stub:
    """Answers every method with one message, or refuses with one error."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __getattr__(self, _name: str) -> Callable[..., Awaitable[Any]]:
        async def method(*_arguments: object, **_named: object) -> Any:
            if isinstance(self._answer, CountinghouseError):
                raise refused_with(self._answer)
            return self._answer

        return method


def refused_with(error: CountinghouseError) -> grpc.aio.AioRpcError:
    """The error as a client meets it."""
    told = status.to_status(error)
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", told.SerializeToString()))
    code = next(code for code in grpc.StatusCode if code.value[0] == told.code)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, told.message)


class Peers:
    """Calls the stub."""

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any, _deadline: CallDeadline) -> Any:
        try:
            return await method(request)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error


def acquirer(answer: Any) -> AcquirerPeer:
    stub: Any = Stub(answer)
    return AcquirerPeer(lambda: stub, token=lambda: "t", timeout_s=1, notify_address=lambda: "")


def charge(**changes: Any) -> acquirer_pb2.Charge:
    stated = acquirer_pb2.Charge(
        key="p1:1",
        state=acquirer_pb2.CHARGE_STATE_CHARGED,
        amount=money_pb2.Money(minor_units=1250, currency_code="CNY"),
        card="tok-mei",
        reference="p1",
    )
    for name, value in changes.items():
        setattr(stated, name, value)
    return stated


class TestAcquirer:
    """The acquirer is outside: nothing of it is stored or shown as it came."""

    async def test_answer_of_the_acquirer_is_read_whole(self) -> None:
        said = await acquirer(acquirer_pb2.ChargeResponse(charge=charge())).charge("p1:1", payment(), AMOUNT, soon())
        assert said == ChargeStatus(KeyState.CHARGED, "", "p1:1", ChargeTerms(1250, "CNY", "tok-mei", "p1"))

    async def test_amount_that_is_no_amount_is_a_contradiction_and_no_error(self) -> None:
        stated = charge()
        stated.amount.CopyFrom(money_pb2.Money(minor_units=-(2**62), currency_code="nonsense"))
        said = await acquirer(acquirer_pb2.GetChargeResponse(charge=stated)).query("p1:1", soon())
        assert said.contradictions("p1:1", terms_of(payment())) == ("amount", "currency")

    @pytest.mark.parametrize("reason", ["", "lower case", "X" * 65, "CARD\x1b[2J", "卡"])
    async def test_decline_reason_that_cannot_be_stored_is_replaced(self, reason: str) -> None:
        declined = charge(state=acquirer_pb2.CHARGE_STATE_DECLINED, decline_reason=reason)
        said = await acquirer(acquirer_pb2.ChargeResponse(charge=declined)).charge("p1:1", payment(), AMOUNT, soon())
        assert (said.state, said.reason) == (KeyState.DECLINED, "CARD_DECLINED")

    async def test_not_found_without_the_acquirers_reason_is_no_answer(self) -> None:
        """A key that is not known is told with its own reason; a wrong address is NOT_FOUND as well."""
        with pytest.raises(OutcomeUnknown) as silence:
            await acquirer(NotFound("NO_SUCH_MERCHANT", "who are you?")).query("p1:1", soon())
        assert silence.value.reason == "NO_SUCH_MERCHANT"
        said = await acquirer(NotFound("CHARGE_NOT_FOUND", "never seen")).query("p1:1", soon())
        assert said == ChargeStatus(KeyState.UNSEEN)

    async def test_message_of_the_acquirer_is_not_passed_on(self) -> None:
        with pytest.raises(OutcomeUnknown) as silence:
            await acquirer(FailedPrecondition("X" * 500, "\x1b]0;mine\x07")).query("p1:1", soon())
        assert silence.value.reason == "ACQUIRER_SILENT"
        assert "\x1b" not in silence.value.message


def ledger(answer: Any) -> LedgerPeer:
    stub: Any = Stub(answer)
    peers: Any = Peers()
    return LedgerPeer(stub, peers)


def journal(**changes: Any) -> ledger_pb2.Journal:
    stated = ledger_pb2.Journal(
        journal_id="jnl_1",
        business_key="settle:o1:1",
        payment_id="p1",
        currency_code="CNY",
        postings=[
            ledger_pb2.Posting(account_id="acquirer:CNY", amount=1250),
            ledger_pb2.Posting(account_id="sales:CNY", amount=-1250),
        ],
    )
    for name, value in changes.items():
        setattr(stated, name, value)
    return stated


class TestLedger:
    """An answer about another journal or account is none."""

    async def test_journal_that_was_asked_for_is_accepted(self) -> None:
        assert (
            await ledger(ledger_pb2.PostResponse(journal=journal())).post(payment(), AMOUNT, FENCE, soon()) == "jnl_1"
        )

    @pytest.mark.parametrize(
        "change", [{"business_key": "settle:o2:1"}, {"payment_id": "p2"}, {"currency_code": "JPY"}, {"journal_id": ""}]
    )
    async def test_another_journal_is_no_answer_to_a_post(self, change: dict[str, str]) -> None:
        with pytest.raises(OutcomeUnknown) as unknown:
            await ledger(ledger_pb2.PostResponse(journal=journal(**change))).post(payment(), AMOUNT, FENCE, soon())
        assert unknown.value.reason == "LEDGER_MISMATCH"

    async def test_journal_of_another_amount_is_no_answer_to_a_post(self) -> None:
        stated = journal()
        stated.postings[0].amount, stated.postings[1].amount = 500, -500
        with pytest.raises(OutcomeUnknown):
            await ledger(ledger_pb2.PostResponse(journal=stated)).post(payment(), AMOUNT, FENCE, soon())

    async def test_reversal_of_another_journal_is_no_answer(self) -> None:
        undoing = Reversal(RequestKey(WANG, REVERSE, "v1"), WANG, "why")
        answer = ledger_pb2.ReverseJournalResponse(journal=journal(journal_id="jnl_2", reversal_of="jnl_9"))
        with pytest.raises(OutcomeUnknown):
            await ledger(answer).reverse(payment(), undoing, FENCE, soon())

    async def test_void_that_finds_another_journal_is_no_answer(self) -> None:
        assert await ledger(ledger_pb2.VoidPostResponse()).void(payment(), FENCE, soon()) == ""
        assert await ledger(ledger_pb2.VoidPostResponse(journal=journal())).void(payment(), FENCE, soon()) == "jnl_1"
        with pytest.raises(OutcomeUnknown):
            await ledger(ledger_pb2.VoidPostResponse(journal=journal(payment_id="p2"))).void(payment(), FENCE, soon())

    @pytest.mark.parametrize("closed_at_ms", [0, 1_700_000_000_000])
    async def test_account_that_was_closed_is_known_before_a_card_is_charged(self, closed_at_ms: int) -> None:
        """By when it was closed."""
        account = ledger_pb2.Account(account_id="sales:CNY", currency_code="CNY", closed_at_ms=closed_at_ms)
        terms = await ledger(ledger_pb2.GetAccountResponse(account=account)).account("sales:CNY", soon())
        assert terms is not None
        assert terms.closed is (closed_at_ms > 0)

    @pytest.mark.parametrize(
        ("kind", "grows_by_debits"),
        [
            (ledger_pb2.ACCOUNT_KIND_ASSET, True),
            (ledger_pb2.ACCOUNT_KIND_EXPENSE, True),
            (ledger_pb2.ACCOUNT_KIND_LIABILITY, False),
            (ledger_pb2.ACCOUNT_KIND_REVENUE, False),
            (ledger_pb2.ACCOUNT_KIND_EQUITY, False),
        ],
    )
    async def test_account_that_a_credit_lowers_is_known(
        self, kind: ledger_pb2.AccountKind.ValueType, grows_by_debits: bool
    ) -> None:
        account = ledger_pb2.Account(account_id="safe3", currency_code="CNY", kind=kind)
        terms = await ledger(ledger_pb2.GetAccountResponse(account=account)).account("safe3", soon())
        assert terms is not None
        assert terms.grows_by_debits is grows_by_debits

    async def test_account_that_is_not_open_differs_from_no_answer(self) -> None:
        assert await ledger(NotFound("ACCOUNT_NOT_FOUND", "no")).account("sales:CNY", soon()) is None
        closed = ledger_pb2.Account(account_id="sales:CNY", currency_code="CNY", closed_at_ms=1)
        found = await ledger(ledger_pb2.GetAccountResponse(account=closed)).account("sales:CNY", soon())
        assert found is not None
        assert found.closed
        other = ledger_pb2.GetAccountResponse(account=ledger_pb2.Account(account_id="sales:JPY", currency_code="JPY"))
        with pytest.raises(OutcomeUnknown):
            await ledger(other).account("sales:CNY", soon())


async def test_answer_of_another_order_is_no_claim() -> None:
    order = order_pb2.Order(
        order_id="o2",
        state=order_pb2.ORDER_STATE_PAYING,
        payment_id="p1",
        amount=money_pb2.Money(minor_units=1, currency_code="CNY"),
    )
    stub: Any = Stub(order_pb2.ClaimOrderResponse(order=order))
    peers: Any = Peers()
    with pytest.raises(OutcomeUnknown) as unknown:
        await OrderPeer(stub, peers).claim(payment(), FENCE, soon())
    assert unknown.value.reason == "ORDER_MISMATCH"


UNKNOWN: Any = 99


@pytest.mark.parametrize(
    "change",
    [
        {"state": UNKNOWN},
        {"state": order_pb2.ORDER_STATE_UNSPECIFIED},
        {"settled_by": clerk_pb2.Clerk(name="li", role=UNKNOWN)},
        {"amount": money_pb2.Money(minor_units=-1, currency_code="CNY")},
    ],
    ids=["unknown state", "no state", "unknown role", "no amount"],
)
async def test_order_that_this_release_does_not_understand_is_no_answer(change: dict[str, Any]) -> None:
    """A newer order service may have done what was asked: that is neither refused nor a defect."""
    stated: dict[str, Any] = {
        "order_id": "o1",
        "state": order_pb2.ORDER_STATE_PAYING,
        "payment_id": "p1",
        "amount": money_pb2.Money(minor_units=1, currency_code="CNY"),
    }
    stub: Any = Stub(order_pb2.ClaimOrderResponse(order=order_pb2.Order(**stated | change)))
    peers: Any = Peers()
    with pytest.raises(OutcomeUnknown) as unknown:
        await OrderPeer(stub, peers).claim(payment(), FENCE, soon())
    assert unknown.value.reason == "ORDER_UNCLEAR"


class TestDelegations:
    """A person who is named to another service is named with what lets the payment service act for them."""

    @staticmethod
    async def shown(call: Callable[[OrderPeer, LedgerPeer], Awaitable[object]]) -> clerk_pb2.Clerk:
        """The clerk of the request that a call sends."""
        sent: list[Any] = []

        class Listening(Peers):
            async def call(self, _method: Callable[..., Awaitable[Any]], request: Any, _deadline: CallDeadline) -> Any:
                sent.append(request)
                raise FailedPrecondition("HEARD", "it was heard")

        nothing: Any = Stub(None)
        peers: Any = Listening()
        with pytest.raises(FailedPrecondition, match="it was heard"):
            await call(OrderPeer(nothing, peers), LedgerPeer(nothing, peers))
        (request,) = sent
        clerk: clerk_pb2.Clerk = (
            request.settled_by if "settled_by" in request.DESCRIPTOR.fields_by_name else request.clerk
        )
        return clerk

    async def test_every_call_shows_the_delegation_of_the_clerk_whom_it_names(self) -> None:
        li, wang = replace(LI, delegation="of li"), replace(WANG, delegation="of wang")
        reversal = Reversal(RequestKey(WANG, REVERSE, "v1"), wang, "wrong order")
        paid = replace(payment(), clerk=li)
        undone = replace(paid, reversal=reversal, state=PaymentState.REVERSING)
        calls: list[tuple[Callable[[OrderPeer, LedgerPeer], Awaitable[object]], str]] = [
            (lambda orders, _: orders.claim(paid, FENCE, soon()), "of li"),
            (lambda orders, _: orders.complete(paid, FENCE, soon()), "of li"),
            (lambda orders, _: orders.release(paid, FENCE, soon()), "of li"),
            (lambda orders, _: orders.reopen(undone, FENCE, soon()), "of wang"),
            (lambda _, books: books.post(paid, AMOUNT, FENCE, soon()), "of li"),
            (lambda _, books: books.reverse(undone, reversal, FENCE, soon()), "of wang"),
        ]
        for call, delegation in calls:
            assert (await self.shown(call)).delegation == delegation
