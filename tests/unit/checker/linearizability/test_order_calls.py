"""What is made of the calls before anything is searched: whose they are, and which moves they may have been."""

from __future__ import annotations

from services.checker.history import NO_ANSWER, Answer, Arguments, Outcome, RecordedCall
from services.checker.linearizability.order_calls import OrderCalls, order_calls
from services.checker.linearizability.order_model import (
    Cancel,
    Claim,
    Create,
    Decline,
    Exists,
    Move,
    NotCancellable,
    NotReversible,
    OrderState,
    Owed,
    Post,
    ReadOrder,
    ReadPayment,
    Reverse,
)
from services.checker.linearizability.search import Operation
from tests.unit.checker.dataset import DatasetBuilder, legal
from tests.unit.checker.timeline import CANCELLED, ORDER, Timeline, illegal_state

_OWED = Owed(100, "CNY")
_MADE = Operation((Create(_OWED),), -2, -1)
_LOCKED = Answer("ABORTED", "ORDER_LOCKED")


def _pending(payment: str) -> Answer:
    """Its payment is known by its name, and what has become of it is not."""
    return Answer(state="SUBMITTED", payment_id=payment)


def _compiled(timeline: Timeline) -> OrderCalls:
    (order,) = order_calls(timeline.history())
    assert len(order.calls) == len(order.operations)
    return order


def _moves(timeline: Timeline) -> list[tuple[Move, ...]]:
    """Of each deed, without when it was."""
    return [operation.moves for operation in _compiled(timeline).operations]


def _claims(timeline: Timeline) -> list[Move]:
    return [move for moves in _moves(timeline) for move in moves if isinstance(move, Claim)]


def _ticket(timeline: Timeline, answer: Answer | None, *, order: str = ORDER, clerk: str = "li") -> RecordedCall:
    return timeline.call("IssueTicket", Arguments(order_id=order, key="ask", clerk=clerk), answer, 1, 2)


def _pay(timeline: Timeline, ticket: str, answer: Answer | None = None, *, clerk: str = "li") -> RecordedCall:
    return timeline.call("Pay", Arguments(key=ticket, clerk=clerk), answer, 3, 4)


def _loose_reversal(timeline: Timeline, answer: Answer | None = None) -> RecordedCall:
    """Of a payment that nothing else in the history names."""
    return timeline.call("Reverse", Arguments(payment_id="p9", key="r", clerk="wu"), answer, 5, 6)


class TestOrderOfACall:
    """A call belongs to the order it names, or that its answer, its ticket or its payment leads to."""

    def test_pay_is_of_the_order_its_ticket_was_issued_for(self) -> None:
        """Neither the call nor its answer says so."""
        timeline = Timeline()
        _ticket(timeline, Answer(ticket="t"))
        pay = _pay(timeline, "t", Answer(state="SUCCEEDED", payment_id="p1"))
        order = _compiled(timeline)
        assert order.names == ("p1",)
        assert order.operations == [Operation((Claim(0), Post(0)), 3, 4), _MADE]
        assert order.calls == [(pay,), (timeline.calls[0],)]

    def test_unanswered_pay_belongs_to_its_tickets_order(self) -> None:
        """Then there is no payment that could lead there."""
        timeline = Timeline()
        _ticket(timeline, Answer(ticket="t"))
        _pay(timeline, "t")
        assert _compiled(timeline).operations == [Operation((Claim(0), Post(0), Decline(0)), 3, None), _MADE]

    def test_order_of_a_ticket_is_in_the_answer_to_its_issue(self) -> None:
        timeline = Timeline()
        _ticket(timeline, Answer(ticket="t", order_id=ORDER), order="")
        _pay(timeline, "t")
        assert _claims(timeline) == [Claim(0)]

    def test_pay_answered_with_its_order_needs_no_ticket(self) -> None:
        timeline = Timeline()
        _pay(timeline, "t", Answer(state="SUCCEEDED", payment_id="p1", order_id=ORDER))
        assert _moves(timeline)[0] == (Claim(0), Post(0))

    def test_ticket_is_of_the_clerk_it_was_issued_to(self) -> None:
        """What another sends under the same name is another request."""
        timeline = Timeline()
        _ticket(timeline, Answer(ticket="t"), clerk="wu")
        _pay(timeline, "t")
        assert _compiled(timeline).operations == [_MADE]

    def test_pay_without_a_ticket_is_of_no_order(self) -> None:
        """Not of the one for which a ticket was asked in vain, nor of the one this clerk has settled."""
        timeline = Timeline()
        _ticket(timeline, None)
        _pay(timeline, "")
        timeline.settle("s", 5, 6)
        assert _claims(timeline) == [Claim(0)]

    def test_payment_leads_to_the_order_it_was_made_for(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, 2, paid="p1")
        timeline.call("GetPayment", Arguments(payment_id="p1"), Answer(state="SUCCEEDED", payment_id="p1"), 3, 4)
        timeline.call("Reverse", Arguments(payment_id="p1", key="r", clerk="wu"), None, 5, None)
        assert _moves(timeline)[2:] == [(Reverse("p1"),), (ReadPayment("p1", "SUCCEEDED"),)]


