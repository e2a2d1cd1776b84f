"""Calls at one order, written by hand: which can be put in one sequence and which cannot. Without books."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.checker.history import Answer
from services.checker.linearizability.order_calls import order_calls
from services.checker.linearizability.order_model import OrderModel
from services.checker.linearizability.search import Budget, Undecided, is_linearizable
from services.kernel.clock import SystemClock
from tests.fakes.clock import ManualClock
from tests.unit.checker.timeline import CANCELLED, LIMIT_S, Timeline, illegal_state

Change = Callable[[Timeline], object]
_LAWFUL: list[Change] = []
_ILLEGAL: list[Change] = []


def lawful(change: Change) -> Change:
    """These calls have an order."""
    _LAWFUL.append(change)
    return change


def illegal(change: Change) -> Change:
    """These have none."""
    _ILLEGAL.append(change)
    return change


def named(change: Change) -> str:
    return change.__name__.replace("_", " ")


# One clerk


@lawful
def settled_and_looked_at(t: Timeline) -> None:
    t.look(1, 2, "UNPAID", round=1, version=1, amount_minor=100, currency="CNY")
    t.settle("s1", 3, 6, paid="p1", round_=1, amount=100)
    t.look(7, 8, "PAID", "p1", round=1, version=3, clerk="li")


@lawful
def still_paying_after_the_answer(t: Timeline) -> None:
    """The order is told in its own time."""
    t.settle("s1", 1, 4, paid="p1")
    t.look(5, 6, "PAYING", "p1", version=2)
    t.look(7, 8, "PAID", "p1", version=3)


@lawful
def paying_before_the_answer(t: Timeline) -> None:
    t.settle("s1", 1, 9, paid="p1")
    t.look(2, 3, "UNPAID")
    t.look(4, 5, "PAYING", "p1")
    t.look(6, 7, "PAID", "p1")


@illegal
def a_lost_post(t: Timeline) -> None:
    """Acknowledged, and then nobody has paid."""
    t.settle("s1", 1, 4, paid="p1")
    t.look(5, 6, "UNPAID")


@illegal
def paid_before_anybody_pressed(t: Timeline) -> None:
    t.look(1, 2, "PAID", "p1")
    t.settle("s1", 3, 4, paid="p1")


@illegal
def paying_before_anybody_pressed(t: Timeline) -> None:
    t.look(1, 2, "PAYING", "p1")
    t.settle("s1", 3, 4, paid="p1")


@illegal
def paid_by_nobody(t: Timeline) -> None:
    t.look(1, 2, "PAID", "p1")


@illegal
def paid_by_another_payment_than_was_told(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1")
    t.look(5, 6, "PAID", "p2")


@illegal
def paid_and_then_paying(t: Timeline) -> None:
    """A read going backwards."""
    t.settle("s1", 1, 9, paid="p1")
    t.look(2, 3, "PAID", "p1")
    t.look(4, 5, "PAYING", "p1")


@illegal
def paying_and_then_free_though_it_was_paid(t: Timeline) -> None:
    t.settle("s1", 1, 9, paid="p1")
    t.look(2, 3, "PAYING", "p1")
    t.look(4, 5, "UNPAID")


@illegal
def settled_by_somebody_who_did_not(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1", clerk="li")
    t.look(5, 6, "PAID", "p1", clerk="wu")


@illegal
def of_another_amount(t: Timeline) -> None:
    t.look(1, 2, "UNPAID", amount_minor=101, currency="CNY")


@illegal
def in_another_currency(t: Timeline) -> None:
    t.look(1, 2, "UNPAID", amount_minor=100, currency="USD")


@illegal
def settled_over_another_amount(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1", amount=101)


@illegal
def settled_in_a_round_to_come(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1", round_=2)


@illegal
def at_a_version_that_it_has_not_reached(t: Timeline) -> None:
    t.look(1, 2, "UNPAID", version=3)


@illegal
def at_a_version_that_it_has_left(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1")
    t.look(5, 6, "PAID", "p1", version=2)


@illegal
def in_a_state_that_no_order_has(t: Timeline) -> None:
    t.look(1, 2, "SETTLED")


# Two clerks


@lawful
def two_clerks_one_order(t: Timeline) -> None:
    """The other is told by whom."""
    t.settle("s1", 1, 6, paid="p1", clerk="li")
    t.refused("s2", 2, 7, by="p1", winner="li")


@lawful
def the_loser_hears_of_it_first(t: Timeline) -> None:
    t.settle("s1", 1, 9, paid="p1")
    t.refused("s2", 2, 4, by="p1")


@illegal
def a_double_charge(t: Timeline) -> None:
    """Both were told that they had settled it."""
    t.settle("s1", 1, 6, paid="p1", clerk="li")
    t.settle("s2", 2, 7, paid="p2", clerk="wu")


@illegal
def refused_for_nobodys_sake(t: Timeline) -> None:
    t.refused("s2", 2, 4, by="p1")


@illegal
def refused_before_the_other_pressed(t: Timeline) -> None:
    t.refused("s2", 1, 2, by="p1")
    t.settle("s1", 3, 4, paid="p1")


@illegal
def refused_in_the_name_of_another(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1", clerk="li")
    t.refused("s2", 5, 6, by="p1", winner="mei")


@illegal
def refused_and_charged(t: Timeline) -> None:
    """Refused because of another payment, and then found to have paid."""
    t.settle("s1", 1, 4, paid="p1", clerk="li")
    t.refused("s2", 5, 6, by="p1")
    t.look(7, 8, "PAID", "p2")


@illegal
def locked_out_and_charged(t: Timeline) -> None:
    """Refused before anything was done; then the order is being paid."""
    t.settle("s1", 1, 2, answer=Answer("ABORTED", "ORDER_LOCKED"))
    t.look(3, 4, "PAYING", "p1")


@lawful
def locked_out_and_let_in(t: Timeline) -> None:
    t.settle("s1", 1, 2, answer=Answer("ABORTED", "ORDER_LOCKED"))
    t.look(3, 4, "UNPAID")
    t.settle("s1", 5, 6, paid="p1")


@illegal
def locked_out_and_let_in_before_it_asked_again(t: Timeline) -> None:
    """What was refused at first is only done by the second attempt."""
    t.settle("s1", 1, 2, answer=Answer("ABORTED", "ORDER_LOCKED"))
    t.look(3, 4, "PAYING", "p1")
    t.settle("s1", 5, 6, paid="p1")


@lawful
def a_retry_while_the_first_attempt_runs(t: Timeline) -> None:
    t.settle("s1", 1, 9, paid="p1")
    t.settle("s1", 2, 3, answer=Answer("ABORTED", "REQUEST_IN_PROGRESS"))
    t.look(4, 5, "PAID", "p1")


# Outcomes nobody knows


@lawful
def a_timeout_that_took_effect_late(t: Timeline) -> None:
    t.settle("s1", 1, 2)
    t.look(3, 4, "UNPAID")
    t.look(5, 6, "PAYING", "p1")
    t.look(7, 8, "PAID", "p1")


@lawful
def a_timeout_that_never_took_effect(t: Timeline) -> None:
    t.settle("s1", 1, 2)
    t.settle("s2", 3, 4, paid="p2", clerk="wu")
    t.look(5, 6, "PAID", "p2")


@lawful
def a_timeout_followed_by_anothers_refusal(t: Timeline) -> None:
    """The next clerk finished it, and was told so."""
    t.settle("s1", 1, 2)
    t.refused("s2", 3, 4, by="p1", winner="li")
    t.settle("s1", 5, 6, paid="p1")


@lawful
def a_timeout_and_a_retry_that_is_answered(t: Timeline) -> None:
    t.settle("s1", 1, 2)
    t.look(3, 4, "PAID", "p1")
    t.settle("s1", 5, 6, paid="p1")


@lawful
def an_answer_that_the_outcome_is_not_known(t: Timeline) -> None:
    t.settle("s1", 1, 2, answer=Answer(state="UNKNOWN", payment_id="p1"))
    t.look(3, 4, "PAYING", "p1")
    t.look_at_payment(5, 6, "p1", "UNKNOWN")
    t.look_at_payment(7, 8, "p1", "SUCCEEDED")


@lawful
def a_timeout_that_was_declined(t: Timeline) -> None:
    """The order was claimed, and is free again."""
    t.settle("s1", 1, 2)
    t.look(3, 4, "PAYING", "p1", version=2)
    t.look(5, 6, "UNPAID", version=3)
    t.settle("s2", 7, 8, paid="p2", clerk="wu")


@illegal
def a_timeout_that_is_charged_after_another_was(t: Timeline) -> None:
    """Once somebody has paid, nobody else does in this round."""
    t.settle("s1", 1, 2)
    t.settle("s2", 3, 4, paid="p2", clerk="wu")
    t.look(5, 6, "PAID", "p1")


@illegal
def one_timeout_that_is_two_payments(t: Timeline) -> None:
    """Whoever was not answered has paid once at most."""
    t.settle("s1", 1, 2)
    t.look(3, 4, "PAID", "p1")
    t.reversed("r1", 5, 6, "p1")
    t.look(7, 8, "PAID", "p2")


@lawful
def two_timeouts_that_are_two_payments(t: Timeline) -> None:
    t.settle("s1", 1, 2)
    t.settle("s2", 1, 2)
    t.look(3, 4, "PAID", "p1")
    t.reversed("r1", 5, 6, "p1")
    t.look(7, 8, "PAID", "p2")


@illegal
def a_payment_of_two_clerks(t: Timeline) -> None:
    """The first look said that it is li's."""
    t.settle("s1", 1, 2, clerk="li")
    t.settle("s2", 1, 2, clerk="wu")
    t.look(3, 4, "PAID", "p1", clerk="li")
    t.look(5, 6, "PAID", "p1", clerk="wu")


