"""What must be true of the answers that callers got: the databases hold them, to the byte, and keep them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

from services.checker.checks.settlement import money_moved
from services.checker.evidence import Evidence, Key, is_refused_for_ever, names, title
from services.checker.findings import Findings, Violations
from services.checker.history import Outcome, RecordedCall
from services.checker.snapshot import Record
from services.kernel.currency import format_amount

_MISMATCH = "IDEMPOTENCY_KEY_MISMATCH"
_SETTLES = ("Settle", "Pay")


def replays_identical(evidence: Evidence) -> Findings:
    """Check that all definitive answers to one key are the same bytes, on the wire and in the table."""
    stored: defaultdict[str, set[str | None]] = defaultdict(set)
    for (_, _, key), digest in evidence.stored.items():
        stored[key].add(digest)

    def violations() -> Violations:
        seen: defaultdict[str, set[tuple[bool, str, tuple[str | int, ...]]]] = defaultdict(set)
        allowed: dict[str, int] = {}  # a key without a known owner may belong to several clerks
        for told in evidence.definitive_answers:
            name = told.key if told.owner is None else title(told.owner)
            seen[name].add((told.ok, told.sha256, told.content))
            known = stored[told.key] if told.owner is None else {evidence.stored.get(told.owner)}
            removed = told.owner is not None and evidence.may_be_removed(told.owner, ok=told.ok)
            if told.sha256 and told.sha256 not in known and not removed:
                yield f"{name} was answered with something that is not stored"
            allowed[name] = max(1, len(known))
        for name, different in seen.items():
            if len(different) > allowed[name]:
                yield f"{name} got {len(different)} different answers"

    return Findings(len(evidence.definitive_answers), violations())


def mismatches_refused(evidence: Evidence) -> Findings:
    """Check that one payload is run under a key, and that exactly the others are refused as mismatches."""

    def violations() -> Violations:
        for key, attempts in evidence.calls_of_key.items():
            what = title(key)
            payloads = {attempt.arguments for attempt in attempts}
            run = {attempt.arguments for attempt in attempts if _was_run(attempt)}
            if len(run) > 1:
                yield f"{what} was run with {len(run)} different payloads"
            if len(payloads) == 1 and any(attempt.answer.reason == _MISMATCH for attempt in attempts):
                yield f"{what} was refused as a mismatch, and was only ever sent with one payload"

    return Findings(len(evidence.calls_of_key), violations())


def _was_run(attempt: RecordedCall) -> bool:
    return attempt.outcome is Outcome.OK or is_refused_for_ever(attempt)


def acknowledged_kept(evidence: Evidence) -> Findings:
    """Check that the databases hold every acknowledged success, and every payment that was answered as under way."""
    told = [
        (key, attempt)
        for key, attempts in evidence.calls_of_key.items()
        for attempt in attempts
        if attempt.answer.code == "OK"
    ]

    def violations() -> Violations:
        for key, attempt in told:
            if attempt.outcome is not Outcome.OK:
                yield from _unknown(evidence, key, attempt)
                continue
            row = evidence.requests.get(key)
            stored = row is not None and row["state"] == "DONE" and row["response_ok"]
            if not stored and not evidence.may_be_removed(key):
                found = row["state"] if row else "nowhere"
                yield f"{title(key)} was acknowledged, and is {'refused' if found == 'DONE' else found}"
            else:
                yield from _missing(evidence, key, attempt)

    return Findings(len(told), violations())


def _missing(evidence: Evidence, key: Key, attempt: RecordedCall) -> Violations:
    """Return what the databases lack of an acknowledged request."""
    asked, answer, what = attempt.arguments, attempt.answer, title(key)
    order = evidence.orders.get(asked.order_id or answer.order_id)
    match attempt.kind:
        case "CreateOrder":
            if order is None:
                yield f"{what} was acknowledged, and there is no order {asked.order_id or answer.order_id}"
            elif asked.amount_minor and (order["amount_minor_units"], order["currency_code"]) != (
                asked.amount_minor,
                asked.currency,
            ):
                asked_for = format_amount(asked.amount_minor, asked.currency)
                yield f"{what} was for {asked_for}, and its order is for {_owed(order)}"
        case "CancelOrder":
            if order is None or order["state"] != "CANCELLED":
                yield f"{what} was acknowledged, and its order is {order['state'] if order else 'nowhere'}"
        case "Settle" | "Pay":
            yield from _unpaid(evidence, key, attempt)
        case "Reverse":
            payment = evidence.payments.get(asked.payment_id)
            if payment is None or payment["state"] != "REVERSED":
                yield f"{what} was acknowledged, and its payment is {payment['state'] if payment else 'nowhere'}"
        case "Park":
            payment = evidence.payments.get(asked.payment_id)
            if payment is None or payment["state"] not in ("PARKED", "REVERSED"):
                yield f"{what} was acknowledged, and its payment is {payment['state'] if payment else 'nowhere'}"
        case "IssueTicket":
            ticket = (key[0], "Pay", answer.ticket)
            if answer.ticket and ticket not in evidence.requests and not evidence.may_be_removed(ticket):
                yield f"{what} was acknowledged, and there is no ticket {answer.ticket}"


def _unpaid(evidence: Evidence, key: Key, attempt: RecordedCall) -> Violations:
    answer, what = attempt.answer, title(key)
    payments = evidence.payments_of_key.get(key, [])
    named = [row for row in payments if row["payment_id"] == answer.payment_id]
    journals = money_moved(evidence, named, reversing=False)
    if not named:
        yield f"{what} was acknowledged with {answer.payment_id}, and its payment is {names(payments, 'payment_id')}"
    elif not journals:
        yield f"{what} was acknowledged with {answer.payment_id}, and no journal moved its money"
    elif answer.amount_minor and evidence.amount(journals[0]) != answer.amount_minor:
        currency = str(journals[0]["currency_code"])
        told, moved = (format_amount(each, currency) for each in (answer.amount_minor, evidence.amount(journals[0])))
        yield f"{what} was acknowledged over {told}, and {moved} moved"


def refused_without_effect(evidence: Evidence) -> Findings:
    """Check that a refused request had no effect.

    A refusal that is given before a request is run says nothing of other attempts. It counts only if all attempts were
    refused, and the recording is whole.
    """
    is_whole = evidence.history is not None and evidence.history.whole
    refused = {
        key: attempts
        for key, attempts in evidence.calls_of_key.items()
        if any(is_refused_for_ever(attempt) for attempt in attempts)
        or (is_whole and all(attempt.outcome is Outcome.FAIL for attempt in attempts))
    }

    def violations() -> Violations:
        for key, attempts in refused.items():
            row = evidence.requests.get(key)
            reasons = ", ".join(sorted({attempt.answer.reason for attempt in attempts if attempt.answer.reason}))
            if row is not None and row["state"] == "DONE" and row["response_ok"]:
                yield f"{title(key)} was refused ({reasons}), and is stored as done"
            moved = money_moved(evidence, evidence.payments_of_key.get(key, []), reversing=key[1] == "Reverse")
            if moved:
                yield f"{title(key)} was refused ({reasons}), and {names(moved)} moved money"

    return Findings(len(refused), violations())


def reads_were_written(evidence: Evidence) -> Findings:
    """Check that each version of an order or payment that a caller read is in its trail, with the same content."""
    orders = {(str(row["order_id"]), int(row["version"])): row for row in evidence.snapshot.order_events}
    payments = {(str(row["payment_id"]), int(row["version"])): row for row in evidence.snapshot.payment_events}
    seen = [read for read in evidence.calls if read.outcome is Outcome.OK and read.answer.version]

    def violations() -> Violations:
        for read in seen:
            answer = read.answer
            if read.kind in ("GetOrder", "CreateOrder", "CancelOrder"):
                order_id = read.arguments.order_id or answer.order_id
                row = orders.get((order_id, answer.version))
                if row is None or row["to_state"] != answer.state or answer.round not in (0, row["round"]):
                    yield f"{_seen(read, order_id)}, and {_trail(row, 'to_state')}"
                elif answer.payment_id and answer.payment_id != row["payment_id"]:
                    held_by = row["payment_id"] or "no payment"
                    yield f"{_seen(read, order_id)} by {answer.payment_id}, and it was {held_by}"
            else:
                payment_id = answer.payment_id or read.arguments.payment_id
                row = payments.get((payment_id, answer.version))
                if row is None or row["state"] != answer.state:
                    yield f"{_seen(read, payment_id)}, and {_trail(row, 'state')}"

    return Findings(len(seen), violations())


def _seen(read: RecordedCall, name: str) -> str:
    return f"{read.process} saw {name} as {read.answer.state} at version {read.answer.version}"


def _trail(row: Record | None, state: str) -> str:
    return f"it was {row[state]}" if row is not None else "it never had that version"


def reads_go_forward(evidence: Evidence) -> Findings:
    """Check that no read returns an older version than one that was returned before the read began."""
    reads: defaultdict[tuple[str, str], list[RecordedCall]] = defaultdict(list)
    for read in evidence.calls:
        if read.outcome is Outcome.OK and read.answer.version and read.kind in ("GetOrder", "GetPayment"):
            asked = read.arguments
            reads[read.kind, asked.order_id if read.kind == "GetOrder" else asked.payment_id].append(read)

    def violations() -> Violations:
        for (_, name), group in reads.items():
            yield from _backwards(name, group)

    return Findings(sum(map(len, reads.values())), violations())


def _backwards(name: str, reads: Sequence[RecordedCall]) -> Violations:
    told = sorted((read.answered_ns, read.answer.version) for read in reads if read.answered_ns is not None)
    newest = list(accumulate((version for _, version in told), max))
    for read in reads:
        before = bisect_left(told, (read.invoked_ns,))
        if before and read.answer.version < newest[before - 1]:
            yield f"{_seen(read, name)} after a caller had seen version {newest[before - 1]}"


def _unknown(evidence: Evidence, key: Key, attempt: RecordedCall) -> Violations:
    """Return what is wrong with an answer that named a payment and not its outcome."""
    payments = evidence.payments_of_key.get(key, [])
    if key[1] in _SETTLES and attempt.answer.payment_id not in {row["payment_id"] for row in payments}:
        yield f"{title(key)} is under way as {attempt.answer.payment_id}, and is {names(payments, 'payment_id')}"


def _owed(order: Record) -> str:
    return format_amount(int(order["amount_minor_units"]), str(order["currency_code"]))
