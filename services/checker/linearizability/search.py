"""Whether calls that overlapped can be put in one sequence in which a single-threaded model would have said the same.

The search goes through the calls' beginnings and ends in time and keeps the set of all *configurations* that are
possible so far: how the model stands, and which of the calls that are open now have taken effect.

    a call begins      its moves may be made from now on
    a call ends        every configuration is led on, by whatever open moves, until the call's own have been made;
                       those in which that cannot be are dropped. None left: there is no such order
    a call never ends  its moves may be made at any time, or never

Four things keep the set small, and lose nothing:
1. Nothing is done before it is needed: the set is led on only when a call ends.
2. What only looks and is true now is taken as said at once: it changes nothing, so no later moment is better.
3. A configuration that has gone past what a call was told, also one that is yet to begin, is dropped at once.
4. Configurations that are equal are one.

The idea is Wing and Gong's, with the memory of Lowe and the lazy steps of his just-in-time search ("Testing for
linearizability", 2016). Each order is searched by itself, which is allowed because linearizability is local (Herlihy
and Wing, 1990).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from services.checker.linearizability.order_model import NO_VERSION, Move, State, is_missed, last_version, own_step
from services.kernel.clock import Clock

#: How many configurations are led on between two looks at the clock.
_LOOK_EVERY = 256

_Configuration = tuple[State, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that was asked for, however often: its moves are made between its beginning and its end.

    Args:
        moves: All of them, once each. Their order is the model's affair.
        answered_ns: None: nobody knows whether it was done.
    """

    moves: tuple[Move, ...]
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
        """One that begins now."""
        return cls(clock, clock.monotonic_s() + seconds)

    def take(self) -> None:
        """Takes one step.

        Raises:
            Undecided: Nothing is left.
        """
        self.spent += 1
        if self.spent % _LOOK_EVERY == 0 and self.clock.monotonic_s() >= self.until_s:
            raise Undecided


class Undecided(Exception):
    """The search was given up: it says nothing."""


def has_order(operations: Sequence[Operation], start: State, budget: Budget) -> bool:
    """Whether the deeds can be put in one sequence.

    Raises:
        Undecided: The budget was spent first.
    """
    search = _Search(start, budget)
    events = _events(operations)
    for (_, ends, number), last in zip(events, _last_versions(operations, events), strict=True):
        if ends:
            search.end(number, operations[number])
        else:
            search.begin(number, operations[number], last)
        if not search.configurations:
            return False
    return True


def known_by(operations: Iterable[Operation], moment_ns: int) -> list[Operation]:
    """The deeds as they were known at a moment: what began later is left out, what had not ended may yet be done."""
    return [
        operation
        if operation.answered_ns is not None and operation.answered_ns <= moment_ns
        else replace(operation, answered_ns=None)
        for operation in operations
        if operation.invoked_ns <= moment_ns
    ]


def _events(operations: Sequence[Operation]) -> list[tuple[int, bool, int]]:
    """Beginnings (False) and ends (True) in time. What happens in the same nanosecond overlaps."""
    events = [(operation.invoked_ns, False, number) for number, operation in enumerate(operations)]
    events += [
        (operation.answered_ns, True, number)
        for number, operation in enumerate(operations)
        if operation.answered_ns is not None
    ]
    return sorted(events)


def _last_versions(operations: Sequence[Operation], events: Sequence[tuple[int, bool, int]]) -> list[int]:
    """After each event, the highest version that the row may have, for the sake of what begins later."""
    found, last = [NO_VERSION] * len(events), NO_VERSION
    for place in range(len(events) - 1, -1, -1):
        found[place] = last
        _, ends, number = events[place]
        if not ends and operations[number].answered_ns is not None:
            last = min([last, *map(last_version, operations[number].moves)])
    return found


class _Search:
    """The configurations that are possible up to a moment; a move that was made is a bit in their second part."""

    def __init__(self, start: State, budget: Budget) -> None:
        self.configurations: set[_Configuration] = {(start, 0)}
        self._budget = budget
        self._open: dict[int, Move] = {}
        self._must: dict[int, Move] = {}
        self._bits: dict[int, int] = {}
        self._next_bit = 1
        self._last_version = NO_VERSION

    def begin(self, number: int, operation: Operation, last_version: int) -> None:
        """A deed may be done from now on.

        Args:
            last_version: The highest that the row may have before what begins after this.
        """
        self._last_version = last_version
        bits = 0
        for move in operation.moves:
            self._open[self._next_bit] = move
            if operation.answered_ns is not None:
                self._must[self._next_bit] = move
            bits |= self._next_bit
            self._next_bit <<= 1
        self._bits[number] = bits
        with_looks = (self._with_looks(*configuration) for configuration in self.configurations)
        self.configurations = {configuration for configuration in with_looks if configuration is not None}

    def end(self, number: int, operation: Operation) -> None:
        """A deed has been done by now."""
        bits = self._bits.pop(number)
        reached = self._led_to(bits)
        self.configurations = {(state, done & ~bits) for state, done in reached}
        for _ in operation.moves:
            lowest = bits & -bits
            del self._open[lowest]
            del self._must[lowest]
            bits ^= lowest

    def _led_to(self, bits: int) -> set[_Configuration]:
        """What the configurations become when led on until `bits` are done, and no further."""
        seen = set(self.configurations)
        waiting = list(seen)
        reached: set[_Configuration] = set()
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

    def _following(self, state: State, done: int) -> Iterable[_Configuration | None]:
        """What a configuration may become by one more move."""
        by_itself = own_step(state)
        if by_itself is not None:
            yield self._with_looks(by_itself, done)
        for bit, move in self._open.items():
            if not done & bit:
                after = move.apply(state)
                if after is not None and after is not state:
                    yield self._with_looks(after, done | bit)

    def _with_looks(self, state: State, done: int) -> _Configuration | None:
        """The configuration in which all that only looks and is true here has been said; None: it leads nowhere."""
        if state.version > self._last_version:
            return None
        for bit, move in self._open.items():
            if not done & bit and move.apply(state) is state:
                done |= bit
        for bit, move in self._must.items():
            if not done & bit and is_missed(move, state):
                return None
        return state, done
