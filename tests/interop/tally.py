"""What became of the parts of a run, and the count of it.

    chosen ──returns──▶ ok          what was shown
       │  ╲──Skip──────▶ skipped    what is missing
       ╰──anything else▶ FAILED     what went wrong

Invariants
1. A part passes only by returning. A part that cannot be run is skipped, by name and with the reason.
2. Every chosen part is counted once, whatever became of the others.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Context = TypeVar("Context")


class Outcome(enum.Enum):
    """How a part ended, as it is printed."""

    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"


class Skip(Exception):
    """A part cannot be run here; says what is missing."""


@dataclass(frozen=True, slots=True)
class Part(Generic[Context]):
    """One part of a run.

    Args:
        name: As it is chosen and printed.
        run: Runs it and returns what was shown; raises Skip if it cannot be run here.
    """

    name: str
    run: Callable[[Context], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one part."""

    name: str
    outcome: Outcome
    detail: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.outcome.value}: {self.name}: {self.detail} ({self.seconds:.1f} s)"


async def run(parts: Sequence[Part[Context]], context: Context, tell: Callable[[Result], None]) -> list[Result]:
    """Runs the parts, one after the other, and tells each result as soon as it is known."""
    results = []
    for part in parts:
        began_s = time.monotonic()
        try:
            outcome, detail = Outcome.OK, await part.run(context)
        except Skip as reason:
            outcome, detail = Outcome.SKIPPED, str(reason)
        except Exception as error:
            outcome, detail = Outcome.FAILED, str(error) or repr(error)
        result = Result(part.name, outcome, " ".join(detail.split()), time.monotonic() - began_s)
        tell(result)
        results.append(result)
    return results


def chosen(parts: Sequence[Part[Context]], names: Sequence[str]) -> list[Part[Context]]:
    """The parts with these names, or whose names begin with one of them (`java`); all if no name is given.

    Raises:
        KeyError: A name that fits no part.
    """
    for name in names:
        if not any(_fits(part, name) for part in parts):
            raise KeyError(name)
    return [part for part in parts if not names or any(_fits(part, name) for name in names)]


def count(results: Sequence[Result]) -> str:
    """The last line of a run."""
    counts = Counter(result.outcome for result in results)
    return f"interop: {counts[Outcome.OK]} passed, {counts[Outcome.FAILED]} failed, {counts[Outcome.SKIPPED]} skipped"


def exit_code(results: Sequence[Result]) -> int:
    """1 if a part failed, else 0."""
    return int(any(result.outcome is Outcome.FAILED for result in results))


def document(results: Sequence[Result]) -> dict[str, Any]:
    """The run as one JSON document."""
    counts = Counter(result.outcome for result in results)
    return {
        "passed": counts[Outcome.OK],
        "failed": counts[Outcome.FAILED],
        "skipped": counts[Outcome.SKIPPED],
        "parts": [
            {
                "name": result.name,
                "outcome": result.outcome.value.lower(),
                "detail": result.detail,
                "seconds": round(result.seconds, 1),
            }
            for result in results
        ],
    }


def _fits(part: Part[Any], name: str) -> bool:
    return part.name == name or part.name.startswith(f"{name} ")
