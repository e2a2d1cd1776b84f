"""The checks of the trail that changes leave."""

from __future__ import annotations

import pytest

from services.checker.findings import Verdict
from services.checker.registry import run_checks
from tests.unit.checker.cases import Cases, Change, Illegal, Lawful, by_snapshot, payment
from tests.unit.checker.dataset import DatasetBuilder, legal
from tests.unit.checker.rows import Row

CASES = Cases(by_snapshot)


# Fences, versions, moves


@CASES.illegal("plain: fence fell from (1, 102) to (1, 101) at version 3", "fences never fall")
def an_order_written_under_a_stale_fence(dataset: DatasetBuilder) -> None:
    dataset.order_events[2]["fence_token"] = 101


@CASES.illegal("pay_01: fence fell from (1, 102) to (1, 101) at version 3", "fences never fall")
def a_payment_written_under_a_stale_fence(dataset: DatasetBuilder) -> None:
    dataset.of(dataset.payment_events, payment(dataset, "settle-plain-1"))[2]["fence_token"] = 101


@CASES.illegal("plain: fence fell from (2, 1) to (1, 102) at version 3", "fences never fall")
def a_fence_of_an_ensemble_that_was_lost(dataset: DatasetBuilder) -> None:
    """A higher token of an older generation is the smaller fence."""
    dataset.order_events[1].update(fence_generation=2, fence_token=1)


@CASES.illegal("plain: fence fell from (1, 102) to (1, 101) since version 3", "fences never fall")
def an_order_whose_fence_was_lowered(dataset: DatasetBuilder) -> None:
    dataset.order("plain")["fence_token"] = 101


@CASES.illegal("pay_01: fence fell from (1, 102) to (1, 101) since version 3", "fences never fall")
def a_payment_whose_fence_was_lowered(dataset: DatasetBuilder) -> None:
    payment(dataset, "settle-plain-1")["fence_token"] = 101


@CASES.illegal("pay_01 is SUCCEEDED under fence (1, 102), and the ledger has seen (1, 101)", "fences never fall")
def a_ledger_that_was_asked_under_another_fence(dataset: DatasetBuilder) -> None:
    dataset.order_fences[0]["token"] = 101


@CASES.illegal("pay_03 is REVERSED under fence (1, 108), and the ledger has seen (1, 107)", "fences never fall")
def a_ledger_that_was_asked_to_reverse_under_another_fence(dataset: DatasetBuilder) -> None:
    dataset.order_fences[1]["token"] = 107
    last = payment(dataset, "settle-reversed-2")
    for row in (last, *dataset.of(dataset.payment_events, last)):
        row["fence_token"] = min(row["fence_token"], 107)


@CASES.illegal("order plain is at version 3, and its history has 2 steps", "moves are legal")
def a_gap_in_an_orders_history(dataset: DatasetBuilder) -> None:
    del dataset.order_events[1]


@CASES.illegal("payment pay_01 is at version 4, and its history has 3 steps", "moves are legal")
def a_payment_changed_without_a_trace(dataset: DatasetBuilder) -> None:
    payment(dataset, "settle-plain-1")["version"] += 1


@CASES.illegal("order plain went from UNPAID to PAID", "moves are legal")
def an_order_paid_without_a_claim(dataset: DatasetBuilder) -> None:
    del dataset.order_events[1]
    dataset.order_events[1]["version"] = 2
    dataset.order("plain")["version"] = 2


@CASES.illegal("payment pay_05 went from CREATED to SUCCEEDED", "moves are legal")
def a_payment_that_was_never_submitted(dataset: DatasetBuilder) -> None:
    direct = payment(dataset, "ticket-1")
    submitted, succeeded = dataset.of(dataset.payment_events, direct)[1:]
    dataset.payment_events.remove(submitted)
    succeeded["version"] = direct["version"] = 2


@CASES.illegal("payment pay_02 went from DECLINED to SUBMITTED", "moves are legal")
def a_declined_payment_that_rises_again(dataset: DatasetBuilder) -> None:
    declined = payment(dataset, "too-late")
    dataset.move_payment(declined, "SUBMITTED", dataset.fence())
    dataset.move_payment(declined, "DECLINED", dataset.fence())


