"""What a check found, and what is to be said of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

#: Things told of one check; the rest is counted.
_MAX_TOLD = 20


class Verdict(StrEnum):
    """`unknown`: nothing is known to be broken, and something could not be examined or decided."""

    OK = "ok"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One check's result.

    Args:
        examined: How many things it looked at.
        violations: What is wrong, in words; at most 20, the last of which counts the others.
        undecided: What it could not decide on, in words, as `violations`.
        skipped: Why it was not examined at all, for nobody asked; empty: it was.
    """

    name: str
    examined: int
    violations: tuple[str, ...] = field(default=())
    undecided: tuple[str, ...] = field(default=())
    skipped: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.violations

    @property
    def verdict(self) -> Verdict:
        """What is to be said of it; what nobody asked for is ok."""
        if self.violations:
            return Verdict.VIOLATED
        return Verdict.UNKNOWN if self.undecided else Verdict.OK


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found, not yet counted. Each is read once, to its end."""

    examined: int
    violations: Iterable[str] = ()
    undecided: Iterable[str] = ()
    skipped: str = ""

    def check(self, name: str) -> Check:
        """The result under its name."""
        return Check(name, self.examined, _told(self.violations), _told(self.undecided), self.skipped)


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """The worst of them."""
    verdicts = {check.verdict for check in checks}
    return next((worst for worst in (Verdict.VIOLATED, Verdict.UNKNOWN) if worst in verdicts), Verdict.OK)


def _told(words: Iterable[str]) -> tuple[str, ...]:
    told = list(words)
    if len(told) > _MAX_TOLD:
        told = [*told[: _MAX_TOLD - 1], f"and {len(told) - _MAX_TOLD + 1} more"]
    return tuple(told)
