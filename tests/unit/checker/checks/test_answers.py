"""The checks of what callers were told, held against the books."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.checker.evidence import Evidence
from services.checker.findings import Check
from services.checker.history import NO_ANSWER, Answer, Arguments, Outcome, RecordedCall
from services.checker.registry import run_checks
from services.checker.snapshot import person
from tests.unit.checker.cases import Cases, Illegal, Lawful, by_all, payment
from tests.unit.checker.dataset import DatasetBuilder, digest, legal

CASES = Cases(by_all)
_LOCKED = Answer("ABORTED", "ORDER_LOCKED")
_REFUSED = ("refused without effect", "orders linearizable")


def retold(call: RecordedCall, answer: Answer, outcome: Outcome) -> None:
    """Its caller was told something else."""
    call.answer, call.outcome = answer, outcome


def again(dataset: DatasetBuilder, key: str, answer: Answer | None = None, **arguments: object) -> RecordedCall:
    """The same request is sent again."""
    first = dataset.call_of(key)
    asked = replace(first.arguments, **arguments)  # type: ignore[arg-type]
    return dataset.call(first.kind, asked, answer or replace(first.answer, replayed=True), dataset.now_ms())


# Acknowledged


@CASES.illegal(
    "Settle lost of li (cashier) was acknowledged, and is nowhere", "acknowledged is kept", "orders linearizable"
)
def a_forgotten_acknowledgement(dataset: DatasetBuilder) -> None:
    """Somebody heard that the order is settled, and nobody knows of it."""
    answer = Answer(state="SUCCEEDED", order_id="open", payment_id="pay_99", round=1)
    dataset.call("Settle", Arguments(order_id="open", key="lost", clerk="li"), answer, dataset.now_ms())


@CASES.illegal(
    "Settle too-late of wu (accountant) was acknowledged, and is refused", "acknowledged is kept", "orders linearizable"
)
def an_acknowledgement_of_what_was_refused(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("too-late")
    retold(call, replace(call.answer, code="OK", reason="", state="SUCCEEDED", payment_id="pay_02"), Outcome.OK)


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) was acknowledged, and is IN_PROGRESS",
    "acknowledged is kept",
    "nothing left over",
)
def an_acknowledgement_of_what_still_runs(dataset: DatasetBuilder) -> None:
    row = dataset.request_of("li", "Settle", "settle-plain-1")
    row.update(state="IN_PROGRESS", response=None)
    call = dataset.call_of("settle-plain-1")
    call.answer = replace(call.answer, sha256="")


@CASES.illegal("was acknowledged with pay_03, and its payment is pay_01", "acknowledged is kept", "orders linearizable")
def an_acknowledgement_with_anothers_payment(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("settle-plain-1")
    call.answer = replace(call.answer, payment_id="pay_03", version=0)


@CASES.illegal("was acknowledged over 12.49 CNY, and 12.50 CNY moved", "acknowledged is kept", "orders linearizable")
def an_acknowledgement_over_another_amount(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("settle-plain-1")
    call.answer = replace(call.answer, amount_minor=1249)


@CASES.illegal(
    "Pay ticket-1 of li (cashier) was acknowledged with pay_05, and no journal moved its money",
    *("acknowledged is kept", "payments match journals", "answers are true"),
)
def an_acknowledgement_without_a_journal(dataset: DatasetBuilder) -> None:
    dataset.remove_journal("jnl_05")
    dataset.seal()


@CASES.illegal(
    "Reverse undo of wu (accountant) was acknowledged, and its payment is SUCCEEDED",
    "acknowledged is kept",
    "answers are true",
)
def an_acknowledged_reversal_that_was_not_made(dataset: DatasetBuilder) -> None:
    dataset.request("wu", "Reverse", "undo")
    dataset.answer("wu", "Reverse", "undo")
    asked = Arguments(payment_id="pay_05", key="undo", clerk="wu")
    dataset.call("Reverse", asked, Answer(state="REVERSED", payment_id="pay_05"), dataset.now_ms())


@CASES.illegal(
    "Reverse undo of wu (accountant) was acknowledged, and its payment is nowhere",
    "acknowledged is kept",
    "answers are true",
)
def an_acknowledged_reversal_of_nothing(dataset: DatasetBuilder) -> None:
    dataset.request("wu", "Reverse", "undo")
    dataset.answer("wu", "Reverse", "undo")
    asked = Arguments(payment_id="pay_99", key="undo", clerk="wu")
    dataset.call("Reverse", asked, Answer(state="REVERSED", payment_id="pay_99"), dataset.now_ms())


@CASES.illegal(
    "CancelOrder stop of li (cashier) was acknowledged, and its order is UNPAID",
    "acknowledged is kept",
    "orders linearizable",
)
def an_acknowledged_cancellation_that_was_not_made(dataset: DatasetBuilder) -> None:
    dataset.request("li", "CancelOrder", "stop", rows=dataset.order_requests)
    dataset.answer("li", "CancelOrder", "stop")
    asked = Arguments(order_id="open", key="stop", clerk="li")
    dataset.call("CancelOrder", asked, Answer(state="CANCELLED", order_id="open"), dataset.now_ms())


@CASES.illegal("CancelOrder stop of li (cashier) was acknowledged, and its order is nowhere", "acknowledged is kept")
def an_acknowledged_cancellation_of_nothing(dataset: DatasetBuilder) -> None:
    dataset.request("li", "CancelOrder", "stop", rows=dataset.order_requests)
    dataset.answer("li", "CancelOrder", "stop")
    asked = Arguments(order_id="gone", key="stop", clerk="li")
    dataset.call("CancelOrder", asked, Answer(state="CANCELLED", order_id="gone"), dataset.now_ms())


@CASES.illegal(
    "CreateOrder make-2 of li (cashier) was acknowledged, and there is no order gone",
    "acknowledged is kept",
    "orders linearizable",
)
def an_acknowledged_order_that_is_gone(dataset: DatasetBuilder) -> None:
    dataset.request("li", "CreateOrder", "make-2", rows=dataset.order_requests)
    dataset.answer("li", "CreateOrder", "make-2")
    asked = Arguments(key="make-2", clerk="li", amount_minor=5, currency="CNY")
    dataset.call("CreateOrder", asked, Answer(state="UNPAID", order_id="gone"), dataset.now_ms())


@CASES.illegal(
    "make-open of li (cashier) was for 0.71 CNY, and its order is for 0.70 CNY",
    "acknowledged is kept",
    "orders linearizable",
)
def an_order_of_another_amount_than_was_asked(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("make-open")
    call.arguments = replace(call.arguments, amount_minor=71)


@CASES.illegal(
    "make-open of li (cashier) was for 0.70 USD, and its order is for 0.70 CNY",
    "acknowledged is kept",
    "orders linearizable",
)
def an_order_in_another_currency_than_was_asked(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("make-open")
    call.arguments = replace(call.arguments, currency="USD")


@CASES.illegal(
    "IssueTicket ask-1 of li (cashier) was acknowledged, and there is no ticket ticket-9", "acknowledged is kept"
)
def an_acknowledged_ticket_that_is_gone(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("ask-1")
    call.answer = replace(call.answer, ticket="ticket-9")


@CASES.lawful("acknowledged is kept", "replays identical")
def old_tickets_that_were_removed(dataset: DatasetBuilder) -> None:
    """One that was not used, with its request, and one that paid no order."""
    old_tickets_removed(dataset)
    dataset.removals.append({"id": 1, "before_ms": dataset.now_ms()})


@CASES.illegal(
    "IssueTicket ask-2 of li (cashier) was acknowledged, and is nowhere",
    *("acknowledged is kept", "replays identical"),
)
def old_tickets_that_are_gone_and_nobody_removed_any(dataset: DatasetBuilder) -> None:
    old_tickets_removed(dataset)


def old_tickets_removed(dataset: DatasetBuilder) -> None:
    for method, key in (("IssueTicket", "ask-2"), ("Pay", "ticket-unused"), ("Pay", "ticket-1")):
        dataset.remove("li", method, key)


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) was acknowledged, and is nowhere",
    *("acknowledged is kept", "replays identical"),
)
def a_settle_that_was_removed_with_old_tickets(dataset: DatasetBuilder) -> None:
    """What an order was paid with is kept as long as the order."""
    dataset.remove("li", "Settle", "settle-plain-1")
    dataset.removals.append({"id": 1, "before_ms": dataset.now_ms()})


@CASES.illegal(
    "CreateOrder make-open of li (cashier) was acknowledged, and is nowhere",
    *("acknowledged is kept", "replays identical"),
)
def a_made_order_whose_request_was_removed_with_old_tickets(dataset: DatasetBuilder) -> None:
    """Only a refused one may be: the order is there to be asked about."""
    dataset.order_requests.remove(dataset.request_of("li", "CreateOrder", "make-open"))
    dataset.removals.append({"id": 1, "before_ms": dataset.now_ms()})


@CASES.lawful("acknowledged is kept")
def a_parking_whose_key_is_reversed(dataset: DatasetBuilder) -> None:
    parked = dataset.park("open", 70)
    dataset.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.lawful("acknowledged is kept")
def a_parking_whose_reversal_is_owed(dataset: DatasetBuilder) -> None:
    dataset.park("open", 70).update(asks=3)


@CASES.illegal(
    "Park park-open of wu (accountant) was acknowledged, and its payment is SUCCEEDED", "acknowledged is kept"
)
def a_parking_of_a_payment_that_succeeded(dataset: DatasetBuilder) -> None:
    a_parking_whose_key_is_reversed(dataset)
    call = dataset.call_of("park-open")
    call.arguments = replace(call.arguments, payment_id=payment(dataset, "settle-plain-1")["payment_id"])


@CASES.illegal("Park park-open of wu (accountant) was acknowledged, and its payment is nowhere", "acknowledged is kept")
def a_parking_of_no_payment(dataset: DatasetBuilder) -> None:
    a_parking_whose_key_is_reversed(dataset)
    call = dataset.call_of("park-open")
    call.arguments = replace(call.arguments, payment_id="pay_99")


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) is under way as pay_02, and is pay_01",
    *("acknowledged is kept", "orders linearizable"),
)
def a_payment_under_way_by_another_name(dataset: DatasetBuilder) -> None:
    retold(dataset.call_of("settle-plain-1"), Answer(state="UNKNOWN", payment_id="pay_02"), Outcome.INFO)


@CASES.illegal("Pay ticket-1 of li (cashier) is under way as pay_01, and is pay_05", "acknowledged is kept")
def a_direct_payment_under_way_by_another_name(dataset: DatasetBuilder) -> None:
    retold(dataset.call_of("ticket-1"), Answer(state="UNKNOWN", payment_id="pay_01"), Outcome.INFO)


@CASES.lawful("acknowledged is kept")
def a_payment_under_way_and_a_reversal(dataset: DatasetBuilder) -> None:
    """Of which nobody knew yet how they would end."""
    retold(dataset.call_of("settle-plain-1"), Answer(state="UNKNOWN", payment_id="pay_01"), Outcome.INFO)
    retold(dataset.call_of("reverse-pay_03"), Answer(state="REVERSING", payment_id="pay_03"), Outcome.INFO)


@CASES.lawful("acknowledged is kept")
def an_acknowledged_payment_that_was_reversed_since(dataset: DatasetBuilder) -> None:
    dataset.reverse(payment(dataset, "settle-plain-1"))


@CASES.lawful("acknowledged is kept")
def an_acknowledgement_that_tells_little(dataset: DatasetBuilder) -> None:
    """A recorder need not note everything."""
    call = dataset.call_of("settle-plain-1")
    call.answer = Answer(state="SUCCEEDED", payment_id="pay_01")
    made = dataset.call_of("make-open")
    made.arguments = replace(made.arguments, amount_minor=0, currency="")
    asked = dataset.call_of("ask-1")
    asked.answer = Answer(state="ISSUED")


@CASES.lawful("acknowledged is kept", "refused without effect")
def an_unknown_outcome_that_took_effect_late(dataset: DatasetBuilder) -> None:
    """Nobody was told; the worker finished it after the last call."""
    retold(dataset.call_of("settle-plain-1"), NO_ANSWER, Outcome.INFO)


# Refused


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) was refused (ORDER_LOCKED), and jnl_01 moved money",
    *("refused without effect", "orders linearizable"),
)
def refused_but_done(dataset: DatasetBuilder) -> None:
    """The clerk was told that somebody else has it; it was charged all the same."""
    retold(dataset.call_of("settle-plain-1"), _LOCKED, Outcome.FAIL)


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) was refused (INSUFFICIENT_FUNDS), and is stored as done",
    *("refused without effect", "orders linearizable"),
)
def declined_but_done(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("settle-plain-1")
    declined = Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS", sha256=call.answer.sha256)
    retold(call, declined, Outcome.FAIL)


@CASES.illegal(
    "Settle too-late of wu (accountant) was refused (ORDER_ALREADY_PAID), and jnl_06 moved money",
    *("refused without effect", "answers are true", "payments match journals"),
)
def refused_and_posted_all_the_same(dataset: DatasetBuilder) -> None:
    """A copy of the request arrived late at the ledger."""
    legs = [("bank:CNY", 5), ("sales:CNY", -5)]
    dataset.journal("pay:late", legs, payment_id="pay_02")
    dataset.seal()


@CASES.illegal(
    "Reverse reverse-pay_03 of wu (accountant) was refused (ILLEGAL_STATE), and jnl_03 moved money",
    *("refused without effect", "orders linearizable"),
)
def a_reversal_refused_but_done(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("reverse-pay_03")
    refused = Answer("FAILED_PRECONDITION", "ILLEGAL_STATE", state="REVERSED", sha256=call.answer.sha256)
    retold(call, refused, Outcome.FAIL)


@CASES.lawful("refused without effect")
def refused_at_first_and_done_at_last(dataset: DatasetBuilder) -> None:
    """The same request was sent again when the order was free."""
    call = dataset.call_of("settle-plain-1")
    dataset.call(
        "Settle", call.arguments, _LOCKED, call.invoked_ns // 1_000_000 - 1, ended_ms=call.invoked_ns // 1_000_000
    )


@CASES.lawful("refused without effect")
def refused_and_never_asked_again(dataset: DatasetBuilder) -> None:
    asked = Arguments(order_id="open", key="gave-up", clerk="li")
    dataset.accept("open", "Settle", "gave-up", "li")
    dataset.request_of("li", "Settle", "gave-up")["state"] = "ISSUED"
    dataset.call("Settle", asked, _LOCKED, dataset.now_ms())


@CASES.lawful("refused without effect")
def a_stale_fence_and_a_payment_that_others_finished(dataset: DatasetBuilder) -> None:
    """A holder that froze is refused, and what it began is done: that is no failure, its caller does not know."""
    retold(dataset.call_of("settle-plain-1"), Answer("ABORTED", "STALE_FENCE"), Outcome.INFO)


# Replays and mismatches


@CASES.illegal("Settle settle-plain-1 of li (cashier) got 2 different answers", "replays identical")
def a_replay_that_is_not_identical(dataset: DatasetBuilder) -> None:
    """Another response than the first, by one byte."""
    answer = again(dataset, "settle-plain-1")
    answer.answer = replace(answer.answer, sha256="f" * 64)


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) got 2 different answers", "replays identical", "reads were written"
)
def a_replay_that_says_something_else(dataset: DatasetBuilder) -> None:
    """Also if nobody noted its bytes."""
    answer = again(dataset, "settle-plain-1")
    dataset.call_of("settle-plain-1").answer = replace(answer.answer, sha256="")
    answer.answer = replace(answer.answer, sha256="", version=4)


@CASES.illegal("make-open of li (cashier) was answered with something that is not stored", "replays identical")
def a_order_made_by_another_answer_than_is_stored(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("make-open")
    call.answer = replace(call.answer, sha256="f" * 64)


@CASES.illegal("Settle settle-plain-1 of li (cashier) was run with 2 different payloads", "mismatches refused")
def another_payload_under_the_same_key(dataset: DatasetBuilder) -> None:
    """It got the first one's answer, as if it had been meant."""
    again(dataset, "settle-plain-1", source="BANK")


