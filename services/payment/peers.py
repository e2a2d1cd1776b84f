"""Clients of the order service, the ledger and the acquirer, through their stubs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import grpc

from countinghouse.acquirer.v1 import acquirer_pb2 as acquirer
from countinghouse.acquirer.v1.acquirer_pb2_grpc import AcquirerServiceStub
from countinghouse.ledger.v1 import ledger_pb2 as ledger
from countinghouse.ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from countinghouse.order.v1 import order_pb2 as order
from countinghouse.order.v1.order_pb2_grpc import OrderServiceStub
from services.kernel.clock import CallDeadline
from services.kernel.errors import InvalidArgument, NotFound, OutcomeUnknown
from services.kernel.fence import Fence
from services.kernel.money import Money
from services.payment.model import Payment, Reversal
from services.payment.ports import AccountTerms, ChargeStatus, ChargeTerms, KeyState, Order, OrderState
from services.runtime import tracing
from services.runtime.grpc import status, translate
from services.runtime.grpc.batching import BatchedCalls
from services.runtime.grpc.service_client import Peer

ORDER_INTERFACE = "countinghouse.order.v1.OrderService"
LEDGER_INTERFACE = "countinghouse.ledger.v1.LedgerService"
_ACQUIRER = "/countinghouse.acquirer.v1.AcquirerService"

_STATES = {
    order.ORDER_STATE_UNPAID: OrderState.UNPAID,
    order.ORDER_STATE_PAYING: OrderState.PAYING,
    order.ORDER_STATE_PAID: OrderState.PAID,
    order.ORDER_STATE_CANCELLED: OrderState.CANCELLED,
}
#: What a reason of the acquirer must look like to be stored and shown.
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
#: The reason of a decline that has none that can be shown.
_DECLINED = "CARD_DECLINED"
_KEY_STATES = {
    acquirer.CHARGE_STATE_CHARGED: KeyState.CHARGED,
    acquirer.CHARGE_STATE_DECLINED: KeyState.DECLINED,
    acquirer.CHARGE_STATE_REFUNDED: KeyState.REFUNDED,
    acquirer.CHARGE_STATE_TOMBSTONE: KeyState.TOMBSTONE,
}
#: Kept back from the deadline, so that silence can still be stored and answered.
_SILENCE_MARGIN_S = 0.25


class OrderPeer:
    """Orders. Every method raises as `Peer.call`."""

    def __init__(self, stub: OrderServiceStub, peer: Peer) -> None:
        self._stub = stub
        self._peer = peer
        self._claims = BatchedCalls(
            peer, stub.ClaimOrder, stub.ClaimOrders, order.ClaimOrdersRequest, name="ClaimOrder"
        )
        self._completes = BatchedCalls(
            peer, stub.CompleteOrder, stub.CompleteOrders, order.CompleteOrdersRequest, name="CompleteOrder"
        )

    async def get(self, order_id: str, deadline: CallDeadline) -> Order:
        """Return the order as it stands."""
        answer = await self._peer.call(self._stub.GetOrder, order.GetOrderRequest(order_id=order_id), deadline)
        return _order(answer.order, order_id)

    async def claim(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> Order:
        """Claim the payment's order; the answer names the payment that has it."""
        request = order.ClaimOrderRequest(
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.represented_out(payment.clerk),
        )
        return _order((await self._claims.call(request, deadline)).order, payment.order_id)

    async def complete(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None:
        """Report that the payment succeeded."""
        request = order.CompleteOrderRequest(
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            settled_by=translate.represented_out(payment.clerk),
            settled_at_ms=payment.settled_at_ms,
        )
        await self._completes.call(request, deadline)

    async def release(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None:
        """Report that the payment was declined."""
        request = order.ReleaseOrderRequest(
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.represented_out(payment.latest_change[0]),
            reason=payment.latest_change[1],
        )
        await self._peer.call(self._stub.ReleaseOrder, request, deadline)

    async def reopen(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None:
        """Report that the payment was reversed."""
        request = order.ReopenOrderRequest(
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.represented_out(payment.latest_change[0]),
            reason=payment.latest_change[1],
        )
        await self._peer.call(self._stub.ReopenOrder, request, deadline)


class LedgerPeer:
    """The books. Every method raises as `Peer.call`."""

    def __init__(self, stub: LedgerServiceStub, peer: Peer) -> None:
        self._stub = stub
        self._peer = peer
        self._posts = BatchedCalls(peer, stub.Post, stub.PostBatch, ledger.PostBatchRequest, name="Post")

    async def account(self, account_id: str, deadline: CallDeadline) -> AccountTerms | None:
        """Return what a payment needs to know of an account; None: it is not open."""
        request = ledger.GetAccountRequest(account_id=account_id)
        try:
            account = (await self._peer.call(self._stub.GetAccount, request, deadline)).account
        except NotFound:
            return None
        if account.account_id != account_id:
            raise OutcomeUnknown("LEDGER_MISMATCH", f"the ledger answered of another account than {account_id}")
        return AccountTerms(
            account_id,
            account.currency_code,
            closed=account.closed_at_ms != 0,
            grows_by_debits=account.kind in (ledger.ACCOUNT_KIND_ASSET, ledger.ACCOUNT_KIND_EXPENSE),
        )

    async def void(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> str:
        """Have the payment's Post refused for ever; the journal's id if it stands already, else empty."""
        request = ledger.VoidPostRequest(
            request_id=payment.payment_id,
            business_key=payment.business_key,
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
        )
        answer = await self._peer.call(self._stub.VoidPost, request, deadline)
        if not answer.HasField("journal"):
            return ""
        if payment.amount is None:
            raise AssertionError(f"{payment.payment_id} was submitted without an amount")
        return _journal_of(answer.journal, payment, payment.amount)

    async def post(self, payment: Payment, amount: Money, fence: Fence, deadline: CallDeadline) -> str:
        """Post the journal of a submitted payment; return its id.

        Raises:
            OutcomeUnknown: Also LEDGER_MISMATCH: the answer is about another journal than was asked for.
        """
        request = ledger.PostRequest(
            request_id=payment.payment_id,
            business_key=payment.business_key,
            postings=_postings(payment, amount),
            currency_code=amount.currency,
            memo=payment.memo,
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.represented_out(payment.clerk),
        )
        return _journal_of((await self._posts.call(request, deadline)).journal, payment, amount)

    async def reverse(self, payment: Payment, reversal: Reversal, fence: Fence, deadline: CallDeadline) -> str:
        """Reverse the payment's journal; return the opposite journal's id."""
        request = ledger.ReverseJournalRequest(
            request_id=reversal.attempt,
            journal_id=payment.journal_id,
            reason=reversal.reason,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.represented_out(reversal.clerk),
        )
        journal = (await self._peer.call(self._stub.ReverseJournal, request, deadline)).journal
        if (journal.reversal_of, journal.payment_id) != (payment.journal_id, payment.payment_id):
            raise OutcomeUnknown(
                "LEDGER_MISMATCH", f"the ledger answered of another journal than the reversal of {payment.journal_id}"
            )
        return str(journal.journal_id)


class AcquirerPeer:
    """The acquirer, at an address.

    Args:
        stub: Returns it for the next call; None: there is none, and cards are not taken.
        token: Gives this service's own token.
        timeout_s: How long it may take to answer.
        notify_address: Gives where the acquirer sends its notices.
    """

    def __init__(
        self,
        stub: Callable[[], AcquirerServiceStub] | None,
        *,
        token: Callable[[], str],
        timeout_s: float,
        notify_address: Callable[[], str],
    ) -> None:
        self.present = stub is not None
        self._stub = stub
        self._token = token
        self._timeout_s = timeout_s
        self._notify_address = notify_address

    async def charge(self, key: str, payment: Payment, amount: Money, deadline: CallDeadline) -> ChargeStatus:
        """Charge the payment's card under `key`, or find it charged.

        Raises:
            OutcomeUnknown: Any answer but one about the key and its payload, or none.
        """
        request = acquirer.ChargeRequest(
            key=key,
            card=payment.card,
            amount=translate.money_out(amount),
            reference=payment.payment_id,
            notify_address=self._notify_address(),
        )
        return await self._ask("Charge", request, deadline)

    async def query(self, key: str, deadline: CallDeadline) -> ChargeStatus:
        """Return where `key` stands. Raises as `charge`."""
        return await self._ask("GetCharge", acquirer.GetChargeRequest(key=key), deadline)

    async def reverse_by_key(self, key: str, deadline: CallDeadline) -> ChargeStatus:
        """Reverse whatever was or will be charged under `key`. Raises as `charge`."""
        return await self._ask("ReverseByKey", acquirer.ReverseByKeyRequest(key=key), deadline)

    async def _ask(self, method: str, request: Any, deadline: CallDeadline) -> ChargeStatus:
        if self._stub is None:
            raise OutcomeUnknown("NO_ACQUIRER", "no acquirer is set; COUNTINGHOUSE_ACQUIRER_ADDRESS names one")
        wait_s = min(self._timeout_s, deadline.remaining_s() - _SILENCE_MARGIN_S)
        if wait_s <= 0:
            raise OutcomeUnknown("DEADLINE_TOO_SHORT", "too little was left of the deadline to ask the acquirer")
        with tracing.called(f"{_ACQUIRER}/{method}") as span:
            metadata = (("authorization", f"Bearer {self._token()}"), *tracing.outgoing())
            try:
                charge = (await getattr(self._stub(), method)(request, timeout=wait_s, metadata=metadata)).charge
            except grpc.aio.AioRpcError as error:
                answer = status.from_rpc_error(error)
                if isinstance(answer, NotFound) and answer.reason == "CHARGE_NOT_FOUND":
                    return ChargeStatus(KeyState.UNSEEN)
                told = not isinstance(answer, OutcomeUnknown) and _REASON.fullmatch(answer.reason)
                reason = answer.reason if told else "ACQUIRER_SILENT"
                span.answered(error.code().name, reason)
                raise OutcomeUnknown(reason, f"the acquirer did not answer {method}") from error
            span.answered("OK")
        if charge.state not in _KEY_STATES:
            raise OutcomeUnknown("ACQUIRER_UNCLEAR", f"the acquirer answered {method} with state {charge.state}")
        state = _KEY_STATES[charge.state]
        reason = charge.decline_reason if _REASON.fullmatch(charge.decline_reason) else _DECLINED
        terms = None
        if charge.HasField("amount"):
            amount = charge.amount
            terms = ChargeTerms(amount.minor_units, amount.currency_code, charge.card, charge.reference)
        return ChargeStatus(state, reason if state is KeyState.DECLINED else "", charge.key, terms)


def _postings(payment: Payment, amount: Money) -> list[ledger.Posting]:
    """Return the legs of a payment's journal."""
    return [
        ledger.Posting(account_id=payment.payer_account_id, amount=amount.minor_units),
        ledger.Posting(account_id=payment.payee_account_id, amount=-amount.minor_units),
    ]


def _journal_of(journal: ledger.Journal, payment: Payment, amount: Money) -> str:
    """Return the id of the journal of a payment.

    Raises:
        OutcomeUnknown: LEDGER_MISMATCH: it is another, or moves other money.
    """
    stated = (journal.business_key, journal.payment_id, journal.currency_code, list(journal.postings))
    asked = (payment.business_key, payment.payment_id, amount.currency, _postings(payment, amount))
    if stated != asked or not journal.journal_id:
        raise OutcomeUnknown("LEDGER_MISMATCH", f"the ledger answered of another journal than {payment.business_key}")
    return journal.journal_id


def _order(message: order.Order, order_id: str) -> Order:
    """Return the order that was asked about.

    Raises:
        OutcomeUnknown: ORDER_MISMATCH: the answer is about another. ORDER_UNCLEAR: it has a state, a role or an amount
            that this release does not know; what was asked for may have been done.
    """
    if message.order_id != order_id:
        raise OutcomeUnknown("ORDER_MISMATCH", f"the order service answered of another order than {order_id}")
    if message.state not in _STATES:
        raise OutcomeUnknown("ORDER_UNCLEAR", f"the order service answered of {order_id} with state {message.state}")
    try:
        amount = translate.money_of(message.amount)
        settled_by = translate.clerk_in(message.settled_by) if message.HasField("settled_by") else None
    except InvalidArgument as error:  # of the answer, and not of what our caller asked for
        raise OutcomeUnknown("ORDER_UNCLEAR", f"the order service answered of {order_id}: {error.message}") from error
    return Order(
        order_id=message.order_id,
        customer_id=message.customer_id,
        state=_STATES[message.state],
        amount=amount,
        round=message.round,
        payment_id=message.payment_id,
        settled_by=settled_by,
        settled_at_ms=message.settled_at_ms,
    )
