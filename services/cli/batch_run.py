"""A run over many orders: batches of them, some in flight at a time, until each has an outcome.

    lines ──▶ first pass: batch, batch, … ──▶ results
                  └─ without an outcome ─▶ pause ─▶ next pass ─▶ … ─▶ OPEN, after `patience_s` without any new outcome

Rules
1. A line that is bad or names an order again has its result at once; every other order is asked about by `ask`.
2. An order without an outcome is asked about again after the first pass, in passes with growing pauses.
3. If no order of a batch has an outcome, or the whole batch was not answered, the services are away: the batch is held
   and asked again, and no other is begun in its place.
4. Without any outcome for `patience_s`, by a refusal of the whole batch, and by an interruption the run stops. What is
   in flight may end; every line without an outcome is then OPEN.
5. A kill loses nothing: the same run, started again, asks under the same request ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Protocol

from services.cli.order_file import BadLine, OrderLine
from services.cli.result_file import Outcome, Result
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, may_come_right

#: Orders in a batch at most; as `SettleBatchRequest` says.
BATCH: Final = 64
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
#: How long batches in flight may take to end after the run has stopped.
_GRACE_S: Final = 5.0


class Ask(Protocol):
    """Asks about some orders once."""

    async def __call__(self, lines: Sequence[OrderLine], /) -> Sequence[Result]:
        """Return a result for each line; OPEN: it is to be asked about again.

        Raises:
            CountinghouseError: Of all of them; if `may_come_right`, they are to be asked about again.
        """
        ...


class BatchRun:
    """One run.

    Args:
        ask: What is done with each batch.
        record: Is given each result, once.
        remaining_s: What is left of the time for the whole run.
        at_once: Batches in flight.
        patience_s: How long the run goes on without any new outcome.
        skipped: What an order is that the file names again.
        tell: Is given a sentence whenever a batch is held.

    Attributes:
        stopped: Why the run ended before every order had an outcome; empty: it did not.
        interrupted: Whether that was a signal.
    """

    def __init__(
        self,
        ask: Ask,
        record: Callable[[Sequence[Result]], None],
        clock: Clock,
        *,
        remaining_s: Callable[[], float],
        at_once: int,
        patience_s: float,
        skipped: Outcome = Outcome.SKIPPED,
        tell: Callable[[str], None] = lambda _sentence: None,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self.stopped = ""
        self.interrupted = False
        self._ask = ask
        self._record = record
        self._clock = clock
        self._remaining_s = remaining_s
        self._at_once = at_once
        self._patience_s = patience_s
        self._skipped = skipped
        self._tell = tell
        self._first_pause_s = first_pause_s
        self._stop_event = asyncio.Event()
        self._last_outcome_s = clock.monotonic_s()
        #: The line that first named each order.
        self._seen: dict[str, int] = {}
        #: Orders that were asked about and have no outcome, each with the reason.
        self._open: dict[OrderLine, str] = {}

    async def run(self, rows: Iterable[OrderLine | BadLine]) -> None:
        """Bring every line to its result.

        Raises:
            CountinghouseError: A whole batch was refused, or a result could not be recorded; what was asked about is
                recorded as OPEN before, if it can be.
        """
        orders = self._orders(rows)
        try:
            await self._pass(orders, hold=True)
            pause_s = self._first_pause_s
            while self._open and not self.stopped:
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                await self._pass(iter(list(self._open)), hold=False)
        except asyncio.CancelledError:
            self._interrupt()
        finally:
            self._record_open(orders)

    def _record_open(self, orders: Iterator[OrderLine]) -> None:
        """Record every order that has no outcome, those too that were not asked about."""
        for line, reason in self._open.items():
            self._record([Result(line.number, line.order_id, Outcome.OPEN, reason)])
        reason = f"not asked about: {self.stopped}"
        while batch := list(islice(orders, BATCH)):
            self._record([Result(line.number, line.order_id, Outcome.OPEN, reason, asked=False) for line in batch])

    def _orders(self, rows: Iterable[OrderLine | BadLine]) -> Iterator[OrderLine]:
        """Yield each order once; record all other lines."""
        for row in rows:
            if isinstance(row, BadLine):
                self._record([Result(row.number, "", Outcome.BAD_LINE, row.reason)])
            elif (first := self._seen.setdefault(row.order_id, row.number)) != row.number:
                self._record([Result(row.number, row.order_id, self._skipped, f"line {first} names the same order")])
            else:
                yield row

    async def _pass(self, orders: Iterator[OrderLine], *, hold: bool) -> None:
        """Ask about each order.

        Args:
            hold: Whether a batch without any outcome is asked about again at once.
        """
        workers = [asyncio.create_task(self._work(orders, hold=hold)) for _ in range(self._at_once)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            self._interrupt()
        errors = [error for worker in workers if worker.done() and (error := worker.exception()) is not None]
        if errors:
            self._stop(str(errors[0]))
        if self.stopped:
            await asyncio.wait(workers, timeout=_GRACE_S)
            for worker in workers:
                worker.cancel()
        ends = await asyncio.gather(*workers, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _work(self, orders: Iterator[OrderLine], *, hold: bool) -> None:
        pause_s = self._first_pause_s
        while not self.stopped and (batch := list(islice(orders, BATCH))):
            while not self.stopped and not await self._settle(batch) and hold:
                self._tell(f"no outcome, asking again: {self._open[batch[0]]}")
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            pause_s = self._first_pause_s

    async def _settle(self, batch: Sequence[OrderLine]) -> bool:
        """Ask about a batch once; return whether any order has an outcome."""
        for line in batch:
            self._open.setdefault(line, "asked about, and not answered")
        try:
            results = await self._ask(batch)
        except CountinghouseError as error:
            self._open.update(dict.fromkeys(batch, error.message))
            if not may_come_right(error):
                raise
            results = []
        final = [result for result in results if result.outcome is not Outcome.OPEN]
        for line, result in zip(batch, results, strict=bool(results)):
            if result.outcome is Outcome.OPEN:
                self._open[line] = result.reason
            else:
                del self._open[line]
        if final:
            self._record(final)
            self._last_outcome_s = self._clock.monotonic_s()
        elif self._clock.monotonic_s() - self._last_outcome_s >= self._patience_s:
            self._stop(f"no order got an outcome for {self._patience_s:g} s")
        if not self._remaining_s():
            self._stop("the time of --timeout has passed")
        return bool(final)

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the run stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop_event.wait()
        except TimeoutError:
            pass

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop("the run was interrupted")

    def _stop(self, why: str) -> None:
        self.stopped = self.stopped or why
        self._stop_event.set()
