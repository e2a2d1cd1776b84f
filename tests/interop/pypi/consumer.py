"""A consumer of Countinghouse written with PyPI's apache-dubbo: makes an order, pays with a ticket twice, settles.

Says what it was answered as lines of `name value`; whoever started it compares them with the books.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

from dubbo import Client, Dubbo
from dubbo.configs import ReferenceConfig, RegistryConfig
from dubbo.protocol.triple import protocol as triple
from dubbo.protocol.triple.exceptions import StatusRpcError
from dubbo.protocol.triple.invoker import TripleInvoker

from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2

AMOUNT = money_pb2.Money(minor_units=1250, currency_code="CNY")


class _InvokerWithToken(TripleInvoker):  # type: ignore[misc]  # apache-dubbo is untyped
    """Sends our token. apache-dubbo 3.0.0b1 has no attachments in its API; its protocol has."""

    def _create_metadata(self, invocation: Any) -> Any:
        metadata = super()._create_metadata(invocation)
        metadata.attachments["authorization"] = f"Bearer {os.environ['INTEROP_TOKEN']}"
        return metadata


def method(client: Client, name: str, response: type[Any]) -> Callable[[Any], Any]:
    """A method of a service; takes a request and returns a `response`."""
    stub: Callable[[Any], Any] = client.unary(name, lambda request: request.SerializeToString(), response.FromString)
    return stub


def find(interface: str) -> Client:
    """The providers of `interface`. They must be registered already: apache-dubbo looks for nobody who comes later."""
    registry = RegistryConfig.from_url(f"zookeeper://{os.environ['INTEROP_ZOOKEEPER']}")
    return Client(ReferenceConfig(protocol="tri", service=interface), Dubbo(registry_config=registry))


def new_id() -> str:
    return str(uuid.uuid4())


def say(name: str, value: object) -> None:
    print(name, value, flush=True)


def pay_twice(payments: Client) -> None:
    """Method 1: a ticket, and the same Pay twice, as after a lost reply."""
    issue = method(payments, "IssueTicket", payment_pb2.IssueTicketResponse)
    pay = method(payments, "Pay", payment_pb2.PayResponse)
    ticket = issue(payment_pb2.IssueTicketRequest(request_id=new_id())).ticket.ticket_id
    say("ticket", ticket)
    request = payment_pb2.PayRequest(
        ticket_id=ticket, source=payment_pb2.SOURCE_DRAWER, amount=AMOUNT, payee_account_id="sales:CNY"
    )
    for _ in range(2):
        say("paid", pay(request).payment.payment_id)


def settle(payments: Client, order_id: str) -> None:
    """Method 2: a request id of the caller's own. The second clerk is refused: code and message arrive."""
    call = method(payments, "Settle", payment_pb2.SettleResponse)

    def request() -> payment_pb2.SettleRequest:
        return payment_pb2.SettleRequest(request_id=new_id(), order_id=order_id, source=payment_pb2.SOURCE_DRAWER)

    say("settled", call(request()).payment.payment_id)
    try:
        call(request())
    except StatusRpcError as refused:
        say("refused", refused.status.code.name)


def main() -> None:
    """The program."""
    triple.TripleInvoker = _InvokerWithToken
    orders, payments = find("countinghouse.order.v1.OrderService"), find("countinghouse.payment.v1.PaymentService")
    ledger = find("countinghouse.ledger.v1.LedgerService")
    pay_twice(payments)
    create = method(orders, "CreateOrder", order_pb2.CreateOrderResponse)
    order_id = create(
        order_pb2.CreateOrderRequest(request_id=new_id(), customer_id="mei", amount=AMOUNT)
    ).order.order_id
    say("order", order_id)
    settle(payments, order_id)
    order = method(orders, "GetOrder", order_pb2.GetOrderResponse)(order_pb2.GetOrderRequest(order_id=order_id)).order
    say("state", order_pb2.OrderState.Name(order.state))
    journal = method(ledger, "GetJournal", ledger_pb2.GetJournalResponse)
    say("journal", journal(ledger_pb2.GetJournalRequest(business_key=f"settle:{order_id}:1")).journal.journal_id)
    balance = method(ledger, "TrialBalance", ledger_pb2.TrialBalanceResponse)
    say("balanced", str(balance(ledger_pb2.TrialBalanceRequest()).balanced).lower())
    os._exit(0)  # apache-dubbo's threads have no end


if __name__ == "__main__":
    main()
