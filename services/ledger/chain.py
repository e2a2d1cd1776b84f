"""The check of the hash chain: each journal is as it was written. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from services.kernel.errors import InvalidArgument
from services.ledger.model import NO_HASH, Head, Journal


@dataclass(frozen=True, slots=True)
class ChainLink:
    """A row of the chain as it was found.

    Args:
        journal: None: the row was altered and cannot be read as a journal.
    """

    sequence: int
    journal: Journal | None


@dataclass(slots=True)
class ChainCheck:
    """Walks the chain forward and stops at the first link that is not as it was written.

    Args:
        expected: What stands before the first link to look at.
    """

    expected: Head
    examined: int = 0
    last_hash: str = NO_HASH
    broken_at: int = 0
    problem: str = ""

    def look(self, link: ChainLink) -> bool:
        """Check the next link; return whether to go on."""
        place = self.expected.sequence + 1
        journal = link.journal
        if link.sequence != place:
            return self.fail(place, f"journal {place} is missing")
        self.examined += 1
        if journal is None:
            return self.fail(place, "it cannot be read as a journal: it was altered")
        self.last_hash = journal.hash
        if journal.previous_hash != self.expected.hash:
            return self.fail(place, "its previous_hash is not the hash of the journal before it")
        if journal.recomputed_hash() != journal.hash:
            return self.fail(place, "its content does not have its hash: it was altered")
        try:
            journal.draft.check()
        except InvalidArgument as error:
            return self.fail(place, error.message)
        self.expected = Head(place, journal.hash)
        return True

    def end(self, head: Head) -> None:
        """Compare the last link with the head of the chain, once all of it was looked at."""
        if self.broken_at:
            return
        if self.expected.sequence < head.sequence:
            self.fail(self.expected.sequence + 1, f"journal {self.expected.sequence + 1} is missing")
        elif self.expected.hash != head.hash:
            self.fail(head.sequence, "it is not the journal that the head of the chain names")

    def fail(self, sequence: int, problem: str) -> bool:
        """Note where the chain breaks."""
        self.broken_at, self.problem = sequence, problem
        return False


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk along the chain found.

    Args:
        examined: How many journals were looked at.
        broken_at: The first sequence that is not as it was written; 0: none.
        head_hash: Of the last journal looked at; NO_HASH: there was none.
    """

    examined: int
    broken_at: int
    problem: str
    head_hash: str
