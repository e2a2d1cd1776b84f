"""How many requests a caller may make: a token bucket for each.

The services limit what a caller has under way at once (`runtime/grpc/admission.py`). This keeps the gateway's event
loop free for others.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.kernel.errors import ResourceExhausted

#: Callers that are remembered; the one that was quiet for longest is forgotten.
_CALLERS: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    filled_s: float


class RateLimit:
    """See the module.

    Args:
        per_s: Requests of a caller in a second; after a pause, twice as many at once.
        monotonic_s: The clock.
    """

    def __init__(self, per_s: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = 2 * per_s
        self._monotonic_s = monotonic_s
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count a request.

        Raises:
            ResourceExhausted: RATE_LIMIT.
        """
        now_s, key = self._monotonic_s(), hash(caller)
        bucket = self._buckets.pop(key, None) or _Bucket(self._burst, now_s)
        bucket.left = min(self._burst, bucket.left + (now_s - bucket.filled_s) * self._per_s)
        bucket.filled_s = now_s
        self._buckets[key] = bucket
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if bucket.left < 1:
            wait_ms = math.ceil((1 - bucket.left) / self._per_s * 1000)
            said = f"a caller has {self._per_s:.0f} requests a second; try again later"
            raise ResourceExhausted("RATE_LIMIT", said, retry_after_ms=wait_ms)
        bucket.left -= 1
