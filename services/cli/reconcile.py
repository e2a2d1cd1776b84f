"""`countinghouse reconcile`: the acquirer's statement against our payments, books and bills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output
from services.cli.arguments import calling
from services.kernel.principal import Role

if TYPE_CHECKING:
    from services.cli.client import Client
    from services.reconcile.matching import Discrepancy, Sides
    from services.reconcile.repairing import Repair

_DIFFERENT = 1
_TIMEOUT_S = 120.0
#: How long one payment may take to be brought to its end by those whose it is.
_PATIENCE_S = 30.0


@calling(Role.ACCOUNTANT, timeout_s=_TIMEOUT_S)
async def reconcile(
    client: Client,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs, as far as that can be done.")] = False,
    settle_s: Annotated[
        float, typer.Option("--settle-s", help="Seconds between two looks at what differs.", min=0, max=600)
    ] = 1.0,
) -> None:
    """Compares what the acquirer holds with our payments, books and bills, and says what mends each difference.

    Exit code 0: all agree, or with --repair all is mended; 1: something differs.

    Example: countinghouse reconcile --repair
    """
    from services.kernel.clock import SystemClock  # noqa: PLC0415  `--help` does without
    from services.reconcile.reading import find  # noqa: PLC0415
    from services.reconcile.repairing import Repairer  # noqa: PLC0415

    sides, found = await find(client, settle_s)
    repairs: list[Repair] = []
    if repair:
        payments = {payment.payment_id: payment for payment in sides.ours}
        repairer = Repairer(client, payments, SystemClock(), run=client.new_id(""), patience_s=_PATIENCE_S)
        repairs = [await repairer.repair(discrepancy) for discrepancy in found]
    document = _document(sides, found, repairs)
    if client.as_json:
        output.print_json(document)
    else:
        _print(document)
    if not (document["agreed"] or (repair and all(mended.done for mended in repairs))):
        raise typer.Exit(_DIFFERENT)


def _document(sides: Sides, found: list[Discrepancy], repairs: list[Repair]) -> dict[str, Any]:
    mended = {repair.discrepancy: repair for repair in repairs}
    return {
        "agreed": not found,
        "examined": {
            "acquirer": len(sides.theirs),
            "payment": len(sides.ours),
            "ledger": len(sides.owed),
            "order": len(sides.paid),
        },
        "attention": sum(bool(payment.attention) for payment in sides.ours),
        "discrepancies": [
            {
                "class": discrepancy.kind,
                "key": discrepancy.key,
                "payment_id": discrepancy.payment_id,
                "theirs": _amount(discrepancy.theirs),
                "ours": _amount(discrepancy.ours),
                "action": discrepancy.action,
                **_outcome(mended.get(discrepancy)),
            }
            for discrepancy in found
        ],
    }


def _outcome(repair: Repair | None) -> dict[str, Any]:
    return {} if repair is None else {"repaired": repair.done, "outcome": repair.words}


def _amount(amount: Any) -> str | None:
    return None if amount is None else str(amount)


def _print(document: dict[str, Any]) -> None:
    rows = document["discrepancies"]
    if rows:
        output.print_table(
            "reconciliation",
            ("class", "key", "payment", "theirs", "ours", "what mends it"),
            [
                (row["class"], row["key"], row["payment_id"], row["theirs"] or "", row["ours"] or "", row["action"])
                for row in rows
            ],
        )
    for row in rows:
        if "repaired" in row:
            what = row["payment_id"] or row["key"]
            print(f"{'repaired' if row['repaired'] else 'not repaired'}: {row['class']}: {what}: {row['outcome']}")
    examined = ", ".join(f"{number} of {side}" for side, number in document["examined"].items())
    print(f"examined {examined}; {len(rows) or 'nothing'} {'differ' if len(rows) > 1 else 'differs'}")
    if document["attention"]:
        print(f"{document['attention']} payments wait for people: see `countinghouse payment attention`")
