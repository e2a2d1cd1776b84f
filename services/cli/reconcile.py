"""`countinghouse reconcile`: the acquirer's statement against our payments, books and orders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, time
from typing import Annotated, Any

import typer

from services.cli import output
from services.cli.arguments import calling
from services.cli.client import Client
from services.kernel.clock import SystemClock, rfc3339
from services.kernel.currency import format_number
from services.kernel.errors import InvalidArgument
from services.kernel.principal import Role
from services.reconcile.matching import Amount, Comparison, ControlTotal, Discrepancy, Period, Sides
from services.reconcile.reading import find
from services.reconcile.repairing import Repair, Repairer, named

_OPEN = 1
_TIMEOUT_S = 120.0
#: How long the payment service may take to bring one payment to its end.
_PATIENCE_S = 30.0
#: How many payments without an outcome are named in a line.
_NAMED = 20
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@calling(Role.ACCOUNTANT, timeout_s=_TIMEOUT_S)
async def reconcile(
    client: Client,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what differs, as far as that can be done without people.")
    ] = False,
    refund: Annotated[
        list[str] | None,
        typer.Option(
            "--refund",
            metavar="KEY",
            help="Give back the money under this key, which no payment of ours has; repeatable.",
            show_default=False,
        ),
    ] = None,
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Compare only what began at this date (00:00 UTC) or RFC 3339 time, or later.",
        ),
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TIME", help="Compare only what began before this date (00:00 UTC) or RFC 3339 time."
        ),
    ] = "",
    settle_s: Annotated[
        float, typer.Option("--settle-s", help="Seconds between the two readings of what differs.", min=0, max=600)
    ] = 1.0,
) -> None:
    """Compare the acquirer's charges with our payments, books and orders, and name each repair.

    Control totals compare each account `acquirer:<currency>` with what the acquirer captured less what it gave back.
    A payment lies in a period by the time at which the acquirer decided on its charge, with all that came of it later.
    --repair never gives back money under a key that no payment of ours has: name it with --refund.

    A payment without an outcome (SUBMITTED, UNKNOWN, REVERSING) is no difference, but it is open: it is named as well.
    A PARKED one is a difference until the acquirer has reversed its key.

    Exit code 0: nothing is open after all repairs; 1: something differs, or a payment has no outcome yet.

    Example: countinghouse reconcile --from 2026-03-01 --to 2026-04-01
    """
    period = _period(from_, to)
    found = await find(client, settle_s, period)
    try:
        refunds = named(refund or (), found.compared.discrepancies)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--refund") from error
    repairer = Repairer(client, SystemClock(), run=client.new_id(""), patience_s=_PATIENCE_S)
    repairs = [await repairer.refund_named(discrepancy) for discrepancy in refunds]
    if repair:
        rest = [discrepancy for discrepancy in found.compared.discrepancies if discrepancy not in refunds]
        repairs += [await repairer.repair(discrepancy) for discrepancy in rest]
    now = await find(client, settle_s, period) if repairs else found
    if client.as_json:
        output.print_json(_document(now.sides, found.compared, repairs, now.compared, period))
    else:
        _print(now.sides, found.compared.discrepancies, repairs, now.compared)
    if now.compared.open:
        raise typer.Exit(_OPEN)


def _period(from_: str, to: str) -> Period:
    """Return the period of --from and --to.

    Raises:
        typer.BadParameter: One is no time, or they are the wrong way round.
    """
    period = Period(_moment_ms(from_, "--from"), _moment_ms(to, "--to"))
    if period.from_ms is not None and period.to_ms is not None and period.from_ms >= period.to_ms:
        raise typer.BadParameter(f"{to} is not after {from_}", param_hint="--to")
    return period


def _moment_ms(text: str, option: str) -> int | None:
    """Unix milliseconds of a date, which begins at 00:00 UTC, or of an RFC 3339 time; None for nothing."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        if _DATE.fullmatch(text):
            at = datetime.combine(at, time(), UTC)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise typer.BadParameter(
            f"{text!r} is neither a date, like 2026-03-01, nor a time with its zone, like 2026-03-01T08:00:00+08:00",
            param_hint=option,
        )
    return round(at.timestamp() * 1000)


