"""`countinghouse order …`: the orders."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from countinghouse.order.v1 import order_pb2 as pb
from countinghouse.type.v1 import money_pb2
from services.cli import output
from services.cli.arguments import (
    MAX_INT64,
    Amount,
    AmountMinor,
    Currency,
    Limit,
    Page,
    RequestId,
    amount_of,
    calling,
)
from services.cli.client import Client
from services.kernel.principal import Role

app = typer.Typer(no_args_is_help=True, help="Create, show and cancel orders.")

_STATES = ("UNPAID", "PAYING", "PAID", "CANCELLED")
OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="Which order.")]


@app.command("create")
@calling(Role.CASHIER)
async def create(
    client: Client,
    customer: Annotated[str, typer.Option("--customer", help="Customer who owes the order.")],
    currency: Currency,
    amount: Amount = None,
    amount_minor: AmountMinor = None,
    line: Annotated[
        list[str] | None,
        typer.Option(
            "--line",
            help="A line, as description:quantity:price, the price like --amount; repeatable. "
            "The lines add up to the amount.",
            show_default=False,
        ),
    ] = None,
    order_id: Annotated[str, typer.Option("--order-id", help="Name wanted.", show_default=False)] = "",
    request_id: RequestId = "",
) -> None:
    """Create an order.

    Example: countinghouse order create --customer mei --amount 12.50 --currency CNY
    """
    minor_units = amount_of(amount, amount_minor, currency)
    if minor_units is None and not line:
        raise typer.BadParameter("give the amount: --amount, --amount-minor, or a --line for each thing sold")
    key = client.new_id(request_id)
    request = pb.CreateOrderRequest(request_id=key, order_id=order_id, customer_id=customer)
    for text in line or ():
        description, quantity, price = _line(text, currency)
        unit_price = money_pb2.Money(minor_units=price, currency_code=currency)
        request.lines.append(pb.OrderLine(description=description, quantity=quantity, unit_price=unit_price))
    if minor_units is not None:
        request.amount.minor_units = minor_units
        request.amount.currency_code = currency
    reply = await client.change("order", "CreateOrder", request, key)
    _show(client, reply.message.order, {"replayed": reply.replayed, "request_id": key})


@app.command("get")
@calling(Role.AUDITOR)
async def get(client: Client, order_id: OrderId) -> None:
    """Show one order.

    Example: countinghouse order get ord_7d0q
    """
    response = await client.read("order", "GetOrder", pb.GetOrderRequest(order_id=order_id))
    _show(client, response.order, {})


@app.command("list")
@calling(Role.AUDITOR)
async def list_orders(
    client: Client,
    state: Annotated[str, typer.Option("--state", help=f"Only these: {', '.join(_STATES)}.", show_default=False)] = "",
    customer: Annotated[str, typer.Option("--customer", help="Only this one's.", show_default=False)] = "",
    limit: Limit = 50,
    page: Page = "",
) -> None:
    """List orders, newest first.

    Example: countinghouse order list --state UNPAID
    """
    if state and state.upper() not in _STATES:
        raise typer.BadParameter(f"--state {state!r} is not one of {', '.join(_STATES)}")
    request = pb.ListOrdersRequest(
        page_size=limit,
        page_token=page,
        state=pb.OrderState.Value(f"ORDER_STATE_{state.upper()}") if state else pb.ORDER_STATE_UNSPECIFIED,
        customer_id=customer,
    )
    response = output.as_dict(await client.read_list("order", "ListOrders", request, "orders"))
    output.print_page(
        client.as_json,
        response,
        "orders",
        ("order", "customer", "state", "amount", "round", "payment", "settled by", "created"),
        [
            (
                order["order_id"],
                order["customer_id"],
                output.short(order["state"], "ORDER_STATE_"),
                output.money(order["amount"]),
                str(order["round"]),
                order["payment_id"],
                output.clerk(order["settled_by"]),
                output.moment(order["created_at_ms"]),
            )
            for order in response["orders"]
        ],
    )


@app.command("cancel")
@calling(Role.CASHIER)
async def cancel(
    client: Client,
    order_id: OrderId,
    reason: Annotated[str, typer.Option("--reason", help="Reason; kept in the order's history.")],
    version: Annotated[
        int, typer.Option("--version", help="Version that the order must have; 0 for any.", min=0, max=MAX_INT64)
    ] = 0,
    request_id: RequestId = "",
) -> None:
    """Cancel an unpaid order.

    Example: countinghouse order cancel ord_7d0q --reason "ordered twice"
    """
    key = client.new_id(request_id)
    request = pb.CancelOrderRequest(request_id=key, order_id=order_id, expected_version=version, reason=reason)
    reply = await client.change("order", "CancelOrder", request, key)
    _show(client, reply.message.order, {"replayed": reply.replayed, "request_id": key})


@app.command("history")
@calling(Role.AUDITOR)
async def history(client: Client, order_id: OrderId, limit: Limit = 50, page: Page = "") -> None:
    """Show the changes of an order with actor, time and reason, the oldest first.

    Example: countinghouse order history ord_7d0q
    """
    request = pb.GetOrderHistoryRequest(order_id=order_id, page_size=limit, page_token=page)
    response = output.as_dict(await client.read("order", "GetOrderHistory", request))
    output.print_page(
        client.as_json,
        response,
        "history",
        ("version", "at", "who", "state", "round", "payment", "why"),
        [
            (
                str(event["version"]),
                output.moment(event["at_ms"]),
                output.clerk(event["actor"]),
                output.short(event["to_state"], "ORDER_STATE_"),
                str(event["round"]),
                event["payment_id"],
                event["reason"],
            )
            for event in response["events"]
        ],
    )


def _line(text: str, currency: str) -> tuple[str, int, int]:
    """Description, quantity, and price in minor units."""
    match = re.fullmatch(r"(.+):([0-9]{1,9}):([^:]+)", text, re.DOTALL)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not description:quantity:price, like tea:2:3.00", param_hint="--line")
    price = amount_of(match[3], None, currency, option="--line")
    assert price is not None  # noqa: S101  it is given
    return match[1], int(match[2]), price


def _show(client: Client, message: Any, about: dict[str, Any]) -> None:
    order = output.as_dict(message)
    if client.as_json:
        output.print_json({"order": order, **about})
        return
    lines = "; ".join(
        f"{line['quantity']} × {line['description']} at {output.money(line['unit_price'])}" for line in order["lines"]
    )
    output.print_facts(
        [
            ("order", order["order_id"] + (" (replayed)" if about.get("replayed") else "")),
            ("customer", order["customer_id"]),
            ("state", output.short(order["state"], "ORDER_STATE_")),
            ("amount", output.money(order["amount"])),
            ("lines", lines),
            ("version, round", f"{order['version']}, {order['round']}"),
            ("payment", order["payment_id"]),
            ("settled by", output.clerk(order["settled_by"])),
            ("settled at", output.moment(order["settled_at_ms"])),
            ("created at", output.moment(order["created_at_ms"])),
        ]
    )
