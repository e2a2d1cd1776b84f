"""What must be true of orders, payments and journals together: each order was settled once, by its whole amount."""

from __future__ import annotations

from services.checker.evidence import Evidence, names, title
from services.checker.findings import Findings, Violations
from services.checker.snapshot import UNFINISHED, Record, caller_of, was_parked
from services.kernel.currency import format_amount

_MOVE_MONEY = ("Pay", "Settle", "Reverse")


def settled_once(evidence: Evidence) -> Findings:
    """Check that settle journals less reversals are 0 or 1 per order."""

    def violations() -> Violations:
        for order_id, journals in evidence.journals_of_order.items():
            standing = evidence.standing(journals)
            if len(standing) > 1:
                yield f"order {order_id} was settled {len(standing)} times: {names(standing)}"
            settled = sum(not row["reversal_of"] for row in journals)
            undone = sum(bool(row["reversal_of"]) for row in journals)
            if settled - undone not in (0, 1):
                yield f"order {order_id} has {settled} settle journals and {undone} reversals"

    return Findings(len(evidence.snapshot.orders), violations())


def paid_means_charged(evidence: Evidence) -> Findings:
    """Check that an order is PAID ⇔ one payment SUCCEEDED ⇔ one journal stands, over the same amount.

    `nothing_left_over` covers orders that have not ended: those PAYING and, while the stack may go on, those whose
    payment is being reversed.
    """
    being_reversed = _being_reversed(evidence)

    def violations() -> Violations:
        for order_id, order in evidence.orders.items():
            if order["state"] != "PAYING" and order["payment_id"] not in being_reversed:
                yield from _charged(evidence, order_id, order)
        for order_id in evidence.journals_of_order.keys() - evidence.orders.keys():
            yield f"journals of order {order_id} stand without it"

    return Findings(len(evidence.snapshot.orders), violations())


def _being_reversed(evidence: Evidence) -> frozenset[str]:
    """Return payments whose reversal has not ended, or not reached the order service; after a run there are none."""
    if evidence.ended:
        return frozenset()
    reversing = {str(row["payment_id"]) for row in evidence.snapshot.payments if row["state"] == "REVERSING"}
    undelivered = (
        row for row in evidence.snapshot.outbox if row["purpose"] == "REOPEN" and row["delivered_at_ms"] is None
    )
    return frozenset(reversing | {str(row["payment_id"]) for row in undelivered})


def _charged(evidence: Evidence, order_id: str, order: Record) -> Violations:
    succeeded = [row for row in evidence.payments_of_order.get(order_id, []) if row["state"] == "SUCCEEDED"]
    standing = evidence.standing(evidence.journals_of_order.get(order_id, []))
    wanted = 1 if order["state"] == "PAID" else 0
    if len(succeeded) != wanted:
        yield f"order {order_id} is {order['state']} with {len(succeeded)} succeeded payments"
    if len(standing) != wanted:
        yield f"order {order_id} is {order['state']} with {len(standing)} settle journals that stand"
    if wanted and succeeded and order["payment_id"] not in [row["payment_id"] for row in succeeded]:
        yield f"order {order_id} names {order['payment_id']}; what succeeded: {names(succeeded, 'payment_id')}"
    owed = (order["amount_minor_units"], order["currency_code"])
    for journal in standing:
        if (evidence.amount(journal), journal["currency_code"]) != owed:
            moved = format_amount(evidence.amount(journal), str(journal["currency_code"]))
            yield f"order {order_id} of {format_amount(*owed)} was settled by {moved}"


def payments_match_journals(evidence: Evidence) -> Findings:
    """Check each payment's journal: SUCCEEDED: it stands; REVERSED: it is undone; DECLINED or ever PARKED: none."""

    def violations() -> Violations:
        for payment_id, payment in evidence.payments.items():
            yield from _matches(evidence, payment_id, payment)
        for payment_id in evidence.journals_of_payment.keys() - evidence.payments.keys():
            yield f"journals of payment {payment_id} stand without it"

    return Findings(len(evidence.payments), violations())


