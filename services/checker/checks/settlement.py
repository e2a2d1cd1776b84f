"""What must be true of orders, payments and journals together: each order was settled once, by money that moved."""

from __future__ import annotations

from collections.abc import Iterator

from services.checker.evidence import Evidence, names, title
from services.checker.findings import Findings
from services.checker.snapshot import UNFINISHED, Record, caller_of, was_parked
from services.kernel.currency import format_amount

_MOVE_MONEY = ("Pay", "Settle", "Reverse")

Violations = Iterator[str]


def settled_once(evidence: Evidence) -> Findings:
    """Settle journals less reversals are 0 or 1 per order."""

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
    """Order PAID ⇔ exactly one SUCCEEDED payment ⇔ one journal that stands, over the same amount.

    An order that has not come to its end is left to `nothing_left_over`: one that is PAYING and, of a stack that may go
    on, one whose payment is being reversed.
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
    """Return the payments that no longer stand in the ledger, perhaps, while their orders are still PAID.

    Their reversal has not ended, or the order service has not been told of it. After a run there are none.
    """
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
    """SUCCEEDED: its one journal stands. REVERSED: its journal is undone. DECLINED or ever PARKED: it never had one."""

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
    """By the journal it names; one whose outcome was never known may have been reversed before it had any."""
    if not journals and not payment["journal_id"] and not payment["reversal_journal_id"]:
        return True
    undoing = [row["journal_id"] for row in journals if row["reversal_of"] == payment["journal_id"]]
    return payment["reversal_journal_id"] in undoing


def one_charge_per_key(evidence: Evidence) -> Findings:
    """A ticket or request id moved money at most once."""
    keys = {key: rows for key, rows in evidence.payments_of_key.items() if key[1] != "Reverse"}

    def violations() -> Violations:
        for key, payments in keys.items():
            charged = [row for row in payments if evidence.journals_of_payment.get(str(row["payment_id"]))]
            if len(charged) > 1:
                yield f"{title(key)} charged {len(charged)} times: {names(charged, 'payment_id')}"

    return Findings(len(keys), violations())


def answers_true(evidence: Evidence) -> Findings:
    """Every stored success is in the ledger, or parked the payment; every stored refusal had no effect."""
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
    """Whoever was told that a payment is parked finds it PARKED or REVERSED; whoever was refused has parked none."""
    key = (caller_of(row), "Park", str(row["key"]))
    payments = evidence.payments_of_key.get(key, [])
    if not row["response_ok"] and payments:
        yield f"{title(key)} was refused, and {names(payments, 'payment_id')} was parked"
    elif row["response_ok"] and [payment["state"] in ("PARKED", "REVERSED") for payment in payments] != [True]:
        states = ", ".join(f"{payment['payment_id']} {payment['state']}" for payment in payments)
        yield f"{title(key)} was acknowledged, and there is {states or 'no payment'}"


def money_moved(evidence: Evidence, payments: list[Record], *, reversing: bool) -> list[Record]:
    """The journals of these payments that moved money, or moved it back."""
    return [
        journal
        for payment in payments
        for journal in evidence.journals_of_payment.get(str(payment["payment_id"]), ())
        if bool(journal["reversal_of"]) == reversing
    ]


def _needed_none(payments: list[Record]) -> bool:
    """Whether all were reversed before there was anything in the ledger to undo."""
    return all(row["state"] == "REVERSED" and not row["journal_id"] for row in payments)
