"""The order as its callers see it, move by move: the state before, and the state after or none."""

from __future__ import annotations

import pytest

from services.checker.linearizability.order_model import (
    NO_REQUEST,
    NOT_TOLD,
    Cancel,
    Claim,
    Create,
    Decline,
    Exists,
    Move,
    NotCancellable,
    NotReversible,
    OrderModel,
    OrderState,
    OtherVersion,
    Owed,
    PaymentState,
    Post,
    ReadOrder,
    ReadPayment,
    Reverse,
    State,
    is_read_only,
)
from services.checker.linearizability.search import NO_DEADLINE

_NONE, _CLAIMED, _RECORDED, _DECLINED, _REVERSED = PaymentState
_OWED = Owed(100, "CNY")

# Two requests; the payment of the first is p1, that of the second is not known yet.
_ABSENT = State(OrderState.ABSENT, 0, 0, Owed(0, ""), NO_REQUEST, (_NONE, _NONE), ("p1", ""))
_UNPAID = State(OrderState.UNPAID, 1, 1, _OWED, NO_REQUEST, (_NONE, _NONE), ("p1", ""))
_PAYING = State(OrderState.PAYING, 1, 2, _OWED, 0, (_CLAIMED, _NONE), ("p1", ""))
_PAYING_RECORDED = _PAYING._replace(standings=(_RECORDED, _NONE))
_PAYING_DECLINED = _PAYING._replace(standings=(_DECLINED, _NONE))
_PAYING_REVERSED = _PAYING._replace(standings=(_REVERSED, _NONE))
_PAID = State(OrderState.PAID, 1, 3, _OWED, 0, (_RECORDED, _NONE), ("p1", ""))
_PAID_REVERSED = _PAID._replace(standings=(_REVERSED, _NONE))
_AGAIN = State(OrderState.UNPAID, 2, 4, _OWED, NO_REQUEST, (_REVERSED, _NONE), ("p1", ""))
_CANCELLED = State(OrderState.CANCELLED, 1, 2, _OWED, NO_REQUEST, (_NONE, _NONE), ("p1", ""))

# The second request holds the order, and its payment has no name yet.
_NAMELESS = State(OrderState.PAYING, 1, 2, _OWED, 1, (_NONE, _CLAIMED), ("p1", ""))
_NAMED = _NAMELESS._replace(names=("p1", "p2"))


def _first(standing: PaymentState) -> State:
    """The first request's payment stands here; no other request could own its name."""
    return _UNPAID._replace(standings=(standing, _NONE))


def _second(standing: PaymentState) -> State:
    """The nameless payment stands here, while p1 is recorded."""
    return _PAID._replace(standings=(_RECORDED, standing))


def test_initial_order_is_absent() -> None:
    assert OrderModel(("p1", "")).initial == _ABSENT
    assert OrderModel(()).initial == State(OrderState.ABSENT, 0, 0, Owed(0, ""), NO_REQUEST, (), ())


def test_amount_missing_in_an_answer_is_not_compared() -> None:
    assert NOT_TOLD == Owed() == Owed(0, "")


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (_OWED, _OWED, True),
        (_OWED, NOT_TOLD, True),
        (NOT_TOLD, _OWED, True),
        (_OWED, Owed(101, "CNY"), False),
        (_OWED, Owed(100, "USD"), False),
    ],
)
def test_amount_agrees_with_itself_and_with_none(one: Owed, other: Owed, agree: bool) -> None:
    assert one.agrees(other) is agree


