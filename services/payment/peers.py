"""The order service and the ledger, as the payment service sees them: through their stubs."""

from __future__ import annotations

from countinghouse.ledger.v1 import ledger_pb2 as ledger
from countinghouse.ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from countinghouse.order.v1 import order_pb2 as order
from countinghouse.order.v1.order_pb2_grpc import OrderServiceStub
from services.kernel.clock import Deadline
from services.kernel.fence import Fence
from services.kernel.money import Money
from services.payment.model import Bill, BillState, Payment, Reversal
from services.runtime import translate
from services.runtime.peering import Peers

ORDER_INTERFACE = "countinghouse.order.v1.OrderService"
LEDGER_INTERFACE = "countinghouse.ledger.v1.LedgerService"

_STATES = {
    order.ORDER_STATE_UNPAID: BillState.UNPAID,
    order.ORDER_STATE_PAYING: BillState.PAYING,
    order.ORDER_STATE_PAID: BillState.PAID,
    order.ORDER_STATE_CANCELLED: BillState.CANCELLED,
}


class OrderPeer:
    """Bills. Every method raises as `Peers.call`."""

    def __init__(self, stub: OrderServiceStub, peers: Peers) -> None:
        self._stub = stub
        self._peers = peers

    async def get(self, order_id: str, deadline: Deadline) -> Bill:
        """The bill as it stands."""
        answer = await self._peers.call(self._stub.GetOrder, order.GetOrderRequest(order_id=order_id), deadline)
        return _bill(answer.order)

    async def claim(self, payment: Payment, fence: Fence, deadline: Deadline) -> Bill:
        """Claims the payment's bill; the answer says whose it is."""
        request = order.ClaimOrderRequest(
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.clerk_out(payment.clerk),
        )
        return _bill((await self._peers.call(self._stub.ClaimOrder, request, deadline)).order)

    async def complete(self, payment: Payment, fence: Fence, deadline: Deadline) -> None:
        """Says that the payment succeeded."""
        request = order.CompleteOrderRequest(
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            settled_by=translate.clerk_out(payment.clerk),
            settled_at_ms=payment.settled_at_ms,
        )
        await self._peers.call(self._stub.CompleteOrder, request, deadline)

    async def release(self, payment: Payment, fence: Fence, deadline: Deadline) -> None:
        """Says that the payment was declined."""
        request = order.ReleaseOrderRequest(
            order_id=payment.order_id, payment_id=payment.payment_id, fence=translate.fence_out(fence)
        )
        await self._peers.call(self._stub.ReleaseOrder, request, deadline)

    async def reopen(self, payment: Payment, fence: Fence, deadline: Deadline) -> None:
        """Says that the payment was reversed."""
        request = order.ReopenOrderRequest(
            order_id=payment.order_id, payment_id=payment.payment_id, fence=translate.fence_out(fence)
        )
        await self._peers.call(self._stub.ReopenOrder, request, deadline)


class LedgerPeer:
    """The books. Every method raises as `Peers.call`."""

    def __init__(self, stub: LedgerServiceStub, peers: Peers) -> None:
        self._stub = stub
        self._peers = peers

    async def post(self, payment: Payment, amount: Money, fence: Fence, deadline: Deadline) -> str:
        """Moves the money of a submitted payment; the journal's id."""
        request = ledger.PostRequest(
            request_id=payment.payment_id,
            business_key=payment.business_key,
            postings=[
                ledger.Posting(account_id=payment.payer_account_id, amount=amount.minor_units),
                ledger.Posting(account_id=payment.payee_account_id, amount=-amount.minor_units),
            ],
            currency_code=amount.currency,
            memo=payment.memo,
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.clerk_out(payment.clerk),
        )
        return str((await self._peers.call(self._stub.Post, request, deadline)).journal.journal_id)

    async def reverse(self, payment: Payment, reversal: Reversal, fence: Fence, deadline: Deadline) -> str:
        """Moves the money back; the opposite journal's id."""
        request = ledger.ReverseJournalRequest(
            request_id=reversal.attempt,
            journal_id=payment.journal_id,
            reason=reversal.reason,
            payment_id=payment.payment_id,
            fence=translate.fence_out(fence),
            clerk=translate.clerk_out(reversal.clerk),
        )
        return str((await self._peers.call(self._stub.ReverseJournal, request, deadline)).journal.journal_id)


def _bill(message: order.Order) -> Bill:
    return Bill(
        order_id=message.order_id,
        customer_id=message.customer_id,
        state=_STATES[message.state],
        amount=translate.money_in(message.amount),
        round=message.round,
        payment_id=message.payment_id,
        settled_by=translate.clerk_in(message.settled_by) if message.HasField("settled_by") else None,
        settled_at_ms=message.settled_at_ms,
    )
