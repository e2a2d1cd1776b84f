"""One order as its callers see it, single-threaded: its states, and what each call changes or observes.

                 Claim                           (by itself)
    UNPAID ─────────────────▶ PAYING ───────────────────────────▶ PAID
     │ ▲ ▲                     │ holder CLAIMED ─Record─▶ RECORDED │ RECORDED ─Reverse─▶ REVERSED
     │ │ └─────────────────────┘       └─Decline─▶ DECLINED        │ REVERSED
     │ │      (by itself)                                          │
     │ └───────────────────────────────────────────────────────────┘ next round (by itself)
     └─ Cancel ─▶ CANCELLED

A settle is two moves, Claim and Record (or Decline), each within the call that asks for it. The payment service's
notification of the order comes later, perhaps after the caller was answered: until then the order is still
PAYING, or still PAID after a reversal. `internal_step` makes those moves, which belong to no call.

Invariants
1. A payment is recorded at most once, and a round has at most one that is recorded.
2. Every change of the row raises its version by one.
3. A call that only looks, or was refused, changes nothing.

What an answer left out is not compared. A payment's id may be unknown at first, for its reply was lost: the first
look at the order that names it decides which request it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from services.checker.linearizability.search import NO_DEADLINE, Model

NO_REQUEST = -1


class OrderState(IntEnum):
    """The state of the order, as GetOrder returns it."""

    ABSENT = 0
    UNPAID = 1
    PAYING = 2
    PAID = 3
    CANCELLED = 4


class PaymentState(IntEnum):
    """Where a request's payment stands."""

    NONE = 0
    CLAIMED = 1
    POSTED = 2
    DECLINED = 3
    REVERSED = 4


class Owed(NamedTuple):
    """The order's amount; zero: not in the answer."""

    amount_minor: int = 0
    currency: str = ""

    def agrees(self, other: Owed) -> bool:
        """Return whether both may hold for one order."""
        return not self.amount_minor or not other.amount_minor or self == other


NOT_TOLD = Owed()


class State(NamedTuple):
    """The order at one moment.

    Args:
        holder: The request whose payment the row names, by its number; NO_REQUEST: none.
        standings: Of each request's payment, by its number.
        names: Each request's payment id, by its number; empty: not known yet.
    """

    row: OrderState
    round: int
    version: int
    owed: Owed
    holder: int
    standings: tuple[PaymentState, ...]
    names: tuple[str, ...]


class Move(Protocol):
    """What one call does, or one half of it."""

    def apply(self, state: State) -> State | None:
        """Return the order after it; the very same object if it changes nothing; None: it is impossible here."""
        ...


# What changes the order


@dataclass(frozen=True, slots=True)
class Create:
    """CreateOrder."""

    owed: Owed

    def apply(self, state: State) -> State | None:
        if state.row is not OrderState.ABSENT:
            return None
        return state._replace(row=OrderState.UNPAID, round=1, version=1, owed=self.owed)


@dataclass(frozen=True, slots=True)
class Cancel:
    """CancelOrder.

    Args:
        version: After it, by the answer; 0: not in the answer.
    """

    version: int = 0

    def apply(self, state: State) -> State | None:
        if state.row is not OrderState.UNPAID or self.version not in (0, state.version + 1):
            return None
        return state._replace(row=OrderState.CANCELLED, version=state.version + 1)


@dataclass(frozen=True, slots=True)
class Claim:
    """The first half of a settle.

    Args:
        after: Another request that is used first, where one is as good as the other; NO_REQUEST: none.
    """

    request: int
    after: int = NO_REQUEST

    def apply(self, state: State) -> State | None:
        if state.row is not OrderState.UNPAID or state.standings[self.request] is not PaymentState.NONE:
            return None
        if self.after != NO_REQUEST and state.standings[self.after] is PaymentState.NONE:
            return None
        claimed = _standing(state, self.request, PaymentState.CLAIMED)
        return claimed._replace(row=OrderState.PAYING, version=state.version + 1, holder=self.request)


@dataclass(frozen=True, slots=True)
class Post:
    """The second half of a settle: its money has moved.

    Args:
        round: By the answer; 0: not in the answer.
    """

    request: int
    round: int = 0
    owed: Owed = NOT_TOLD

    def apply(self, state: State) -> State | None:
        if state.standings[self.request] is not PaymentState.CLAIMED:
            return None
        if self.round not in (0, state.round) or not self.owed.agrees(state.owed):
            return None
        return _standing(state, self.request, PaymentState.POSTED)