@CASES.illegal("order open is CANCELLED, and its history goes from UNPAID to UNPAID", "moves are legal")
def a_state_that_its_history_does_not_know(dataset: DatasetBuilder) -> None:
    dataset.order("open")["state"] = "CANCELLED"


@CASES.illegal("payment pay_01 is SUCCEEDED, and its history goes from SUBMITTED to SUCCEEDED", "moves are legal")
def a_payment_that_began_in_the_middle(dataset: DatasetBuilder) -> None:
    made = payment(dataset, "settle-plain-1")
    created, *later = dataset.of(dataset.payment_events, made)
    dataset.payment_events.remove(created)
    for version, row in enumerate(later, start=1):
        row["version"] = made["version"] = version


@CASES.illegal("order plain was held by pay_01, and pay_02 made it PAID", "moves are legal", "outbox delivered once")
def a_order_completed_by_somebody_elses_payment(dataset: DatasetBuilder) -> None:
    dataset.order_events[2]["payment_id"] = "pay_02"


@CASES.illegal(
    "order plain was held by pay_01, and no payment made it PAID", "moves are legal", "outbox delivered once"
)
def a_order_completed_by_no_payment(dataset: DatasetBuilder) -> None:
    dataset.order_events[2]["payment_id"] = ""


@CASES.illegal(
    "order plain names pay_02 in round 1, not pay_01",
    *("moves are legal", "outbox delivered once", "paid means charged"),
)
def a_order_taken_over_while_it_was_held(dataset: DatasetBuilder) -> None:
    """The row agrees with whoever took it; it was still the first one's."""
    dataset.order_events[2]["payment_id"] = dataset.order("plain")["payment_id"] = "pay_02"


@CASES.illegal("order plain names no payment in round 1, not pay_01", "moves are legal", "paid means charged")
def a_paid_order_that_names_nobody(dataset: DatasetBuilder) -> None:
    dataset.order("plain")["payment_id"] = ""


@CASES.illegal("order born names pay_99 in round 1, not none", "moves are legal", "nothing left over")
def a_order_that_was_held_when_it_was_made(dataset: DatasetBuilder) -> None:
    dataset.new_order("born")["state"] = dataset.order_events[-1]["to_state"] = "PAYING"
    dataset.order("born")["payment_id"] = "pay_99"


@CASES.illegal("order plain says PAYING and round 2 at version 3", "moves are legal")
def a_round_that_nobody_opened(dataset: DatasetBuilder) -> None:
    dataset.order_events[2]["round"] = 2


@CASES.illegal("order plain says PAID and round 1 at version 2", "moves are legal")
def a_move_from_where_the_order_was_not(dataset: DatasetBuilder) -> None:
    dataset.order_events[1]["from_state"] = "PAID"


@CASES.illegal("order reversed names pay_04 in round 3, not pay_04", "moves are legal")
def a_row_in_another_round_than_its_history(dataset: DatasetBuilder) -> None:
    dataset.order("reversed")["round"] = 3


@CASES.illegal("order open names pay_01 in round 1, not none", "moves are legal")
def an_unpaid_order_that_names_a_payment(dataset: DatasetBuilder) -> None:
    dataset.order("open")["payment_id"] = "pay_01"


@CASES.illegal("order plain is PAID, settled by no clerk", "moves are legal")
def a_order_paid_and_settled_by_nobody(dataset: DatasetBuilder) -> None:
    dataset.order("plain")["settled_by_name"] = ""


@CASES.illegal("order open is UNPAID, settled by li", "moves are legal")
def a_order_settled_and_not_paid(dataset: DatasetBuilder) -> None:
    dataset.order("open")["settled_by_name"] = "li"


# The outbox


@CASES.illegal("the outbox's COMPLETE of plain for pay_01 was done 2 times", "outbox delivered once", "moves are legal")
def a_word_obeyed_twice(dataset: DatasetBuilder) -> None:
    dataset.order_events.append(dataset.order_events[2] | {"version": 4})
    dataset.order("plain")["version"] = 4


