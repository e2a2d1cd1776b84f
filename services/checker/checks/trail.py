"""What must be true of the trail that every change leaves: fences, versions, moves, requests, the outbox.

The tables of legal moves repeat those of the services on purpose: a mistake in theirs is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from services.checker.evidence import Evidence, Key, grouped, title
from services.checker.findings import Findings, Violations
from services.checker.snapshot import UNFINISHED, Record, described, held, was_parked

_ORDER_MOVES = {
    ("UNPAID", "PAYING"),
    ("PAYING", "PAID"),
    ("UNPAID", "CANCELLED"),
    ("PAYING", "UNPAID"),
    ("PAID", "UNPAID"),
}
_PAYMENT_MOVES = {
    ("CREATED", "SUBMITTED"),
    ("CREATED", "DECLINED"),
    ("SUBMITTED", "SUCCEEDED"),
    ("SUBMITTED", "DECLINED"),
    ("SUBMITTED", "UNKNOWN"),
    ("UNKNOWN", "SUCCEEDED"),
    ("UNKNOWN", "DECLINED"),
    ("UNKNOWN", "REVERSING"),
    ("SUBMITTED", "PARKED"),
    ("UNKNOWN", "PARKED"),
    ("PARKED", "REVERSED"),
    ("SUCCEEDED", "REVERSING"),
    ("REVERSING", "REVERSED"),
    ("REVERSING", "SUCCEEDED"),
    ("REVERSING", "PARKED"),
}
_HELD = ("PAYING", "PAID")
#: Within which a live worker takes over.
_GRACE_MS = 2_000
#: The outbox actions, and the move that the order makes for each.
_ACTIONS = {"COMPLETE": ("PAYING", "PAID"), "RELEASE": ("PAYING", "UNPAID"), "REOPEN": ("PAID", "UNPAID")}
#: The actions that a payment with a journal must have sent, by its state.
_REQUIRED_ACTIONS = {
    "SUCCEEDED": ("COMPLETE",),
    "REVERSING": ("COMPLETE",),
    "REVERSED": ("COMPLETE", "REOPEN"),
}


def fences_never_fall(evidence: Evidence) -> Findings:
    """Check that the fences of orders and payments never fall, and that the ledger saw those that charged."""
    snapshot = evidence.snapshot

    def violations() -> Violations:
        yield from _falls((row for row in snapshot.order_events if _fence(row) != (0, 0)), evidence.orders, "order_id")
        yield from _falls(snapshot.payment_events, evidence.payments, "payment_id")
        yield from _unseen_by_the_ledger(evidence)

    return Findings(len(snapshot.order_events) + len(snapshot.payment_events), violations())


def _falls(events: Iterable[Record], rows: Mapping[str, Record], subject: str) -> Violations:
    for name, steps in grouped(events, subject).items():
        for before, after in pairwise(steps):
            if _fence(after) < _fence(before):
                yield f"{name}: fence fell from {_fence(before)} to {_fence(after)} at version {after['version']}"
        last = steps[-1]
        if name in rows and _fence(rows[name]) < _fence(last):
            yield f"{name}: fence fell from {_fence(last)} to {_fence(rows[name])} since version {last['version']}"


def _unseen_by_the_ledger(evidence: Evidence) -> Violations:
    """Return payments recorded under a fence that the ledger has not seen. Without its guard the ledger keeps none."""
    seen = {str(row["order_id"]): (int(row["generation"]), int(row["token"])) for row in evidence.snapshot.order_fences}
    for row in evidence.snapshot.payment_events:
        name = str(row["payment_id"])
        payment = evidence.payments.get(name)
        if payment is None or row["state"] not in ("SUCCEEDED", "REVERSED") or name not in evidence.journals_of_payment:
            continue
        last = seen.get(str(payment["order_id"]))
        if last is not None and last < _fence(row):
            yield f"{name} is {row['state']} under fence {_fence(row)}, and the ledger has seen {last}"


def moves_legal(evidence: Evidence) -> Findings:
    """Check that versions have no gap, states follow legally, and only the holder of an order moves it."""
    snapshot = evidence.snapshot

    def violations() -> Violations:
        order_steps = grouped(snapshot.order_events, "order_id")
        for name, row in evidence.orders.items():
            steps = order_steps.get(name, [])
            yield from _moves("order", name, row, steps, ("to_state", "UNPAID", _ORDER_MOVES))
            yield from _holders(name, row, steps)
        payment_steps = grouped(snapshot.payment_events, "payment_id")
        for name, row in evidence.payments.items():
            yield from _moves("payment", name, row, payment_steps.get(name, []), ("state", "CREATED", _PAYMENT_MOVES))

    return Findings(len(snapshot.order_events) + len(snapshot.payment_events), violations())


def _moves(
    noun: str, name: str, row: Record, steps: list[Record], rule: tuple[str, str, set[tuple[str, str]]]
) -> Violations:
    state, first, moves = rule
    if [step["version"] for step in steps] != list(range(1, int(row["version"]) + 1)):
        yield f"{noun} {name} is at version {row['version']}, and its history has {len(steps)} steps"
        return
    if steps[0][state] != first or steps[-1][state] != row["state"]:
        yield f"{noun} {name} is {row['state']}, and its history goes from {steps[0][state]} to {steps[-1][state]}"
    for before, after in pairwise(steps):
        if (before[state], after[state]) not in moves:
            yield f"{noun} {name} went from {before[state]} to {after[state]}"


def _holders(name: str, row: Record, steps: list[Record]) -> Violations:
    """Return wrong holders: the claiming payment holds an order until it is UNPAID; after PAID, that ends the round."""
    holder, round_ = "", 1
    for before, after in pairwise(steps):
        if (before["to_state"], after["to_state"]) == ("PAID", "UNPAID"):
            round_ += 1
        if after["from_state"] != before["to_state"] or after["round"] != round_:
            yield f"order {name} says {after['from_state']} and round {after['round']} at version {after['version']}"
        if before["to_state"] in _HELD and after["payment_id"] != holder:
            mover = after["payment_id"] or "no payment"
            yield f"order {name} was held by {holder}, and {mover} made it {after['to_state']}"
        if before["to_state"] not in _HELD:
            holder = str(after["payment_id"])
    held_by = holder if row["state"] in _HELD else ""
    if row["payment_id"] != held_by or row["round"] != round_:
        yield f"order {name} names {row['payment_id'] or 'no payment'} in round {row['round']}, not {held_by or 'none'}"
    if (row["state"] == "PAID") != bool(row["settled_by_name"]):
        yield f"order {name} is {row['state']}, settled by {row['settled_by_name'] or 'no clerk'}"


def changes_signed(evidence: Evidence) -> Findings:
    """Check that every change names its actor, and a reversal or parking its reason.

    The first release recorded no actor with the changes of a payment, so unsigned ones may come before all signed ones.
    """
    snapshot = evidence.snapshot

    def violations() -> Violations:
        for row in snapshot.order_events:
            if not row["actor_name"]:
                yield f"no actor is named for version {row['version']} of order {row['order_id']}"
        for name, steps in grouped(snapshot.payment_events, "payment_id").items():
            signed = False
            for step in steps:
                actor = step.get("actor_name", "")
                signed = signed or bool(actor)
                if signed and not actor:
                    yield f"no actor is named for version {step['version']} of payment {name}"
                if signed and step["state"] in ("REVERSING", "REVERSED", "PARKED") and not step["reason"]:
                    yield f"payment {name} is {step['state']} at version {step['version']}, without a reason"

    return Findings(len(snapshot.order_events) + len(snapshot.payment_events), violations())


def requests_whole(evidence: Evidence) -> Findings:
    """Check that a request has a response if and only if it is DONE."""

    def violations() -> Violations:
        for key, row in evidence.requests.items():
            if (row["state"] == "DONE") != (row["response"] is not None):
                yield f"{title(key)} is {row['state']} {'without' if row['response'] is None else 'with'} a response"

    return Findings(len(evidence.requests), violations())


def leases_kept(evidence: Evidence) -> Findings:
    """Check that no request is IN_PROGRESS past its lease, for recovery takes it over by then.

    Recovery waits until the acquirer is to be asked again. While the stack may go on this is undecided: perhaps no
    instance was there to take over.
    """
    if not evidence.now_ms:
        return Findings(0, skipped="the time of reading was not given")

    def overdue() -> Violations:
        for key, row in evidence.requests.items():
            over_ms = evidence.now_ms - _due_ms(evidence, key, row)
            if row["state"] == "IN_PROGRESS" and over_ms > _GRACE_MS:
                yield f"{title(key)} is IN_PROGRESS, {over_ms / 1000:.1f} s past its lease"

    if evidence.ended:
        return Findings(len(evidence.requests), overdue())
    return Findings(len(evidence.requests), undecided=overdue())


def _due_ms(evidence: Evidence, key: Key, request: Record) -> int:
    """Return when recovery should take a request over: after its lease, and once its payment waits no more."""
    payments = evidence.payments_of_key.get(key, ())
    waits = [int(row["ask_at_ms"]) for row in payments if row["state"] in UNFINISHED and row.get("ask_at_ms")]
    return max([int(request["lease_until_ms"]), *waits])


def outbox_delivered_once(evidence: Evidence) -> Findings:
    """Check that each outbox action moved its order once, and that nothing else moved one."""
    sent = {(str(row["payment_id"]), str(row["purpose"])) for row in evidence.snapshot.outbox}
    moves: Counter[tuple[str, str]] = Counter()
    named = {move: action for action, move in _ACTIONS.items()}
    for row in evidence.snapshot.order_events:
        action = named.get((str(row["from_state"]), str(row["to_state"])))
        if action:
            moves[str(row["payment_id"]), action] += 1

    def violations() -> Violations:
        for row in evidence.snapshot.outbox:
            payment_id, action = str(row["payment_id"]), str(row["purpose"])
            made = moves[payment_id, action]
            if made > 1:
                yield f"the outbox's {action} of {row['order_id']} for {payment_id} was done {made} times"
            if not made and row["delivered_at_ms"] is not None and action != "RELEASE":  # of an order never claimed
                yield f"the outbox's {action} of {row['order_id']} for {payment_id} was delivered, and not done"
        for payment_id, action in moves.keys() - sent:
            yield f"{action} of an order was done for {payment_id} without an outbox row"
        for payment_id, payment in evidence.payments.items():
            for action in _required_actions(payment):
                if (payment_id, action) not in sent:
                    yield f"payment {payment_id} is {payment['state']}, and the outbox has no {action} of its order"

    return Findings(len(evidence.snapshot.outbox), violations())


def _required_actions(payment: Record) -> tuple[str, ...]:
    """Return the actions that this payment must have sent, at the least."""
    if not payment["order_id"]:
        return ()
    if was_parked(payment):
        return ("RELEASE",)
    return _REQUIRED_ACTIONS.get(payment["state"], ()) if payment["journal_id"] else ()


def nothing_left_over(evidence: Evidence) -> Findings:
    """Check that nothing is under way any more; recovery has had its time before the databases are read.

    A parked payment about which the acquirer is silent is no violation: its order is free, ListPayments lists it, and
    its reversal is retried until the acquirer is back.

    While the stack may go on, only what no recovery will finish is a violation. The rest is undecided.
    """
    snapshot = evidence.snapshot
    examined = sum(map(len, (snapshot.payments, snapshot.orders, snapshot.requests, snapshot.outbox)))
    left = snapshot.unfinished()
    if evidence.ended:
        open_at_acquirer = {described(row) for row in snapshot.payments if row["state"] == "PARKED" and row.get("asks")}
        return Findings(examined, [what for what in left if what not in open_at_acquirer])
    abandoned = _abandoned(evidence)
    silent = {described(row): row["asks"] for row in snapshot.payments if row.get("asks")}
    return Findings(
        examined,
        [f"{what}, and no recovery will finish it" for what in left if what in abandoned],
        [_still_open(what, silent.get(what, 0)) for what in left if what not in abandoned],
    )


def _abandoned(evidence: Evidence) -> set[str]:
    """Return what is under way and will never end, as described by `unfinished`.

    Recovery finds requests IN_PROGRESS, undelivered outbox actions and PARKED payments, and nothing else.
    """
    snapshot = evidence.snapshot
    running = [key for key, row in evidence.requests.items() if row["state"] == "IN_PROGRESS"]
    carried = {row["payment_id"] for key in running for row in evidence.payments_of_key.get(key, ())}
    owed = {row["payment_id"] for row in snapshot.outbox if row["delivered_at_ms"] is None}
    payments = [row for row in snapshot.payments if row["state"] in UNFINISHED and row["payment_id"] not in carried]
    orders = [row for row in snapshot.orders if row["payment_id"] not in carried | owed]
    return {*map(described, payments), *map(held, orders)}


def _still_open(what: str, asks: int) -> str:
    return f"{what}: still open" + (f"; the acquirer was asked {asks} times and has not answered" if asks else "")


def _fence(row: Record) -> tuple[int, int]:
    return int(row["fence_generation"]), int(row["fence_token"])
