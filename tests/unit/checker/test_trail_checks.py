"""The checks of the trail that changes leave."""

from __future__ import annotations

import pytest

from services.checker.checks import run_checks
from services.checker.verdict import Verdict
from tests.unit.checker.cases import Cases, Change, Illegal, Lawful, by_books, payment
from tests.unit.checker.scribe import Row, Scribe, legal

CASES = Cases(by_books)


# Fences, versions, moves


@CASES.illegal("plain: fence fell from (1, 102) to (1, 101) at version 3", "fences never fall")
def an_order_written_under_a_stale_fence(scribe: Scribe) -> None:
    scribe.order_events[2]["fence_token"] = 101


@CASES.illegal("pay_01: fence fell from (1, 102) to (1, 101) at version 3", "fences never fall")
def a_payment_written_under_a_stale_fence(scribe: Scribe) -> None:
    scribe.of(scribe.payment_events, payment(scribe, "settle-plain-1"))[2]["fence_token"] = 101


@CASES.illegal("plain: fence fell from (2, 1) to (1, 102) at version 3", "fences never fall")
def a_fence_of_an_ensemble_that_was_lost(scribe: Scribe) -> None:
    """A higher token of an older generation is the smaller fence."""
    scribe.order_events[1].update(fence_generation=2, fence_token=1)


@CASES.illegal("plain: fence fell from (1, 102) to (1, 101) since version 3", "fences never fall")
def an_order_whose_fence_was_lowered(scribe: Scribe) -> None:
    scribe.order("plain")["fence_token"] = 101


@CASES.illegal("pay_01: fence fell from (1, 102) to (1, 101) since version 3", "fences never fall")
def a_payment_whose_fence_was_lowered(scribe: Scribe) -> None:
    payment(scribe, "settle-plain-1")["fence_token"] = 101


@CASES.illegal("pay_01 is SUCCEEDED under fence (1, 102), and the ledger has seen (1, 101)", "fences never fall")
def a_ledger_that_was_asked_under_another_fence(scribe: Scribe) -> None:
    scribe.order_fences[0]["token"] = 101


@CASES.illegal("pay_03 is REVERSED under fence (1, 108), and the ledger has seen (1, 107)", "fences never fall")
def a_ledger_that_was_asked_to_reverse_under_another_fence(scribe: Scribe) -> None:
    scribe.order_fences[1]["token"] = 107
    last = payment(scribe, "settle-reversed-2")
    for row in (last, *scribe.of(scribe.payment_events, last)):
        row["fence_token"] = min(row["fence_token"], 107)


@CASES.illegal("order plain is at version 3, and its history has 2 steps", "moves are legal")
def a_gap_in_an_orders_history(scribe: Scribe) -> None:
    del scribe.order_events[1]


@CASES.illegal("payment pay_01 is at version 4, and its history has 3 steps", "moves are legal")
def a_payment_changed_without_a_trace(scribe: Scribe) -> None:
    payment(scribe, "settle-plain-1")["version"] += 1


@CASES.illegal("order plain went from UNPAID to PAID", "moves are legal")
def an_order_paid_without_a_claim(scribe: Scribe) -> None:
    del scribe.order_events[1]
    scribe.order_events[1]["version"] = 2
    scribe.order("plain")["version"] = 2