@CASES.illegal("the outbox's COMPLETE of plain for pay_02 was delivered, and not done", "outbox delivered once")
def a_word_delivered_and_not_obeyed(dataset: DatasetBuilder) -> None:
    dataset.deliver(payment(dataset, "too-late"), "COMPLETE")


@CASES.illegal("COMPLETE of an order was done for pay_01 without an outbox row", "outbox delivered once")
def a_order_completed_though_nobody_said_so(dataset: DatasetBuilder) -> None:
    dataset.outbox.pop(0)


@CASES.illegal("payment pay_03 is REVERSED, and the outbox has no REOPEN of its order", "outbox delivered once")
def a_reversal_of_which_the_order_is_not_told(dataset: DatasetBuilder) -> None:
    dataset.outbox = [row for row in dataset.outbox if row["purpose"] != "REOPEN"]


@CASES.illegal("RELEASE of an order was done for pay_06 without an outbox row", "outbox delivered once")
def a_order_released_though_nobody_said_so(dataset: DatasetBuilder) -> None:
    a_payment_declined_after_nobody_knew(dataset)
    dataset.outbox.pop()


@CASES.illegal("payment pay_03 is REVERSED, and the outbox has no COMPLETE of its order", "outbox delivered once")
def a_reversed_payment_whose_order_was_never_told_that_it_was_paid(dataset: DatasetBuilder) -> None:
    dataset.outbox = [row for row in dataset.outbox if (row["payment_id"], row["purpose"]) != ("pay_03", "COMPLETE")]


@CASES.illegal(
    "payment pay_01 is REVERSING, and the outbox has no COMPLETE of its order",
    *("outbox delivered once", "nothing left over", "paid means charged"),
)
def a_payment_being_reversed_whose_order_was_never_told_that_it_was_paid(dataset: DatasetBuilder) -> None:
    dataset.move_payment(payment(dataset, "settle-plain-1"), "REVERSING", dataset.fence())
    dataset.outbox.pop(0)


@CASES.illegal("payment pay_06 is REVERSED, and the outbox has no RELEASE of its order", "outbox delivered once")
def a_parked_payment_whose_order_was_never_released(dataset: DatasetBuilder) -> None:
    parked = dataset.park("open", 70)
    dataset.move_payment(parked, "REVERSED", parked["fence_token"])
    dataset.outbox.pop()
    dataset.order_events[:] = [row for row in dataset.order_events if row["payment_id"] != parked["payment_id"]]
    dataset.order("open").update(version=1, fence_generation=0, fence_token=0)


@CASES.illegal(
    "payment pay_06 went from PARKED to SUCCEEDED",
    *("moves are legal", "payments match journals", "paid means charged", "answers are true"),
)
def a_parked_payment_that_succeeds(dataset: DatasetBuilder) -> None:
    parked = dataset.park("open", 70)
    dataset.move_payment(parked, "SUCCEEDED", parked["fence_token"])


@CASES.illegal("payment pay_06 is PARKED", "nothing left over")
def a_parked_payment_that_the_acquirer_was_never_asked_about(dataset: DatasetBuilder) -> None:
    """The worker owes it a question, and it is there to answer."""
    dataset.park("open", 70)


# Requests, and what is left over


@CASES.illegal(
    "Pay ticket-unused of li (cashier) is IN_PROGRESS, 2.1 s past its lease", "leases are kept", "nothing left over"
)
def a_lease_that_passed_long_ago(dataset: DatasetBuilder) -> None:
    ticket = dataset.request_of("li", "Pay", "ticket-unused")
    ticket.update(state="IN_PROGRESS", lease_until_ms=dataset.now_ms() - 2_050)


@CASES.illegal("Pay ticket-unused of li (cashier) is IN_PROGRESS", "nothing left over")
def a_lease_that_has_just_passed(dataset: DatasetBuilder) -> None:
    """Whoever takes over may be about to."""
    ticket = dataset.request_of("li", "Pay", "ticket-unused")
    ticket.update(state="IN_PROGRESS", lease_until_ms=dataset.now_ms() - 1_900)


