"""What must be true of the acquirer's own log, and of it and the ledger together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from services.checker.acquirer_log import AcquirerRecord
from services.checker.evidence import Evidence
from services.checker.findings import Findings
from services.checker.snapshot import UNFINISHED
from services.kernel.currency import format_amount

_NO_LOG = "the acquirer's log was not read"
#: Where a key may go from where it stands; nothing is asked of it at first.
_MOVES = {
    ("", "CHARGED"),
    ("", "DECLINED"),
    ("", "TOMBSTONE"),
    ("CHARGED", "REFUNDED"),
}
#: What a decision moves to us.
_SIGNS = {"CHARGED": 1, "REFUNDED": -1, "DECLINED": 0, "TOMBSTONE": 0}

Violations = Iterator[str]
#: Currency and minor units that are with us.
Net = tuple[str, int]


def acquirer_log_whole(evidence: Evidence) -> Findings:
    """Its entries count from 1 without a gap."""
    if evidence.acquirer is None:
        return Findings(0, skipped=_NO_LOG)
    wrong = (
        f"entry {place} of the acquirer's log has sequence {record.sequence}"
        for place, record in enumerate(evidence.acquirer, start=1)
        if record.sequence != place
    )
    return Findings(len(evidence.acquirer), wrong)


def charged_once_per_key(evidence: Evidence) -> Findings:
    """A key moves money in at most once, out at most once and then in whole, and never in once it was closed."""
    if evidence.acquirer is None:
        return Findings(0, skipped=_NO_LOG)
    decided: defaultdict[str, list[AcquirerRecord]] = defaultdict(list)
    for record in evidence.acquirer:
        if record.decision in _SIGNS:
            decided[record.key].append(record)

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
    """What the acquirer took for a payment, less what it gave back, is what stands in the ledger for it.

    A difference that is put before people (`attention`) is open and listed, and no violation; nor is one of a payment
    that has not ended (`nothing left over` lists it), or is PARKED, whose reversal the acquirer is still owed.
    """
    if evidence.acquirer is None:
        return Findings(0, skipped=_NO_LOG)
    taken: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for record in evidence.acquirer:
        if record.decision in _SIGNS:
            sums = taken[record.payment_id]
            moved = _SIGNS[record.decision] * record.amount_minor
            sums[record.currency] = sums.get(record.currency, 0) + moved
    for payment_id, payment in evidence.payments.items():
        if str(payment["payer_account_id"]).startswith("acquirer:"):
            taken.setdefault(payment_id, {})

    def violations() -> Violations:
        for payment_id, sums in taken.items():
            payment = evidence.payments.get(payment_id)
            if payment is None:
                yield f"the acquirer was asked for {payment_id}, which is no payment"
                continue
            at_acquirer = {currency: amount for currency, amount in sums.items() if amount}
            is_open = payment.get("attention") or payment["state"] in (*UNFINISHED, "PARKED")
            if at_acquirer != (booked := _booked(evidence, payment_id)) and not is_open:
                yield f"the acquirer took {_sums(at_acquirer)} for {payment_id}; in the ledger: {_sums(booked)}"

    return Findings(len(taken), violations())


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
