"""What became of one order under a fault: what the acquirer charged, by its own log, and where the order stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ONCE, TWICE, NEVER, UNKNOWN = "once", "twice", "never", "unknown"
_DECIDED: Final = frozenset({"CHARGED", "DECLINED", "REFUNDED", "TOMBSTONE", "REFUSED"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell of the table.

    Args:
        charged: `once`, `twice` (or more often), `never` or `unknown`; refunds are counted off. Empty: the fault could
            not be brought about.
        order: Where the system says that the order stands.
        detail: What the callers were told, and why it could not be brought about.
    """

    charged: str
    order: str = ""
    detail: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the order is paid if, and only if, the card was charged once."""
        return (self.charged, self.order == "PAID") in ((ONCE, True), (NEVER, False))

    def shown(self) -> str:
        """Return the cell."""
        if not self.charged:
            return "–"
        return self.charged if self.agrees else f"**{self.charged}**, order {self.order}"


def charged(log: Sequence[tuple[str, str]]) -> str:
    """Return how often the money moved, by the acquirer's log of one card.

    Args:
        log: The key and the word of each entry, oldest first.
    """
    words = [word for _, word in log]
    times = words.count("CHARGED") - words.count("REFUNDED")
    if times:
        return ONCE if times == 1 else TWICE
    undecided = {key for key, _ in log} - {key for key, word in log if word in _DECIDED}
    return UNKNOWN if undecided else NEVER
