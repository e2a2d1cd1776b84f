"""What must be true of card payments: captured by the acquirer = owed in the ledger = the order's total."""

from __future__ import annotations

from collections import defaultdict

from services.checker.evidence import Evidence
from services.checker.findings import Findings, Violations
from services.checker.snapshot import UNFINISHED, Record, Snapshot

_OWED_BY_ACQUIRER = "acquirer:"


def cards_agree(evidence: Evidence) -> Findings:
    """Check that the acquirer holds what the ledger has of each ended card payment, under its one key.

    `paid means charged` compares the ledger with the order. `nothing left over` lists payments that have not ended.
    """
    snapshot = evidence.snapshot
    payments = {str(row["payment_id"]): row for row in snapshot.payments if row.get("source") == "CARD"}
    if snapshot.charges is not None:
        return Findings(len(payments), _disagreements(evidence, snapshot.charges, payments))
    if not payments:
        return Findings(0)
    if evidence.acquirer is not None:
        return Findings(0, skipped="the acquirer's database was not read; its log was")
    return Findings(0, undecided=["there are card payments, and the acquirer was not read"])


def _disagreements(
    evidence: Evidence, charges_at_acquirer: tuple[Record, ...], payments: dict[str, Record]
) -> Violations:
    held = _held(charges_at_acquirer)
    owed = _owed(evidence.snapshot)
    for payment_id, payment in payments.items():
        if payment["state"] in (*UNFINISHED, "PARKED"):
            continue
        charges = held.pop(payment_id, [])
        foreign = [str(row["key"]) for row in charges if row["key"] != payment["acquirer_key"]]
        if foreign:
            yield f"payment {payment_id} was charged under {', '.join(foreign)}; its key is {payment['acquirer_key']}"
        at_bank = sum(int(row["amount_minor"]) for row in charges)
        if at_bank != (in_books := owed.get(payment_id, 0)):
            yield f"payment {payment_id}: the acquirer holds {at_bank}, and the ledger says {in_books}"
    for reference, charges in held.items():
        forgotten = evidence.restored and reference not in evidence.payments
        if reference not in payments and not forgotten:
            keys = ", ".join(str(row["key"]) for row in charges)
            yield f"the acquirer holds money under {keys} for {reference or 'nothing'}, which is no payment by card"


def _held(charges: tuple[Record, ...]) -> dict[str, list[Record]]:
    """Return the charges that stand, by payment."""
    held: defaultdict[str, list[Record]] = defaultdict(list)
    for row in charges:
        if row["state"] == "CHARGED":
            held[str(row["reference"])].append(row)
    return held


def _owed(snapshot: Snapshot) -> dict[str, int]:
    """Return what the acquirer owes by the ledger, by payment."""
    payment_of = {str(row["journal_id"]): str(row["payment_id"]) for row in snapshot.journals}
    owed: defaultdict[str, int] = defaultdict(int)
    for leg in snapshot.postings:
        if str(leg["account_id"]).startswith(_OWED_BY_ACQUIRER):
            owed[payment_of.get(str(leg["journal_id"]), "")] += int(leg["amount"])
    return owed