@CASES.illegal("was refused as a mismatch, and was only ever sent with one payload", "mismatches refused")
def the_same_payload_refused_as_another(dataset: DatasetBuilder) -> None:
    again(dataset, "settle-plain-1", Answer("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH"))


@CASES.lawful("mismatches refused")
def another_payload_that_is_refused(dataset: DatasetBuilder) -> None:
    again(dataset, "settle-plain-1", Answer("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH"), source="BANK")


@CASES.lawful("mismatches refused")
def another_payload_whose_outcome_nobody_knows(dataset: DatasetBuilder) -> None:
    again(dataset, "settle-plain-1", NO_ANSWER, source="BANK")


@CASES.lawful("replays identical", "mismatches refused")
def a_replay(dataset: DatasetBuilder) -> None:
    again(dataset, "settle-plain-1")
    again(dataset, "too-late")


@CASES.lawful("replays identical")
def a_ticket_that_expired_and_was_refused(dataset: DatasetBuilder) -> None:
    """That is the state of the ticket, and no stored answer."""
    dataset.request_of("li", "Pay", "ticket-unused")["state"] = "EXPIRED"
    asked = Arguments(key="ticket-unused", clerk="li", amount_minor=5, currency="CNY")
    refused = Answer("FAILED_PRECONDITION", "TICKET_EXPIRED", sha256="e" * 64)
    dataset.call("Pay", asked, refused, dataset.now_ms())