class TestReversalOfUnknownOrder:
    """Of a payment whose order nobody knows: it may have been of any order with a payment that nobody can name."""

    def test_reversal_may_be_of_an_order_with_an_unnamed_payment(self) -> None:
        """Whatever was answered, it may as well have been another order's, so nobody knows whether it was done."""
        timeline = Timeline()
        timeline.settle("s", 1, None)
        reversal = _loose_reversal(timeline, Answer(state="REVERSED", payment_id="p9"))
        order = _compiled(timeline)
        assert order.operations[-1] == Operation((Reverse("p9"),), 5, None)
        assert order.calls[-1] == (reversal,)
        assert len(order.operations) == 3

    def test_reversal_is_not_of_an_order_whose_payments_all_have_names(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, 2, paid="p1")
        _loose_reversal(timeline)
        assert _compiled(timeline).operations == [Operation((Claim(0), Post(0, 0, Owed(0, "CNY"))), 1, 2), _MADE]

    def test_refused_reversal_has_no_effect(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, None)
        _loose_reversal(timeline, illegal_state())
        assert not any(isinstance(move, Reverse) for moves in _moves(timeline) for move in moves)

    def test_read_of_a_payment_of_an_unknown_order_is_no_reversal(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, None)
        timeline.call("GetPayment", Arguments(payment_id="p9"), None, 5, None)
        assert len(_compiled(timeline).operations) == 2


class TestFirstAnswer:
    """A request that was sent several times is over with the first answer that says for certain what it did."""

    def test_first_answer_counts_not_the_first_attempt(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, 9, paid="p1")
        timeline.settle("s", 2, 4, paid="p1")
        assert _compiled(timeline).operations[0] == Operation((Claim(0), Post(0, 0, Owed(0, "CNY"))), 1, 4)

    def test_answer_at_the_very_beginning_of_time_is_the_first(self) -> None:
        """Zero is a moment like others."""
        timeline = Timeline()
        timeline.settle("s", 0, 1, paid="p1")
        timeline.settle("s", 0, 0, paid="p1")
        assert _compiled(timeline).operations[0] == Operation((Claim(0), Post(0, 0, Owed(0, "CNY"))), 0, 0)


class TestInterchangeableRequests:
    """Of requests that are as good as each other, one is used before the next; of others, any may have been done."""

    def two_pending(self) -> Timeline:
        timeline = Timeline()
        timeline.settle("s1", 1, 2, answer=_pending("p1"))
        timeline.settle("s2", 3, 4, answer=_pending("p2"))
        return timeline

    def test_requests_with_payments_seen_by_no_other_caller_are_alike(self) -> None:
        """That they were told the name themselves says nothing of what was done."""
        assert _claims(self.two_pending()) == [Claim(0), Claim(1, after=0)]

    def test_request_without_a_name_is_not_like_one_with(self) -> None:
        """Any payment that turns up may be its own."""
        timeline = Timeline()
        timeline.settle("s1", 1, 2, answer=_pending("p1"))
        timeline.settle("s2", 3, None)
        assert _claims(timeline) == [Claim(0), Claim(1)]

    def test_payment_named_by_a_reversal_was_seen(self) -> None:
        timeline = self.two_pending()
        timeline.reverse("r", 5, None, "p1")
        assert _claims(timeline) == [Claim(0), Claim(1)]

    def test_payment_named_by_a_reversal_under_any_key_was_seen(self) -> None:
        """A caller may call a key as a method is called."""
        timeline = self.two_pending()
        timeline.reverse("Settle", 5, None, "p1")
        assert _claims(timeline) == [Claim(0), Claim(1)]

    def test_payment_named_by_a_refusal_was_seen(self) -> None:
        """Whoever was refused was told by which."""
        timeline = self.two_pending()
        timeline.refused("s3", 5, 6, by="p1")
        assert _claims(timeline) == [Claim(0), Claim(1)]

    def test_payment_in_a_read_order_was_seen(self) -> None:
        timeline = self.two_pending()
        timeline.look(5, 6, "PAYING", "p1")
        assert _claims(timeline) == [Claim(0), Claim(1)]

    def test_payment_in_the_final_read_was_seen(self) -> None:
        """The books say which of two requests without an answer paid the order."""
        dataset = legal()
        dataset.accept("open", "Settle", "lost-1", "li")
        dataset.call("Settle", Arguments(order_id="open", key="lost-1", clerk="li"), NO_ANSWER, dataset.now_ms())
        paid = dataset.settle("open", key="lost-2")
        call = dataset.call_of("lost-2")
        call.answer, call.outcome, call.answered_ns = NO_ANSWER, Outcome.INFO, None
        order = _of(dataset, "open")
        assert order.names[1] == paid["payment_id"]
        claims = [move for operation in order.operations for move in operation.moves if isinstance(move, Claim)]
        assert claims == [Claim(0), Claim(1)]

    def test_requests_without_a_payment_in_the_books_are_alike(self) -> None:
        """Each has a name of its own then, which nothing that was seen can have."""
        dataset = legal()
        for key in ("lost-1", "lost-2"):
            dataset.call("Settle", Arguments(order_id="open", key=key, clerk="li"), NO_ANSWER, dataset.now_ms())
        order = _of(dataset, "open")
        assert order.names == ("none of lost-1", "none of lost-2")
        claims = [move for operation in order.operations for move in operation.moves if isinstance(move, Claim)]
        assert claims == [Claim(0), Claim(1, after=0)]


