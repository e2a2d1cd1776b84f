"""Illegal histories, each with the checks it breaks, and lawful near-misses, each with those it nearly breaks.

A module of tests makes its `Cases`, decorates with them what corrupts or changes a legal dataset, and runs them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from services.checker.findings import Check, Verdict
from services.checker.registry import run_checks
from tests.unit.checker.dataset import DatasetBuilder, legal
from tests.unit.checker.rows import Row

Change = Callable[[DatasetBuilder], None]


@dataclass(frozen=True)
class Illegal:
    """Something is wrong.

    Args:
        words: Said by one of the checks that find it.
        broken: Those checks; no other finds anything.
    """

    corrupt: Change
    words: str
    broken: frozenset[str]

    def __str__(self) -> str:
        return self.corrupt.__name__.replace("_", " ")


@dataclass(frozen=True)
class Lawful:
    """It looks odd, and is not.

    Args:
        near: The checks that would find it, were it a little worse.
    """

    change: Change
    near: frozenset[str]

    def __str__(self) -> str:
        return self.change.__name__.replace("_", " ")


@dataclass
class Cases:
    """The cases of one module.

    Args:
        examine: The checks' results for a dataset.
        build: A lawful one to begin with.
    """

    examine: Callable[[DatasetBuilder], dict[str, Check]]
    build: Callable[[], DatasetBuilder] = legal
    illegal_ones: list[Illegal] = field(default_factory=list)
    lawful_ones: list[Lawful] = field(default_factory=list)

    def illegal(self, words: str, *broken: str) -> Callable[[Change], Change]:
        """A history that breaks these checks and no others; one of them says `words`."""

        def add(corrupt: Change) -> Change:
            self.illegal_ones.append(Illegal(corrupt, words, frozenset(broken)))
            return corrupt

        return add

    def lawful(self, *near: str) -> Callable[[Change], Change]:
        """A history that nearly breaks these checks."""

        def add(change: Change) -> Change:
            self.lawful_ones.append(Lawful(change, frozenset(near)))
            return change

        return add

    def is_named(self, case: Illegal) -> None:
        """Asserts that the checks it breaks say so, in words, and no others."""
        dataset = self.build()
        case.corrupt(dataset)
        found = self.examine(dataset)
        told = [violation for check in found.values() for violation in check.violations]
        assert {name for name, check in found.items() if not check.ok} == case.broken, told
        words = re.compile(rf"(^|\W){re.escape(case.words)}($|\W)")
        assert any(words.search(violation) for violation in told), told

    def passes(self, case: Lawful) -> None:
        """Asserts that nothing is said of it."""
        dataset = self.build()
        case.change(dataset)
        dataset.seal()
        said = {
            name: (check.violations, check.undecided)
            for name, check in self.examine(dataset).items()
            if check.verdict is not Verdict.OK
        }
        assert said == {}, said


def by_snapshot(dataset: DatasetBuilder) -> dict[str, Check]:
    """What the checks find in the books, and in the answers that people remember."""
    return {check.name: check for check in run_checks(dataset.snapshot(), dataset.answers, now_ms=dataset.now_ms())}


def by_all(dataset: DatasetBuilder) -> dict[str, Check]:
    """What the checks find with all witnesses."""
    checks = run_checks(
        dataset.snapshot(), history=dataset.history(), acquirer=dataset.acquirer_log(), now_ms=dataset.now_ms()
    )
    return {check.name: check for check in checks}


def payment(dataset: DatasetBuilder, key: str) -> Row:
    """The payment of a request or ticket."""
    return next(row for row in dataset.payments if row["request_key"] == key)
