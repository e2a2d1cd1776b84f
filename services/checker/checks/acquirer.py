"""What must be true of the acquirer's own log, and of it and the ledger together."""

from __future__ import annotations

from collections import defaultdict

from services.checker.acquirer_log import AcquirerRecord
from services.checker.evidence import Evidence
from services.checker.findings import Findings, Violations
from services.checker.snapshot import UNFINISHED
from services.kernel.currency import format_amount

#: The legal moves of a key; before the first it has no state.
_MOVES = {
    ("", "CHARGED"),
    ("", "DECLINED"),
    ("", "TOMBSTONE"),
    ("CHARGED", "REFUNDED"),
}
#: The sign of the amount that a decision moves to us.
_SIGNS = {"CHARGED": 1, "REFUNDED": -1, "DECLINED": 0, "TOMBSTONE": 0}

#: Currency and minor units.
Net = tuple[str, int]


def acquirer_log_whole(evidence: Evidence) -> Findings:
    """Check that the log's entries count from 1 without a gap."""
    wrong = (
        f"entry {place} of the acquirer's log has sequence {record.sequence}"
        for place, record in enumerate(evidence.acquirer_log, start=1)
        if record.sequence != place
    )
    return Findings(len(evidence.acquirer_log), wrong)


def charged_once_per_key(evidence: Evidence) -> Findings:
    """Check that a key moves money in at most once, out at most once and in whole, and never in after it was closed."""
    decided = _decided(evidence)

    def violations() -> Violations:
        for key, records in decided.items():
            for before, record in zip([None, *records], records, strict=False):
                standing = before.decision if before else ""
                if (standing, record.decision) not in _MOVES:
                    yield f"the acquirer's key {key} was {standing or 'unseen'}, and then {record.decision}"
                elif before and _money(before) != _money(record):
                    moved = f"{_shown(_money(before))} in and {_shown(_money(record))} out"
                    yield f"the acquirer's key {key} moved {moved}"

    return Findings(len(decided), violations())


def acquirer_agrees_with_ledger(evidence: Evidence) -> Findings:
    """Check that what the acquirer took for a payment, less what it gave back, stands in the ledger for it.

    A difference is open and no violation if the payment needs a person's `attention`, has not ended (`nothing left
    over` lists it), or is PARKED, for its reversal is still to come.

    A key of no payment is a violation, unless it was charged and refunded in full and the ledger has nothing for it:
    other systems may charge in the same merchant account, and people refund such a key by name (`reconcile --refund`).
    """
    asked: defaultdict[str, dict[str, list[AcquirerRecord]]] = defaultdict(dict)
    for key, records in _decided(evidence).items():
        asked[records[0].payment_id][key] = records
    for payment_id, payment in evidence.payments.items():
        if str(payment["payer_account_id"]).startswith("acquirer:"):
            asked.setdefault(payment_id, {})

    def violations() -> Violations:
        for payment_id, decided in asked.items():
            payment = evidence.payments.get(payment_id)
            booked = _booked(evidence, payment_id)
            if payment is None:
                for key, records in decided.items():
                    if not evidence.restored and (booked or not _refunded_in_full(records)):
                        yield f"the acquirer was asked under {key} for {payment_id or 'nothing'}, which is no payment"
                continue
            at_acquirer = _taken(decided)
            is_open = payment.get("attention") or payment["state"] in (*UNFINISHED, "PARKED")
            if at_acquirer != booked and not is_open:
                yield f"the acquirer took {_sums(at_acquirer)} for {payment_id}; in the ledger: {_sums(booked)}"

    return Findings(len(asked), violations())


def _decided(evidence: Evidence) -> dict[str, list[AcquirerRecord]]:
    """Return what the acquirer decided on each key, in its order."""
    decided: defaultdict[str, list[AcquirerRecord]] = defaultdict(list)
    for record in evidence.acquirer_log:
        if record.decision in _SIGNS:
            decided[record.key].append(record)
    return decided


def _refunded_in_full(records: list[AcquirerRecord]) -> bool:
    """Return whether a key was charged once, and all of it was given back."""
    decisions = [record.decision for record in records]
    return decisions == ["CHARGED", "REFUNDED"] and _money(records[0]) == _money(records[1])


def _taken(decided: dict[str, list[AcquirerRecord]]) -> dict[str, int]:
    """Return what the acquirer took under some keys, less what it gave back, by currency."""
    sums: dict[str, int] = {}
    for records in decided.values():
        for record in records:
            moved = _SIGNS[record.decision] * record.amount_minor
            sums[record.currency] = sums.get(record.currency, 0) + moved
    return {currency: amount for currency, amount in sums.items() if amount}


def _booked(evidence: Evidence, payment_id: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for journal in evidence.standing(evidence.journals_of_payment.get(payment_id, ())):
        currency = str(journal["currency_code"])
        sums[currency] = sums.get(currency, 0) + evidence.amount(journal)
    return sums


def _money(record: AcquirerRecord) -> Net:
    return record.currency, record.amount_minor


def _shown(net: Net) -> str:
    return format_amount(net[1], net[0])


def _sums(sums: dict[str, int]) -> str:
    return ", ".join(_shown(net) for net in sorted(sums.items())) or "nothing"