@CASES.illegal("payment pay_05 went from CREATED to SUCCEEDED", "moves are legal")
def a_payment_that_was_never_submitted(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    submitted, succeeded = scribe.of(scribe.payment_events, direct)[1:]
    scribe.payment_events.remove(submitted)
    succeeded["version"] = direct["version"] = 2


@CASES.illegal("payment pay_02 went from DECLINED to SUBMITTED", "moves are legal")
def a_declined_payment_that_rises_again(scribe: Scribe) -> None:
    declined = payment(scribe, "too-late")
    scribe.move_payment(declined, "SUBMITTED", scribe.fence())
    scribe.move_payment(declined, "DECLINED", scribe.fence())


@CASES.illegal("order open is CANCELLED, and its history goes from UNPAID to UNPAID", "moves are legal")
def a_state_that_its_history_does_not_know(scribe: Scribe) -> None:
    scribe.order("open")["state"] = "CANCELLED"


@CASES.illegal("payment pay_01 is SUCCEEDED, and its history goes from SUBMITTED to SUCCEEDED", "moves are legal")
def a_payment_that_began_in_the_middle(scribe: Scribe) -> None:
    made = payment(scribe, "settle-plain-1")
    created, *later = scribe.of(scribe.payment_events, made)
    scribe.payment_events.remove(created)
    for version, row in enumerate(later, start=1):
        row["version"] = made["version"] = version


@CASES.illegal("order plain was held by pay_01, and pay_02 made it PAID", "moves are legal", "outbox delivered once")
def a_order_completed_by_somebody_elses_payment(scribe: Scribe) -> None:
    scribe.order_events[2]["payment_id"] = "pay_02"


@CASES.illegal("order plain was held by pay_01, and nobody made it PAID", "moves are legal", "outbox delivered once")
def a_order_completed_by_no_payment(scribe: Scribe) -> None:
    scribe.order_events[2]["payment_id"] = ""


@CASES.illegal(
    "order plain names pay_02 in round 1, not pay_01",
    *("moves are legal", "outbox delivered once", "paid means charged"),
)
def a_order_taken_over_while_it_was_held(scribe: Scribe) -> None:
    """The row agrees with whoever took it; it was still the first one's."""
    scribe.order_events[2]["payment_id"] = scribe.order("plain")["payment_id"] = "pay_02"


@CASES.illegal("order plain names no payment in round 1, not pay_01", "moves are legal", "paid means charged")
def a_paid_order_that_names_nobody(scribe: Scribe) -> None:
    scribe.order("plain")["payment_id"] = ""


@CASES.illegal("order born names pay_99 in round 1, not none", "moves are legal", "nothing left over")
def a_order_that_was_held_when_it_was_made(scribe: Scribe) -> None:
    scribe.new_order("born")["state"] = scribe.order_events[-1]["to_state"] = "PAYING"
    scribe.order("born")["payment_id"] = "pay_99"


@CASES.illegal("order plain says PAYING and round 2 at version 3", "moves are legal")
def a_round_that_nobody_opened(scribe: Scribe) -> None:
    scribe.order_events[2]["round"] = 2


@CASES.illegal("order plain says PAID and round 1 at version 2", "moves are legal")
def a_move_from_where_the_order_was_not(scribe: Scribe) -> None:
    scribe.order_events[1]["from_state"] = "PAID"


@CASES.illegal("order reversed names pay_04 in round 3, not pay_04", "moves are legal")
def a_row_in_another_round_than_its_history(scribe: Scribe) -> None:
    scribe.order("reversed")["round"] = 3


@CASES.illegal("order open names pay_01 in round 1, not none", "moves are legal")
def an_unpaid_order_that_names_a_payment(scribe: Scribe) -> None:
    scribe.order("open")["payment_id"] = "pay_01"


@CASES.illegal("order plain is PAID, settled by nobody", "moves are legal")
def a_order_paid_and_settled_by_nobody(scribe: Scribe) -> None:
    scribe.order("plain")["settled_by_name"] = ""


@CASES.illegal("order open is UNPAID, settled by li", "moves are legal")
def a_order_settled_and_not_paid(scribe: Scribe) -> None:
    scribe.order("open")["settled_by_name"] = "li"


# The outbox


@CASES.illegal("the word to COMPLETE plain for pay_01 was obeyed 2 times", "outbox delivered once", "moves are legal")
def a_word_obeyed_twice(scribe: Scribe) -> None:
    scribe.order_events.append(scribe.order_events[2] | {"version": 4})
    scribe.order("plain")["version"] = 4


@CASES.illegal("the word to COMPLETE plain for pay_02 was delivered, and not obeyed", "outbox delivered once")
def a_word_delivered_and_not_obeyed(scribe: Scribe) -> None:
    scribe.deliver(payment(scribe, "too-late"), "COMPLETE")


@CASES.illegal("nobody said to COMPLETE an order for pay_01, and it was done", "outbox delivered once")
def a_order_completed_though_nobody_said_so(scribe: Scribe) -> None:
    scribe.outbox.pop(0)


@CASES.illegal("payment pay_03 is REVERSED, and nobody was to REOPEN its order", "outbox delivered once")
def a_reversal_of_which_the_order_is_not_told(scribe: Scribe) -> None:
    scribe.outbox = [row for row in scribe.outbox if row["purpose"] != "REOPEN"]


@CASES.illegal("nobody said to RELEASE an order for pay_06, and it was done", "outbox delivered once")
def a_order_released_though_nobody_said_so(scribe: Scribe) -> None:
    a_payment_declined_after_nobody_knew(scribe)
    scribe.outbox.pop()


@CASES.illegal("payment pay_03 is REVERSED, and nobody was to COMPLETE its order", "outbox delivered once")
def a_reversed_payment_whose_order_was_never_told_that_it_was_paid(scribe: Scribe) -> None:
    scribe.outbox = [row for row in scribe.outbox if (row["payment_id"], row["purpose"]) != ("pay_03", "COMPLETE")]


@CASES.illegal(
    "payment pay_01 is REVERSING, and nobody was to COMPLETE its order",
    *("outbox delivered once", "nothing left over", "paid means charged"),
)
def a_payment_being_reversed_whose_order_was_never_told_that_it_was_paid(scribe: Scribe) -> None:
    scribe.move_payment(payment(scribe, "settle-plain-1"), "REVERSING", scribe.fence())
    scribe.outbox.pop(0)


@CASES.illegal("payment pay_06 is REVERSED, and nobody was to RELEASE its order", "outbox delivered once")
def a_parked_payment_whose_order_was_never_released(scribe: Scribe) -> None:
    parked = scribe.park("open", 70)
    scribe.move_payment(parked, "REVERSED", parked["fence_token"])
    scribe.outbox.pop()
    scribe.order_events[:] = [row for row in scribe.order_events if row["payment_id"] != parked["payment_id"]]
    scribe.order("open").update(version=1, fence_generation=0, fence_token=0)


@CASES.illegal(
    "payment pay_06 went from PARKED to SUCCEEDED",
    *("moves are legal", "payments match journals", "paid means charged", "answers are true"),
)
def a_parked_payment_that_succeeds(scribe: Scribe) -> None:
    parked = scribe.park("open", 70)
    scribe.move_payment(parked, "SUCCEEDED", parked["fence_token"])


@CASES.illegal("payment pay_06 is PARKED", "nothing left over")
def a_parked_payment_that_the_acquirer_was_never_asked_about(scribe: Scribe) -> None:
    """The worker owes it a question, and it is there to answer."""
    scribe.park("open", 70)


# Requests, and what is left over


@CASES.illegal(
    "Pay ticket-unused of li (cashier) is IN_PROGRESS, 2.1 s past its lease", "leases are kept", "nothing left over"
)
def a_lease_that_passed_long_ago(scribe: Scribe) -> None:
    ticket = scribe.request_of("li", "Pay", "ticket-unused")
    ticket.update(state="IN_PROGRESS", lease_until_ms=scribe.now_ms() - 2_050)


@CASES.illegal("Pay ticket-unused of li (cashier) is IN_PROGRESS", "nothing left over")
def a_lease_that_has_just_passed(scribe: Scribe) -> None:
    """Whoever takes over may be about to."""
    ticket = scribe.request_of("li", "Pay", "ticket-unused")
    ticket.update(state="IN_PROGRESS", lease_until_ms=scribe.now_ms() - 1_900)


@CASES.illegal("CreateOrder make-plain of li (cashier) is DONE without a response", "requests are whole")
def a_order_made_without_a_response(scribe: Scribe) -> None:
    scribe.order_requests[0]["response"] = None
    scribe.answers = [answer for answer in scribe.answers if answer.key != "make-plain"]


@CASES.illegal("OpenAccount open-mei of ops (operator) is IN_PROGRESS with a response", "requests are whole")
def an_account_opened_and_not_done(scribe: Scribe) -> None:
    scribe.ledger_requests[0]["state"] = "IN_PROGRESS"


@CASES.illegal("IssueTicket ask-1 of li (cashier) is DONE without a response", "requests are whole")
def a_finished_request_without_a_response(scribe: Scribe) -> None:
    scribe.request_of("li", "IssueTicket", "ask-1")["response"] = None
    scribe.answers = [answer for answer in scribe.answers if answer.key != "ask-1"]


@CASES.illegal("Pay ticket-unused of li (cashier) is ISSUED with a response", "requests are whole")
def an_open_ticket_with_a_response(scribe: Scribe) -> None:
    scribe.request_of("li", "Pay", "ticket-unused")["response"] = b"?"


@CASES.illegal("payment pay_06 is SUBMITTED", "nothing left over")
def a_payment_left_submitted(scribe: Scribe) -> None:
    left = scribe.accept("", "Pay", "ticket-2", "li")
    scribe.request_of("li", "Pay", "ticket-2")["state"] = "ISSUED"
    scribe.move_payment(left, "SUBMITTED", 0)


@CASES.illegal("payment pay_06 is UNKNOWN", "nothing left over")
def a_payment_left_unknown(scribe: Scribe) -> None:
    a_payment_left_submitted(scribe)
    scribe.move_payment(payment(scribe, "ticket-2"), "UNKNOWN", 0)


@CASES.illegal("payment pay_05 is REVERSING", "nothing left over")
def a_payment_left_reversing(scribe: Scribe) -> None:
    scribe.move_payment(payment(scribe, "ticket-1"), "REVERSING", 0)


@CASES.illegal("order open is PAYING", "nothing left over")
def a_order_left_half_settled(scribe: Scribe) -> None:
    scribe.move_order("open", "PAYING", scribe.fence(), "pay_99")


@CASES.illegal("order open is PAYING", "nothing left over")
def a_order_that_was_charged_and_not_told_yet(scribe: Scribe) -> None:
    """Its payment has succeeded, which is as it should be; only the last step is missing."""
    left = scribe.accept("open", "Settle", "settle-open-1", "li")
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, left["payment_id"])
    scribe.charge(left, fence, "drawer", "settle:open:1", 70)
    scribe.answer("li", "Settle", "settle-open-1")
    scribe.deliver(left, "COMPLETE", delivered=False)
    scribe.seal()