# Reads


@CASES.illegal(
    "saw plain as PAID at version 9, and it never had that version", "reads were written", "orders linearizable"
)
def a_phantom_reply(dataset: DatasetBuilder) -> None:
    call = dataset.look("plain")
    call.answer = replace(call.answer, version=9)


@CASES.illegal("saw plain as UNPAID at version 3, and it was PAID", "reads were written", "orders linearizable")
def a_read_of_another_state(dataset: DatasetBuilder) -> None:
    call = dataset.look("plain")
    call.answer = replace(call.answer, state="UNPAID")


@CASES.illegal(
    "saw plain as PAID at version 3 by pay_02, and it was pay_01", "reads were written", "orders linearizable"
)
def a_read_of_another_payment(dataset: DatasetBuilder) -> None:
    call = dataset.look("plain")
    call.answer = replace(call.answer, payment_id="pay_02")


@CASES.illegal("saw plain as PAID at version 3, and it was PAID", "reads were written", "orders linearizable")
def a_read_of_another_round(dataset: DatasetBuilder) -> None:
    call = dataset.look("plain")
    call.answer = replace(call.answer, round=2)


@CASES.illegal("saw pay_05 as DECLINED at version 3, and it was SUCCEEDED", "reads were written")
def a_read_of_another_payments_state(dataset: DatasetBuilder) -> None:
    call = dataset.look_at_payment(payment(dataset, "ticket-1"))
    call.answer = replace(call.answer, state="DECLINED")