@dataclass(frozen=True, slots=True)
class Decline:
    """The other second half: no money has moved, and none will.

    Args:
        claimed: It had claimed the order before; otherwise it may have ended without.
    """

    request: int
    claimed: bool = True

    def apply(self, state: State) -> State | None:
        standing = state.standings[self.request]
        if standing is PaymentState.DECLINED:
            return state
        if standing is PaymentState.CLAIMED or (standing is PaymentState.NONE and not self.claimed):
            return _standing(state, self.request, PaymentState.DECLINED)
        return None


@dataclass(frozen=True, slots=True)
class Reverse:
    """Reverse, of the payment that has paid the order; one whose outcome is not known ends as if declined."""

    payment_id: str

    def apply(self, state: State) -> State | None:
        named = _named(state, self.payment_id)
        if named is None:
            return None
        match named.standings[named.holder]:
            case PaymentState.POSTED:
                return _standing(named, named.holder, PaymentState.REVERSED)
            case PaymentState.CLAIMED:
                return _standing(named, named.holder, PaymentState.DECLINED)
        return None


# What only looks


@dataclass(frozen=True, slots=True)
class ReadOrder:
    """GetOrder, or any other answer with the row's state.

    Args:
        row: None: as no order can stand.
        clerks: Of each request, by its number.
        clerk: The clerk who settled it, by the answer; empty: not in the answer.
    """

    row: OrderState | None
    clerks: tuple[str, ...] = ()
    round: int = 0
    version: int = 0
    owed: Owed = NOT_TOLD
    payment_id: str = ""
    clerk: str = ""

    def apply(self, state: State) -> State | None:
        if state.row is not self.row or self.version not in (0, state.version) or self.round not in (0, state.round):
            return None
        if not self.owed.agrees(state.owed):
            return None
        if self.clerk and (state.holder == NO_REQUEST or self.clerks[state.holder] != self.clerk):
            return None
        return _named(state, self.payment_id) if self.payment_id else state


@dataclass(frozen=True, slots=True)
class Exists:
    """ORDER_EXISTS: the order has been made."""

    def apply(self, state: State) -> State | None:
        return None if state.row is OrderState.ABSENT else state


@dataclass(frozen=True, slots=True)
class OtherVersion:
    """STALE_VERSION: the order is at another version than the caller expected.

    Args:
        actual: Its version, by the answer; 0: not in the answer.
    """

    expected: int
    actual: int = 0

    def apply(self, state: State) -> State | None:
        is_other = state.row is not OrderState.ABSENT and state.version != self.expected
        return state if is_other and self.actual in (0, state.version) else None


@dataclass(frozen=True, slots=True)
class NotCancellable:
    """ILLEGAL_STATE, of a CancelOrder whose answer lacks the state."""

    def apply(self, state: State) -> State | None:
        return None if state.row in (OrderState.ABSENT, OrderState.UNPAID) else state


#: Where a payment in this state may stand. One that no caller saw may be reversed unseen, or parked; it ends as if
#: declined.
_SHOWN: dict[str, tuple[PaymentState, ...]] = {
    "CREATED": (PaymentState.NONE, PaymentState.CLAIMED),
    "SUBMITTED": (PaymentState.CLAIMED,),
    "UNKNOWN": (PaymentState.CLAIMED,),
    "SUCCEEDED": (PaymentState.POSTED,),
    "REVERSING": (PaymentState.CLAIMED, PaymentState.POSTED),
    "REVERSED": (PaymentState.REVERSED, PaymentState.DECLINED),
    "DECLINED": (PaymentState.DECLINED,),
    "PARKED": (PaymentState.DECLINED,),
}


@dataclass(frozen=True, slots=True)
class ReadPayment:
    """GetPayment, or a refusal with the state of a payment.

    Args:
        refused: Requests that were refused without a claim, by their numbers: their payments are DECLINED.
    """

    payment_id: str
    state: str
    refused: frozenset[int] = frozenset()

    def apply(self, state: State) -> State | None:
        shown = _SHOWN.get(self.state, ())
        for request in _perhaps(state, self.payment_id):
            if state.standings[request] in shown or (self.state == "DECLINED" and request in self.refused):
                return state
        return None


