"""The load of one endpoint as this process sees it: calls in flight, recent latency, recent failures.

Latency and failures fade: an endpoint that was slow or failed gets calls again after some multiples of DECAY_S without
any. Times are ``time.monotonic()`` seconds, given from outside.

Invariants
1. A call that failed never lowers the latency: an endpoint that fails fast is not a quick one.
2. While calls fail the latency of earlier ones does not fade; otherwise it would reach 0 while all calls fail.
"""

from __future__ import annotations

import math

DECAY_S = 5.0  # an observation of this age counts for 1/e of a new one


class Load:
    """The unary calls given to one endpoint. Streams are not counted: an idle watch is no load.

    Attributes:
        in_flight: calls sent and not ended.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._latency_s: float | None = None
        self._latency_at_s = 0.0
        self._failures = 0.0
        self._failed_at_s = 0.0

    def latency_s(self, now_s: float) -> float | None:
        """Return the moving average of how long calls took, faded since the last one; None before the first."""
        if self._latency_s is None:
            return None
        return self._latency_s * _kept(now_s - self._latency_at_s)

    def failures(self, now_s: float) -> float:
        """Return how many calls failed lately: each counts 1 when it happens, and less and less later."""
        return self._failures * _kept(now_s - self._failed_at_s) if self._failures else 0.0

    def began(self) -> None:
        """Count a call that is being sent; exactly one of the next two follows."""
        self.in_flight += 1

    def ended(self, now_s: float, took_s: float, *, failed: bool) -> None:
        """Count a call that was answered, or failed."""
        self.in_flight -= 1
        if not failed:
            self._observe(now_s, took_s)
            return
        self._failures, self._failed_at_s = self.failures(now_s) + 1.0, now_s
        if self._latency_s is None:
            return
        if took_s > self._latency_s:
            self._observe(now_s, took_s)
        else:
            self._latency_at_s = now_s

    def given_up(self, now_s: float, waited_s: float) -> None:
        """Count a call that was cancelled here: it would have taken longer."""
        self.in_flight -= 1
        if waited_s > (self.latency_s(now_s) or 0.0):
            self._observe(now_s, waited_s)

    def _observe(self, now_s: float, took_s: float) -> None:
        kept = 0.0 if self._latency_s is None else _kept(now_s - self._latency_at_s)
        self._latency_s = (self._latency_s or 0.0) * kept + took_s * (1.0 - kept)
        self._latency_at_s = now_s


def _kept(age_s: float) -> float:
    return math.exp(-age_s / DECAY_S) if age_s > 0 else 1.0