def _matches(evidence: Evidence, payment_id: str, payment: Record) -> Violations:
    journals = evidence.journals_of_payment.get(payment_id, [])
    standing = evidence.standing(journals)
    state = payment["state"]
    if state == "SUCCEEDED":
        owed = (payment["amount_minor"], payment["currency"])
        if [row["journal_id"] for row in standing] != [payment["journal_id"]]:
            yield f"payment {payment_id} names {payment['journal_id']}; what stands: {names(standing)}"
        elif (moved := (evidence.amount(standing[0]), standing[0]["currency_code"])) != owed:
            yield f"payment {payment_id} of {format_amount(*owed)} moved {format_amount(*moved)}"
    elif state not in UNFINISHED and standing:
        yield f"payment {payment_id} is {state}, and journal {names(standing)} stands"
    elif state == "REVERSED" and not _was_undone(payment, journals):
        yield f"payment {payment_id} is REVERSED, and no journal undoes {payment['journal_id']}"
    elif journals and (state == "DECLINED" or was_parked(payment)):
        yield f"payment {payment_id} is {'PARKED' if was_parked(payment) else state}, and {names(journals)} moved money"


def _was_undone(payment: Record, journals: list[Record]) -> bool:
    """Return whether the journal it names undoes it. A payment of unknown outcome may be reversed before it has any."""
    if not journals and not payment["journal_id"] and not payment["reversal_journal_id"]:
        return True
    undoing = [row["journal_id"] for row in journals if row["reversal_of"] == payment["journal_id"]]
    return payment["reversal_journal_id"] in undoing


def one_charge_per_key(evidence: Evidence) -> Findings:
    """Check that a ticket or request id moved money at most once."""
    keys = {key: rows for key, rows in evidence.payments_of_key.items() if key[1] != "Reverse"}

    def violations() -> Violations:
        for key, payments in keys.items():
            charged = [row for row in payments if evidence.journals_of_payment.get(str(row["payment_id"]))]
            if len(charged) > 1:
                yield f"{title(key)} charged {len(charged)} times: {names(charged, 'payment_id')}"

    return Findings(len(keys), violations())


def answers_true(evidence: Evidence) -> Findings:
    """Check that stored successes are in the ledger, or parked their payment, and stored refusals had no effect."""
    methods = (*_MOVE_MONEY, "Park")
    requests = [row for row in evidence.snapshot.requests if row["state"] == "DONE" and row["method"] in methods]

    def violations() -> Violations:
        for row in requests:
            if row["method"] == "Park":
                yield from _parking_true(evidence, row)
                continue
            key = (caller_of(row), str(row["method"]), str(row["key"]))
            what, reversing = title(key), row["method"] == "Reverse"
            payments = evidence.payments_of_key.get(key)
            if payments is None:
                if row["response_ok"] or not reversing:  # a reversal that is refused leaves no name on the payment
                    yield f"{what} was answered and has no payment"
                continue
            journals = money_moved(evidence, payments, reversing=reversing)
            if row["response_ok"] and not journals and not _needed_none(payments):
                yield f"{what} was acknowledged, and no journal moved its money"
            if not row["response_ok"] and journals:
                yield f"{what} was refused, and {names(journals)} moved money"

    return Findings(len(requests), violations())


def _parking_true(evidence: Evidence, row: Record) -> Violations:
    key = (caller_of(row), "Park", str(row["key"]))
    payments = evidence.payments_of_key.get(key, [])
    if not row["response_ok"] and payments:
        yield f"{title(key)} was refused, and {names(payments, 'payment_id')} was parked"
    elif row["response_ok"] and [payment["state"] in ("PARKED", "REVERSED") for payment in payments] != [True]:
        states = ", ".join(f"{payment['payment_id']} {payment['state']}" for payment in payments)
        yield f"{title(key)} was acknowledged, and there is {states or 'no payment'}"


def money_moved(evidence: Evidence, payments: list[Record], *, reversing: bool) -> list[Record]:
    """Return the journals of these payments that moved money, or moved it back."""
    return [
        journal
        for payment in payments
        for journal in evidence.journals_of_payment.get(str(payment["payment_id"]), ())
        if bool(journal["reversal_of"]) == reversing
    ]


def _needed_none(payments: list[Record]) -> bool:
    """Return whether all were reversed before the ledger had anything to undo."""
    return all(row["state"] == "REVERSED" and not row["journal_id"] for row in payments)
