"""`countinghouse ticket, pay, settle, reverse` and `payment …`: moving money, each time exactly once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli import exit_codes, output
from services.cli.arguments import Amount, AmountMinor, CurrencyOfAmount, Limit, Page, RequestId, amount_of, calling
from services.cli.client import Client
from services.kernel.errors import CountinghouseError, FailedPrecondition
from services.kernel.principal import Role
from services.runtime.grpc.enum_names import name_of

app = typer.Typer(no_args_is_help=True, help="Show and park payments.")

_STATES = ("CREATED", "SUBMITTED", "SUCCEEDED", "DECLINED", "UNKNOWN", "REVERSING", "REVERSED", "PARKED")
#: Refusals by state: nothing was tried. Any other definitive one is the end of a payment or a reversal.
_OF_STATE = ("ILLEGAL_STATE", "ORDER_NOT_PAYABLE", "CARDS_NOT_TAKEN")
#: What the acquirer did with the card of a payment, by its state; REVERSED is shown elsewhere.
_CARD_MONEY = {
    "CREATED": "not charged so far",
    "SUBMITTED": "not known yet",
    "SUCCEEDED": "charged",
    "DECLINED": "not charged, or charged and given back",
    "UNKNOWN": "not known yet",
    "REVERSING": "being given back, if it was charged",
    "PARKED": "not known yet; whatever was charged is given back when the acquirer answers",
}


#: States of a payment that goes on by itself, and whose outcome is not known yet.
_GOING_ON = tuple(f"PAYMENT_STATE_{state}" for state in ("CREATED", "SUBMITTED", "UNKNOWN", "REVERSING"))


class From(StrEnum):
    """The sources of money."""

    WALLET = "wallet"
    DRAWER = "drawer"
    BANK = "bank"
    CARD = "card"


Source = Annotated[
    From,
    typer.Option(
        "--source",
        help="Source: the customer's wallet, the cash drawer (cashiers), the bank account (accountants) or a card.",
    ),
]
Card = Annotated[
    str, typer.Option("--card", help="The card's token, like tok-mei; for --source card.", show_default=False)
]
Memo = Annotated[str, typer.Option("--memo", help="Note for the journal.", show_default=False)]


@calling(Role.CASHIER)
async def ticket(
    client: Client,
    order: Annotated[str, typer.Option("--order", help="Order to be paid.", show_default=False)] = "",
    ttl: Annotated[
        int, typer.Option("--ttl", help="Seconds for which the ticket can be used.", min=1, max=86_400)
    ] = 900,
    request_id: RequestId = "",
) -> None:
    """Fetch a ticket: the permission to pay once.

    Example: countinghouse ticket --ttl 60
    """
    key = client.new_id(request_id)
    request = pb.IssueTicketRequest(request_id=key, order_id=order, ttl_s=ttl)
    reply = await client.change("payment", "IssueTicket", request, key)
    issued = output.as_dict(reply.message.ticket)
    if client.as_json:
        output.print_json({"ticket": issued, "replayed": reply.replayed, "request_id": key})
        return
    output.print_facts(
        [
            ("ticket", issued["ticket_id"] + (" (replayed)" if reply.replayed else "")),
            ("state", output.short(issued["state"], "TICKET_STATE_")),
            ("order", issued["order_id"]),
            ("expires at", output.moment(issued["expires_at_ms"])),
        ]
    )


@calling(Role.CASHIER)
async def pay(
    client: Client,
    ticket_id: Annotated[str, typer.Argument(metavar="TICKET", help="From `countinghouse ticket`.")],
    source: Source,
    amount: Amount = None,
    amount_minor: AmountMinor = None,
    currency: CurrencyOfAmount = "",
    payee: Annotated[
        str, typer.Option("--payee", help="Account to credit; omit it for a ticket of an order.", show_default=False)
    ] = "",
    customer: Annotated[
        str,
        typer.Option(
            "--customer",
            help="Customer whose wallet pays; a clerk needs that customer's ticket. [default: you]",
            show_default=False,
        ),
    ] = "",
    card: Card = "",
    memo: Memo = "",
) -> None:
    """Pay with a ticket, and use it up. Repeating it pays once.

    Exit code 0 only if the payment SUCCEEDED; 1: refused; 3: not known yet; 4: declined.

    Example: countinghouse pay tkt_7d0q --source drawer --amount 50.00 --currency CNY --payee wallet:mei:CNY
    """
    if bool(currency) != (amount is not None or amount_minor is not None):
        raise typer.BadParameter("--currency and --amount go together; a ticket of an order needs neither")
    minor_units = amount_of(amount, amount_minor, currency)
    _check_card(source, card)
    client.act_as(_role_for(source))
    request = pb.PayRequest(
        ticket_id=ticket_id,
        source=_source(source),
        payee_account_id=payee,
        customer_id=customer,
        memo=memo,
        card=card,
    )
    if minor_units is not None:
        request.amount.minor_units = minor_units
        request.amount.currency_code = currency
    reply = await _change(client, "Pay", request, ticket_id)
    _end(client, reply.message.payment, {"replayed": reply.replayed}, wanted="SUCCEEDED")


@calling(Role.CASHIER)
async def settle(
    client: Client,
    order_id: Annotated[str, typer.Argument(metavar="ORDER", help="Which order.")],
    source: Source,
    card: Card = "",
    memo: Memo = "",
    request_id: RequestId = "",
) -> None:
    """Settle an order, under its lock. Repeating it settles once.

    Exit code 0 only if the payment SUCCEEDED; 1: refused; 3: not known yet; 4: declined.

    Example: countinghouse settle ord_7d0q --source drawer --as cashier:li
    """
    _check_card(source, card)
    client.act_as(_role_for(source))
    key = client.new_id(request_id)
    request = pb.SettleRequest(request_id=key, order_id=order_id, source=_source(source), memo=memo, card=card)
    reply = await _change(client, "Settle", request, key)
    about = {"replayed": reply.replayed, "request_id": key}
    _end(client, reply.message.payment, about, wanted="SUCCEEDED")


@calling(Role.ACCOUNTANT)
async def reverse(
    client: Client,
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT", help="Which payment.")],
    reason: Annotated[str, typer.Option("--reason", help="Reason; written into the journal.")],
    request_id: RequestId = "",
) -> None:
    """Undo a payment by an opposite journal; its order can then be settled again.

    Exit code 0 only if it is REVERSED; 1: refused; 3: not known yet; 4: it ended without being reversed.

    Example: countinghouse reverse pay_7d0q --reason "wrong order" --as accountant:wang
    """
    key = client.new_id(request_id)
    request = pb.ReverseRequest(request_id=key, payment_id=payment_id, reason=reason)
    reply = await _change(client, "Reverse", request, key)
    about = {"replayed": reply.replayed, "request_id": key}
    _end(client, reply.message.payment, about, wanted="REVERSED")


@app.command("get")
@calling(Role.AUDITOR)
async def get(
    client: Client,
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT", help="Which payment.")],
) -> None:
    """Show one payment.

    Example: countinghouse payment get pay_7d0q
    """
    response = await client.read("payment", "GetPayment", pb.GetPaymentRequest(payment_id=payment_id))
    _show(client, response.payment, {})


@app.command("history")
@calling(Role.AUDITOR)
async def history(
    client: Client,
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT", help="Which payment.")],
    limit: Limit = 50,
    page: Page = "",
) -> None:
    """Show the changes of a payment with actor, time and reason, the oldest first.

    Example: countinghouse payment history pay_7d0q
    """
    request = pb.GetPaymentHistoryRequest(payment_id=payment_id, page_size=limit, page_token=page)
    response = output.as_dict(await client.read("payment", "GetPaymentHistory", request))
    output.print_page(
        client.as_json,
        response,
        "history",
        ("version", "at", "who", "state", "why"),
        [
            (
                str(event["version"]),
                output.moment(event["at_ms"]),
                output.clerk(event["actor"]) or "not recorded",
                output.short(event["state"], "PAYMENT_STATE_"),
                event["reason"],
            )
            for event in response["events"]
        ],
    )


@app.command("park")
@calling(Role.CASHIER)
async def park(
    client: Client,
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT", help="Which card payment.")],
    reason: Annotated[str, typer.Option("--reason", help="Reason; kept with the payment.")],
    request_id: RequestId = "",
) -> None:
    """Give up waiting for the acquirer's answer: the order can be settled in another way at once.

    Whatever the card was charged is given back when the acquirer answers again, however long that takes. A payment that
    is REVERSING can be parked, too, unless the ledger has its journal: then its order waits for the refund.

    Example: countinghouse payment park pay_7d0q --reason "customer pays cash" --as cashier:li
    """
    key = client.new_id(request_id)
    request = pb.ParkRequest(request_id=key, payment_id=payment_id, reason=reason)
    reply = await _change(client, "Park", request, key)
    _end(client, reply.message.payment, {"replayed": reply.replayed, "request_id": key}, wanted="PARKED")


@app.command("list")
@calling(Role.AUDITOR)
async def list_payments(
    client: Client,
    state: Annotated[str, typer.Option("--state", help=f"Only these: {', '.join(_STATES)}.", show_default=False)] = "",
    order: Annotated[str, typer.Option("--order", help="Show only payments of this order.", show_default=False)] = "",
    limit: Limit = 50,
    page: Page = "",
) -> None:
    """List payments, newest first.

    Example: countinghouse payment list --order ord_7d0q
    """
    if state and state.upper() not in _STATES:
        raise typer.BadParameter(f"--state {state!r} is not one of {', '.join(_STATES)}")
    request = pb.ListPaymentsRequest(
        page_size=limit,
        page_token=page,
        state=pb.PaymentState.Value(f"PAYMENT_STATE_{state.upper()}") if state else pb.PAYMENT_STATE_UNSPECIFIED,
        order_id=order,
    )
    await _print_page(client, request)


@app.command("attention")
@calling(Role.AUDITOR)
async def attention(client: Client, limit: Limit = 50, page: Page = "") -> None:
    """List the payments that people have to look at: the acquirer has not answered about them for too long.

    They stay UNKNOWN, REVERSING or PARKED until it answers. Repeat the same settle (nothing is charged twice), free
    the order with `countinghouse payment park PAYMENT --reason …`, or reverse it: `countinghouse reverse PAYMENT …`.

    ACQUIRER_MISMATCH: its answer has another amount, currency, card or payment than was asked, and is not acted on.
    Have the acquirer correct what it has under the key; the payment then goes on by itself. Parking it frees its order.

    Example: countinghouse payment attention
    """
    await _print_page(client, pb.ListPaymentsRequest(page_size=limit, page_token=page, needs_attention=True))


async def _print_page(client: Client, request: Any) -> None:
    response = output.as_dict(await client.read_list("payment", "ListPayments", request, "payments"))
    output.print_page(
        client.as_json,
        response,
        "payments",
        ("payment", "order", "state", "source", "amount", "clerk", "created", "attention"),
        [
            (
                payment["payment_id"],
                payment["order_id"],
                output.short(payment["state"], "PAYMENT_STATE_"),
                output.short(payment["source"], "SOURCE_").lower(),
                output.money(payment["amount"]),
                output.clerk(payment["clerk"]),
                output.moment(payment["created_at_ms"]),
                payment["attention"],
            )
            for payment in response["payments"]
        ],
    )


def _source(source: From) -> Any:
    return pb.Source.Value(f"SOURCE_{source.name}")


def _check_card(source: From, card: str) -> None:
    """Refuse the source card without a card.

    Raises:
        typer.BadParameter: No card is named.
    """
    if source is From.CARD and not card:
        says = "it is required for --source card; name the card's token, like --card tok-mei"
        raise typer.BadParameter(says, param_hint="'--card'")


def _role_for(source: From) -> Role:
    """Return the roles that may pay from a source."""
    return Role.ACCOUNTANT if source is From.BANK else Role.CASHIER


async def _change(client: Client, method: str, request: Any, key: str) -> Any:
    """Call `Client.change` of the payment service; a decline or a refused reversal becomes NotPaid.

    Raises:
        NotPaid: The payment was declined, or undone before it had an outcome, or its reversal was refused.
        FailedPrecondition: The state of the payment or its order forbids it, or no cards are taken: nothing was done.
    """
    try:
        return await client.change("payment", method, request, key)
    except FailedPrecondition as refusal:
        if refusal.reason in _OF_STATE:
            raise
        raise exit_codes.NotPaid.of(refusal) from refusal
    except CountinghouseError as refusal:
        if refusal.reason == "ORDER_HALF_SETTLED":
            other = refusal.metadata.get("payment_id")
            command = f"Run `countinghouse payment park {other} --reason …`"
            refusal.message = refusal.message.replace(f"Park payment {other}", command)
        raise


def _end(client: Client, message: Any, about: dict[str, Any], *, wanted: str) -> None:
    """Show a payment, and end the command by its state: a script must not ship what is not paid.

    Args:
        wanted: The state that the command was to bring about.
    """
    _show(client, message, about)
    raise typer.Exit(exit_codes.of_payment(name_of(pb.PaymentState, message.state), wanted))


def _card_money(payment: dict[str, Any]) -> str:
    """Return what the acquirer did with a payment's card, as far as the payment shows; empty: it is not by card."""
    if payment["source"] != "SOURCE_CARD":
        return ""
    state = output.short(payment["state"], "PAYMENT_STATE_")
    if state != "REVERSED":
        return _CARD_MONEY.get(state, "")
    if payment["journal_id"]:
        return "charged, and given back"
    which = f"`countinghouse acquirer log --key {payment['acquirer_key']}` says which"
    return f"never charged, or charged and given back; {which}"