@dataclass(frozen=True, slots=True)
class NotReversible:
    """ILLEGAL_STATE, of a Reverse whose answer lacks the state."""

    payment_id: str

    def apply(self, state: State) -> State | None:
        found = _perhaps(state, self.payment_id)
        return state if any(state.standings[request] is not PaymentState.POSTED for request in found) else None


#: What changes nothing, but for the name of a payment.
_LOOKS = (ReadOrder, Exists, OtherVersion, NotCancellable, ReadPayment, NotReversible)


def is_read_only(moves: Iterable[Move]) -> bool:
    """Return whether these moves change nothing."""
    return all(isinstance(move, _LOOKS) for move in moves)


#: Where a payment may yet come to stand, from where it stands.
_REACHES: dict[PaymentState, frozenset[PaymentState]] = {
    PaymentState.NONE: frozenset(PaymentState),
    PaymentState.CLAIMED: frozenset(PaymentState) - {PaymentState.NONE},
    PaymentState.POSTED: frozenset({PaymentState.POSTED, PaymentState.REVERSED}),
    PaymentState.DECLINED: frozenset({PaymentState.DECLINED}),
    PaymentState.REVERSED: frozenset({PaymentState.REVERSED}),
}


class OrderModel(Model[State, Move]):
    """One order, before it is made.

    Args:
        names: The payment id of each settling request, as far as it is known.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.initial = State(OrderState.ABSENT, 0, 0, Owed(), NO_REQUEST, (PaymentState.NONE,) * len(names), names)

    def step(self, state: State, move: Move) -> State | None:
        return move.apply(state)

    def is_observation(self, state: State, move: Move) -> bool:
        """Return whether `move` changes nothing; a payment that is DECLINED stays so, so declining it again is one."""
        return move.apply(state) is state

    def internal_step(self, state: State) -> State | None:
        """Return the order after the notification of its payment's outcome."""
        if state.holder == NO_REQUEST:
            return None
        match state.row, state.standings[state.holder]:
            case OrderState.PAYING, PaymentState.POSTED | PaymentState.REVERSED:
                return state._replace(row=OrderState.PAID, version=state.version + 1)
            case OrderState.PAYING, PaymentState.DECLINED:
                return state._replace(row=OrderState.UNPAID, version=state.version + 1, holder=NO_REQUEST)
            case OrderState.PAID, PaymentState.REVERSED:
                reopened = state._replace(row=OrderState.UNPAID, version=state.version + 1, holder=NO_REQUEST)
                return reopened._replace(round=state.round + 1)
        return None

    def progress(self, state: State) -> int:
        return state.version

    def deadline(self, move: Move) -> int:
        match move:
            case ReadOrder(version=version) | OtherVersion(actual=version) if version:
                return version
            case Cancel(version=version) if version:
                return version - 1
        return NO_DEADLINE

    def is_missed(self, state: State, move: Move) -> bool:
        if state.version > self.deadline(move):
            return True
        match move:
            case ReadOrder(round=round_) | Post(round=round_) if round_:
                return state.round > round_
            case ReadPayment(payment_id, shown, refused):
                wanted = _SHOWN.get(shown, ())
                return not any(
                    request in refused or not _REACHES[state.standings[request]].isdisjoint(wanted)
                    for request in _perhaps(state, payment_id)
                )
        return False


def _standing(state: State, request: int, standing: PaymentState) -> State:
    standings = (*state.standings[:request], standing, *state.standings[request + 1 :])
    return state._replace(standings=standings)


def _named(state: State, payment_id: str) -> State | None:
    """Return the state if the row's payment is this one, which it may become by being named."""
    if state.holder == NO_REQUEST:
        return None
    name = state.names[state.holder]
    if name == payment_id:
        return state
    if name or payment_id in state.names:
        return None
    names = (*state.names[: state.holder], payment_id, *state.names[state.holder + 1 :])
    return state._replace(names=names)


def _perhaps(state: State, payment_id: str) -> list[int]:
    """Return the requests whose payment this may be."""
    if payment_id in state.names:
        return [state.names.index(payment_id)]
    return [request for request, name in enumerate(state.names) if not name]
