"""A load that does not wait: works begin at a fixed rate, whatever became of those before; every call leaves a record.

    load = Load()
    async with load.offered(work, rate_per_s=50):
        ...  # meanwhile things go wrong
    assert load.failed() == []
    print(load.summary())

Whoever waits for an answer before asking again slows down together with the system, and so hides what it does to
others; here the arrivals stay as they are (an open loop). A *work* is what one client does in a row, such as making an
order and settling it; each *call* in it goes through `Load.ask`. A work ends with its first call that fails.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from services.kernel.errors import CountinghouseError
from services.testkit.client import RecordingClient

#: What one client does; its number among all of them tells them apart.
Work = Callable[[int], Awaitable[None]]
#: How often the witness looks, and the gap by which it sees that it was not let.
_LOOK_S, _STARVED_S = 0.01, 0.05
#: Works under way at once. Where so many wait, the load no longer is what it says, and that is an error of the test.
_MOST_AT_ONCE = 2_000


class Overrun(AssertionError):
    """More works wait than can be told apart from a system that stands still."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call, as the client saw it end.

    Args:
        kind: The method's bare name.
        began_s: Seconds since the load was made.
        timeout_s: What it was given.
        code: `OK`, or the name of the gRPC status code.
        error: What it was refused with.
    """

    kind: str
    began_s: float
    took_s: float
    timeout_s: float
    code: str
    error: CountinghouseError | None = None

    @property
    def ok(self) -> bool:
        return self.code == "OK"

    @property
    def late_s(self) -> float:
        """How long after its deadline the answer came; negative: so long before it."""
        return self.took_s - self.timeout_s

    def __str__(self) -> str:
        error = f" {self.error.reason}: {self.error.message}" if self.error else ""
        return f"{self.began_s:.2f} s {self.kind} after {self.took_s:.3f} s: {self.code}{error}"


class Load:
    """What was asked, and what became of it."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._zero_s = time.monotonic()
        self._witness = _Witness()

    def now_s(self) -> float:
        """Seconds since the load was made."""
        return time.monotonic() - self._zero_s

    async def ask(self, client: RecordingClient, request: Message, *, timeout_s: float) -> Any:
        """Send a request once, record how the call ended, and return the response.

        Raises:
            CountinghouseError: What came instead.
        """
        kind, began_s = type(request).__name__.removesuffix("Request"), self.now_s()
        result = await client.call(request, timeout_s=timeout_s)
        took_s = self.now_s() - began_s
        self.outcomes.append(Outcome(kind, began_s, took_s, timeout_s, result.answer.code, result.error))
        return result.returned

    @asynccontextmanager
    async def offered(self, work: Work, *, rate_per_s: float) -> AsyncIterator[None]:
        """Begins a work every 1/rate seconds while inside; leaving waits for those that have begun.

        Raises:
            Overrun: Works pile up.
            Exception: What a work raised that is no answer of a call.
        """
        running: set[asyncio.Task[None]] = set()
        broken: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                broken.append(error)

        self._witness.start()
        clock = asyncio.create_task(self._begin(work, rate_per_s, running, ended))
        clock.add_done_callback(ended)
        try:
            yield
        finally:
            clock.cancel()
            await asyncio.gather(clock, *running, return_exceptions=True)
            self._witness.stop()
        if broken:
            raise broken[0]

    async def _begin(
        self,
        work: Work,
        rate_per_s: float,
        running: set[asyncio.Task[None]],
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        first_s = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, first_s + number / rate_per_s - time.monotonic()))
            if len(running) >= _MOST_AT_ONCE:
                raise Overrun(f"{len(running)} works wait for an answer")
            task = asyncio.create_task(_to_its_end(work, number))
            running.add(task)
            task.add_done_callback(ended)

    def starved_s(self, outcome: Outcome) -> float:
        """For how long, while this call lasted, the machine let nobody here run: what no system could have mended."""
        from_s, until_s = self._zero_s + outcome.began_s, self._zero_s + outcome.began_s + outcome.took_s
        return sum(max(0.0, min(until_s, end_s) - max(from_s, start_s)) for start_s, end_s in self._witness.gaps)

    def among(self, *kinds: str, since_s: float = 0.0, until_s: float = float("inf")) -> list[Outcome]:
        """The calls of these kinds (none: all) that began between two moments of `now_s`."""
        return [
            outcome
            for outcome in self.outcomes
            if (not kinds or outcome.kind in kinds) and since_s <= outcome.began_s < until_s
        ]

    def failed(self, *kinds: str) -> list[Outcome]:
        """The calls of these kinds (none: all) that were not answered with OK."""
        return [outcome for outcome in self.among(*kinds) if not outcome.ok]

    def summary(self) -> str:
        """One line a kind: how many, how they ended, how long they took."""
        return "\n".join(
            f"{kind:12} {_ends(outcomes)}, median {statistics.median(took) * 1000:.0f} ms, "
            f"p99 {took[len(took) * 99 // 100] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"
            for kind in sorted({outcome.kind for outcome in self.outcomes})
            if (outcomes := self.among(kind)) and (took := sorted(outcome.took_s for outcome in outcomes))
        )


class _Witness:
    """A thread that does nothing but look at the clock. When it comes late, the machine was busy with something else.

    It is no task of the event loop: a loop that is blocked by what is tested is no excuse.
    """

    def __init__(self) -> None:
        self.gaps: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="witness", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        seen_s = time.monotonic()
        while not self._stopped.wait(_LOOK_S):
            now_s = time.monotonic()
            if now_s - seen_s > _STARVED_S:
                self.gaps.append((seen_s, now_s))
            seen_s = now_s


def told(outcomes: Iterable[Outcome]) -> str:
    """Outcomes as lines, for the message of an assertion."""
    return "\n".join(map(str, outcomes))


def _ends(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"{count} {code}" for code, count in Counter(outcome.code for outcome in outcomes).most_common())


async def _to_its_end(work: Work, number: int) -> None:
    try:
        await work(number)
    except CountinghouseError:
        return  # recorded by `ask`
