"""Faults of the acquirer, on demand: lost replies, delays, outages, notices twice or never.

                 before                 after
    received ──────────────▶ decided ──────────────▶ reply
               DOWN            │       DELAY_AFTER
               DELAY_BEFORE    │       DROP_REPLY
                               ▼
                            notices    NOTICE_TWICE, NOTICE_LOST

DROP_REPLY concerns Charge and ReverseByKey. The reply to a read is not dropped, so GetCharge tells what was decided.
Faults are set from outside, through FaultService, which is served only where the settings allow it. Each fires a number
of times with each key.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.kernel.errors import InvalidArgument, Unavailable
from services.runtime.grpc.context import Call

_MAX_FAULTS = 100
_MAX_DELAY_MS = 600_000
_METHODS = ("Charge", "GetCharge", "ReverseByKey")


class FaultKind(StrEnum):
    """What goes wrong."""

    DROP_REPLY = "DROP_REPLY"
    DELAY_BEFORE = "DELAY_BEFORE"
    DELAY_AFTER = "DELAY_AFTER"
    DOWN = "DOWN"
    NOTICE_TWICE = "NOTICE_TWICE"
    NOTICE_LOST = "NOTICE_LOST"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Args:
        method: With which method; empty: with all.
        times: How often with each key; 0: every time.
        delay_ms: For the delays.
        subject: A key, reference or card; empty: with all.

    Raises:
        InvalidArgument: METHOD_UNKNOWN or OUT_OF_RANGE.
    """

    kind: FaultKind
    method: str = ""
    times: int = 0
    delay_ms: int = 0
    subject: str = ""

    def __post_init__(self) -> None:
        if self.method and self.method not in _METHODS:
            raise InvalidArgument.of_field(
                "METHOD_UNKNOWN", "method", f"there is no method {self.method!r}; there are {', '.join(_METHODS)}"
            )
        if self.times < 0 or not 0 <= self.delay_ms <= _MAX_DELAY_MS:
            raise InvalidArgument.of_field(
                "OUT_OF_RANGE", "delay_ms", f"delay_ms is 0 to {_MAX_DELAY_MS}, times 0 or more"
            )

    def concerns(self, method: str, subjects: Sequence[str]) -> bool:
        """Return whether it fires with a call of `method` about `subjects`."""
        return self.method in ("", method) and (not self.subject or self.subject in subjects)


class Faults:
    """The faults of one process."""

    def __init__(self) -> None:
        self._faults: tuple[Fault, ...] = ()
        self._fired: Counter[tuple[int, str]] = Counter()

    @property
    def all(self) -> tuple[Fault, ...]:
        """As they are set."""
        return self._faults

    def set(self, faults: Sequence[Fault]) -> None:
        """Replace all of them; each counts anew.

        Raises:
            InvalidArgument: TOO_MANY_FAULTS.
        """
        if len(faults) > _MAX_FAULTS:
            raise InvalidArgument.of_field("TOO_MANY_FAULTS", "faults", f"at most {_MAX_FAULTS} faults can be set")
        self._faults = tuple(faults)
        self._fired.clear()

    async def before(self, method: str, *subjects: str) -> None:
        """Inject the faults of before a decision; the first subject is the key.

        Raises:
            Unavailable: ACQUIRER_DOWN.
        """
        for _ in self._firing(FaultKind.DOWN, method, subjects):
            raise Unavailable("ACQUIRER_DOWN", "the acquirer is down; try again")
        for fault in self._firing(FaultKind.DELAY_BEFORE, method, subjects):
            await asyncio.sleep(fault.delay_ms / 1000)

    async def after(self, method: str, call: Call, *subjects: str) -> None:
        """Inject the faults of between a commit and its reply."""
        for fault in self._firing(FaultKind.DELAY_AFTER, method, subjects):
            await asyncio.sleep(fault.delay_ms / 1000)
        for _ in self._firing(FaultKind.DROP_REPLY, method, subjects):
            call.reply_dropped = True

    def notices(self, *subjects: str) -> int:
        """Return how often the merchant is notified of a charge's outcome."""
        if any(self._firing(FaultKind.NOTICE_LOST, "Charge", subjects)):
            return 0
        return 2 if any(self._firing(FaultKind.NOTICE_TWICE, "Charge", subjects)) else 1

    def _firing(self, kind: FaultKind, method: str, subjects: Sequence[str]) -> Iterator[Fault]:
        """Return the faults of a kind that fire now; each that is taken has fired."""
        for place, fault in enumerate(self._faults):
            if fault.kind is not kind or not fault.concerns(method, subjects):
                continue
            fired = (place, subjects[0])
            if not fault.times or self._fired[fired] < fault.times:
                self._fired[fired] += 1
                yield fault