@CASES.illegal("CreateOrder make-plain of li (cashier) is DONE without a response", "requests are whole")
def a_order_made_without_a_response(dataset: DatasetBuilder) -> None:
    dataset.order_requests[0]["response"] = None
    dataset.answers = [answer for answer in dataset.answers if answer.key != "make-plain"]


@CASES.illegal("OpenAccount open-mei of ops (operator) is IN_PROGRESS with a response", "requests are whole")
def an_account_opened_and_not_done(dataset: DatasetBuilder) -> None:
    dataset.ledger_requests[0]["state"] = "IN_PROGRESS"


@CASES.illegal("IssueTicket ask-1 of li (cashier) is DONE without a response", "requests are whole")
def a_finished_request_without_a_response(dataset: DatasetBuilder) -> None:
    dataset.request_of("li", "IssueTicket", "ask-1")["response"] = None
    dataset.answers = [answer for answer in dataset.answers if answer.key != "ask-1"]


@CASES.illegal("Pay ticket-unused of li (cashier) is ISSUED with a response", "requests are whole")
def an_open_ticket_with_a_response(dataset: DatasetBuilder) -> None:
    dataset.request_of("li", "Pay", "ticket-unused")["response"] = b"?"


@CASES.illegal("payment pay_06 is SUBMITTED", "nothing left over")
def a_payment_left_submitted(dataset: DatasetBuilder) -> None:
    left = dataset.accept("", "Pay", "ticket-2", "li")
    dataset.request_of("li", "Pay", "ticket-2")["state"] = "ISSUED"
    dataset.move_payment(left, "SUBMITTED", 0)


@CASES.illegal("payment pay_06 is UNKNOWN", "nothing left over")
def a_payment_left_unknown(dataset: DatasetBuilder) -> None:
    a_payment_left_submitted(dataset)
    dataset.move_payment(payment(dataset, "ticket-2"), "UNKNOWN", 0)


@CASES.illegal("payment pay_05 is REVERSING", "nothing left over")
def a_payment_left_reversing(dataset: DatasetBuilder) -> None:
    dataset.move_payment(payment(dataset, "ticket-1"), "REVERSING", 0)


@CASES.illegal("order open is PAYING", "nothing left over")
def a_order_left_half_settled(dataset: DatasetBuilder) -> None:
    dataset.move_order("open", "PAYING", dataset.fence(), "pay_99")


@CASES.illegal("order open is PAYING", "nothing left over")
def a_order_that_was_charged_and_not_told_yet(dataset: DatasetBuilder) -> None:
    """Its payment has succeeded, which is as it should be; only the last step is missing."""
    left = dataset.accept("open", "Settle", "settle-open-1", "li")
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, left["payment_id"])
    dataset.charge(left, fence, "drawer", "settle:open:1", 70)
    dataset.answer("li", "Settle", "settle-open-1")
    dataset.deliver(left, "COMPLETE", delivered=False)
    dataset.seal()


@CASES.illegal("Pay ticket-unused of li (cashier) is IN_PROGRESS", "nothing left over")
def a_request_left_running(dataset: DatasetBuilder) -> None:
    dataset.request_of("li", "Pay", "ticket-unused")["state"] = "IN_PROGRESS"


@CASES.illegal("the order service has not been notified to COMPLETE plain", "nothing left over")
def an_undelivered_word(dataset: DatasetBuilder) -> None:
    dataset.outbox[0]["delivered_at_ms"] = None


@CASES.illegal("no actor is named for version 1 of order plain", "changes are signed")
def an_order_made_by_nobody(dataset: DatasetBuilder) -> None:
    dataset.order_events[0]["actor_name"] = ""


@CASES.illegal("no actor is named for version 3 of payment pay_01", "changes are signed")
def a_payment_recorded_by_nobody(dataset: DatasetBuilder) -> None:
    dataset.payment_events[2]["actor_name"] = ""


@CASES.illegal("without a reason", "changes are signed")
def a_reversal_without_a_reason(dataset: DatasetBuilder) -> None:
    event = next(event for event in dataset.payment_events if event["state"] == "REVERSING")
    event["reason"] = ""