@CASES.illegal("Pay ticket-unused of li (cashier) is IN_PROGRESS", "nothing left over")
def a_request_left_running(scribe: Scribe) -> None:
    scribe.request_of("li", "Pay", "ticket-unused")["state"] = "IN_PROGRESS"


@CASES.illegal("the order service has not been told to COMPLETE plain", "nothing left over")
def an_undelivered_word(scribe: Scribe) -> None:
    scribe.outbox[0]["delivered_at_ms"] = None


@CASES.illegal("nobody is named for version 1 of order plain", "changes are signed")
def an_order_made_by_nobody(scribe: Scribe) -> None:
    scribe.order_events[0]["actor_name"] = ""


@CASES.illegal("nobody is named for version 3 of payment pay_01", "changes are signed")
def a_payment_recorded_by_nobody(scribe: Scribe) -> None:
    scribe.payment_events[2]["actor_name"] = ""


@CASES.illegal("nobody said why", "changes are signed")
def a_reversal_without_a_reason(scribe: Scribe) -> None:
    event = next(event for event in scribe.payment_events if event["state"] == "REVERSING")
    event["reason"] = ""


@CASES.illegal("payment pay_06 is PARKED at version 4, and nobody said why", "changes are signed")
def a_parking_without_a_reason(scribe: Scribe) -> None:
    parked = scribe.park("open", 70)
    parked.update(asks=1)
    scribe.of(scribe.payment_events, parked)[-1]["reason"] = ""


