"""The lanes: drawn line by line, and what of an order's history they show."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from services.checker.history import Answer
from services.demo.lanes import Lane, draw, lanes_of
from services.kernel.errors import AlreadyExists, CountinghouseError, StaleFence
from services.kernel.fence import Fence
from services.testkit.client import CallResult
from tests.unit.checker.dataset import DatasetBuilder


def seen(
    began_ms: int, ended_ms: int, error: CountinghouseError | None = None, *, replayed: bool = False
) -> CallResult:
    return CallResult(began_ms, ended_ms, error=error, answer=Answer(replayed=replayed))


@pytest.mark.parametrize(
    ("lane", "line"),
    [
        (
            Lane("cashier li", ((0, "lock"), (10, "pay"), (18, "post")), 24, "✔", "settled in 24 ms"),
            "cashier li      ──lock━━━━━━pay━━━━━post━━✔ settled in 24 ms",
        ),
        (
            Lane("accountant wu", ((0, "lock"), (1, "wait")), 24, "✘", "already settled by li, 41 ms ago"),
            "accountant wu   ──lock━━wait┄┄┄┄┄┄┄┄┄┄┄┄┄┄✘ already settled by li, 41 ms ago",
        ),
        (
            Lane("payment-1", ((0, "frozen"),), 20, "✘", "woken, and was refused with STALE_FENCE"),
            "payment-1       ──frozen┄┄┄┄┄┄┄┄┄┄┄┄┄┄✘ woken, and was refused with STALE_FENCE",
        ),
        (
            Lane("order", ((6, "paying"), (20, "paid")), 20, "✔", ""),
            "order           ────────paying━━━━━━━━paid━━✔",
        ),
        (Lane("ledger", ((0, "post"),), 0, "✔", ""), "ledger          ──post━━✔"),
        (Lane("nobody", (), 5, "✘", "was not there"), "nobody          ───────✘ was not there"),
    ],
)
def test_lane_is_drawn_to_scale(lane: Lane, line: str) -> None:
    """One column is one millisecond here. A word begins at its moment; waiting is dotted."""
    assert lane.draw(1.0) == line


def test_steps_are_drawn_apart_however_close_their_moments() -> None:
    """A lane grows rather than becoming unreadable."""
    lane = Lane("order", ((0, "paying"), (0, "paid"), (1, "unpaid")), 1, "✔", "")
    assert lane.draw(1.0) == "order           ──paying━━paid━━unpaid━━✔"


def test_lanes_share_one_scale() -> None:
    """What took twice as long is twice as long, and the longest fits the screen."""
    short, long = (Lane("x", ((0, "pay"),), length_ms, "✔", "") for length_ms in (500, 1000))
    first, second = draw([short, long])
    assert first == "x               ──pay━━━━━━━━━━━━━━━━━━━✔"
    assert second == "x               ──pay" + "━" * 41 + "✔"
    assert draw([]) == []


def test_few_milliseconds_are_not_stretched_over_the_screen() -> None:
    assert draw([Lane("x", ((0, "pay"),), 2, "✔", "")]) == ["x               ──pay━━━━━✔"]


@pytest.mark.parametrize(
    ("answer", "mark", "end"),
    [
        (seen(0, 5), "✔", "done"),
        (seen(0, 5, replayed=True), "↺", "the stored answer"),
        (seen(0, 5, AlreadyExists("R", "o1 was already settled by li")), "✘", "o1 was already settled by li"),
    ],
)
def test_lane_of_an_answer_shows_the_outcome(answer: CallResult, mark: str, end: str) -> None:
    lane = Lane.of_answer("click 1", "pay", answer)
    assert (lane.mark, lane.end, lane.length_ms) == (mark, end, 5)
    assert Lane.of_answer("click 1", "pay", answer, "kill -9").end == "kill -9"


@dataclass
class Order:
    """An order two clerks contest."""

    dataset: DatasetBuilder

    async def lanes(self, first: CallResult, second: CallResult) -> list[Lane]:
        books = self.dataset.snapshot()

        async def read() -> Any:
            return books

        harness: Any = SimpleNamespace(
            snapshot=read,
            cashier=SimpleNamespace(name="li", identity=SimpleNamespace(role="cashier")),
            accountant=SimpleNamespace(name="wu", identity=SimpleNamespace(role="accountant")),
        )
        return await lanes_of(harness, "o1", (first, second))


@pytest.fixture
def order() -> Order:
    dataset = DatasetBuilder()
    dataset.new_order("o1")
    return Order(dataset)


async def test_winner_loser_and_services_each_have_a_lane(order: Order) -> None:
    """The clock goes on by 10 ms a step."""
    winner = order.dataset.settle("o1")
    order.dataset.decline("o1", key="late")
    began_ms = winner["created_at_ms"]
    told = AlreadyExists("ORDER_ALREADY_PAID", "o1 was already settled by li, 41 ms ago")
    lanes = await order.lanes(seen(began_ms, began_ms + 60), seen(began_ms, began_ms + 90, told))
    assert [(lane.label, lane.mark, lane.end) for lane in lanes] == [
        ("cashier li", "✔", "settled in 40 ms"),
        ("accountant wu", "✘", "already settled by li, 41 ms ago"),
        ("order", "✔", ""),
        ("ledger", "✔", ""),
    ]
    assert lanes[0].steps == ((0, "lock"), (20, "pay"), (30, "post"))
    assert [word for _, word in lanes[1].steps] == ["lock", "wait"]
    assert [word for _, word in lanes[2].steps] == ["paying", "paid"]


async def test_clerks_of_the_same_millisecond_are_not_confused(order: Order) -> None:
    """The loser's lane ends with what the loser was told, in whichever order the two are given."""
    order.dataset.settle("o1")
    order.dataset.decline("o1", key="late")
    moment_ms = order.dataset.payments[0]["created_at_ms"]
    order.dataset.payments[1]["created_at_ms"] = moment_ms
    told = AlreadyExists("ORDER_ALREADY_PAID", "o1 was already settled by li, 41 ms ago")
    good, bad = seen(moment_ms, moment_ms + 60), seen(moment_ms, moment_ms + 60, told)
    for pair in ((good, bad), (bad, good)):
        ends = {lane.label: lane.end for lane in await order.lanes(*pair)}
        assert ends["accountant wu"] == "already settled by li, 41 ms ago"