@CASES.illegal("payment pay_06 is PARKED at version 4, without a reason", "changes are signed")
def a_parking_without_a_reason(dataset: DatasetBuilder) -> None:
    parked = dataset.park("open", 70)
    parked.update(asks=1)
    dataset.of(dataset.payment_events, parked)[-1]["reason"] = ""


@CASES.illegal("payment pay_03 is REVERSED at version 5, without a reason", "changes are signed")
def a_reversal_that_ended_without_a_reason(dataset: DatasetBuilder) -> None:
    dataset.of(dataset.payment_events, payment(dataset, "settle-reversed-1"))[-1]["reason"] = ""


# Lawful


@CASES.lawful("changes are signed")
def a_payment_in_books_that_have_no_names(dataset: DatasetBuilder) -> None:
    """The first release had no column for them, and wrote no reasons."""
    for event in dataset.payment_events:
        del event["actor_name"]
        event["reason"] = ""


@CASES.lawful("changes are signed")
def a_payment_of_the_first_release(dataset: DatasetBuilder) -> None:
    """It recorded nobody; what has been done to the payment since is signed."""
    reversed_ = next(event["payment_id"] for event in dataset.payment_events if event["state"] == "REVERSED")
    for event in dataset.payment_events:
        if event["payment_id"] == reversed_ and event["state"] not in ("REVERSING", "REVERSED"):
            event.update(actor_name="", actor_role="")


@CASES.lawful("nothing left over", "moves are legal", "outbox delivered once", "paid means charged")
def a_parked_payment_while_the_acquirer_is_away(dataset: DatasetBuilder) -> None:
    """Asked about, and not answered: open and listed. Its order is paid from the drawer meanwhile."""
    dataset.park("open", 70).update(asks=3)
    dataset.settle("open", key="cash")


@CASES.lawful("fences never fall")
def a_order_cancelled_after_its_payment_was_reversed(dataset: DatasetBuilder) -> None:
    """Who cancels holds no lock, and so no fence."""
    dataset.reverse(payment(dataset, "settle-plain-1"))
    dataset.move_order("plain", "CANCELLED", 0)


@CASES.lawful("moves are legal", "nothing left over")
def a_payment_parked_while_its_first_question_was_on_its_way(dataset: DatasetBuilder) -> None:
    """It was SUBMITTED, and nobody had noted yet that the acquirer was silent."""
    parked = dataset.park("open", 70)
    parked.update(asks=1)
    *_, unknown, last = dataset.of(dataset.payment_events, parked)
    dataset.payment_events.remove(unknown)
    last["version"] = parked["version"] = 3


@CASES.lawful("moves are legal", "payments match journals", "answers are true")
def a_parked_payment_reversed_beside_another_that_pays(dataset: DatasetBuilder) -> None:
    parked = dataset.park("open", 70)
    dataset.settle("open", key="cash")
    dataset.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.lawful("fences never fall", "moves are legal")
def a_payment_finished_by_another_clerk(dataset: DatasetBuilder) -> None:
    """Its holder died after the claim: the fence grows in the middle of its history, and so does the order's."""
    left = dataset.accept("open", "Settle", "settle-open-1", "li")
    first, second = dataset.fence(), dataset.fence()
    dataset.move_order("open", "PAYING", first, left["payment_id"])
    left.update(amount_minor=70, currency="CNY")
    dataset.move_payment(left, "SUBMITTED", first)
    dataset.move_payment(left, "UNKNOWN", first)
    legs = [("drawer:CNY", 70), ("sales:CNY", -70)]
    journal = dataset.journal("settle:open:1", legs, order_id="open", payment_id=left["payment_id"])
    left["journal_id"] = journal["journal_id"]
    dataset.move_payment(left, "SUCCEEDED", second)
    dataset.answer("li", "Settle", "settle-open-1")
    dataset.move_order("open", "PAID", second, left["payment_id"])
    dataset.deliver(left, "COMPLETE")