@CASES.illegal("payment pay_03 is REVERSED at version 5, and nobody said why", "changes are signed")
def a_reversal_that_ended_without_a_reason(scribe: Scribe) -> None:
    scribe.of(scribe.payment_events, payment(scribe, "settle-reversed-1"))[-1]["reason"] = ""


# Lawful


@CASES.lawful("changes are signed")
def a_payment_in_books_that_have_no_names(scribe: Scribe) -> None:
    """The first release had no column for them, and wrote no reasons."""
    for event in scribe.payment_events:
        del event["actor_name"]
        event["reason"] = ""


@CASES.lawful("changes are signed")
def a_payment_of_the_first_release(scribe: Scribe) -> None:
    """It recorded nobody; what has been done to the payment since is signed."""
    reversed_ = next(event["payment_id"] for event in scribe.payment_events if event["state"] == "REVERSED")
    for event in scribe.payment_events:
        if event["payment_id"] == reversed_ and event["state"] not in ("REVERSING", "REVERSED"):
            event.update(actor_name="", actor_role="")


@CASES.lawful("nothing left over", "moves are legal", "outbox delivered once", "paid means charged")
def a_parked_payment_while_the_acquirer_is_away(scribe: Scribe) -> None:
    """Asked about, and not answered: open and listed. Its order is paid from the drawer meanwhile."""
    scribe.park("open", 70).update(asks=3)
    scribe.settle("open", key="cash")


