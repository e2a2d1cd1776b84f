"""What a check found, and the verdict over all checks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

#: Sentences kept of one check; the rest is counted.
_MAX_SENTENCES = 20
_MORE = re.compile(r"and (\d+) more")

#: Sentences that a check yields, one for each thing that is wrong.
Violations = Iterator[str]


class Verdict(StrEnum):
    """`unknown`: nothing is known to be wrong, and something could not be decided."""

    OK = "ok"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One check's result.

    Args:
        examined: How many things it looked at.
        violations: What is wrong, in sentences; at most 20, the last of which counts the others.
        undecided: What could not be decided, likewise.
        skipped: Why nothing was examined, for the evidence was not given; empty: it was.
    """

    name: str
    examined: int
    violations: tuple[str, ...] = field(default=())
    undecided: tuple[str, ...] = field(default=())
    skipped: str = ""

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def verdict(self) -> Verdict:
        """The verdict; a check that was skipped is ok."""
        if self.violations:
            return Verdict.VIOLATED
        return Verdict.UNKNOWN if self.undecided else Verdict.OK


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found, not yet counted. Each iterable is read once, to its end."""

    examined: int
    violations: Iterable[str] = ()
    undecided: Iterable[str] = ()
    skipped: str = ""

    def check(self, name: str) -> Check:
        return Check(name, self.examined, _limited(self.violations), _limited(self.undecided), self.skipped)


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """Return the worst verdict."""
    verdicts = {check.verdict for check in checks}
    return next((worst for worst in (Verdict.VIOLATED, Verdict.UNKNOWN) if worst in verdicts), Verdict.OK)


def shortened(sentences: Sequence[str], limit: int) -> tuple[str, ...]:
    """Return the first sentences of a check, at most `limit`, and one that counts the others."""
    counted = _MORE.fullmatch(sentences[-1]) if sentences else None
    shown = sentences[:-1] if counted else sentences
    more = len(shown) - limit + (int(counted[1]) if counted else 0)
    return tuple(sentences) if len(shown) <= limit else (*shown[:limit], f"and {more} more")


def _limited(words: Iterable[str]) -> tuple[str, ...]:
    listed = list(words)
    if len(listed) > _MAX_SENTENCES:
        listed = [*listed[: _MAX_SENTENCES - 1], f"and {len(listed) - _MAX_SENTENCES + 1} more"]
    return tuple(listed)