@CASES.lawful("moves are legal", "outbox delivered once")
def a_payment_declined_after_nobody_knew(dataset: DatasetBuilder) -> None:
    """The ledger was asked again, and had refused."""
    poor = dataset.accept("open", "Settle", "settle-open-1", "li")
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, poor["payment_id"])
    for state in ("SUBMITTED", "UNKNOWN", "DECLINED"):
        dataset.move_payment(poor, state, fence)
    dataset.answer("li", "Settle", "settle-open-1", ok=False)
    dataset.move_order("open", "UNPAID", fence, poor["payment_id"])
    dataset.deliver(poor, "RELEASE")


@CASES.lawful("fences never fall", "moves are legal")
def an_order_cancelled_after_a_payment_released_it(dataset: DatasetBuilder) -> None:
    """Only holders of the lock have a fence; whoever cancels holds none."""
    a_payment_declined_after_nobody_knew(dataset)
    dataset.move_order("open", "CANCELLED", 0)


@CASES.lawful("moves are legal")
def a_cancelled_order(dataset: DatasetBuilder) -> None:
    dataset.move_order("open", "CANCELLED", 0)


@CASES.lawful("requests are whole")
def an_expired_ticket(dataset: DatasetBuilder) -> None:
    dataset.request_of("li", "Pay", "ticket-unused")["state"] = "EXPIRED"


@CASES.lawful("fences never fall")
def a_ledger_that_keeps_no_fences(dataset: DatasetBuilder) -> None:
    """Its guard was switched off."""
    dataset.order_fences.clear()


@CASES.lawful("fences never fall")
def a_ledger_that_was_asked_by_a_later_holder(dataset: DatasetBuilder) -> None:
    dataset.see_fence("plain", dataset.fence())


@CASES.lawful("nothing left over", "requests are whole")
def a_request_given_back(dataset: DatasetBuilder) -> None:
    """Its order was locked: the request is open again, and its payment has done nothing."""
    dataset.accept("plain", "Settle", "gave-up", "wu")
    dataset.request_of("wu", "Settle", "gave-up")["state"] = "ISSUED"


@CASES.lawful("leases are kept")
def a_lease_of_a_request_that_is_done(dataset: DatasetBuilder) -> None:
    dataset.request_of("li", "Settle", "settle-plain-1")["lease_until_ms"] = 1


@CASES.lawful("outbox delivered once")
def a_word_about_an_order_that_was_never_claimed(dataset: DatasetBuilder) -> None:
    """The order is released for safety's sake, and is free already."""
    dataset.deliver(payment(dataset, "too-late"), "RELEASE")


@CASES.lawful("outbox delivered once")
def a_reversed_payment_of_no_order(dataset: DatasetBuilder) -> None:
    """There is nobody to be told."""
    dataset.reverse(payment(dataset, "ticket-1"))


@pytest.mark.parametrize(
    ("over_ms", "said"),
    [
        (2_000, ()),
        (2_001, ("Pay ticket-unused of li (cashier) is IN_PROGRESS, 2.0 s past its lease",)),
        (100_000, ("Pay ticket-unused of li (cashier) is IN_PROGRESS, 100.0 s past its lease",)),
    ],
)
def test_worker_has_two_seconds_to_take_over(over_ms: int, said: tuple[str, ...]) -> None:
    dataset = legal()
    now_ms = dataset.now_ms()
    dataset.request_of("li", "Pay", "ticket-unused").update(state="IN_PROGRESS", lease_until_ms=now_ms - over_ms)
    (check,) = [check for check in run_checks(dataset.snapshot(), now_ms=now_ms) if check.name == "leases are kept"]
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
    dataset = legal()
    left, now_ms = unanswered(dataset, state), dataset.now_ms()
    left["ask_at_ms"] = now_ms + ask_in_ms
    dataset.request_of("li", "Settle", "settle-open-1")["lease_until_ms"] = now_ms - 60_000
    (check,) = [check for check in run_checks(dataset.snapshot(), now_ms=now_ms) if check.name == "leases are kept"]
    assert check.violations == said


# A stack that may go on


def unanswered(dataset: DatasetBuilder, state: str = "UNKNOWN") -> Row:
    """A payment of the order `open` that somebody works on; the acquirer is silent."""
    left = dataset.accept("open", "Settle", "settle-open-1", "li")
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, left["payment_id"])
    if state != "CREATED":
        dataset.submit(left, fence, "acquirer", 70)
    if state not in ("CREATED", "SUBMITTED"):
        dataset.move_payment(left, state, fence)
    return left


