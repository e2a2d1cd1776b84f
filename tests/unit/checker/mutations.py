"""One change to a legal dataset, at random. Nearly every one makes it illegal."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from services.checker.history import Answer, Outcome, RecordedCall
from tests.unit.checker.dataset import DatasetBuilder
from tests.unit.checker.rows import Row

#: Changes a dataset; False: it has nothing that could be changed so.
Mutation = Callable[[DatasetBuilder, random.Random], bool]

MUTATIONS: dict[str, Mutation] = {}


def mutation(change: Mutation) -> Mutation:
    """One of them."""
    MUTATIONS[change.__name__.replace("_", " ")] = change
    return change


def answered(dataset: DatasetBuilder, kind: str, outcome: Outcome = Outcome.OK) -> list[RecordedCall]:
    return [call for call in dataset.calls if call.kind == kind and call.outcome is outcome]


def settled(dataset: DatasetBuilder) -> list[RecordedCall]:
    """Settles of which nobody was told but by their one answer."""
    keys = [call.arguments.key for call in dataset.calls]
    return [call for call in answered(dataset, "Settle") if keys.count(call.arguments.key) == 1]


# What callers were told


@mutation
def another_state(dataset: DatasetBuilder, rng: random.Random) -> bool:
    reads = answered(dataset, "GetOrder")
    if not reads:
        return False
    read = rng.choice(reads)
    states = {"UNPAID", "PAYING", "PAID", "CANCELLED"} - {read.answer.state}
    read.answer = replace(read.answer, state=rng.choice(sorted(states)))
    return True


@mutation
def another_version(dataset: DatasetBuilder, rng: random.Random) -> bool:
    reads = answered(dataset, "GetOrder") + answered(dataset, "GetPayment")
    if not reads:
        return False
    read = rng.choice(reads)
    read.answer = replace(read.answer, version=read.answer.version + rng.choice((-1, 1, 2)))
    return read.answer.version > 0


@mutation
def another_payment(dataset: DatasetBuilder, rng: random.Random) -> bool:
    reads = [call for call in dataset.calls if call.answer.payment_id and call.kind in ("GetOrder", "Settle")]
    if not reads:
        return False
    read = rng.choice(reads)
    read.answer = replace(read.answer, payment_id="pay_nobody")
    return True


@mutation
def a_look_too_late(dataset: DatasetBuilder, rng: random.Random) -> bool:
    """Somebody is told after everything what was so at first. One version late may be: the order hears last."""
    doubtful = {call.arguments.order_id for call in dataset.calls if call.outcome is Outcome.INFO}
    old = [
        call
        for call in answered(dataset, "GetOrder")
        if call.answer.version < dataset.order(call.arguments.order_id)["version"] - 1
        and call.arguments.order_id not in doubtful
    ]
    if not old:
        return False
    call = rng.choice(old)
    end_ns = max(call.answered_ns or call.invoked_ns for call in dataset.calls)
    call.invoked_ns, call.answered_ns = end_ns + 1, end_ns + 2
    return True


@mutation
def done_but_refused(dataset: DatasetBuilder, rng: random.Random) -> bool:
    calls = settled(dataset)
    if not calls:
        return False
    call = rng.choice(calls)
    call.answer, call.outcome = Answer("ABORTED", "ORDER_LOCKED"), Outcome.FAIL
    return True


@mutation
def refused_but_acknowledged(dataset: DatasetBuilder, rng: random.Random) -> bool:
    calls = [
        call
        for call in answered(dataset, "Settle", Outcome.FAIL)
        if call.answer.reason in ("ORDER_ALREADY_PAID", "INSUFFICIENT_FUNDS")
    ]
    if not calls:
        return False
    call = rng.choice(calls)
    answer = Answer(state="SUCCEEDED", payment_id="pay_nobody", sha256=call.answer.sha256)
    call.answer, call.outcome = answer, Outcome.OK
    return True


@mutation
def a_caller_who_never_called(dataset: DatasetBuilder, rng: random.Random) -> bool:
    """Somebody settled whom the history does not know: nobody says that this is right, or wrong."""
    calls = settled(dataset)
    if calls:
        dataset.calls.remove(rng.choice(calls))
    return bool(calls)


@mutation
def another_answer_to_a_retry(dataset: DatasetBuilder, rng: random.Random) -> bool:
    calls = [call for call in dataset.calls if call.answer.sha256]
    if not calls:
        return False
    call = rng.choice(calls)
    call.answer = replace(call.answer, sha256="0" * 64)
    return True


@mutation
def an_acknowledgement_of_nothing(dataset: DatasetBuilder, rng: random.Random) -> bool:
    call = rng.choice(dataset.calls)
    asked = replace(call.arguments, key="never", order_id=call.arguments.order_id or "order-0", payment_id="")
    answer = Answer(state="SUCCEEDED", payment_id="pay_never")
    dataset.calls.append(
        RecordedCall(10**6, "ghost", "Settle", asked, call.invoked_ns, Outcome.OK, answer, call.answered_ns)
    )
    return True


# What the books say


@mutation
def a_lost_journal(dataset: DatasetBuilder, rng: random.Random) -> bool:
    return _removed(dataset, rng, lambda: dataset.remove_journal(rng.choice(dataset.journals)["journal_id"]))


@mutation
def a_journal_twice(dataset: DatasetBuilder, rng: random.Random) -> bool:
    if not dataset.journals:
        return False
    row = rng.choice(dataset.journals)
    legs = [(leg["account_id"], leg["amount"]) for leg in dataset.legs(row["journal_id"])]
    names = {name: row[name] for name in ("order_id", "payment_id", "reversal_of")}
    dataset.journal(row["business_key"], legs, **names)
    dataset.seal()
    return True


@mutation
def another_amount(dataset: DatasetBuilder, rng: random.Random) -> bool:
    if not dataset.postings:
        return False
    rng.choice(dataset.postings)["amount"] += rng.choice((-1, 1))
    dataset.seal()
    return True


@mutation
def an_altered_journal(dataset: DatasetBuilder, rng: random.Random) -> bool:
    if not dataset.journals:
        return False
    rng.choice(dataset.journals)[rng.choice(("memo", "clerk_name", "order_id", "payment_id"))] = "altered"
    return True


@mutation
def a_wrong_balance(dataset: DatasetBuilder, rng: random.Random) -> bool:
    rng.choice(dataset.accounts)["balance"] += rng.choice((-1, 1))
    return True


@mutation
def a_lower_fence(dataset: DatasetBuilder, rng: random.Random) -> bool:
    later = [row for row in dataset.payment_events if row["version"] > 2]
    if not later:
        return False
    rng.choice(later)["fence_token"] = 1
    return True


@mutation
def a_missing_event(dataset: DatasetBuilder, rng: random.Random) -> bool:
    events = rng.choice((dataset.order_events, dataset.payment_events))
    return _removed(dataset, rng, lambda: events.remove(rng.choice(events)))


@mutation
def another_order_state(dataset: DatasetBuilder, rng: random.Random) -> bool:
    if not dataset.orders:
        return False
    order = rng.choice(dataset.orders)
    states = {"UNPAID", "PAYING", "PAID", "CANCELLED"} - {order["state"]}
    order["state"] = rng.choice(sorted(states))
    return True


@mutation
def another_payment_state(dataset: DatasetBuilder, rng: random.Random) -> bool:
    if not dataset.payments:
        return False
    row = rng.choice(dataset.payments)
    states = {"SUBMITTED", "SUCCEEDED", "DECLINED", "UNKNOWN", "REVERSED"} - {row["state"]}
    row["state"] = rng.choice(sorted(states))
    return True


@mutation
def a_lost_request(dataset: DatasetBuilder, rng: random.Random) -> bool:
    done = [row for row in dataset.requests if row["state"] == "DONE" and _was_told(dataset, row)]
    if done:
        dataset.requests.remove(rng.choice(done))
    return bool(done)


@mutation
def another_response(dataset: DatasetBuilder, rng: random.Random) -> bool:
    done = [row for row in dataset.requests if row["state"] == "DONE" and _was_told(dataset, row)]
    if done:
        rng.choice(done)["response"] = b"another"
    return bool(done)


@mutation
def a_lost_word(dataset: DatasetBuilder, rng: random.Random) -> bool:
    words = [row for row in dataset.outbox if row["purpose"] != "RELEASE"]
    if words:
        dataset.outbox.remove(rng.choice(words))
    return bool(words)


def _was_told(dataset: DatasetBuilder, row: Row) -> bool:
    return any(call.arguments.key == row["key"] and call.answer.sha256 for call in dataset.calls)


def _removed(dataset: DatasetBuilder, _dice: random.Random, remove: Callable[[], None]) -> bool:
    if not (dataset.journals and dataset.order_events and dataset.payment_events):
        return False
    remove()
    dataset.seal()
    return True