@CASES.lawful("fences never fall")
def a_order_cancelled_after_its_payment_was_reversed(scribe: Scribe) -> None:
    """Who cancels holds no lock, and so no fence."""
    scribe.reverse(payment(scribe, "settle-plain-1"))
    scribe.move_order("plain", "CANCELLED", 0)


@CASES.lawful("moves are legal", "nothing left over")
def a_payment_parked_while_its_first_question_was_on_its_way(scribe: Scribe) -> None:
    """It was SUBMITTED, and nobody had noted yet that the acquirer was silent."""
    parked = scribe.park("open", 70)
    parked.update(asks=1)
    *_, unknown, last = scribe.of(scribe.payment_events, parked)
    scribe.payment_events.remove(unknown)
    last["version"] = parked["version"] = 3


@CASES.lawful("moves are legal", "payments match journals", "answers are true")
def a_parked_payment_reversed_beside_another_that_pays(scribe: Scribe) -> None:
    parked = scribe.park("open", 70)
    scribe.settle("open", key="cash")
    scribe.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.lawful("fences never fall", "moves are legal")
def a_payment_finished_by_another_clerk(scribe: Scribe) -> None:
    """Its holder died after the claim: the fence grows in the middle of its history, and so does the order's."""
    left = scribe.accept("open", "Settle", "settle-open-1", "li")
    first, second = scribe.fence(), scribe.fence()
    scribe.move_order("open", "PAYING", first, left["payment_id"])
    left.update(amount_minor=70, currency="CNY")
    scribe.move_payment(left, "SUBMITTED", first)
    scribe.move_payment(left, "UNKNOWN", first)
    legs = [("drawer:CNY", 70), ("sales:CNY", -70)]
    journal = scribe.journal("settle:open:1", legs, order_id="open", payment_id=left["payment_id"])
    left["journal_id"] = journal["journal_id"]
    scribe.move_payment(left, "SUCCEEDED", second)
    scribe.answer("li", "Settle", "settle-open-1")
    scribe.move_order("open", "PAID", second, left["payment_id"])
    scribe.deliver(left, "COMPLETE")


@CASES.lawful("moves are legal", "outbox delivered once")
def a_payment_declined_after_nobody_knew(scribe: Scribe) -> None:
    """The ledger was asked again, and had refused."""
    poor = scribe.accept("open", "Settle", "settle-open-1", "li")
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, poor["payment_id"])
    for state in ("SUBMITTED", "UNKNOWN", "DECLINED"):
        scribe.move_payment(poor, state, fence)
    scribe.answer("li", "Settle", "settle-open-1", ok=False)
    scribe.move_order("open", "UNPAID", fence, poor["payment_id"])
    scribe.deliver(poor, "RELEASE")


@CASES.lawful("fences never fall", "moves are legal")
def an_order_cancelled_after_a_payment_released_it(scribe: Scribe) -> None:
    """Only holders of the lock have a fence; whoever cancels holds none."""
    a_payment_declined_after_nobody_knew(scribe)
    scribe.move_order("open", "CANCELLED", 0)