def going_on(dataset: DatasetBuilder, name: str = "nothing left over") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a check finds wrong, and what it finds undecided, while the stack may go on; the others find nothing."""
    checks = run_checks(dataset.snapshot(), dataset.answers, now_ms=dataset.now_ms(), ended=False)
    assert [check for check in checks if check.name != name and check.verdict is not Verdict.OK] == []
    (found,) = [check for check in checks if check.name == name]
    return found.violations, found.undecided


def test_payment_that_waits_for_the_acquirer_is_undecided_while_the_stack_may_go_on() -> None:
    """The payment, its order and its request are named; after a run they would be violations."""
    dataset = legal()
    unanswered(dataset).update(asks=7)
    assert going_on(dataset) == (
        (),
        (
            "payment pay_06 is UNKNOWN: still open; the acquirer was asked 7 times and has not answered",
            "order open is PAYING: still open",
            "Settle settle-open-1 of li (cashier) is IN_PROGRESS: still open",
        ),
    )
    (check,) = [check for check in run_checks(dataset.snapshot()) if check.name == "nothing left over"]
    assert (len(check.violations), check.undecided) == (3, ())


def test_examined_rows_are_the_same_while_the_stack_may_go_on() -> None:
    dataset = legal()
    counts = [
        [check.examined for check in run_checks(dataset.snapshot(), now_ms=dataset.now_ms(), ended=ended)]
        for ended in (True, False)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("state", ["CREATED", "SUBMITTED", "UNKNOWN"])
def test_payment_of_a_running_request_is_open(state: str) -> None:
    dataset = legal()
    unanswered(dataset, state)
    violations, undecided = going_on(dataset)
    assert (violations, len(undecided)) == ((), 2 if state == "CREATED" else 3)


def test_payment_that_is_being_reversed_by_a_running_request_is_open() -> None:
    dataset = legal()
    made = payment(dataset, "ticket-1")
    dataset.request("wu", "Reverse", "undo")
    made.update(reversal_caller="wu", reversal_role="accountant", reversal_key="undo")
    dataset.move_payment(made, "REVERSING", 0)
    assert going_on(dataset) == (
        (),
        ("payment pay_05 is REVERSING: still open", "Reverse undo of wu (accountant) is IN_PROGRESS: still open"),
    )


def undone_in_the_ledger(dataset: DatasetBuilder) -> Row:
    """The payment of the order `plain`, which is PAID: the ledger has its reversal, and the acquirer is silent."""
    made = payment(dataset, "settle-plain-1")
    fence = dataset.fence()
    dataset.request("wu", "Reverse", "undo")
    made.update(reversal_caller="wu", reversal_role="accountant", reversal_key="undo")
    dataset.move_payment(made, "REVERSING", fence)
    dataset.undo(made, fence)
    dataset.seal()
    return made


def reversed_and_not_told(dataset: DatasetBuilder) -> Row:
    """The payment of the order `plain`, which is PAID until the order service can be told of the reversal."""
    made = undone_in_the_ledger(dataset)
    made["reversal_journal_id"] = dataset.journals[-1]["journal_id"]
    dataset.move_payment(made, "REVERSED", made["fence_token"])
    dataset.answer("wu", "Reverse", "undo")
    return dataset.deliver(made, "REOPEN", delivered=False)


_PAID_BY_NOTHING = (
    "order plain is PAID with 0 succeeded payments",
    "order plain is PAID with 0 settle journals that stand",
)


def paid_by_nothing(dataset: DatasetBuilder, *, ended: bool) -> tuple[str, ...]:
    """What is wrong with paid orders."""
    checks = run_checks(dataset.snapshot(), dataset.answers, now_ms=dataset.now_ms(), ended=ended)
    (found,) = [check for check in checks if check.name == "paid means charged"]
    return found.violations


def test_paid_order_whose_payment_is_being_reversed_is_open_while_the_stack_may_go_on() -> None:
    """The ledger is asked before the acquirer; after a run the order would be a violation."""
    dataset = legal()
    undone_in_the_ledger(dataset)
    assert going_on(dataset) == (
        (),
        ("payment pay_01 is REVERSING: still open", "Reverse undo of wu (accountant) is IN_PROGRESS: still open"),
    )
    assert paid_by_nothing(dataset, ended=True) == _PAID_BY_NOTHING


def test_paid_order_that_is_still_to_be_reopened_is_open_while_the_stack_may_go_on() -> None:
    """The order service is away; after a run the order would be a violation."""
    dataset = legal()
    reversed_and_not_told(dataset)
    assert going_on(dataset) == ((), ("the order service has not been notified to REOPEN plain: still open",))
    assert paid_by_nothing(dataset, ended=True) == _PAID_BY_NOTHING


def test_paid_order_after_a_delivered_reopen_is_a_violation_while_the_stack_may_go_on() -> None:
    dataset = legal()
    reversed_and_not_told(dataset)["delivered_at_ms"] = dataset.now_ms()
    assert paid_by_nothing(dataset, ended=False) == _PAID_BY_NOTHING


def test_paid_order_of_a_lost_journal_is_a_violation_while_the_stack_may_go_on() -> None:
    """That the order service may be told once more to complete it does not excuse it; nor does another's reversal."""
    dataset = legal()
    dataset.outbox[0]["delivered_at_ms"] = None
    dataset.remove_journal("jnl_01")
    other = payment(dataset, "settle-reversed-2")
    dataset.move_payment(other, "REVERSING", dataset.fence())
    assert paid_by_nothing(dataset, ended=False) == _PAID_BY_NOTHING[1:]


