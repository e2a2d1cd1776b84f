"""Outlier detection: which endpoints get no calls for a while because theirs failed, and when they come back.

                2 failures in a row, not 30 s apart
        IN ────────────────────────────────────────▶ OUT, 1 s × 2^n, at most 30 s ◀─┐
        ▲ ◀──────── a call succeeded ─────────────── │ (n: times out before)        │
        │                                            │ the time has passed          │ it failed
        │ a call                                     ▼                              │
        │ succeeded                               PROBED ───────────────────────────┤
        │                                            │ it answered                  │
        └───────────────────────────────────── ON PROBATION ────────────────────────┘
                                                       one failure

A failure is an attempt that ended
- UNAVAILABLE or CANCELLED without details of the server's own; cut because it took more than its share of the
  deadline; or at the call's own deadline,
- INTERNAL, UNKNOWN or DATA_LOSS: the server broke,
- UNIMPLEMENTED, RESOURCE_EXHAUSTED, UNAUTHENTICATED or PERMISSION_DENIED without details: another program listens at
  the address, or something in between refuses.
Any other answer is none, and neither is a refusal with details: a server that has lost its database says so, and may
still serve other calls. An endpoint that cannot be connected to gets no calls anyway, and is not counted here. The
endpoint is probed by its pool (see `endpoint_pool`), so that no user's call is sacrificed; one that did not have the
method is asked whether it serves the interface.

Invariants
1. Of a call's candidates never more than half are kept from it (rounded down), and so never the last one; those
   out longest are. If all are out, all are used: a caller without a network sees every endpoint fail.
2. A call that succeeds clears the failures of its endpoint.
3. Failures of calls that were under way when an endpoint was taken out do not keep it out longer.

Which function makes each move
    Outliers.failed  IN | ON PROBATION -> OUT              due    OUT -> PROBED
    probed           PROBED -> ON PROBATION | OUT          cleared  any -> IN
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

from coordination.channel.load_balancing import Candidate

FAILURES = 2  # in a row: one may be chance
FAILURES_WITHIN_S = 30.0  # a failure older than this is forgotten
FIRST_OUT_S = 1.0  # about a restart's time
LONGEST_OUT_S = 30.0
JITTER = 0.2  # of the time out, so that many clients do not come back together


class State(enum.Enum):
    """Where an endpoint stands; see the module's picture."""

    IN = "in"
    OUT = "out"
    PROBED = "probed"
    ON_PROBATION = "on probation"


@dataclass(slots=True)
class Outlier:
    """The failures of one endpoint. Times are monotonic seconds.

    Attributes:
        failures: in a row.
        failed_at_s: the last one's time.
        times_out: since it last succeeded.
        until_s: when it may be probed, if it is out.
        why: what the last failure was.
        another_program: whether the last failure was that it does not have the method.
    """

    state: State = State.IN
    failures: int = 0
    failed_at_s: float = 0.0
    times_out: int = 0
    until_s: float = 0.0
    why: str = ""
    another_program: bool = False

    @property
    def out(self) -> bool:
        """Whether it is kept from calls, as long as enough others are there."""
        return self.state in (State.OUT, State.PROBED)


class Outliers:
    """The endpoints of one channel that failed lately, by key. An endpoint without an entry is IN.

    Args:
        rng: for the jitter.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known: dict[str, Outlier] = {}
        self._out: list[str] = []  # keys, in the order they were ejected

    def __getitem__(self, key: str) -> Outlier:
        return self._known.get(key) or Outlier()

    def failed(self, key: str, why: str, now_s: float, *, another_program: bool = False) -> bool:
        """Count a failure of an endpoint; return True if that ejected it."""
        outlier = self._known.setdefault(key, Outlier())
        if outlier.out:
            return False
        if now_s - outlier.failed_at_s > FAILURES_WITHIN_S:
            outlier.failures = 0
        outlier.failures += 1
        outlier.failed_at_s, outlier.why, outlier.another_program = now_s, why, another_program
        if outlier.failures < FAILURES and outlier.state is State.IN:
            return False
        self._take_out(outlier, now_s)
        self._out.append(key)
        return True

    def due(self, key: str, now_s: float) -> bool:
        """Tell whether an endpoint is to be probed now; `probed` follows."""
        outlier = self[key]
        if outlier.state is not State.OUT or now_s < outlier.until_s:
            return False
        outlier.state = State.PROBED
        return True

    def probed(self, key: str, now_s: float, *, answered: bool) -> None:
        """Let an endpoint come back on probation, or keep it out for longer."""
        outlier = self[key]
        if outlier.state is not State.PROBED:
            return
        if answered:
            outlier.state, outlier.failures = State.ON_PROBATION, 0
            self._out.remove(key)
        else:
            outlier.why = "it does not answer its health check"
            self._take_out(outlier, now_s)

    def cleared(self, key: str) -> bool:
        """Forget the failures of an endpoint; return True if it was out."""
        outlier = self._known.pop(key, None)
        if outlier is None or not outlier.out:
            return False
        self._out.remove(key)
        return True

    def inside(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates that may get a call: without those that are out, as far as invariant 1 allows."""
        if not self._out:
            return candidates
        kept_out = self.kept_out([candidate.key for candidate in candidates])
        return [candidate for candidate in candidates if candidate.key not in kept_out]

    def kept_out(self, keys: Sequence[str]) -> frozenset[str]:
        """Return those of `keys` that get nothing."""
        out = [key for key in self._out if key in keys]
        return frozenset() if len(out) == len(keys) else frozenset(out[: len(keys) // 2])

    def _take_out(self, outlier: Outlier, now_s: float) -> None:
        lasts_s = min(FIRST_OUT_S * 2.0**outlier.times_out, LONGEST_OUT_S)
        outlier.until_s = now_s + lasts_s * self._rng.uniform(1 - JITTER, 1)
        outlier.times_out += 1
        outlier.state = State.OUT