@CASES.illegal("li-1 saw pay_05 as SUCCEEDED at version 4, and it never had that version", "reads were written")
def an_acknowledgement_at_a_version_that_never_was(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("ticket-1")
    call.answer = replace(call.answer, version=4)


@CASES.illegal(
    "saw plain as PAYING at version 2 after a caller had seen version 3",
    *("reads go forward", "orders linearizable"),
)
def a_read_going_backwards(dataset: DatasetBuilder) -> None:
    dataset.look("plain")
    dataset.order_events[1]["to_state"] = "PAYING"
    call = dataset.look("plain")
    call.answer = replace(call.answer, state="PAYING", version=2, clerk="")


@CASES.illegal("saw pay_05 as SUBMITTED at version 2 after a caller had seen version 3", "reads go forward")
def a_payment_going_backwards(dataset: DatasetBuilder) -> None:
    dataset.look_at_payment(payment(dataset, "ticket-1"))
    call = dataset.look_at_payment(payment(dataset, "ticket-1"))
    call.answer = replace(call.answer, state="SUBMITTED", version=2)


@CASES.lawful("reads go forward", "reads were written", "orders linearizable")
def two_reads_that_overlap(dataset: DatasetBuilder) -> None:
    """The one that was asked first is answered last; either may have been looked at first."""
    settled = dataset.call_of("settle-plain-1")
    middle_ms = (settled.invoked_ns + (settled.answered_ns or 0)) // 2_000_000
    newer = dataset.look("plain")
    newer.invoked_ns = settled.invoked_ns
    older = dataset.look("plain")
    older.answer = replace(newer.answer, state="PAYING", version=2, clerk="")
    older.invoked_ns, older.answered_ns = settled.invoked_ns, middle_ms * 1_000_000
    newer.answered_ns = settled.answered_ns


@CASES.lawful("reads were written")
def a_free_order_that_names_nobody(dataset: DatasetBuilder) -> None:
    """The trail says which payment made it free."""
    dataset.reverse(payment(dataset, "settle-plain-1"))
    dataset.look("plain")


@CASES.illegal(
    "Settle settle-plain-1 of li (cashier) was answered with something that is not stored", "replays identical"
)
def the_answer_to_another_clerks_request(dataset: DatasetBuilder) -> None:
    """Its key has the same letters, and it is not theirs."""
    dataset.new_order("second")
    dataset.settle("second", clerk="wu", key="settle-plain-1", source="bank")
    theirs = dataset.calls[-1].answer
    mine = dataset.call_of("settle-plain-1")
    mine.answer = replace(mine.answer, sha256=theirs.sha256)
    dataset.seal()


@CASES.lawful("acknowledged is kept")
def a_payment_under_way_that_was_declined(dataset: DatasetBuilder) -> None:
    """Nobody knew yet how it would end, and it ended with a refusal."""
    retold(dataset.call_of("too-late"), Answer(state="UNKNOWN", payment_id="pay_02"), Outcome.INFO)


@CASES.lawful("acknowledged is kept", "reads were written")
def an_order_named_by_the_service(dataset: DatasetBuilder) -> None:
    """Whoever makes it need not choose a name."""
    call = dataset.call_of("make-open")
    call.arguments = replace(call.arguments, order_id="")


@CASES.lawful("reads were written")
def a_read_that_tells_little(dataset: DatasetBuilder) -> None:
    call = dataset.look("plain")
    call.answer = Answer(state="PAID", version=3)


@CASES.illegal(
    "Settle tried of li (cashier) was refused (ORDER_LOCKED, REQUEST_IN_PROGRESS), and jnl_06 moved money", *_REFUSED
)
def refused_in_two_ways_and_done(dataset: DatasetBuilder) -> None:
    dataset.settle("open", key="tried")
    retold(dataset.calls[-1], _LOCKED, Outcome.FAIL)
    again(dataset, "tried", Answer("ABORTED", "REQUEST_IN_PROGRESS"))
    dataset.seal()


@CASES.illegal("Settle tried of li (cashier) was refused (INSUFFICIENT_FUNDS), and jnl_06 moved money", *_REFUSED)
def unanswered_at_first_then_declined_and_done(dataset: DatasetBuilder) -> None:
    dataset.settle("open", key="tried")
    sha256 = dataset.calls[-1].answer.sha256
    retold(dataset.calls[-1], NO_ANSWER, Outcome.INFO)
    again(dataset, "tried", Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS", sha256=sha256))
    dataset.seal()


@CASES.illegal("OpenAccount open-wu of ops (operator) was acknowledged, and is nowhere", "acknowledged is kept")
def an_acknowledged_account_that_is_gone(dataset: DatasetBuilder) -> None:
    dataset.call("OpenAccount", Arguments(key="open-wu", clerk="ops"), Answer(), dataset.now_ms())


@CASES.illegal("saw open as UNPAID at version 2, and it never had that version", "reads were written")
def a_order_made_at_a_version_that_never_was(dataset: DatasetBuilder) -> None:
    call = dataset.call_of("make-open")
    call.answer = replace(call.answer, version=2)


@CASES.illegal(
    "saw stopped as CANCELLED at version 3, and it never had that version", "reads were written", "orders linearizable"
)
def a_order_cancelled_at_a_version_that_never_was(dataset: DatasetBuilder) -> None:
    dataset.new_order("stopped")
    dataset.request("li", "CancelOrder", "stop", rows=dataset.order_requests)
    dataset.move_order("stopped", "CANCELLED", 0)
    body = dataset.answer("li", "CancelOrder", "stop")
    answer = replace(dataset.seen_order(dataset.order("stopped")), version=3, sha256=digest(body))
    dataset.call("CancelOrder", Arguments(order_id="stopped", key="stop", clerk="li"), answer, dataset.now_ms())


@CASES.illegal(
    "saw open as UNPAID at version 1 by pay_01, and it was no payment", "reads were written", "orders linearizable"
)
def a_free_order_that_names_somebody(dataset: DatasetBuilder) -> None:
    call = dataset.look("open")
    call.answer = replace(call.answer, payment_id="pay_01")


# An order that does not exist


def told_of_no_order(dataset: DatasetBuilder, kind: str, key: str, clerk: str) -> RecordedCall:
    """Somebody is told that there is no order `late`."""
    asked = Arguments(order_id="late", key=key, clerk=clerk, source="DRAWER")
    return dataset.call(kind, asked, Answer("NOT_FOUND", "ORDER_NOT_FOUND"), dataset.now_ms())


@CASES.illegal(
    "Settle settle-late-1 of li (cashier) got 2 different answers",
    *("replays identical", "refused without effect", "orders linearizable"),
)
@CASES.illegal(
    "Settle settle-late-1 of li (cashier) was refused (ORDER_NOT_FOUND), and jnl_06 moved money",
    *("replays identical", "refused without effect", "orders linearizable"),
)
def an_order_settled_under_a_key_that_was_told_of_no_order(dataset: DatasetBuilder) -> None:
    """The refusal is stored, so the same request id must not settle an order that is made later."""
    told_of_no_order(dataset, "Settle", "settle-late-1", "li")
    dataset.new_order("late")
    dataset.settle("late")
    dataset.seal()


@CASES.lawful("replays identical", "refused without effect")
def an_order_settled_under_another_key_than_was_told_of_no_order(dataset: DatasetBuilder) -> None:
    """The first request id is told the same again."""
    refused = dataset.accept("late", "Settle", "settle-typo", "li")
    dataset.move_payment(refused, "DECLINED", dataset.fence())
    body = dataset.answer("li", "Settle", "settle-typo", ok=False)
    first = told_of_no_order(dataset, "Settle", "settle-typo", "li")
    first.answer = replace(first.answer, sha256=digest(body))
    dataset.new_order("late")
    dataset.settle("late")
    again(dataset, "settle-typo")


@CASES.lawful("replays identical", "refused without effect")
def an_order_settled_by_a_customer_who_was_told_of_no_order(dataset: DatasetBuilder) -> None:
    """Customers are told so before the request is run."""
    told_of_no_order(dataset, "Settle", "settle-late-1", "mei")
    dataset.new_order("late")
    dataset.settle("late", clerk="mei")


@CASES.lawful("replays identical", "refused without effect")
def an_order_paid_with_a_ticket_that_was_told_of_no_order(dataset: DatasetBuilder) -> None:
    """The order of a Pay that names a customer is looked up before the ticket is used."""
    refused = told_of_no_order(dataset, "Pay", "ticket-late", "li")
    dataset.new_order("late")
    paid = dataset.settle("late", key="ticket-late")
    paid["request_method"] = "Pay"
    dataset.request_of("li", "Settle", "ticket-late")["method"] = "Pay"
    dataset.calls[-1].kind = "Pay"
    dataset.calls[-1].arguments = refused.arguments


@CASES.illegal("saw pay_05 as SUBMITTED at version 2 after a caller had seen version 3", "reads go forward")
def a_payment_going_backwards_while_somebody_still_waits(dataset: DatasetBuilder) -> None:
    """The first to ask is the last to be answered."""
    first, *others = (dataset.look_at_payment(payment(dataset, "ticket-1")) for _ in range(3))
    first.answered_ns = dataset.now_ms() * 1_000_000
    others[1].answer = replace(others[1].answer, state="SUBMITTED", version=2)


@CASES.illegal("saw pay_05 as SUBMITTED at version 2 after a caller had seen version 3", "reads go forward")
def a_payment_going_backwards_after_going_forward(dataset: DatasetBuilder) -> None:
    """The newest version that anybody had seen is told, and not the first."""
    looks = [dataset.look_at_payment(payment(dataset, "ticket-1")) for _ in range(3)]
    for call in (looks[0], looks[2]):
        call.answer = replace(call.answer, state="SUBMITTED", version=2)


@CASES.lawful("reads go forward")
def another_payment_of_an_order_that_was_looked_at(dataset: DatasetBuilder) -> None:
    """Its versions are its own, also where callers say which order they mean."""
    first = payment(dataset, "settle-plain-1")
    dataset.reverse(first)
    for one in (first, dataset.settle("plain", clerk="wu", source="bank")):
        call = dataset.look_at_payment(one)
        call.arguments = replace(call.arguments, order_id="plain")


@CASES.lawful("reads go forward")
def an_older_payment_seen_in_the_same_nanosecond(dataset: DatasetBuilder) -> None:
    """The clock is no finer, so they overlap."""
    newer, older = (dataset.look_at_payment(payment(dataset, "ticket-1")) for _ in range(2))
    assert newer.answered_ns is not None
    older.invoked_ns = newer.answered_ns
    older.answer = replace(older.answer, state="SUBMITTED", version=2)


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)


def test_broken_recording_is_no_violation_for_later_attempts() -> None:
    """Refused when it was last heard of; it may have been sent again."""
    dataset = CASES.build()
    refused_but_done(dataset)
    history = replace(dataset.history(), whole=False)
    found: dict[str, Check] = {check.name: check for check in run_checks(dataset.snapshot(), history=history)}
    assert found["refused without effect"].ok
    assert found["refused without effect"].examined == 1


@pytest.mark.parametrize(
    ("method", "key", "ok", "expected"),
    [
        ("IssueTicket", "gone", True, True),
        ("Pay", "gone", True, True),
        ("CreateOrder", "gone", False, True),
        ("CreateOrder", "gone", True, False),
        ("CancelOrder", "gone", False, True),
        ("CancelOrder", "gone", True, False),
        ("Settle", "gone", False, False),
        ("Reverse", "gone", False, False),
        ("IssueTicket", "ask-1", True, False),
        ("Pay", "ticket-1", True, False),
    ],
)
def test_request_may_be_removed_only_if_it_is_gone_and_of_a_kind_that_ages(
    method: str, key: str, ok: bool, expected: bool
) -> None:
    """What an order was paid with, and an order that was made, are kept as long as the order."""
    dataset = legal()
    dataset.removals.append({"id": 1, "before_ms": dataset.now_ms()})
    evidence = Evidence(dataset.snapshot(), (), None, None, dataset.now_ms(), ended=True)
    assert evidence.may_be_removed((person("li", "cashier"), method, key), ok=ok) is expected