@CASES.lawful("moves are legal")
def a_cancelled_order(scribe: Scribe) -> None:
    scribe.move_order("open", "CANCELLED", 0)


@CASES.lawful("requests are whole")
def an_expired_ticket(scribe: Scribe) -> None:
    scribe.request_of("li", "Pay", "ticket-unused")["state"] = "EXPIRED"


@CASES.lawful("fences never fall")
def a_ledger_that_keeps_no_fences(scribe: Scribe) -> None:
    """Its guard was switched off."""
    scribe.order_fences.clear()


@CASES.lawful("fences never fall")
def a_ledger_that_was_asked_by_a_later_holder(scribe: Scribe) -> None:
    scribe.see_fence("plain", scribe.fence())


@CASES.lawful("nothing left over", "requests are whole")
def a_request_given_back(scribe: Scribe) -> None:
    """Its order was locked: the request is open again, and its payment has done nothing."""
    scribe.accept("plain", "Settle", "gave-up", "wu")
    scribe.request_of("wu", "Settle", "gave-up")["state"] = "ISSUED"


@CASES.lawful("leases are kept")
def a_lease_of_a_request_that_is_done(scribe: Scribe) -> None:
    scribe.request_of("li", "Settle", "settle-plain-1")["lease_until_ms"] = 1


@CASES.lawful("outbox delivered once")
def a_word_about_an_order_that_was_never_claimed(scribe: Scribe) -> None:
    """The order is released for safety's sake, and is free already."""
    scribe.deliver(payment(scribe, "too-late"), "RELEASE")


@CASES.lawful("outbox delivered once")
def a_reversed_payment_of_no_order(scribe: Scribe) -> None:
    """There is nobody to be told."""
    scribe.reverse(payment(scribe, "ticket-1"))


@pytest.mark.parametrize(
    ("over_ms", "said"),
    [
        (2_000, ()),
        (2_001, ("Pay ticket-unused of li (cashier) is IN_PROGRESS, 2.0 s past its lease",)),
        (100_000, ("Pay ticket-unused of li (cashier) is IN_PROGRESS, 100.0 s past its lease",)),
    ],
)
def test_a_worker_has_two_seconds_to_take_over(over_ms: int, said: tuple[str, ...]) -> None:
    scribe = legal()
    now_ms = scribe.now_ms()
    scribe.request_of("li", "Pay", "ticket-unused").update(state="IN_PROGRESS", lease_until_ms=now_ms - over_ms)
    (check,) = [check for check in run_checks(scribe.books(), now_ms=now_ms) if check.name == "leases are kept"]
    assert check.violations == said


@pytest.mark.parametrize(
    ("state", "ask_in_ms", "said"),
    [
        ("UNKNOWN", -2_000, ()),
        ("UNKNOWN", -2_001, ("Settle settle-open-1 of li (cashier) is IN_PROGRESS, 2.0 s past its lease",)),
        ("CREATED", 9_000, ("Settle settle-open-1 of li (cashier) is IN_PROGRESS, 60.0 s past its lease",)),
    ],
)
def test_lease_of_a_payment_that_waits_for_the_acquirer_may_pass(
    state: str, ask_in_ms: int, said: tuple[str, ...]
) -> None:
    """Nobody takes it over before the acquirer is to be asked again."""
    scribe = legal()
    left, now_ms = unanswered(scribe, state), scribe.now_ms()
    left["ask_at_ms"] = now_ms + ask_in_ms
    scribe.request_of("li", "Settle", "settle-open-1")["lease_until_ms"] = now_ms - 60_000
    (check,) = [check for check in run_checks(scribe.books(), now_ms=now_ms) if check.name == "leases are kept"]
    assert check.violations == said


# A stack that may go on


def unanswered(scribe: Scribe, state: str = "UNKNOWN") -> Row:
    """A payment of the order `open` that somebody works on; the acquirer is silent."""
    left = scribe.accept("open", "Settle", "settle-open-1", "li")
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, left["payment_id"])
    if state != "CREATED":
        scribe.submit(left, fence, "acquirer", 70)
    if state not in ("CREATED", "SUBMITTED"):
        scribe.move_payment(left, state, fence)
    return left


