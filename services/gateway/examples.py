"""An example of each method, for the OpenAPI document: one story, told to a fresh stack from top to bottom.

Ids that the services choose differ from stack to stack: of a payment, of a ticket, of a journal. A reader puts in the
one of an earlier answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.kernel.principal import Role

ORDER, SECOND_ORDER, THIRD_ORDER, CARD_ORDER = (f"order-example-{number}" for number in range(1, 5))
PAYMENT, CARD_PAYMENT, TICKET = "pay_0123456789abcdef", "pay_fedcba9876543210", "tkt_0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Example:
    """A request that can be sent.

    Args:
        role: Of the caller.
        fields: What is in the path and the query, as JSON names it.
        body: The JSON of the body; None: the method has none.
    """

    role: Role
    fields: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None


_TEA: Final = {"customerId": "mei", "amount": {"amount": "12.50", "currencyCode": "CNY"}}

#: By the method's name, in the order of the story. The orders but the first, and the payment by card, are made before.
EXAMPLES: Final[Mapping[str, Example]] = {
    "CreateOrder": Example(Role.CASHIER, body={"orderId": ORDER, **_TEA}),
    "GetOrder": Example(Role.CUSTOMER, {"orderId": ORDER}),
    "ListOrders": Example(Role.AUDITOR, {"customerId": "mei", "pageSize": "10"}),
    "Settle": Example(Role.CASHIER, {"orderId": ORDER}, {"source": "SOURCE_DRAWER", "memo": "table 4"}),
    "GetOrderHistory": Example(Role.AUDITOR, {"orderId": ORDER}),
    "GetPayment": Example(Role.CASHIER, {"paymentId": PAYMENT}),
    "ListPayments": Example(Role.AUDITOR, {"orderId": ORDER}),
    "GetPaymentHistory": Example(Role.AUDITOR, {"paymentId": PAYMENT}),
    "GetJournal": Example(Role.AUDITOR, {"businessKey": f"settle:{ORDER}:1"}),
    "ListJournals": Example(Role.AUDITOR, {"orderId": ORDER}),
    "Reverse": Example(Role.ACCOUNTANT, {"paymentId": PAYMENT}, {"reason": "wrong table"}),
    "CancelOrder": Example(Role.CASHIER, {"orderId": ORDER}, {"reason": "the guest has left"}),
    "IssueTicket": Example(Role.CUSTOMER, body={"orderId": SECOND_ORDER, "ttlS": 600}),
    "Pay": Example(Role.CUSTOMER, {"ticketId": TICKET}, {"source": "SOURCE_CARD", "card": "tok-mei"}),
    "SettleBatch": Example(
        Role.ACCOUNTANT,
        body={"requests": [{"requestId": "run-1-1", "orderId": THIRD_ORDER, "source": "SOURCE_BANK"}]},
    ),
    "Park": Example(Role.CASHIER, {"paymentId": CARD_PAYMENT}, {"reason": "the guest pays cash"}),
    "OpenAccount": Example(
        Role.OPERATOR,
        body={"accountId": "tips-example", "kind": "ACCOUNT_KIND_LIABILITY", "currencyCode": "CNY"},
    ),
    "GetAccount": Example(Role.ACCOUNTANT, {"accountId": "tips-example"}),
    "ListAccounts": Example(Role.AUDITOR, {"prefix": "tips"}),
    "CloseAccount": Example(Role.OPERATOR, {"accountId": "tips-example"}, {"reason": "it was never used"}),
    "TrialBalance": Example(Role.AUDITOR, {"currencyCode": "CNY"}),
    "VerifyJournal": Example(Role.AUDITOR, {"fromSequence": "1"}),
}
