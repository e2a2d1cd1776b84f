"""A consumer of another language runs a cashier's morning; then what it was told is compared with the books.

CreateOrder ▸ IssueTicket ▸ Pay ▸ Pay again ▸ Settle ▸ Settle again, refused ▸ GetOrder ▸ GetJournal ▸ TrialBalance
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import Stack
from services.testkit.client import RecordingClient
from tests.interop.harness import CLERK, Harness
from tests.interop.toolchain import Toolchain

_LIMIT_S = 60.0
_SAID_ONCE: Final = ("ticket", "order", "settled", "refused", "state", "journal", "balanced")


class Wrong(Exception):
    """Something is not as it should be."""


async def run(harness: Harness, toolchain: Toolchain, *addresses: str, tells_reason: bool = True) -> str:
    """Runs a toolchain's consumer.

    Args:
        addresses: For a consumer that knows no registry.
        tells_reason: Whether its Dubbo lets the reason of a refusal through.

    Returns:
        What was shown.

    Raises:
        Wrong: What it was told, or what is in the books, is not as it should be.
    """
    async with await harness.program(toolchain, "consumer", *addresses) as program:
        said = await program.finished(_LIMIT_S)
    stack = await harness.ready(toolchain)
    async with harness.client(stack) as client, harness.clerk(stack) as clerk:
        return await _compare(said, client, clerk, tells_reason=tells_reason)


def addresses(stack: Stack) -> tuple[str, ...]:
    """Where order, payment and ledger are, for a consumer that knows no registry."""
    return tuple(stack.instance(name).address for name in ("order-1", "payment-1", "ledger-1"))


async def _compare(
    said: Mapping[str, list[str]], client: RecordingClient, clerk: RecordingClient, *, tells_reason: bool
) -> str:
    for name in _SAID_ONCE:
        _agree(f"times it said {name}", len(said[name]), 1)
    _agree("answers to Pay", len(said["paid"]), 2)
    one, another = said["paid"]
    _agree("payment of the second Pay", another, one)
    if said["replayed"]:
        _agree("x-replayed of the second Pay", said["replayed"], ["true"])
    _agree("payments with the ticket", await _paid_with(clerk, said["ticket"][0]), [one])

    order_id = said["order"][0]
    order = (await client.ask(order_pb2.GetOrderRequest(order_id=order_id))).order
    _agree("state it was told", said["state"][0], order_pb2.OrderState.Name(order_pb2.ORDER_STATE_PAID))
    _agree("state in the books", order.state, order_pb2.ORDER_STATE_PAID)
    _agree("payment in the books", order.payment_id, said["settled"][0])
    _agree("clerk in the books", order.settled_by.name, CLERK)
    journals = [journal.journal_id for journal in await client.journals(order_id)]
    _agree("journals of the order", journals, said["journal"])
    _agree("trial balance", said["balanced"][0], "true")

    code, _, reason = said["refused"][0].partition(" ")
    _agree("code of the second Settle", code.replace("_", "").upper(), "ALREADYEXISTS")
    _agree("reason of the second Settle", reason, "ORDER_ALREADY_PAID" if tells_reason else "")
    refusal = "ALREADY_EXISTS, ORDER_ALREADY_PAID" if tells_reason else "ALREADY_EXISTS (its Dubbo keeps no reason)"
    return (
        "one ticket, Pay twice: 1 payment, the same answer; order settled by its token's clerk, 1 journal; "
        f"second Settle refused: {refusal}; journal and even trial balance read"
    )


async def _paid_with(clerk: RecordingClient, ticket_id: str) -> list[str]:
    """Return the payments with a ticket, which its owner alone is shown."""
    answer = await clerk.ask(payment_pb2.ListPaymentsRequest(page_size=1000))
    return [payment.payment_id for payment in answer.payments if payment.ticket_id == ticket_id]


def _agree(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found!r}, and should be {expected!r}")