def _show(client: Client, message: Any, about: dict[str, Any]) -> None:
    payment = output.as_dict(message)
    if client.as_json:
        output.print_json({"payment": payment, **about})
        return
    output.print_facts(
        [
            ("payment", payment["payment_id"] + (" (replayed)" if about.get("replayed") else "")),
            ("order", payment["order_id"]),
            ("state", output.short(payment["state"], "PAYMENT_STATE_")),
            ("declined", payment["decline_reason"]),
            ("amount", output.money(payment["amount"])),
            ("card", payment["card"]),
            ("card was", _card_money(payment)),
            ("acquirer key", payment["acquirer_key"]),
            ("attention", payment["attention"]),
            ("from", payment["payer_account_id"]),
            ("to", payment["payee_account_id"]),
            ("clerk", output.clerk(payment["clerk"])),
            ("journal", payment["journal_id"]),
            ("reversed by", payment["reversal_journal_id"]),
            ("memo", payment["memo"]),
            ("settled at", output.moment(payment["settled_at_ms"])),
        ]
    )
    if isinstance(payment["state"], int):
        output.print_line(f"this version does not know the state {payment['state']}: {_what_to_do(payment, about)}")
    elif payment["state"] in _GOING_ON:
        output.print_line(f"not known yet: {_what_to_do(payment, about)}")


def _what_to_do(payment: dict[str, Any], about: dict[str, Any]) -> str:
    """Return what can be done about a payment whose outcome is not known yet.

    Args:
        about: Of the command that asked for it; empty: the payment was only looked at.
    """
    payment_id = payment["payment_id"]
    if about:
        again = f"; to ask again, not twice, use --request-id {about['request_id']}" if "request_id" in about else ""
        return f"see `countinghouse payment get {payment_id}`{again}"
    if isinstance(payment["state"], int):
        return "ask with the version of the services"
    ways = ["wait, as the payment service goes on by itself"]
    if payment["state"] == "PAYMENT_STATE_REVERSING":
        ways.append("repeat the same reverse with its --request-id")
    elif payment["ticket_id"]:
        ways.append(f"repeat the same pay with ticket {payment['ticket_id']}")
    else:
        ways.append("repeat the same settle with its --request-id, or the same pay with its ticket")
    parkable = payment["state"] in ("PAYMENT_STATE_UNKNOWN", "PAYMENT_STATE_REVERSING")
    if parkable and payment["source"] == "SOURCE_CARD" and payment["order_id"] and not payment["journal_id"]:
        ways.append(f"free the order with `countinghouse payment park {payment_id} --reason …`")
    return ", or ".join(ways)