def _document(
    sides: Sides, found: Comparison, repairs: Sequence[Repair], now: Comparison, period: Period
) -> dict[str, Any]:
    mended = {repair.discrepancy: repair for repair in repairs}
    return {
        "agreed": not found.open,
        "period": {"from": _moment_out(period.from_ms), "to": _moment_out(period.to_ms)},
        "examined": _examined(sides),
        "attention": _waiting(sides),
        "discrepancies": [_row(discrepancy) | _outcome(mended.get(discrepancy)) for discrepancy in found.discrepancies],
        "control_totals": [_total(total) for total in now.totals],
        "open": [_row(discrepancy) for discrepancy in now.open],
    }


def _examined(sides: Sides) -> dict[str, int]:
    return {
        "acquirer": len(sides.theirs),
        "payment": len(sides.ours),
        "ledger": len(sides.journals),
        "order": len(sides.orders),
    }


def _waiting(sides: Sides) -> int:
    """Return how many payments wait for people."""
    return sum(bool(payment.attention) for payment in sides.ours)


def _row(discrepancy: Discrepancy) -> dict[str, Any]:
    return {
        "class": discrepancy.kind,
        "key": discrepancy.key,
        "payment_id": discrepancy.payment_id,
        "journal_id": discrepancy.journal_id,
        "order_id": discrepancy.order_id,
        "account_id": discrepancy.account_id,
        "theirs": _amount(discrepancy.theirs),
        "ours": _amount(discrepancy.ours),
        "action": discrepancy.action,
    }


def _total(total: ControlTotal) -> dict[str, Any]:
    """Return a total in minor units."""
    return {
        "account_id": total.account_id,
        "currency_code": total.currency,
        "captured": total.captured,
        "refunded": total.refunded,
        "held": total.held,
        "booked": total.booked,
        "difference": total.difference,
        "explained": total.explained,
        "moving": total.moving,
        "unexplained": total.unexplained,
    }


def _outcome(repair: Repair | None) -> dict[str, Any]:
    return {} if repair is None else {"repaired": repair.done, "outcome": repair.words}


def _amount(amount: Amount | None) -> dict[str, Any] | None:
    """Return an amount as all JSON has it."""
    return None if amount is None else {"currency_code": amount.currency, "minor_units": amount.minor_units}


def _moment_out(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


def _subject(discrepancy: Discrepancy) -> str:
    """Return what a difference is about."""
    parts = (discrepancy.key, discrepancy.journal_id, discrepancy.order_id, discrepancy.payment_id)
    return next(filter(None, parts), discrepancy.account_id)


def _print(sides: Sides, found: Sequence[Discrepancy], repairs: Sequence[Repair], now: Comparison) -> None:
    if found:
        output.print_table(
            "reconciliation",
            ("class", "about", "payment", "theirs", "ours", "what mends it"),
            [
                (each.kind, _subject(each), each.payment_id, str(each.theirs or ""), str(each.ours or ""), each.action)
                for each in found
            ],
        )
    for repair in repairs:
        done = "repaired" if repair.done else "not repaired"
        output.print_line(f"{done}: {repair.discrepancy.kind}: {_subject(repair.discrepancy)}: {repair.words}")
    if now.totals:
        columns = ("captured", "refunded", "held", "booked", "difference", "explained", "moving", "unexplained")
        output.print_table(
            "control totals",
            ("account", *columns),
            [
                (total.account_id, *(format_number(getattr(total, column), total.currency) for column in columns))
                for total in now.totals
            ],
        )
    examined = ", ".join(f"{number} of {side}" for side, number in _examined(sides).items())
    print(f"examined {examined}; {len(found) or 'nothing'} {'differ' if len(found) > 1 else 'differs'}")
    if repairs:
        left = len(now.open)
        print(f"{left or 'nothing'} {'are' if left > 1 else 'is'} still open")
    if now.undecided:
        output.print_line(_undecided(now.undecided))
    if waiting := _waiting(sides):
        who = "1 payment waits" if waiting == 1 else f"{waiting} payments wait"
        print(f"{who} for people: see `countinghouse payment attention`")


def _undecided(undecided: Sequence[Discrepancy]) -> str:
    number = len(undecided)
    names = ", ".join(each.payment_id for each in undecided[:_NAMED])
    more = f" and {number - _NAMED} more" if number > _NAMED else ""
    return f"{number} {'payment has' if number == 1 else 'payments have'} no outcome yet: {names}{more}"
