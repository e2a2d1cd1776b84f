"""Clients outside: they find the services through ZooKeeper, as any program would, and make the calls of a usual day.

Discovery picks the instance. What the channel does not repeat by itself, a client sees as a failure: no call is sent
again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from coordination.discovery import Directory, DirectoryState
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import Stack
from services.testkit.client import RecordingClient, money, new_id
from services.testkit.harness import Harness
from tests.e2e.as_service import open_service
from tests.e2e.load import Load

_MERCHANT = "wallet:merchant:CNY"
_SALES = "sales:CNY"
_REMEMBERED = 64


@dataclass(slots=True)
class Clients:
    """Cashier, accountant, customer and a service, and what they have made so far.

    Args:
        timeout_s: Deadline of a call that needs no lock.
        lock_timeout_s: Deadline of one that needs the lock of an order.
    """

    load: Load
    cashier: RecordingClient
    accountant: RecordingClient
    customer: RecordingClient
    service: RecordingClient
    directories: tuple[Directory, ...]
    timeout_s: float = 5.0
    lock_timeout_s: float = 5.0
    first_post: ledger_pb2.PostRequest = field(default_factory=ledger_pb2.PostRequest)
    order_ids: list[str] = field(default_factory=list)
    payment_ids: list[str] = field(default_factory=list)

    def live(self) -> bool:
        """Whether every list of providers is ZooKeeper's own."""
        return all(directory.state is DirectoryState.LIVE for directory in self.directories)

    async def ask(self, request: Message, client: RecordingClient | None = None) -> Any:
        """Make one call that needs no lock, as the cashier unless another is given; raises as `Load.ask`."""
        return await self.load.ask(client or self.cashier, request, timeout_s=self.timeout_s)

    async def ask_under_lock(self, request: Message, client: RecordingClient | None = None) -> Any:
        """Make one call that needs the lock of an order; else as `ask`."""
        return await self.load.ask(client or self.cashier, request, timeout_s=self.lock_timeout_s)

    # ---- what needs no lock ---------------------------------------------------------------------------

    async def new_order(self) -> str:
        """Makes an order."""
        request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id=self.customer.name, amount=money(1250))
        order_id = str((await self.ask(request)).order.order_id)
        _remember(self.order_ids, order_id)
        return order_id

    async def look_at_an_order(self) -> None:
        """Reads the order made last."""
        await self.ask(order_pb2.GetOrderRequest(order_id=self.order_ids[-1]), self.customer)

    async def list_orders(self) -> None:
        """Reads the newest orders."""
        await self.ask(order_pb2.ListOrdersRequest(page_size=10))

    async def ticket(self, order_id: str = "") -> str:
        """Fetches a ticket."""
        request = payment_pb2.IssueTicketRequest(request_id=new_id(), order_id=order_id)
        return str((await self.ask(request)).ticket.ticket_id)

    async def pay_a_merchant(self) -> None:
        """Fetches a ticket and pays with it: no order, hence no lock."""
        request = payment_pb2.PayRequest(
            ticket_id=await self.ticket(),
            source=payment_pb2.SOURCE_DRAWER,
            amount=money(700),
            payee_account_id=_MERCHANT,
        )
        answer = await self.ask(request)
        assert answer.payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED, answer
        _remember(self.payment_ids, answer.payment.payment_id)

    async def look_at_a_payment(self) -> None:
        """Reads the payment made last."""
        await self.ask(payment_pb2.GetPaymentRequest(payment_id=self.payment_ids[-1]), self.accountant)

    async def look_at_an_account(self) -> None:
        """Reads a balance."""
        await self.ask(ledger_pb2.GetAccountRequest(account_id=_SALES))

    async def sum_the_books(self) -> None:
        """Reads the trial balance."""
        await self.ask(ledger_pb2.TrialBalanceRequest())

    async def post_again(self) -> None:
        """Asks for the journal of the first payment once more, as a service does whose first answer was lost."""
        await self.ask(self.first_post, self.service)

    # ---- what needs the lock of an order ----------------------------------------------------------------

    async def settle(self, order_id: str) -> payment_pb2.Payment:
        """Settles an order."""
        request = payment_pb2.SettleRequest(request_id=new_id(), order_id=order_id, source=payment_pb2.SOURCE_DRAWER)
        payment: payment_pb2.Payment = (await self.ask_under_lock(request)).payment
        _remember(self.payment_ids, payment.payment_id)
        return payment

    async def pay_an_order(self, ticket_id: str) -> payment_pb2.Payment:
        """Pays the order that a ticket names."""
        request = payment_pb2.PayRequest(ticket_id=ticket_id, source=payment_pb2.SOURCE_DRAWER)
        payment: payment_pb2.Payment = (await self.ask_under_lock(request)).payment
        return payment

    async def reverse(self, payment_id: str) -> None:
        """Undoes a payment."""
        request = payment_pb2.ReverseRequest(request_id=new_id(), payment_id=payment_id, reason="wrong order")
        await self.ask_under_lock(request, self.accountant)


@asynccontextmanager
async def clients_of(
    stack: Stack, load: Load, *, timeout_s: float = 5.0, lock_timeout_s: float = 5.0
) -> AsyncIterator[Clients]:
    """Clients of a running stack, with one order and one payment made, over a ZooKeeper session of their own."""
    async with Harness(stack, discovers=True) as harness, open_service(stack) as service:
        clients = Clients(
            load,
            harness.cashier,
            harness.accountant,
            harness.customer,
            service,
            tuple(harness.connections.directories.values()),
            timeout_s,
            lock_timeout_s,
        )
        await _open_the_merchant(clients)
        await clients.new_order()
        await clients.pay_a_merchant()
        clients.first_post = await _post_of(clients, clients.payment_ids[0])
        yield clients


async def _open_the_merchant(clients: Clients) -> None:
    request = ledger_pb2.OpenAccountRequest(
        request_id="open-merchant",
        account_id=_MERCHANT,
        kind=ledger_pb2.ACCOUNT_KIND_LIABILITY,
        currency_code="CNY",
    )
    await clients.ask(request, clients.accountant)


async def _post_of(clients: Clients, payment_id: str) -> ledger_pb2.PostRequest:
    """What the ledger was asked for a payment without an order."""
    asked = ledger_pb2.GetJournalRequest(business_key=f"pay:{payment_id}")
    journal: ledger_pb2.Journal = (await clients.ask(asked)).journal
    return ledger_pb2.PostRequest(
        request_id=payment_id,
        business_key=journal.business_key,
        postings=journal.postings,
        currency_code=journal.currency_code,
        memo=journal.memo,
        payment_id=journal.payment_id,
        clerk=journal.posted_by,
    )


def _remember(ids: list[str], new: str) -> None:
    ids.append(new)
    del ids[:-_REMEMBERED]