@pytest.mark.parametrize(
    ("move", "before", "after"),
    [
        (Create(_OWED), _ABSENT, _UNPAID),
        (Create(_OWED), _UNPAID, None),
        (Create(_OWED), _CANCELLED, None),
        # A cancel tells the version it has made, or nothing.
        (Cancel(), _UNPAID, _CANCELLED),
        (Cancel(2), _UNPAID, _CANCELLED),
        (Cancel(1), _UNPAID, None),
        (Cancel(3), _UNPAID, None),
        (Cancel(), _AGAIN, _AGAIN._replace(row=OrderState.CANCELLED, version=5)),
        (Cancel(), _ABSENT, None),
        (Cancel(), _PAYING, None),
        (Cancel(), _PAID, None),
        (Cancel(), _CANCELLED, None),
        # A request claims an unpaid order, and only once.
        (Claim(0), _UNPAID, _PAYING),
        (Claim(1), _UNPAID, _NAMELESS),
        (Claim(0), _ABSENT, None),
        (Claim(1), _PAYING, None),
        (Claim(1), _CANCELLED, None),
        (Claim(0), _AGAIN, None),
        (Claim(0), _first(_DECLINED), None),
        # Of two that are as good as each other, the later one waits for the earlier.
        (Claim(1, after=0), _UNPAID, None),
        (Claim(0, after=1), _UNPAID, None),
        (
            Claim(1, after=0),
            _AGAIN,
            State(OrderState.PAYING, 2, 5, _OWED, 1, (_REVERSED, _CLAIMED), ("p1", "")),
        ),
        # A claim is recorded once, in its own round and over its own amount.
        (Post(0), _PAYING, _PAYING_RECORDED),
        (Post(0, round=1, owed=_OWED), _PAYING, _PAYING_RECORDED),
        (Post(0, round=2), _PAYING, None),
        (Post(0, owed=Owed(101, "CNY")), _PAYING, None),
        (Post(1), _NAMELESS, _NAMELESS._replace(standings=(_NONE, _RECORDED))),
        (Post(1), _PAYING, None),
        (Post(0), _PAYING_RECORDED, None),
        (Post(0), _PAYING_DECLINED, None),
        (Post(0), _PAYING_REVERSED, None),
        # A decline ends a claim, unless it is said that there was none.
        (Decline(0), _PAYING, _PAYING_DECLINED),
        (Decline(1), _NAMELESS, _NAMELESS._replace(standings=(_NONE, _DECLINED))),
        (Decline(0), _UNPAID, None),
        (Decline(0, claimed=False), _UNPAID, _first(_DECLINED)),
        (Decline(0, claimed=False), _PAYING, _PAYING_DECLINED),
        (Decline(0, claimed=False), _PAYING_RECORDED, None),
        (Decline(0), _PAYING_RECORDED, None),
        (Decline(0), _PAID_REVERSED, None),
        # Only the payment that holds the order is reversed, and only once.
        (Reverse("p1"), _PAID, _PAID_REVERSED),
        (Reverse("p1"), _PAYING_RECORDED, _PAYING_REVERSED),
        (Reverse("p1"), _PAYING, _PAYING_DECLINED),
        (Reverse("p1"), _PAYING_DECLINED, None),
        (Reverse("p1"), _PAID_REVERSED, None),
        (Reverse("p1"), _AGAIN, None),
        (Reverse("p2"), _PAID, None),
        (Reverse("p2"), _NAMELESS, _NAMED._replace(standings=(_NONE, _DECLINED))),
        (Reverse("p1"), _NAMELESS, None),
    ],
)
def test_call_changes_the_order_or_cannot_happen(move: Move, before: State, after: State | None) -> None:
    """Nothing else of the state moves: the whole of it is compared."""
    assert move.apply(before) == after


_CLERKS = ("li", "wu")

_TRUE: list[tuple[Move, State]] = [
    (Decline(0), _PAYING_DECLINED),
    (Decline(0, claimed=False), _PAYING_DECLINED),
    # The row, told in full, in part, or hardly at all.
    (ReadOrder(OrderState.ABSENT), _ABSENT),
    (ReadOrder(OrderState.UNPAID), _UNPAID),
    (ReadOrder(OrderState.CANCELLED), _CANCELLED),
    (ReadOrder(OrderState.PAID, _CLERKS, 1, 3, _OWED, "p1", "li"), _PAID),
    (ReadOrder(OrderState.PAYING, _CLERKS, clerk="wu"), _NAMELESS),
    (ReadOrder(OrderState.PAYING, payment_id="p2"), _NAMED),
    # What is said of an order that has been made.
    (Exists(), _UNPAID),
    (Exists(), _PAYING),
    (Exists(), _CANCELLED),
    # A caller is told which version it has missed, or only that it has.
    (OtherVersion(1), _PAYING),
    (OtherVersion(1, actual=2), _PAYING),
    (OtherVersion(3), _PAYING),
    (NotCancellable(), _PAYING),
    (NotCancellable(), _PAID),
    (NotCancellable(), _CANCELLED),
    # Any payment that is not recorded cannot be reversed.
    (NotReversible("p1"), _UNPAID),
    (NotReversible("p1"), _PAYING),
    (NotReversible("p1"), _PAYING_DECLINED),
    (NotReversible("p1"), _PAID_REVERSED),
    (NotReversible("p2"), _PAID),
    (NotReversible("p2"), _UNPAID._replace(names=("", ""), standings=(_RECORDED, _CLAIMED))),
]

