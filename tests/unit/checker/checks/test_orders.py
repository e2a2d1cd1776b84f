"""Each order's calls held against a single-threaded order: with the books, within a time, told so that one sees why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.checker.checks.orders import orders_linearizable
from services.checker.findings import Check, Verdict
from services.checker.history import NO_ANSWER, Answer, Arguments, Nemesis, Outcome, Phase
from services.checker.linearizability.explanation import explain
from services.checker.linearizability.order_calls import order_calls
from services.checker.linearizability.search import Budget
from services.checker.registry import Options, run_checks
from services.kernel.clock import SystemClock
from tests.fakes.clock import ManualClock
from tests.unit.checker.cases import Cases, Illegal, Lawful, by_all, payment
from tests.unit.checker.dataset import DatasetBuilder, digest, legal
from tests.unit.checker.timeline import Timeline

CASES = Cases(by_all)
_NAME = "orders linearizable"
_LOST = ("acknowledged is kept", "reads were written")
_PAID_BY_NO_PAYMENT = ("paid means charged", "outbox delivered once")


# What the books say in the end belongs to it


@CASES.illegal("in the end: the databases have CANCELLED, round 1, version 2", _NAME)
def a_order_cancelled_by_a_caller_who_was_refused(dataset: DatasetBuilder) -> None:
    dataset.move_order("open", "CANCELLED", 0)
    asked = Arguments(order_id="open", key="stop", clerk="li", expected_version=4)
    dataset.call("CancelOrder", asked, Answer("ABORTED", "STALE_VERSION", version=1), dataset.now_ms())


@CASES.illegal("in the end: the databases have PAID, by pay_99, round 1, version 3", _NAME, *_PAID_BY_NO_PAYMENT)
def a_order_paid_by_nobody_who_called(dataset: DatasetBuilder) -> None:
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, "pay_99")
    dataset.move_order("open", "PAID", fence, "pay_99")


@CASES.illegal("in the end: the databases have ABSENT, round 0, version 0", _NAME, *_LOST)
def an_order_that_the_books_have_lost(dataset: DatasetBuilder) -> None:
    dataset.orders.remove(dataset.order("open"))
    dataset.order_events = [row for row in dataset.order_events if row["order_id"] != "open"]


@CASES.illegal(
    "in the end: the databases have something that no order is, round 1, version 1", _NAME, "moves are legal"
)
def a_order_in_no_state(dataset: DatasetBuilder) -> None:
    dataset.order("open")["state"] = "SETTLED"


@CASES.lawful(_NAME)
def a_order_that_nobody_was_told_is_settled(dataset: DatasetBuilder) -> None:
    """The reply was lost; in the end it is paid."""
    dataset.settle("open")
    dataset.calls[-1].answer, dataset.calls[-1].outcome = NO_ANSWER, Outcome.INFO


@CASES.lawful(_NAME)
def a_order_cancelled_by_a_caller_who_was_not_answered(dataset: DatasetBuilder) -> None:
    dataset.move_order("open", "CANCELLED", 0)
    dataset.call("CancelOrder", Arguments(order_id="open", key="stop", clerk="li"), NO_ANSWER, dataset.now_ms())


@CASES.lawful(_NAME)
def a_ticket_that_pays_an_order(dataset: DatasetBuilder) -> None:
    """The call does not say which; the ticket does."""
    dataset.settle("open")
    ticket = dataset.call_of("ask-2")
    ticket.arguments = replace(ticket.arguments, order_id="open")
    paid = dataset.calls[-1]
    made = dataset.payments[-1]
    dataset.requests.remove(dataset.request_of("li", "Settle", made["request_key"]))
    made.update(request_method="Pay", request_key="ticket-unused")
    body = dataset.answer("li", "Pay", "ticket-unused")
    paid.kind, paid.arguments = "Pay", Arguments(key="ticket-unused", clerk="li", role="cashier")
    paid.answer = replace(paid.answer, order_id="", sha256=digest(body))
    dataset.answers.pop()


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)


class TestUndecided:
    """What the history does not tell is not guessed."""

    def linearizable(self, dataset: DatasetBuilder, *, whole: bool = True) -> Check:
        history = replace(dataset.history(), whole=whole)
        return {check.name: check for check in run_checks(dataset.snapshot(), history=history)}[_NAME]

    def test_order_made_before_the_history_is_undecided(self) -> None:
        dataset = legal()
        dataset.calls.remove(dataset.call_of("make-plain"))
        found = self.linearizable(dataset)
        assert found.undecided == ("order plain: it was made before the history begins",)
        assert found.verdict is Verdict.UNKNOWN

    def test_order_settled_outside_the_history_is_undecided(self) -> None:
        dataset = legal()
        dataset.calls.remove(dataset.call_of("settle-reversed-2"))
        assert self.linearizable(dataset).undecided == (
            "order reversed: Settle settle-reversed-2 of wu (accountant) is not in the history",
        )

    def test_reversal_outside_the_history_is_undecided(self) -> None:
        dataset = legal()
        dataset.calls.remove(dataset.call_of("reverse-pay_03"))
        assert self.linearizable(dataset).undecided == (
            "order reversed: Reverse reverse-pay_03 of wu (accountant) is not in the history",
        )

    def test_cancellation_outside_the_history_is_undecided(self) -> None:
        dataset = legal()
        dataset.move_order("open", "CANCELLED", 0)
        assert self.linearizable(dataset).undecided == ("order open: its cancellation is not in the history",)

    def test_broken_recording_is_undecided(self) -> None:
        """What it tells is examined; what the books say in the end is not, for more may have happened."""
        dataset = legal()
        dataset.settle("open")
        dataset.calls = [call for call in dataset.calls if call.arguments.key != "settle-open-1"]
        found = self.linearizable(dataset, whole=False)
        assert found.undecided == ("the recording broke off; what came after it is not known",)
        assert found.violations == ()
        dataset.calls[-1].answer = replace(dataset.calls[-1].answer, state="PAID")
        assert self.linearizable(dataset, whole=False).verdict is Verdict.VIOLATED

    def test_order_that_takes_too_long_is_undecided(self) -> None:
        """It is neither right nor wrong, and that is said."""

        class Hurried(ManualClock):
            def monotonic_s(self) -> float:
                self.advance(1_000)
                return super().monotonic_s()

        timeline = Timeline()
        for number in range(40):
            timeline.settle(f"s{number}", 1, None, clerk=f"clerk-{number}")
        timeline.look(2, 3, "UNPAID", version=21)
        timeline.look(4, 5, "PAID", "p1")
        found = orders_linearizable(timeline.history(), None, Hurried(), limit_s=1, on_progress=lambda _done, _of: None)
        assert list(found.violations) == []
        assert list(found.undecided) == ["order o: no sequence of its calls was found or ruled out in 1 s"]

    def test_equal_unanswered_requests_are_tried_in_one_order_only(self) -> None:
        """Forty clicks of one clerk, none of them answered: 40 possibilities and not 2^40."""
        timeline = Timeline()
        for number in range(40):
            timeline.settle(f"s{number}", 1 + number, None)
        timeline.look(50, 51, "UNPAID", version=21)
        timeline.look(52, 53, "PAID", "p1")
        timeline.look(54, 55, "PAID", "p1", version=23)
        assert timeline.is_lawful()


class TestExplanation:
    """A violation is told by the calls that contradict each other, and no others."""

    def told(self, timeline: Timeline, *nemesis: Nemesis) -> list[str]:
        history = replace(timeline.history(), nemesis=nemesis)
        found = orders_linearizable(history, None, SystemClock(), limit_s=5, on_progress=lambda _done, _of: None)
        (violation,) = found.violations
        return violation.splitlines()

    def test_explanation_of_two_settles_lists_both(self) -> None:
        ms = 1_000_000
        timeline = Timeline()
        timeline.look(1 * ms, 2 * ms, "UNPAID")
        timeline.settle("s1", 3 * ms, 6 * ms, paid="pay_1", round_=1)
        timeline.settle("s2", 4 * ms, 9 * ms, paid="pay_2", clerk="wu")
        timeline.look(10 * ms, 11 * ms, "PAID", "pay_1")
        timeline.settle("s3", 12 * ms, 13 * ms, paid="pay_3")
        timeline.settle("s1", 14 * ms, 15 * ms, paid="pay_1", round_=1)
        assert self.told(timeline) == [
            "order o: these calls cannot be put in one sequence:",
            "  +0.000000 s to +0.003000 s  p3: Settle s1 by li → ok: SUCCEEDED, by pay_1, round 1",
            "  +0.001000 s to +0.006000 s  p4: Settle s2 by wu → ok: SUCCEEDED, by pay_2",
        ]

    def test_explanation_of_a_stale_read_lists_unanswered_calls(self) -> None:
        timeline = Timeline()
        timeline.settle("s1", 1, None)
        timeline.settle("s0", 2, 3, answer=Answer("UNAVAILABLE", ""), clerk="wu")
        timeline.look(4, 5, "PAID", "p1", version=3)
        timeline.look(6, 6, "PAYING", "p1", version=2)
        timeline.settle("s2", 6, None)
        timeline.settle("s3", 7, None)
        timeline.look_at_payment(8, 9, "p1", "SUCCEEDED")
        assert self.told(timeline) == [
            "order o: these calls cannot be put in one sequence:",
            "  +0.000000 s to +0.000000 s  p4: GetOrder → ok: PAID, by p1, version 3",
            "  +0.000000 s to +0.000000 s  p5: GetOrder → ok: PAYING, by p1, version 2",
            "whether or not any of these was done, which had no answer by then:",
            "  -0.000000 s to the end  p2: Settle s1 by li → unknown: no answer",
            "  -0.000000 s to -0.000000 s  p3: Settle s0 by wu → unknown: UNAVAILABLE",
            "  +0.000000 s to the end  p6: Settle s2 by li → unknown: no answer",
        ]

    def test_explanation_of_a_payment_going_backwards_lists_its_reads(self) -> None:
        """Whose it is stands before the arrow."""
        timeline = Timeline()
        timeline.settle("s1", 1, 2, paid="p1")
        timeline.look_at_payment(3, 4, "p1", "SUBMITTED")
        assert [line.partition(": ")[2] for line in self.told(timeline)[1:]] == [
            "Settle s1 by li → ok: SUCCEEDED, by p1",
            "GetPayment p1 → ok: SUBMITTED",
        ]

    def test_explanation_lists_the_faults_meanwhile(self) -> None:
        timeline = Timeline()
        timeline.settle("s1", 1_000_000_000, 2_000_000_000, paid="p1")
        timeline.look(4_000_000_000, 5_000_000_000, "UNPAID")
        told = self.told(
            timeline,
            Nemesis("kill", Phase.PLANNED, 1_500_000_000, "payment-1"),
            Nemesis("kill", Phase.BEGUN, 999_999_999, "payment-2"),
            Nemesis("freeze", Phase.BEGUN, 1_000_000_000, "payment-2"),
            Nemesis("kill", Phase.BEGUN, 1_500_000_000, "payment-1"),
            Nemesis("kill", Phase.ENDED, 5_000_000_000, "payment-1"),
            Nemesis("kill", Phase.BEGUN, 5_000_000_001, "payment-2"),
        )
        assert told[1:] == [
            "  +0.000000 s to +1.000000 s  p2: Settle s1 by li → ok: SUCCEEDED, by p1",
            "  +3.000000 s to +4.000000 s  p3: GetOrder → ok: UNPAID",
            "  +0.000000 s  freeze payment-2 begun",
            "  +0.500000 s  kill payment-1 begun",
            "  +4.000000 s  kill payment-1 ended",
        ]

    def test_explanation_of_a_lost_order_lists_its_creation(self) -> None:
        """It was made, and is gone."""
        timeline = Timeline()
        timeline.absent(1, 2)
        assert [line.partition(": ")[2] for line in self.told(timeline)[1:]] == [
            "CreateOrder m by li → ok: UNPAID",
            "GetOrder → fail: ORDER_NOT_FOUND",
        ]

    def test_long_explanation_is_cut(self) -> None:
        """A dozen calls; the rest is counted."""
        timeline = Timeline()
        for number in range(20):
            timeline.settle(f"u{number}", 1, None)
        for place in range(30):
            timeline.settle("s1", 2 + place, 3 + place, paid="p1")
        timeline.look(40, 41, "UNPAID")
        told = self.told(timeline)
        assert told[13] == "  … and 19 more"
        assert told[-1] == "  … and 15 more"
        assert len(told) == 1 + 13 + 1 + 6

    def test_explanation_of_twelve_calls_is_complete(self) -> None:
        timeline = Timeline()
        for number in range(5):
            timeline.settle(f"u{number}", 1, None)
        for place in range(11):
            timeline.settle("s1", 2 + place, 3 + place, paid="p1")
        timeline.look(40, 41, "UNPAID")
        told = self.told(timeline)
        assert len(told) == 1 + 12 + 1 + 5
        assert not any("more" in line for line in told)

    def test_explanation_without_budget_lists_every_answered_call(self) -> None:
        """The budget is spent: every call that was answered is told."""
        timeline = Timeline()
        timeline.settle("s1", 1, 2, paid="p1")
        timeline.look(3, 4, "PAID", "p1")
        timeline.look(5, 6, "UNPAID")
        timeline.settle("s2", 5, None)
        (order,) = order_calls(timeline.history())
        told = explain(order, (), Budget(ManualClock(), until_s=0, spent=255)).splitlines()
        assert [line.partition(": ")[2] for line in told[1:]] == [
            "CreateOrder m by li → ok: UNPAID",
            "Settle s1 by li → ok: SUCCEEDED, by p1",
            "GetOrder → ok: PAID, by p1",
            "GetOrder → ok: UNPAID",
            "",
            "Settle s2 by li → unknown: no answer",
        ]


def test_progress_is_reported() -> None:
    """Of the first order, now and then, and of the last."""
    dataset = DatasetBuilder()
    for number in range(130):
        dataset.new_order(f"order-{number}")
    dataset.seal()
    told: list[tuple[str, int, int]] = []
    options = Options(SystemClock(), on_progress=lambda *words: told.append(words))
    checks = run_checks(dataset.snapshot(), history=dataset.history(), options=options)
    assert [words for words in told if words[2]] == [
        (_NAME, 0, 130),
        (_NAME, 64, 130),
        (_NAME, 128, 130),
        (_NAME, 130, 130),
    ]
    assert [words for words in told if not words[2]] == [(check.name, 0, 0) for check in checks]


def test_reversal_of_an_unknown_order_is_no_violation() -> None:
    """By the calls alone it cannot be told which; that is no violation."""
    timeline = Timeline()
    timeline.settle("s1", 1, 2, answer=NO_ANSWER)
    reversal = timeline.reverse("r1", 3, 4, "p1", Answer(state="REVERSED", payment_id="p1"))
    reversal.arguments = replace(reversal.arguments, order_id="")
    timeline.look(5, 6, "UNPAID", round=2)
    assert timeline.is_lawful()


def test_reversal_of_a_direct_payment_concerns_no_order() -> None:
    """The books know that it is none of theirs."""
    dataset = legal()
    dataset.reverse(payment(dataset, "ticket-1"))
    dataset.look("open").answer = replace(dataset.look("open").answer, round=2)
    assert not by_all(dataset)[_NAME].ok