class TestDeclined:
    """A request that nobody was answered may have ended without a claim only if somebody saw it declined."""

    def declined(self, *, seen: str, name: str) -> Move:
        timeline = Timeline()
        timeline.settle("s", 1, 2, answer=_pending(name) if name else None)
        timeline.look_at_payment(3, 4, seen, "DECLINED")
        return _moves(timeline)[0][2]

    def test_own_payment_was_seen_declined(self) -> None:
        assert self.declined(seen="p1", name="p1") == Decline(0, claimed=False)

    def test_payment_that_may_be_its_own_was_seen_declined(self) -> None:
        assert self.declined(seen="p2", name="") == Decline(0, claimed=False)

    def test_another_declined_payment_is_not_its_own(self) -> None:
        assert self.declined(seen="p2", name="p1") == Decline(0, claimed=True)


class TestOtherWrites:
    """What was done, as far as the caller was told; or a look at what forbade it."""

    def test_amount_missing_in_the_call_is_taken_from_the_answer(self) -> None:
        timeline = Timeline(made=False)
        asked = Arguments(order_id=ORDER, key="m", clerk="li")
        timeline.call("CreateOrder", asked, Answer(state="UNPAID", amount_minor=100, currency="CNY"), 1, 2)
        assert _compiled(timeline).operations == [Operation((Create(_OWED),), 1, 2)]

    def test_order_exists_refusal_is_a_read(self) -> None:
        timeline = Timeline()
        timeline.create("again", 1, 2, Answer("ALREADY_EXISTS", "ORDER_EXISTS"))
        assert _compiled(timeline).operations == [_MADE, Operation((Exists(),), 1, 2)]

    def test_cancellation_makes_the_version_of_its_answer(self) -> None:
        timeline = Timeline()
        timeline.cancel("c", 1, 2, Answer(state="CANCELLED", version=2))
        timeline.cancel("d", 3, 4, CANCELLED)
        assert _compiled(timeline).operations == [_MADE, Operation((Cancel(2),), 1, 2), Operation((Cancel(),), 3, 4)]

    def test_refused_cancellation_is_a_read_of_its_state(self) -> None:
        timeline = Timeline()
        timeline.cancel("c", 1, 2, illegal_state("PAID"))
        assert _compiled(timeline).operations == [_MADE, Operation((ReadOrder(OrderState.PAID),), 1, 2)]

    def test_refused_cancellation_without_a_state_only_excludes_unpaid(self) -> None:
        timeline = Timeline()
        timeline.cancel("c", 1, 2, illegal_state())
        assert _compiled(timeline).operations == [_MADE, Operation((NotCancellable(),), 1, 2)]

    def test_refused_reversal_is_a_read_of_the_payments_state(self) -> None:
        timeline = Timeline()
        timeline.reverse("r", 1, 2, "p1", illegal_state("DECLINED"))
        assert _compiled(timeline).operations == [_MADE, Operation((ReadPayment("p1", "DECLINED"),), 1, 2)]

    def test_refused_reversal_without_a_state_only_excludes_succeeded(self) -> None:
        timeline = Timeline()
        timeline.reverse("r", 1, 2, "p1", illegal_state())
        assert _compiled(timeline).operations == [_MADE, Operation((NotReversible("p1"),), 1, 2)]

    def test_reversal_that_the_ledger_refused_was_of_a_payment_that_had_paid(self) -> None:
        timeline = Timeline()
        timeline.reverse("r", 1, 2, "p1", Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"))
        assert _compiled(timeline).operations == [_MADE, Operation((ReadPayment("p1", "SUCCEEDED"),), 1, 2)]

    def test_reversal_that_was_parked_was_of_a_payment_that_paid_nothing(self) -> None:
        timeline = Timeline()
        timeline.reverse("r", 1, 2, "p1", Answer("FAILED_PRECONDITION", "PAYMENT_PARKED"))
        assert _compiled(timeline).operations == [_MADE, Operation((ReadPayment("p1", "PARKED"),), 1, 2)]


class TestNeverClaimed:
    """A look at a payment is told which requests cannot have claimed, for theirs may be DECLINED all the same."""

    def test_request_refused_before_any_effect_never_claimed(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, 2, answer=_LOCKED)
        timeline.look_at_payment(3, 4, "p1", "DECLINED")
        assert _compiled(timeline).operations == [
            _MADE,
            Operation((ReadPayment("p1", "DECLINED", frozenset({0})),), 3, 4),
        ]

    def test_request_refused_as_too_late_never_claimed(self) -> None:
        timeline = Timeline()
        timeline.refused("s", 1, 2, by="p1")
        timeline.look_at_payment(3, 4, "p2", "DECLINED")
        look = ReadOrder(OrderState.PAID, ("wu",), payment_id="p1")
        assert _compiled(timeline).operations == [
            Operation((look,), 1, 2),
            _MADE,
            Operation((ReadPayment("p2", "DECLINED", frozenset({0})),), 3, 4),
        ]

    def test_unanswered_request_may_have_claimed(self) -> None:
        timeline = Timeline()
        timeline.settle("s", 1, None)
        timeline.look_at_payment(3, 4, "p1", "DECLINED")
        assert _moves(timeline)[-1] == (ReadPayment("p1", "DECLINED"),)


class TestNotFound:
    """Somebody was told that there is no such order."""

    def test_settle_answered_not_found_twice_read_once(self) -> None:
        """The refusal is stored, so a later attempt says nothing of the order, which has been made since."""
        absent = Answer("NOT_FOUND", "ORDER_NOT_FOUND")
        timeline = Timeline()
        timeline.settle("s", -20, -19, answer=absent)
        timeline.settle("s", 3, 4, answer=absent)
        assert Operation((ReadOrder(OrderState.ABSENT),), -20, -19) in _compiled(timeline).operations
        assert _moves(timeline).count((ReadOrder(OrderState.ABSENT),)) == 1
        assert timeline.is_lawful()

    def test_settle_answered_not_found_and_repeated_without_answer_never_claimed(self) -> None:
        """Its payment was declined by the first attempt, and could be seen so before the second."""
        timeline = Timeline()
        timeline.settle("s", -20, -19, answer=Answer("NOT_FOUND", "ORDER_NOT_FOUND"))
        timeline.look_at_payment(-18, -17, "p1", "DECLINED")
        timeline.settle("s", 3, None)
        assert Operation((ReadPayment("p1", "DECLINED", frozenset({0})),), -18, -17) in _compiled(timeline).operations
        assert timeline.is_lawful()

    def test_write_answered_not_found_reads_the_order(self) -> None:
        """The order was made before, so the answer contradicts it."""
        timeline = Timeline()
        timeline.cancel("c", 3, 4, Answer("NOT_FOUND", "ORDER_NOT_FOUND"))
        assert _moves(timeline).count((ReadOrder(OrderState.ABSENT),)) == 1
        assert not timeline.is_lawful()

    def test_read_answered_not_found_twice_read_twice(self) -> None:
        """Nobody keeps the answer to a read."""
        timeline = Timeline()
        timeline.absent(-20, -19)
        timeline.absent(3, 4)
        assert not timeline.is_lawful()


class TestFinalRead:
    """The books are looked at when the last call is over."""

    def test_final_read_comes_after_the_last_answer(self) -> None:
        """Nothing that was called can be after it."""
        dataset = legal()
        last_ns = max(call.answered_ns or call.invoked_ns for call in dataset.history().calls)
        order = _of(dataset, "open")
        look = ReadOrder(OrderState.UNPAID, (), round=1, version=1, owed=Owed(70, "CNY"))
        assert order.operations[-1] == Operation((look,), last_ns + 1, last_ns + 1)
        assert order.calls[-1] == ()
        assert order.unrecorded == ""


def _of(dataset: DatasetBuilder, order_id: str) -> OrderCalls:
    """One order's calls, with the books."""
    (order,) = (order for order in order_calls(dataset.history(), dataset.snapshot()) if order.order_id == order_id)
    return order