def going_on(scribe: Scribe, name: str = "nothing left over") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a check finds wrong, and what it finds undecided, while the stack may go on; the others find nothing."""
    checks = run_checks(scribe.books(), scribe.answers, now_ms=scribe.now_ms(), ended=False)
    assert [check for check in checks if check.name != name and check.verdict is not Verdict.OK] == []
    (found,) = [check for check in checks if check.name == name]
    return found.violations, found.undecided


def test_payment_that_waits_for_the_acquirer_is_undecided_while_the_stack_may_go_on() -> None:
    """The payment, its order and its request are named; after a run they would be violations."""
    scribe = legal()
    unanswered(scribe).update(asks=7)
    assert going_on(scribe) == (
        (),
        (
            "payment pay_06 is UNKNOWN: still open; the acquirer was asked 7 times and has not answered",
            "order open is PAYING: still open",
            "Settle settle-open-1 of li (cashier) is IN_PROGRESS: still open",
        ),
    )
    (check,) = [check for check in run_checks(scribe.books()) if check.name == "nothing left over"]
    assert (len(check.violations), check.undecided) == (3, ())


def test_examined_rows_are_the_same_while_the_stack_may_go_on() -> None:
    scribe = legal()
    counts = [
        [check.examined for check in run_checks(scribe.books(), now_ms=scribe.now_ms(), ended=ended)]
        for ended in (True, False)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("state", ["CREATED", "SUBMITTED", "UNKNOWN"])
def test_payment_of_a_running_request_is_open(state: str) -> None:
    scribe = legal()
    unanswered(scribe, state)
    violations, undecided = going_on(scribe)
    assert (violations, len(undecided)) == ((), 2 if state == "CREATED" else 3)


def test_payment_that_is_being_reversed_by_a_running_request_is_open() -> None:
    scribe = legal()
    made = payment(scribe, "ticket-1")
    scribe.request("wu", "Reverse", "undo")
    made.update(reversal_caller="wu", reversal_role="accountant", reversal_key="undo")
    scribe.move_payment(made, "REVERSING", 0)
    assert going_on(scribe) == (
        (),
        ("payment pay_05 is REVERSING: still open", "Reverse undo of wu (accountant) is IN_PROGRESS: still open"),
    )


def undone_in_the_ledger(scribe: Scribe) -> Row:
    """The payment of the order `plain`, which is PAID: the ledger has its reversal, and the acquirer is silent."""
    made = payment(scribe, "settle-plain-1")
    fence = scribe.fence()
    scribe.request("wu", "Reverse", "undo")
    made.update(reversal_caller="wu", reversal_role="accountant", reversal_key="undo")
    scribe.move_payment(made, "REVERSING", fence)
    scribe.undo(made, fence)
    scribe.seal()
    return made


def reversed_and_not_told(scribe: Scribe) -> Row:
    """The payment of the order `plain`, which is PAID until the order service can be told of the reversal."""
    made = undone_in_the_ledger(scribe)
    made["reversal_journal_id"] = scribe.journals[-1]["journal_id"]
    scribe.move_payment(made, "REVERSED", made["fence_token"])
    scribe.answer("wu", "Reverse", "undo")
    return scribe.deliver(made, "REOPEN", delivered=False)


_PAID_BY_NOTHING = (
    "order plain is PAID with 0 succeeded payments",
    "order plain is PAID with 0 settle journals that stand",
)


def paid_by_nothing(scribe: Scribe, *, ended: bool) -> tuple[str, ...]:
    """What is wrong with paid orders."""
    checks = run_checks(scribe.books(), scribe.answers, now_ms=scribe.now_ms(), ended=ended)
    (found,) = [check for check in checks if check.name == "paid means charged"]
    return found.violations


def test_paid_order_whose_payment_is_being_reversed_is_open_while_the_stack_may_go_on() -> None:
    """The ledger is asked before the acquirer; after a run the order would be a violation."""
    scribe = legal()
    undone_in_the_ledger(scribe)
    assert going_on(scribe) == (
        (),
        ("payment pay_01 is REVERSING: still open", "Reverse undo of wu (accountant) is IN_PROGRESS: still open"),
    )
    assert paid_by_nothing(scribe, ended=True) == _PAID_BY_NOTHING


def test_paid_order_that_is_still_to_be_reopened_is_open_while_the_stack_may_go_on() -> None:
    """The order service is away; after a run the order would be a violation."""
    scribe = legal()
    reversed_and_not_told(scribe)
    assert going_on(scribe) == ((), ("the order service has not been told to REOPEN plain: still open",))
    assert paid_by_nothing(scribe, ended=True) == _PAID_BY_NOTHING


def test_paid_order_that_was_told_to_reopen_is_a_violation_while_the_stack_may_go_on() -> None:
    scribe = legal()
    reversed_and_not_told(scribe)["delivered_at_ms"] = scribe.now_ms()
    assert paid_by_nothing(scribe, ended=False) == _PAID_BY_NOTHING


def test_paid_order_of_a_lost_journal_is_a_violation_while_the_stack_may_go_on() -> None:
    """That the order service may be told once more to complete it does not excuse it; nor does another's reversal."""
    scribe = legal()
    scribe.outbox[0]["delivered_at_ms"] = None
    scribe.remove_journal("jnl_01")
    other = payment(scribe, "settle-reversed-2")
    scribe.move_payment(other, "REVERSING", scribe.fence())
    assert paid_by_nothing(scribe, ended=False) == _PAID_BY_NOTHING[1:]


