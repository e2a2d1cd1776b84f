"""A run over many orders with a scripted service: each line has one result, whatever is answered, and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from services.cli.batch_run import BATCH, BatchRun
from services.cli.order_file import BadLine, OrderLine
from services.cli.result_file import Outcome, Result, ResultNotWritten
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError, OutcomeUnknown, PermissionDenied, Unavailable

AWAY = Unavailable("SERVICE_UNAVAILABLE", "it is away")
LOST = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")


class Services:
    """Settles every order, unless `answer` says otherwise.

    Args:
        answer: Is given an order and how often it was asked about before; returns why it is open, empty: it is settled.
    """

    def __init__(self, answer: Callable[[str, int], str] = lambda _order, _times: "") -> None:
        self.batches: list[list[str]] = []
        self.asked: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self._answer = answer

    async def __call__(self, lines: Sequence[OrderLine], /) -> list[Result]:
        self.batches.append([line.order_id for line in lines])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        try:
            return [self._result(line) for line in lines]
        finally:
            self.in_flight -= 1

    def _result(self, line: OrderLine) -> Result:
        why = self._answer(line.order_id, self.asked[line.order_id])
        self.asked[line.order_id] += 1
        return Result(line.number, line.order_id, Outcome.OPEN if why else Outcome.SETTLED, why)


def lines(number: int) -> list[OrderLine]:
    return [OrderLine(place + 2, f"o{place}") for place in range(number)]


def run_of(ask: Any, results: list[Result], **changes: Any) -> BatchRun:
    settings: dict[str, Any] = {
        "remaining_s": lambda: 60.0,
        "at_once": 2,
        "patience_s": 0.05,
        "first_pause_s": 0.001,
    }
    return BatchRun(ask, results.extend, SystemClock(), **(settings | changes))


def outcomes(results: list[Result]) -> Counter[Outcome]:
    return Counter(result.outcome for result in results)


async def test_orders_are_asked_about_once_in_full_batches_some_at_a_time() -> None:
    services, results = Services(), list[Result]()
    await run_of(services, results, at_once=3).run(lines(300))
    assert sorted(map(len, services.batches)) == [300 - 4 * BATCH, *[BATCH] * 4]
    assert services.most_in_flight == 3
    assert set(services.asked.values()) == {1}
    assert sorted(result.line for result in results) == list(range(2, 302))
    assert outcomes(results) == {Outcome.SETTLED: 300}


async def test_bad_line_and_repeated_order_are_not_asked_about() -> None:
    services, results = Services(), list[Result]()
    rows: list[OrderLine | BadLine] = [OrderLine(2, "o1"), BadLine(3, "no"), OrderLine(4, "o1"), OrderLine(5, "o2")]
    await run_of(services, results).run(rows)
    assert services.asked == {"o1": 1, "o2": 1}
    assert sorted(results, key=lambda result: result.line) == [
        Result(2, "o1", Outcome.SETTLED),
        Result(3, "", Outcome.BAD_LINE, "no"),
        Result(4, "o1", Outcome.SKIPPED, "line 2 names the same order"),
        Result(5, "o2", Outcome.SETTLED),
    ]


async def test_open_order_is_asked_about_again_after_the_others() -> None:
    services, results = Services(lambda order, times: "locked" if order == "o3" and times < 3 else ""), list[Result]()
    run = run_of(services, results, patience_s=5.0)
    await run.run(lines(150))
    assert services.batches[-1] == ["o3"]
    assert services.asked.pop("o3") == 4
    assert set(services.asked.values()) == {1}
    assert outcomes(results) == {Outcome.SETTLED: 150}
    assert run.stopped == ""


async def test_order_that_stays_open_is_recorded_with_its_last_reason() -> None:
    services, results = Services(lambda order, times: f"locked {times}" if order == "o3" else ""), list[Result]()
    run = run_of(services, results)
    await run.run(lines(70))
    (left,) = [result for result in results if result.outcome is Outcome.OPEN]
    assert (left.line, left.order_id) == (5, "o3")
    assert left.reason == f"locked {services.asked['o3'] - 1}"
    assert services.asked["o3"] > 2
    assert "no order got an outcome" in run.stopped


@pytest.mark.parametrize("error", [AWAY, LOST])
async def test_batch_that_is_not_answered_is_sent_again_and_no_other_is_begun(error: CountinghouseError) -> None:
    services, results, failed = Services(), list[Result](), list[int]()

    async def ask(batch: Sequence[OrderLine]) -> list[Result]:
        if len(failed) < 6:
            failed.append(batch[0].number)
            raise error
        return await services(batch)

    await run_of(ask, results, patience_s=5.0).run(lines(300))
    assert set(failed) == {2, 2 + BATCH}
    assert outcomes(results) == {Outcome.SETTLED: 300}


async def test_services_that_stay_away_stop_the_run_and_every_line_is_open() -> None:
    results = list[Result]()

    async def ask(_batch: Sequence[OrderLine]) -> list[Result]:
        raise AWAY

    run = run_of(ask, results)
    await run.run([*lines(300), BadLine(400, "no")])
    assert outcomes(results) == {Outcome.OPEN: 300, Outcome.BAD_LINE: 1}
    assert Counter(result.reason for result in results)["it is away"] == 2 * BATCH
    assert sorted(result.line for result in results) == [*range(2, 302), 400]
    assert "no order got an outcome" in run.stopped


async def test_refused_batch_ends_the_run_with_the_refusal_and_every_line_has_a_result() -> None:
    results = list[Result]()

    async def ask(_batch: Sequence[OrderLine]) -> list[Result]:
        raise PermissionDenied("ROLE_NOT_ALLOWED", "not for you")

    with pytest.raises(PermissionDenied):
        await run_of(ask, results).run(lines(300))
    assert outcomes(results) == {Outcome.OPEN: 300}


async def test_timeout_of_the_command_stops_the_run() -> None:
    services, results = Services(), list[Result]()
    run = run_of(services, results, remaining_s=lambda: 0.0, at_once=1)
    await run.run(lines(100))
    assert outcomes(results) == {Outcome.SETTLED: BATCH, Outcome.OPEN: 100 - BATCH}
    assert "--timeout" in run.stopped


async def test_interrupted_run_lets_batches_in_flight_end_and_records_every_line() -> None:
    """Their answers are counted, and no other batch is begun."""
    results, in_flight, answered = list[Result](), asyncio.Event(), asyncio.Event()

    async def ask(batch: Sequence[OrderLine]) -> list[Result]:
        in_flight.set()
        await answered.wait()
        return [Result(line.number, line.order_id, Outcome.SETTLED) for line in batch]

    run = run_of(ask, results)
    task = asyncio.ensure_future(run.run(lines(300)))
    await in_flight.wait()
    task.cancel()
    await asyncio.sleep(0)
    answered.set()
    await task
    assert run.interrupted
    assert outcomes(results) == {Outcome.SETTLED: 2 * BATCH, Outcome.OPEN: 300 - 2 * BATCH}


async def test_interrupted_pause_ends_the_run() -> None:
    services, results = Services(lambda order, _times: "locked" if order == "o1" else ""), list[Result]()
    run = run_of(services, results, patience_s=60.0, first_pause_s=30.0, at_once=1)
    task = asyncio.ensure_future(run.run(lines(3)))
    await asyncio.sleep(0.05)
    task.cancel()
    await task
    assert run.interrupted
    assert outcomes(results) == {Outcome.SETTLED: 2, Outcome.OPEN: 1}


async def test_result_that_cannot_be_recorded_ends_the_run() -> None:
    services = Services()

    def full(_results: Sequence[Result]) -> None:
        raise ResultNotWritten("RESULT_NOT_WRITTEN", "no space left")

    run = BatchRun(services, full, SystemClock(), remaining_s=lambda: 60.0, at_once=1, patience_s=1.0)
    with pytest.raises(ResultNotWritten):
        await run.run(lines(300))
    assert len(services.batches) == 1