@pytest.mark.parametrize("asks", [0, 2])
def test_parked_payment_is_open(asks: int) -> None:
    """The worker reverses its key, whether or not it has asked so far."""
    dataset = legal()
    dataset.park("open", 70).update(asks=asks)
    more = "; the acquirer was asked 2 times and has not answered" if asks else ""
    assert going_on(dataset) == ((), (f"payment pay_06 is PARKED: still open{more}",))


def test_order_with_an_undelivered_notification_is_open() -> None:
    dataset = legal()
    a_order_that_was_charged_and_not_told_yet(dataset)
    assert going_on(dataset) == (
        (),
        (
            "order open is PAYING: still open",
            "the order service has not been notified to COMPLETE open: still open",
        ),
    )


@pytest.mark.parametrize(
    ("corrupt", "said"),
    [
        (a_payment_left_submitted, "payment pay_06 is SUBMITTED"),
        (a_payment_left_unknown, "payment pay_06 is UNKNOWN"),
        (a_payment_left_reversing, "payment pay_05 is REVERSING"),
        (a_order_left_half_settled, "order open is PAYING"),
    ],
)
def test_work_without_recovery_is_a_violation_while_the_stack_may_go_on(corrupt: Change, said: str) -> None:
    """No request is running for it, and no word about it is undelivered."""
    dataset = legal()
    corrupt(dataset)
    assert going_on(dataset) == ((f"{said}, and no recovery will finish it",), ())


def test_paying_order_after_a_delivered_notification_is_a_violation_while_the_stack_may_go_on() -> None:
    dataset = legal()
    a_order_that_was_charged_and_not_told_yet(dataset)
    dataset.outbox[-1]["delivered_at_ms"] = dataset.now_ms()
    checks = run_checks(dataset.snapshot(), now_ms=dataset.now_ms(), ended=False)
    (found,) = [check for check in checks if check.name == "nothing left over"]
    assert found.violations == ("order open is PAYING, and no recovery will finish it",)


def test_lease_that_passed_is_undecided_while_the_stack_may_go_on() -> None:
    """Perhaps no instance could take it over."""
    dataset = legal()
    a_lease_that_passed_long_ago(dataset)
    checks = run_checks(dataset.snapshot(), now_ms=dataset.now_ms(), ended=False)
    (found,) = [check for check in checks if check.name == "leases are kept"]
    assert (found.violations, len(found.undecided)) == ((), 1)
    assert found.undecided[0].startswith("Pay ticket-unused of li (cashier) is IN_PROGRESS, ")


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)