@pytest.mark.parametrize("asks", [0, 2])
def test_parked_payment_is_open(asks: int) -> None:
    """The worker reverses its key, whether or not it has asked so far."""
    scribe = legal()
    scribe.park("open", 70).update(asks=asks)
    more = "; the acquirer was asked 2 times and has not answered" if asks else ""
    assert going_on(scribe) == ((), (f"payment pay_06 is PARKED: still open{more}",))


def test_order_of_an_undelivered_word_is_open() -> None:
    scribe = legal()
    a_order_that_was_charged_and_not_told_yet(scribe)
    assert going_on(scribe) == (
        (),
        (
            "order open is PAYING: still open",
            "the order service has not been told to COMPLETE open: still open",
        ),
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (a_payment_left_submitted, "payment pay_06 is SUBMITTED"),
        (a_payment_left_unknown, "payment pay_06 is UNKNOWN"),
        (a_payment_left_reversing, "payment pay_05 is REVERSING"),
        (a_order_left_half_settled, "order open is PAYING"),
    ],
)
def test_what_nobody_will_finish_is_a_violation_while_the_stack_may_go_on(spoil: Change, said: str) -> None:
    """No request is running for it, and no word about it is undelivered."""
    scribe = legal()
    spoil(scribe)
    assert going_on(scribe) == ((f"{said}, and nobody will finish it",), ())


def test_order_of_a_delivered_word_that_is_still_paying_is_a_violation_while_the_stack_may_go_on() -> None:
    scribe = legal()
    a_order_that_was_charged_and_not_told_yet(scribe)
    scribe.outbox[-1]["delivered_at_ms"] = scribe.now_ms()
    checks = run_checks(scribe.books(), now_ms=scribe.now_ms(), ended=False)
    (found,) = [check for check in checks if check.name == "nothing left over"]
    assert found.violations == ("order open is PAYING, and nobody will finish it",)


def test_lease_that_passed_is_undecided_while_the_stack_may_go_on() -> None:
    """Perhaps no instance could take it over."""
    scribe = legal()
    a_lease_that_passed_long_ago(scribe)
    checks = run_checks(scribe.books(), now_ms=scribe.now_ms(), ended=False)
    (found,) = [check for check in checks if check.name == "leases are kept"]
    assert (found.violations, len(found.undecided)) == ((), 1)
    assert found.undecided[0].startswith("Pay ticket-unused of li (cashier) is IN_PROGRESS, ")


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_an_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_a_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)