# Declined


@lawful
def declined_and_free_again(t: Timeline) -> None:
    t.declined("s1", 1, 4)
    t.look(5, 6, "PAYING")
    t.look(7, 8, "UNPAID")
    t.settle("s2", 9, 10, paid="p2")


@illegal
def declined_and_paid(t: Timeline) -> None:
    t.declined("s1", 1, 4)
    t.look(5, 6, "PAID")


@illegal
def declined_while_another_had_it(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.declined("s2", 3, 4)


@illegal
def declined_and_never_free_again(t: Timeline) -> None:
    """Nobody else is let in while it is held, and it is seen to be the same one's to the end."""
    t.declined("s1", 1, 4)
    t.look(5, 6, "UNPAID", version=3)
    t.look(7, 8, "PAYING")


# Reversals


@lawful
def reversed_and_settled_again(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1", round_=1)
    t.reversed("r1", 3, 4, "p1")
    t.look(5, 6, "PAID", "p1", round=1)
    t.look(7, 8, "UNPAID", round=2)
    t.settle("s2", 9, 10, paid="p2", round_=2)
    t.look(11, 12, "PAID", "p2", round=2, version=6)


@lawful
def refused_though_it_was_reversed(t: Timeline) -> None:
    """The order has not been told yet."""
    t.settle("s1", 1, 2, paid="p1")
    t.reversed("r1", 3, 4, "p1")
    t.refused("s2", 5, 6, by="p1")


@lawful
def a_reversal_nobody_was_told_of(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reverse("r1", 3, 4, "p1")
    t.look(5, 6, "PAID", "p1")
    t.settle("s2", 7, 8, paid="p2", round_=2)


@lawful
def a_reversal_that_came_second(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reversed("r1", 3, 6, "p1")
    t.reverse("r2", 4, 7, "p1", illegal_state("REVERSED"))


@lawful
def a_reversal_before_the_order_knew_that_it_was_paid(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look(3, 4, "PAYING", "p1")
    t.reversed("r1", 5, 6, "p1")
    t.look(7, 8, "PAYING", "p1")
    t.look(9, 10, "PAID", "p1")
    t.look(11, 12, "UNPAID", round=2)


@illegal
def settled_again_without_a_reversal(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1", round_=1)
    t.settle("s2", 3, 4, paid="p2", round_=2)


@illegal
def a_second_round_without_a_reversal(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look(3, 4, "UNPAID", round=2)


@illegal
def reversed_twice(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reversed("r1", 3, 4, "p1")
    t.reversed("r2", 5, 6, "p1")


@illegal
def reversed_before_it_was_paid(t: Timeline) -> None:
    t.reversed("r1", 1, 2, "p1")
    t.settle("s1", 3, 4, paid="p1")


@illegal
def paid_in_the_first_round_after_the_second_began(t: Timeline) -> None:
    """A stale write."""
    t.settle("s1", 1, 2, paid="p1")
    t.reversed("r1", 3, 4, "p1")
    t.look(5, 6, "UNPAID", round=2)
    t.look(7, 8, "PAID", "p1")


@illegal
def free_in_the_round_that_is_over(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reversed("r1", 3, 4, "p1")
    t.look(5, 6, "UNPAID", round=1)


@illegal
def not_reversible_though_it_stands(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reverse("r1", 3, 4, "p1", illegal_state())


@illegal
def reversed_already_though_nobody_did(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reverse("r1", 3, 4, "p1", illegal_state("REVERSED"))


@lawful
def a_reversal_that_the_ledger_refuses(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reverse("r1", 3, 4, "p1", Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"))
    t.look(5, 6, "PAID", "p1")


@illegal
def a_reversal_that_the_ledger_refuses_of_what_is_reversed(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reversed("r1", 3, 4, "p1")
    t.reverse("r2", 5, 6, "p1", Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"))


@lawful
def an_unknown_payment_reversed(t: Timeline) -> None:
    """Whatever became of it, it ends as if it had been declined: the order is free in the same round."""
    t.settle("s1", 1, 2, answer=Answer(state="UNKNOWN", payment_id="p1"))
    t.reversed("r1", 3, 4, "p1")
    t.look_at_payment(5, 6, "p1", "REVERSED")
    t.look(7, 8, "UNPAID", round=1)
    t.settle("s2", 9, 10, paid="p2", round_=1)


@lawful
def an_unknown_payment_parked_while_it_was_reversed(t: Timeline) -> None:
    """Both its requests are told so; the order is free in the same round."""
    t.settle("s1", 1, 2, answer=Answer(state="UNKNOWN", payment_id="p1"))
    t.reverse("r1", 3, 4, "p1", Answer(state="REVERSING", payment_id="p1"))
    t.look_at_payment(5, 6, "p1", "PARKED")
    t.settle("s2", 7, 8, paid="p2", round_=1)
    t.reverse("r1", 9, 10, "p1", Answer("FAILED_PRECONDITION", "PAYMENT_PARKED"))


@illegal
def a_reversal_that_was_parked_of_what_stands(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.reverse("r1", 3, 4, "p1", Answer("FAILED_PRECONDITION", "PAYMENT_PARKED"))


@illegal
def an_unknown_payment_reversed_and_recorded(t: Timeline) -> None:
    t.settle("s1", 1, 2, answer=Answer(state="UNKNOWN", payment_id="p1"))
    t.reversed("r1", 3, 4, "p1")
    t.look(5, 6, "UNPAID", round=1)
    t.look_at_payment(7, 8, "p1", "SUCCEEDED")


@lawful
def declined_after_it_was_reversed_unseen(t: Timeline) -> None:
    """Its own request is answered with a refusal in the end."""
    t.settle("s1", 1, 2)
    t.look(3, 4, "PAYING", "p1")
    t.reversed("r1", 5, 6, "p1")
    t.declined("s1", 7, 8)


# Cancelling


@lawful
def cancelled(t: Timeline) -> None:
    t.cancel("c1", 1, 2, CANCELLED)
    t.look(3, 4, "CANCELLED", version=2)
    t.settle("s1", 5, 6, answer=Answer("FAILED_PRECONDITION", "ORDER_NOT_PAYABLE", state="CANCELLED"))


@lawful
def cancelled_or_not(t: Timeline) -> None:
    t.cancel("c1", 1, 2)
    t.look(3, 4, "UNPAID")
    t.look(5, 6, "CANCELLED")


@lawful
def not_cancelled_for_it_was_paid(t: Timeline) -> None:
    t.settle("s1", 1, 6, paid="p1")
    t.cancel("c1", 2, 3, illegal_state("PAYING"))
    t.cancel("c2", 7, 8, illegal_state())


@illegal
def cancelled_and_paid(t: Timeline) -> None:
    t.cancel("c1", 1, 2, CANCELLED)
    t.settle("s1", 3, 4, paid="p1")


@illegal
def cancelled_after_it_was_paid(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.cancel("c1", 3, 4, CANCELLED)


@illegal
def cancelled_twice(t: Timeline) -> None:
    t.cancel("c1", 1, 2, CANCELLED)
    t.cancel("c2", 3, 4, CANCELLED)


@illegal
def cancelled_at_another_version(t: Timeline) -> None:
    t.cancel("c1", 1, 2, Answer(state="CANCELLED", version=3))


@illegal
def not_cancelled_though_it_was_free(t: Timeline) -> None:
    t.cancel("c1", 1, 2, illegal_state())


@illegal
def not_cancelled_for_a_state_it_had_not(t: Timeline) -> None:
    t.cancel("c1", 1, 2, illegal_state("PAID"))


@illegal
def not_payable_though_nobody_cancelled(t: Timeline) -> None:
    t.settle("s1", 1, 2, answer=Answer("FAILED_PRECONDITION", "ORDER_NOT_PAYABLE"))


@lawful
def another_version_than_was_expected(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look(3, 4, "PAID")
    t.cancel("c1", 5, 6, Answer("ABORTED", "STALE_VERSION", version=3), expected=1)


@illegal
def the_version_that_was_expected_refused(t: Timeline) -> None:
    t.cancel("c1", 5, 6, Answer("ABORTED", "STALE_VERSION"), expected=1)


@illegal
def a_stale_version_that_never_was(t: Timeline) -> None:
    t.cancel("c1", 5, 6, Answer("ABORTED", "STALE_VERSION", version=4), expected=2)


# Making


@lawful
def made_once(t: Timeline) -> None:
    t.create("m2", 1, 2, Answer("ALREADY_EXISTS", "ORDER_EXISTS"))


@illegal
def made_twice(t: Timeline) -> None:
    t.create("m2", 1, 2)


@illegal
def gone(t: Timeline) -> None:
    t.absent(1, 2)


@illegal
def gone_for_who_wants_to_settle_it(t: Timeline) -> None:
    t.settle("s1", 1, 2, answer=Answer("NOT_FOUND", "ORDER_NOT_FOUND"))


@lawful
def not_there_for_another_customer(t: Timeline) -> None:
    t.absent(1, 2, role="customer")


# Payments


@lawful
def a_payment_seen_at_every_stage(t: Timeline) -> None:
    t.settle("s1", 1, 20, paid="p1")
    for place, state in enumerate(("CREATED", "CREATED", "SUBMITTED", "UNKNOWN", "SUCCEEDED")):
        t.look_at_payment(2 + 2 * place, 3 + 2 * place, "p1", state)
    t.reversed("r1", 21, 30, "p1")
    t.look_at_payment(22, 23, "p1", "REVERSING")
    t.look_at_payment(31, 32, "p1", "REVERSED")


@illegal
def succeeded_before_it_was_asked_for(t: Timeline) -> None:
    t.look_at_payment(1, 2, "p1", "SUCCEEDED")
    t.settle("s1", 3, 4, paid="p1")


@illegal
def submitted_after_it_succeeded(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look_at_payment(3, 4, "p1", "SUBMITTED")


@illegal
def declined_though_it_was_acknowledged(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look_at_payment(3, 4, "p1", "DECLINED")


@illegal
def reversed_by_nobody(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look_at_payment(3, 4, "p1", "REVERSED")


@illegal
def in_a_state_that_no_payment_has(t: Timeline) -> None:
    t.settle("s1", 1, 2, paid="p1")
    t.look_at_payment(3, 4, "p1", "SETTLED")


@lawful
def a_refused_clerks_payment_is_declined(t: Timeline) -> None:
    """Nobody was told its name before."""
    t.settle("s1", 1, 4, paid="p1")
    t.refused("s2", 2, 5, by="p1")
    t.look_at_payment(6, 7, "p2", "DECLINED")


@lawful
def a_payment_that_nobody_heard_of_was_declined_unclaimed(t: Timeline) -> None:
    t.settle("s1", 1, 4, paid="p1")
    t.settle("s2", 5, 6, answer=Answer(state="CREATED", payment_id="p2"))
    t.look_at_payment(7, 8, "p2", "DECLINED")
    t.look(9, 10, "PAID", "p1", version=3)


@illegal
def a_declined_payment_that_pays(t: Timeline) -> None:
    t.settle("s1", 1, 2, answer=Answer(state="CREATED", payment_id="p1"))
    t.look_at_payment(3, 4, "p1", "DECLINED")
    t.look(5, 6, "PAID", "p1")


@pytest.mark.parametrize("change", _LAWFUL, ids=named)
def test_linearizable_history_is_accepted(change: Change) -> None:
    timeline = Timeline()
    change(timeline)
    assert list(timeline.examined().violations) == []
    assert timeline.is_lawful()


@pytest.mark.parametrize("change", _ILLEGAL, ids=named)
def test_history_that_is_not_linearizable_is_refused(change: Change) -> None:
    timeline = Timeline()
    change(timeline)
    assert not timeline.is_lawful()


def test_order_without_a_creation_is_absent() -> None:
    """Whoever looks is told so, and may make it afterwards."""
    timeline = Timeline(made=False)
    timeline.absent(1, 2)
    assert timeline.is_lawful()
    timeline.create("m", 3, 4)
    timeline.look(5, 6, "UNPAID")
    assert timeline.is_lawful()


def test_order_with_an_unanswered_creation_may_exist_or_not() -> None:
    timeline = Timeline(made=False)
    timeline.create("m", 1, 2, None)
    timeline.absent(3, 4)
    timeline.look(5, 6, "UNPAID")
    assert timeline.is_lawful()


def test_calls_in_the_same_nanosecond_overlap() -> None:
    """The clock is no finer."""
    timeline = Timeline()
    timeline.settle("s1", 1, 4, paid="p1")
    timeline.look(4, 5, "UNPAID")
    assert timeline.is_lawful()


def test_each_advanced_configuration_is_a_step() -> None:
    """So that a search which takes too long is given up."""
    timeline = Timeline()
    timeline.settle("s1", 1, 2, paid="p1")
    (order,) = order_calls(timeline.history())
    with pytest.raises(Undecided):
        is_linearizable(order.operations, OrderModel(order.names), Budget(ManualClock(), until_s=0.0, spent=255))


def test_many_concurrent_calls_are_searched_in_few_steps() -> None:
    """Exactly as many as there are configurations that may matter; what has gone past what was told may not."""
    timeline = Timeline()
    for number in range(5):
        timeline.settle(f"s{number}", 1 + number, None, clerk=f"clerk-{number}")
    timeline.settle("s5", 4, 37, paid="p1")
    timeline.look(2, 9, "UNPAID", version=1)
    timeline.look(3, 20, "UNPAID")
    timeline.look(10, 12, "UNPAID", version=3)
    timeline.look(41, 42, "PAID", "p1", version=5)
    (order,) = order_calls(timeline.history())
    budget = Budget.of(LIMIT_S, SystemClock())
    assert is_linearizable(order.operations, OrderModel(order.names), budget)
    assert budget.spent == 130
