"""One change to what the witnesses of a lawful evening say, at random. Nearly every one makes it unlawful."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from services.checker.history import Answer, Operation, Outcome
from tests.unit.checker.scribe import Row, Scribe

#: Changes an evening; False: there is nothing in it that could be changed so.
Mutation = Callable[[Scribe, random.Random], bool]

MUTATIONS: dict[str, Mutation] = {}


def mutation(change: Mutation) -> Mutation:
    """One of them."""
    MUTATIONS[change.__name__.replace("_", " ")] = change
    return change


def answered(scribe: Scribe, kind: str, outcome: Outcome = Outcome.OK) -> list[Operation]:
    return [call for call in scribe.calls if call.kind == kind and call.outcome is outcome]


def settled(scribe: Scribe) -> list[Operation]:
    """Settles of which nobody was told but by their one answer."""
    keys = [call.arguments.key for call in scribe.calls]
    return [call for call in answered(scribe, "Settle") if keys.count(call.arguments.key) == 1]


# What callers were told


@mutation
def another_state(scribe: Scribe, rng: random.Random) -> bool:
    reads = answered(scribe, "GetOrder")
    if not reads:
        return False
    read = rng.choice(reads)
    states = {"UNPAID", "PAYING", "PAID", "CANCELLED"} - {read.answer.state}
    read.answer = replace(read.answer, state=rng.choice(sorted(states)))
    return True


@mutation
def another_version(scribe: Scribe, rng: random.Random) -> bool:
    reads = answered(scribe, "GetOrder") + answered(scribe, "GetPayment")
    if not reads:
        return False
    read = rng.choice(reads)
    read.answer = replace(read.answer, version=read.answer.version + rng.choice((-1, 1, 2)))
    return read.answer.version > 0


@mutation
def another_payment(scribe: Scribe, rng: random.Random) -> bool:
    reads = [call for call in scribe.calls if call.answer.payment_id and call.kind in ("GetOrder", "Settle")]
    if not reads:
        return False
    read = rng.choice(reads)
    read.answer = replace(read.answer, payment_id="pay_nobody")
    return True


@mutation
def a_look_too_late(scribe: Scribe, rng: random.Random) -> bool:
    """Somebody is told after everything what was so at first. One version late may be: the order hears last."""
    doubtful = {call.arguments.order_id for call in scribe.calls if call.outcome is Outcome.INFO}
    old = [
        call
        for call in answered(scribe, "GetOrder")
        if call.answer.version < scribe.order(call.arguments.order_id)["version"] - 1
        and call.arguments.order_id not in doubtful
    ]
    if not old:
        return False
    call = rng.choice(old)
    end_ns = max(call.answered_ns or call.invoked_ns for call in scribe.calls)
    call.invoked_ns, call.answered_ns = end_ns + 1, end_ns + 2
    return True


@mutation
def done_but_refused(scribe: Scribe, rng: random.Random) -> bool:
    calls = settled(scribe)
    if not calls:
        return False
    call = rng.choice(calls)
    call.answer, call.outcome = Answer("ABORTED", "ORDER_LOCKED"), Outcome.FAIL
    return True


@mutation
def refused_but_acknowledged(scribe: Scribe, rng: random.Random) -> bool:
    calls = [
        call
        for call in answered(scribe, "Settle", Outcome.FAIL)
        if call.answer.reason in ("ORDER_ALREADY_PAID", "INSUFFICIENT_FUNDS")
    ]
    if not calls:
        return False
    call = rng.choice(calls)
    answer = Answer(state="SUCCEEDED", payment_id="pay_nobody", sha256=call.answer.sha256)
    call.answer, call.outcome = answer, Outcome.OK
    return True


@mutation
def a_caller_who_never_called(scribe: Scribe, rng: random.Random) -> bool:
    """Somebody settled whom the history does not know: nobody says that this is right, or wrong."""
    calls = settled(scribe)
    if calls:
        scribe.calls.remove(rng.choice(calls))
    return bool(calls)


@mutation
def another_answer_to_a_retry(scribe: Scribe, rng: random.Random) -> bool:
    calls = [call for call in scribe.calls if call.answer.sha256]
    if not calls:
        return False
    call = rng.choice(calls)
    call.answer = replace(call.answer, sha256="0" * 64)
    return True


@mutation
def an_acknowledgement_of_nothing(scribe: Scribe, rng: random.Random) -> bool:
    call = rng.choice(scribe.calls)
    asked = replace(call.arguments, key="never", order_id=call.arguments.order_id or "order-0", payment_id="")
    answer = Answer(state="SUCCEEDED", payment_id="pay_never")
    scribe.calls.append(
        Operation(10**6, "ghost", "Settle", asked, call.invoked_ns, Outcome.OK, answer, call.answered_ns)
    )
    return True


# What the books say


@mutation
def a_lost_journal(scribe: Scribe, rng: random.Random) -> bool:
    return _removed(scribe, rng, lambda: scribe.remove_journal(rng.choice(scribe.journals)["journal_id"]))


@mutation
def a_journal_twice(scribe: Scribe, rng: random.Random) -> bool:
    if not scribe.journals:
        return False
    row = rng.choice(scribe.journals)
    legs = [(leg["account_id"], leg["amount"]) for leg in scribe.legs(row["journal_id"])]
    names = {name: row[name] for name in ("order_id", "payment_id", "reversal_of")}
    scribe.journal(row["business_key"], legs, **names)
    scribe.seal()
    return True


@mutation
def another_amount(scribe: Scribe, rng: random.Random) -> bool:
    if not scribe.postings:
        return False
    rng.choice(scribe.postings)["amount"] += rng.choice((-1, 1))
    scribe.seal()
    return True


@mutation
def an_altered_journal(scribe: Scribe, rng: random.Random) -> bool:
    if not scribe.journals:
        return False
    rng.choice(scribe.journals)[rng.choice(("memo", "clerk_name", "order_id", "payment_id"))] = "altered"
    return True


@mutation
def a_wrong_balance(scribe: Scribe, rng: random.Random) -> bool:
    rng.choice(scribe.accounts)["balance"] += rng.choice((-1, 1))
    return True


@mutation
def a_lower_fence(scribe: Scribe, rng: random.Random) -> bool:
    later = [row for row in scribe.payment_events if row["version"] > 2]
    if not later:
        return False
    rng.choice(later)["fence_token"] = 1
    return True


@mutation
def a_missing_event(scribe: Scribe, rng: random.Random) -> bool:
    events = rng.choice((scribe.order_events, scribe.payment_events))
    return _removed(scribe, rng, lambda: events.remove(rng.choice(events)))


@mutation
def another_order_state(scribe: Scribe, rng: random.Random) -> bool:
    if not scribe.orders:
        return False
    order = rng.choice(scribe.orders)
    states = {"UNPAID", "PAYING", "PAID", "CANCELLED"} - {order["state"]}
    order["state"] = rng.choice(sorted(states))
    return True


@mutation
def another_payment_state(scribe: Scribe, rng: random.Random) -> bool:
    if not scribe.payments:
        return False
    row = rng.choice(scribe.payments)
    states = {"SUBMITTED", "SUCCEEDED", "DECLINED", "UNKNOWN", "REVERSED"} - {row["state"]}
    row["state"] = rng.choice(sorted(states))
    return True


@mutation
def a_lost_request(scribe: Scribe, rng: random.Random) -> bool:
    done = [row for row in scribe.requests if row["state"] == "DONE" and _was_told(scribe, row)]
    if done:
        scribe.requests.remove(rng.choice(done))
    return bool(done)


@mutation
def another_response(scribe: Scribe, rng: random.Random) -> bool:
    done = [row for row in scribe.requests if row["state"] == "DONE" and _was_told(scribe, row)]
    if done:
        rng.choice(done)["response"] = b"another"
    return bool(done)


@mutation
def a_lost_word(scribe: Scribe, rng: random.Random) -> bool:
    words = [row for row in scribe.outbox if row["purpose"] != "RELEASE"]
    if words:
        scribe.outbox.remove(rng.choice(words))
    return bool(words)


def _was_told(scribe: Scribe, row: Row) -> bool:
    return any(call.arguments.key == row["key"] and call.answer.sha256 for call in scribe.calls)


def _removed(scribe: Scribe, _rng: random.Random, remove: Callable[[], None]) -> bool:
    if not (scribe.journals and scribe.order_events and scribe.payment_events):
        return False
    remove()
    scribe.seal()
    return True