async def test_payment_finished_by_another_is_still_its_clerks(order: Order) -> None:
    """The frozen holder's own answer was a refusal; its payment succeeded, and that is what the lane says."""
    winner = order.dataset.settle("o1")
    began_ms = winner["created_at_ms"]
    stale = StaleFence("o1", Fence(1, 1), Fence(1, 2))
    lanes = await order.lanes(seen(began_ms, began_ms + 900, stale), seen(began_ms + 50, began_ms + 90, stale))
    assert (lanes[0].label, lanes[0].mark, lanes[0].end) == ("cashier li", "✔", "settled in 40 ms")


async def test_lane_of_a_reversed_payment_shows_the_reversal(order: Order) -> None:
    order.dataset.reverse(order.dataset.settle("o1"))
    order.dataset.settle("o1", clerk="wu", source="bank")
    first_ms, second_ms = (row["created_at_ms"] for row in order.dataset.payments)
    lanes = await order.lanes(seen(first_ms, first_ms + 60), seen(second_ms, second_ms + 60))
    assert [lane.end for lane in lanes[:2]] == ["settled in 40 ms, reversed later", "settled in 40 ms"]
    assert [word for _, word in lanes[2].steps] == ["paying", "paid", "unpaid", "paying", "paid"]
    assert [word for _, word in lanes[3].steps] == ["post", "undo", "post"]