_UNTRUE: list[tuple[Move, State]] = [
    (ReadOrder(None), _UNPAID),
    (ReadOrder(OrderState.PAID), _PAYING),
    (ReadOrder(OrderState.PAID, version=2), _PAID),
    (ReadOrder(OrderState.PAID, round=2), _PAID),
    (ReadOrder(OrderState.PAID, owed=Owed(101, "CNY")), _PAID),
    (ReadOrder(OrderState.PAID, _CLERKS, clerk="wu"), _PAID),
    (ReadOrder(OrderState.UNPAID, _CLERKS, clerk="wu"), _UNPAID),
    (ReadOrder(OrderState.PAID, payment_id="p2"), _PAID),
    (ReadOrder(OrderState.PAYING, payment_id="p1"), _NAMELESS),
    (ReadOrder(OrderState.UNPAID, payment_id="p1"), _UNPAID),
    (Exists(), _ABSENT),
    (OtherVersion(2), _PAYING),
    (OtherVersion(1, actual=1), _PAYING),
    (OtherVersion(1, actual=3), _PAYING),
    (OtherVersion(1), _ABSENT),
    (NotCancellable(), _ABSENT),
    (NotCancellable(), _UNPAID),
    (NotReversible("p1"), _PAID),
    (NotReversible("p2"), _second(_RECORDED)),
    (NotReversible("p2"), _PAID._replace(names=("p1", "p3"))),
]


@pytest.mark.parametrize(("move", "state"), _TRUE)
def test_move_without_effect_returns_the_same_state(move: Move, state: State) -> None:
    """By that the search sees that nothing has changed, without comparing."""
    assert move.apply(state) is state


@pytest.mark.parametrize(("move", "state"), _UNTRUE)
def test_observation_that_does_not_hold_is_impossible(move: Move, state: State) -> None:
    assert move.apply(state) is None


def test_read_that_names_the_payment_binds_it_to_a_request() -> None:
    """Its own reply was lost, so this is the first that is heard of its name."""
    assert ReadOrder(OrderState.PAYING, payment_id="p2").apply(_NAMELESS) == _NAMED


_SHOWN = {
    "CREATED": {_NONE, _CLAIMED},
    "SUBMITTED": {_CLAIMED},
    "UNKNOWN": {_CLAIMED},
    "SUCCEEDED": {_RECORDED},
    "REVERSING": {_CLAIMED, _RECORDED},
    "REVERSED": {_REVERSED, _DECLINED},
    "DECLINED": {_DECLINED},
    "PARKED": {_DECLINED},
    "NO_SUCH_STATE": set[PaymentState](),
}


@pytest.mark.parametrize("standing", PaymentState)
@pytest.mark.parametrize("shown", _SHOWN)
def test_payment_is_shown_in_a_state_that_it_may_have(shown: str, standing: PaymentState) -> None:
    """The name p2 can only be that of the nameless payment, so p1, which is recorded, has no say in it."""
    known, unknown = _first(standing), _second(standing)
    may_be = standing in _SHOWN[shown]
    assert ReadPayment("p1", shown).apply(known) is (known if may_be else None)
    assert ReadPayment("p2", shown).apply(unknown) is (unknown if may_be else None)


def test_request_refused_without_a_claim_has_a_declined_payment() -> None:
    """It is shown as nothing else, and it is not the payment of another request."""
    refused = frozenset({0})
    assert ReadPayment("p1", "DECLINED", refused).apply(_UNPAID) is _UNPAID
    assert ReadPayment("p1", "SUCCEEDED", refused).apply(_UNPAID) is None
    assert ReadPayment("p2", "DECLINED", refused).apply(_UNPAID) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (_ABSENT, None),
        (_UNPAID, None),
        (_AGAIN, None),
        (_CANCELLED, None),
        (_PAYING, None),
        (_PAID, None),
        (_PAYING_RECORDED, _PAID),
        (_PAYING_REVERSED, _PAID_REVERSED),
        (_PAYING_DECLINED, State(OrderState.UNPAID, 1, 3, _OWED, NO_REQUEST, (_DECLINED, _NONE), ("p1", ""))),
        (_PAID_REVERSED, _AGAIN),
    ],
)
def test_order_moves_by_an_internal_step_after_its_payment(before: State, after: State | None) -> None:
    """One step at a time: one reversed while the order was still paying has paid it first."""
    assert OrderModel(()).internal_step(before) == after


_LOOKS: list[Move] = [
    ReadOrder(OrderState.PAID),
    Exists(),
    OtherVersion(1),
    NotCancellable(),
    ReadPayment("p1", "SUCCEEDED"),
    NotReversible("p1"),
]
_CHANGES: list[Move] = [Create(_OWED), Cancel(), Claim(0), Post(0), Decline(0), Reverse("p1")]


