"""Decide whether calls that overlapped are linearizable: whether one sequence of them satisfies a sequential model.

The search goes through the calls' beginnings and ends in time. It keeps the set of all *configurations* that are
possible so far: the model's state, and which moves of the open operations have been made.

    an operation begins      its moves may be made from now on
    an operation ends        every configuration is advanced, by any open moves, until the operation's own are made;
                             one in which they cannot be is dropped. If none is left, there is no linearization
    an operation never ends  its moves may be made at any time, or never

Four rules keep the set small, and none of them loses a linearization:
1. Moves are made lazily: configurations are advanced only when an operation ends.
2. An observation that holds is made at once: it changes nothing, and no later moment is better for it.
3. A configuration in which an operation that ends can no longer be made, also one that is yet to begin, is dropped.
4. Configurations that are equal are one.

The idea is Wing and Gong's, with the memory of Lowe and the lazy steps of his just-in-time search ("Testing for
linearizability", 2016). Each order is searched by itself, for linearizability is local (Herlihy and Wing, 1990).
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from services.kernel.clock import Clock

#: How many configurations are advanced between two looks at the clock.
_LOOK_EVERY = 256
#: The deadline of a move that can be made at any progress.
NO_DEADLINE = sys.maxsize

_S = TypeVar("_S", bound=Hashable)
_M = TypeVar("_M")
_M_contra = TypeVar("_M_contra", contravariant=True)


class Model(Protocol[_S, _M_contra]):
    """What a single caller at a time would see: a state, and the moves that change or observe it.

    A model needs `initial` and `step`. The other methods are for a state that moves by itself, and for pruning: without
    them the search finds the same and takes longer.

    Attributes:
        initial: The state before the first operation. States that are equal are one to the search.
    """

    initial: _S

    def step(self, state: _S, move: _M_contra) -> _S | None:
        """Return the state after `move`; None: the move is impossible here."""
        ...

    def internal_step(self, _state: _S) -> _S | None:
        """Return the state after the step that belongs to no operation; None: there is none."""
        return None

    def is_observation(self, _state: _S, _move: _M_contra) -> bool:
        """Return whether `move` is possible here, changes nothing, and would change nothing later either.

        Writing the value that a register has is none: it may be needed once the register has another.
        """
        return False

    def progress(self, _state: _S) -> int:
        """Return a number that no step lowers, like a version."""
        return 0

    def deadline(self, _move: _M_contra) -> int:
        """Return the highest progress at which `move` is possible."""
        return NO_DEADLINE

    def is_missed(self, _state: _S, _move: _M_contra) -> bool:
        """Return whether `move` is impossible in every state that follows. False may be wrong, True may not."""
        return False


@dataclass(frozen=True, slots=True)
class Operation(Generic[_M]):
    """One request, however often it was sent: its moves are made between its beginning and its end.

    Args:
        moves: All of them, once each. Their order is the model's affair.
        answered_ns: None: it is not known whether it was done.
    """

    moves: tuple[_M, ...]
    invoked_ns: int
    answered_ns: int | None


@dataclass(slots=True)
class Budget:
    """How long one search may take.

    Args:
        until_s: A moment of `clock.monotonic_s()`.
    """

    clock: Clock
    until_s: float
    spent: int = 0

    @classmethod
    def of(cls, seconds: float, clock: Clock) -> Budget:
        """Return one that begins now."""
        return cls(clock, clock.monotonic_s() + seconds)

    def take(self) -> None:
        """Take one step.

        Raises:
            Undecided: Nothing is left.
        """
        self.spent += 1
        if self.spent % _LOOK_EVERY == 0 and self.clock.monotonic_s() >= self.until_s:
            raise Undecided


class Undecided(Exception):
    """The budget was spent before a linearization was found or ruled out."""


def is_linearizable(operations: Sequence[Operation[_M]], model: Model[_S, _M], budget: Budget) -> bool:
    """Return whether one sequence of the operations satisfies the model.

    Raises:
        Undecided: The budget was spent first.
    """
    search = _Search(model, budget)
    events = _events(operations)
    for (_, ends, number), deadline in zip(events, _deadlines(operations, events, model), strict=True):
        if ends:
            search.end(number)
        else:
            search.begin(number, operations[number], deadline)
        if not search.configurations:
            return False
    return True


def known_by(operations: Iterable[Operation[_M]], moment_ns: int) -> list[Operation[_M]]:
    """Return the operations as known at a moment: without later ones, and those that had not ended may yet be done."""
    return [
        each if each.answered_ns is not None and each.answered_ns <= moment_ns else replace(each, answered_ns=None)
        for each in operations
        if each.invoked_ns <= moment_ns
    ]


def _events(operations: Sequence[Operation[_M]]) -> list[tuple[int, bool, int]]:
    """Return beginnings (False) and ends (True) in time. What happens in the same nanosecond overlaps."""
    events = [(each.invoked_ns, False, number) for number, each in enumerate(operations)]
    events += [
        (each.answered_ns, True, number) for number, each in enumerate(operations) if each.answered_ns is not None
    ]
    return sorted(events)


def _deadlines(
    operations: Sequence[Operation[_M]], events: Sequence[tuple[int, bool, int]], model: Model[_S, _M]
) -> list[int]:
    """Return, after each event, the highest progress that leaves what begins later possible."""
    found, deadline = [NO_DEADLINE] * len(events), NO_DEADLINE
    for place in range(len(events) - 1, -1, -1):
        found[place] = deadline
        _, ends, number = events[place]
        if not ends and operations[number].answered_ns is not None:
            deadline = min([deadline, *map(model.deadline, operations[number].moves)])
    return found


class _Search(Generic[_S, _M]):
    """The configurations possible up to a moment: a state, and a bit for each open move that was made."""

    def __init__(self, model: Model[_S, _M], budget: Budget) -> None:
        self.configurations: set[tuple[_S, int]] = {(model.initial, 0)}
        self._model = model
        self._budget = budget
        self._open: dict[int, _M] = {}
        self._must: dict[int, _M] = {}
        self._bits: dict[int, int] = {}
        self._next_bit = 1
        self._deadline = NO_DEADLINE

    def begin(self, number: int, operation: Operation[_M], deadline: int) -> None:
        """Let an operation be done from now on.

        Args:
            deadline: The highest progress that leaves what begins after this possible.
        """
        self._deadline = deadline
        bits = 0
        for move in operation.moves:
            self._open[self._next_bit] = move
            if operation.answered_ns is not None:
                self._must[self._next_bit] = move
            bits |= self._next_bit
            self._next_bit <<= 1
        self._bits[number] = bits
        observed = (self._observed(*configuration) for configuration in self.configurations)
        self.configurations = {configuration for configuration in observed if configuration is not None}

    def end(self, number: int) -> None:
        """Keep the configurations in which an operation has been done by now."""
        bits = self._bits.pop(number)
        self.configurations = {(state, done & ~bits) for state, done in self._advanced_to(bits)}
        while bits:
            lowest = bits & -bits
            del self._open[lowest]
            del self._must[lowest]
            bits ^= lowest

    def _advanced_to(self, bits: int) -> set[tuple[_S, int]]:
        """Return what the configurations become when advanced until `bits` are done, and no further."""
        seen = set(self.configurations)
        waiting = list(seen)
        reached: set[tuple[_S, int]] = set()
        while waiting:
            configuration = waiting.pop()
            if configuration[1] & bits == bits:
                reached.add(configuration)
                continue
            self._budget.take()
            for following in self._following(*configuration):
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return reached

    def _following(self, state: _S, done: int) -> Iterator[tuple[_S, int] | None]:
        """Return what a configuration may become by one more step."""
        by_itself = self._model.internal_step(state)
        if by_itself is not None:
            yield self._observed(by_itself, done)
        for bit, move in self._open.items():
            if not done & bit:
                after = self._model.step(state, move)
                if after is not None:
                    yield self._observed(after, done | bit)

    def _observed(self, state: _S, done: int) -> tuple[_S, int] | None:
        """Return the configuration after every open observation that holds here; None: it leads nowhere."""
        if self._model.progress(state) > self._deadline:
            return None
        is_observation = self._model.is_observation
        for bit, move in self._open.items():
            if not done & bit and is_observation(state, move):
                done |= bit
        for bit, move in self._must.items():
            if not done & bit and self._model.is_missed(state, move):
                return None
        return state, done
