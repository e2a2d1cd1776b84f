"""Clients outside: they find the services through ZooKeeper, as any program would, and do what people do all day.

A call goes to whichever instance the channel picks. What the channel does not mend by itself, a client sees as a
failure: nobody here asks again.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from coordination.channel import DiscoveredChannel
from coordination.discovery import Directory, DirectoryState, Discovery
from coordination.session import Session
from countinghouse.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from countinghouse.order.v1 import order_pb2, order_pb2_grpc
from countinghouse.payment.v1 import payment_pb2, payment_pb2_grpc
from services.devstack.stack import Stack
from services.devstack.state import INTERFACES
from services.kernel.principal import Role
from services.runtime.grpc.methods import idempotency
from services.testkit.client import money, new_id
from tests.e2e.load import Load

CASHIER, ACCOUNTANT, CUSTOMER = "li", "wang", "mei"
_MERCHANT = "wallet:merchant:CNY"
_SALES = "sales:CNY"
_REMEMBERED = 64


@dataclass(slots=True)
class Clients:
    """Cashier, accountant, customer and a service, and what they have made so far.

    Args:
        timeout_s: Deadline of every call.
    """

    load: Load
    order: Any
    payment: Any
    ledger: Any
    directories: tuple[Directory, ...]
    tokens: dict[Role, str]
    timeout_s: float = 5.0
    first_post: ledger_pb2.PostRequest = field(default_factory=ledger_pb2.PostRequest)
    order_ids: list[str] = field(default_factory=list)
    payment_ids: list[str] = field(default_factory=list)

    def live(self) -> bool:
        """Whether every list of providers is ZooKeeper's own."""
        return all(directory.state is DirectoryState.LIVE for directory in self.directories)

    async def ask(self, method: Any, request: Any, role: Role = Role.CASHIER) -> Any:
        """One call; raises as `Load.ask`."""
        return await self.load.ask(method, request, token=self.tokens[role], timeout_s=self.timeout_s)

    # ---- what needs no lock ---------------------------------------------------------------------------

    async def new_order(self) -> str:
        """Makes an order."""
        request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id=CUSTOMER, amount=money(1250))
        order_id = str((await self.ask(self.order.CreateOrder, request)).order.order_id)
        _remember(self.order_ids, order_id)
        return order_id

    async def look_at_an_order(self) -> None:
        """Reads the order made last."""
        await self.ask(self.order.GetOrder, order_pb2.GetOrderRequest(order_id=self.order_ids[-1]), Role.CUSTOMER)

    async def list_orders(self) -> None:
        """Reads the newest orders."""
        await self.ask(self.order.ListOrders, order_pb2.ListOrdersRequest(page_size=10))

    async def ticket(self, order_id: str = "") -> str:
        """Fetches a ticket."""
        request = payment_pb2.IssueTicketRequest(request_id=new_id(), order_id=order_id)
        return str((await self.ask(self.payment.IssueTicket, request)).ticket.ticket_id)

    async def pay_a_merchant(self) -> None:
        """Fetches a ticket and pays with it: no order, hence no lock."""
        request = payment_pb2.PayRequest(
            ticket_id=await self.ticket(),
            source=payment_pb2.SOURCE_DRAWER,
            amount=money(700),
            payee_account_id=_MERCHANT,
        )
        answer = await self.ask(self.payment.Pay, request)
        assert answer.payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
        _remember(self.payment_ids, answer.payment.payment_id)

    async def look_at_a_payment(self) -> None:
        """Reads the payment made last."""
        await self.ask(
            self.payment.GetPayment, payment_pb2.GetPaymentRequest(payment_id=self.payment_ids[-1]), Role.ACCOUNTANT
        )

    async def look_at_an_account(self) -> None:
        """Reads a balance."""
        await self.ask(self.ledger.GetAccount, ledger_pb2.GetAccountRequest(account_id=_SALES))

    async def sum_the_books(self) -> None:
        """Reads the trial balance."""
        await self.ask(self.ledger.TrialBalance, ledger_pb2.TrialBalanceRequest())

    async def post_again(self) -> None:
        """Asks for the journal of the first payment once more, as a service does whose first answer was lost."""
        await self.ask(self.ledger.Post, self.first_post, Role.SERVICE)

    # ---- what needs the lock of an order ----------------------------------------------------------------

    async def settle(self, order_id: str) -> payment_pb2.Payment:
        """Settles an order."""
        request = payment_pb2.SettleRequest(request_id=new_id(), order_id=order_id, source=payment_pb2.SOURCE_DRAWER)
        payment: payment_pb2.Payment = (await self.ask(self.payment.Settle, request)).payment
        _remember(self.payment_ids, payment.payment_id)
        return payment

    async def pay_an_order(self, ticket_id: str) -> payment_pb2.Payment:
        """Pays the order that a ticket names."""
        request = payment_pb2.PayRequest(ticket_id=ticket_id, source=payment_pb2.SOURCE_DRAWER)
        payment: payment_pb2.Payment = (await self.ask(self.payment.Pay, request)).payment
        return payment

    async def reverse(self, payment_id: str) -> None:
        """Undoes a payment."""
        request = payment_pb2.ReverseRequest(request_id=new_id(), payment_id=payment_id, reason="wrong order")
        await self.ask(self.payment.Reverse, request, Role.ACCOUNTANT)


@asynccontextmanager
async def clients_of(stack: Stack, load: Load, *, timeout_s: float = 5.0) -> AsyncIterator[Clients]:
    """Clients of a running stack, with one order and one payment made, over a ZooKeeper session of their own."""
    async with AsyncExitStack() as resources:
        session = await resources.enter_async_context(
            Session(stack.zookeeper, timeout_s=stack.options.session_timeout_s, name="clients")
        )
        discovery = Discovery(session)
        resources.push_async_callback(discovery.close)
        channels: dict[str, DiscoveredChannel] = {}
        for service, interface in INTERFACES.items():
            directory = await discovery.subscribe(interface, timeout_s=10)
            channels[service] = DiscoveredChannel(directory, idempotency=idempotency, rng=random.Random(7))
            resources.push_async_callback(channels[service].close)
        clients = Clients(
            load,
            order=order_pb2_grpc.OrderServiceStub(channels["order"]),
            payment=payment_pb2_grpc.PaymentServiceStub(channels["payment"]),
            ledger=ledger_pb2_grpc.LedgerServiceStub(channels["ledger"]),
            directories=tuple(channel.directory for channel in channels.values()),
            tokens={
                Role.CASHIER: stack.token(CASHIER, Role.CASHIER),
                Role.ACCOUNTANT: stack.token(ACCOUNTANT, Role.ACCOUNTANT),
                Role.CUSTOMER: stack.token(CUSTOMER, Role.CUSTOMER),
                Role.SERVICE: stack.token("payment", Role.SERVICE),
            },
            timeout_s=timeout_s,
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
    await clients.ask(clients.ledger.OpenAccount, request, Role.ACCOUNTANT)


async def _post_of(clients: Clients, payment_id: str) -> ledger_pb2.PostRequest:
    """What the ledger was asked for a payment without an order."""
    asked = ledger_pb2.GetJournalRequest(business_key=f"pay:{payment_id}")
    journal: ledger_pb2.Journal = (await clients.ask(clients.ledger.GetJournal, asked)).journal
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