@pytest.mark.parametrize("move", _LOOKS)
def test_move_that_only_observes_is_a_read(move: Move) -> None:
    assert is_read_only([move])


@pytest.mark.parametrize("move", _CHANGES)
def test_moves_with_one_change_are_a_change(move: Move) -> None:
    assert not is_read_only([move])
    assert not is_read_only([*_LOOKS, move])


def test_reads_and_no_move_change_nothing() -> None:
    assert is_read_only(_LOOKS)
    assert is_read_only([])


@pytest.mark.parametrize(
    ("move", "last"),
    [
        (ReadOrder(OrderState.PAID, version=3), 3),
        (OtherVersion(1, actual=3), 3),
        (Cancel(3), 2),
        (ReadOrder(OrderState.PAID), NO_DEADLINE),
        (OtherVersion(1), NO_DEADLINE),
        (Cancel(), NO_DEADLINE),
        (Create(_OWED), NO_DEADLINE),
        (Claim(0), NO_DEADLINE),
        (Post(0, round=1), NO_DEADLINE),
        (ReadPayment("p1", "SUCCEEDED"), NO_DEADLINE),
    ],
)
def test_version_of_an_answer_bounds_the_move(move: Move, last: int) -> None:
    """A cancel tells the version after it, so it is made at the one before."""
    assert OrderModel(()).deadline(move) == last


@pytest.mark.parametrize(
    ("move", "state", "missed"),
    [
        # A version that has passed does not come again.
        (ReadOrder(OrderState.PAYING, version=3), _PAYING, False),
        (ReadOrder(OrderState.PAYING, version=2), _PAYING, False),
        (ReadOrder(OrderState.UNPAID, version=1), _PAYING, True),
        (OtherVersion(5, actual=2), _PAYING, False),
        (OtherVersion(5, actual=1), _PAYING, True),
        (Cancel(3), _PAYING, False),
        (Cancel(2), _PAYING, True),
        (Cancel(1), _PAYING, True),
        # Nor does a round.
        (ReadOrder(OrderState.UNPAID, round=1), _AGAIN, True),
        (ReadOrder(OrderState.UNPAID, round=2), _AGAIN, False),
        (ReadOrder(OrderState.UNPAID, round=3), _AGAIN, False),
        (Post(1, round=1), _AGAIN, True),
        (Post(1, round=2), _AGAIN, False),
        # Where neither was told, there is nothing to miss.
        (ReadOrder(OrderState.UNPAID), _AGAIN, False),
        (OtherVersion(1), _AGAIN, False),
        (Cancel(), _AGAIN, False),
        (Post(1), _AGAIN, False),
        (Claim(1), _AGAIN, False),
    ],
)
def test_versions_and_rounds_only_grow(move: Move, state: State, missed: bool) -> None:
    assert OrderModel(()).is_missed(state, move) is missed


_STILL_TO_COME = {
    _NONE: {"CREATED", "SUBMITTED", "UNKNOWN", "SUCCEEDED", "REVERSING", "REVERSED", "DECLINED", "PARKED"},
    _CLAIMED: {"CREATED", "SUBMITTED", "UNKNOWN", "SUCCEEDED", "REVERSING", "REVERSED", "DECLINED", "PARKED"},
    _RECORDED: {"SUCCEEDED", "REVERSING", "REVERSED"},
    _DECLINED: {"REVERSED", "DECLINED", "PARKED"},
    _REVERSED: {"REVERSED"},
}


@pytest.mark.parametrize("standing", PaymentState)
@pytest.mark.parametrize("shown", _SHOWN)
def test_payment_does_not_go_back_to_where_it_stood(shown: str, standing: PaymentState) -> None:
    """What it shows now and what it may yet show is not missed; the rest is, and so is a state that none has."""
    missed = shown not in _STILL_TO_COME[standing]
    assert OrderModel(()).is_missed(_first(standing), ReadPayment("p1", shown)) is missed
    assert OrderModel(()).is_missed(_second(standing), ReadPayment("p2", shown)) is missed


@pytest.mark.parametrize(
    ("payment_id", "refused", "missed"),
    [("p1", {0}, False), ("p1", {1}, True), ("p1", set[int](), True), ("p2", {0}, True), ("p2", {1}, False)],
)
def test_payment_of_a_refused_request_may_always_be_shown_declined(
    payment_id: str, refused: set[int], missed: bool
) -> None:
    """That of another is not found by it, and both of these are past being declined."""
    state = _PAID._replace(standings=(_RECORDED, _REVERSED))
    assert OrderModel(()).is_missed(state, ReadPayment(payment_id, "DECLINED", frozenset(refused))) is missed
