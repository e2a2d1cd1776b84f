"""Whose clock is ahead of whose, as far as a reading can say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

import pytest
from kazoo.exceptions import NoNodeError

from coordination.errors import Refused
from services.cli import examining_clocks
from services.cli.examining_clocks import ZOOKEEPER, Reading, judge, of_databases, of_zookeeper, read_clock
from services.kernel.errors import Unavailable
from tests.fakes.clock import ManualClock


async def test_reading_counts_from_the_middle_of_its_time() -> None:
    clock = ManualClock()

    async def ask() -> int:
        clock.advance(300)
        answer = clock.now_ms() + 5_000
        clock.advance(100)
        return answer

    assert await read_clock(ask, clock) == Reading(ahead_ms=5_100, error_ms=200)


def found(**readings: tuple[int, int]) -> tuple[bool, str]:
    (finding,) = judge({name: Reading(*reading) for name, reading in readings.items()})
    assert finding.name == "clocks"
    return finding.ok, finding.detail


def test_clocks_that_agree_are_named_with_what_they_differ_by() -> None:
    assert found(ZooKeeper=(12, 3), order=(-4, 1)) == (True, "beside this machine's: ZooKeeper +12 ms, order -4 ms")


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        ({"order": (90_000, 5)}, "the clock of order is 90.0 s ahead of that of this machine"),
        ({"order": (-1_500, 5)}, "the clock of this machine is 1.5 s ahead of that of order"),
        ({"order": (-700, 5), "ZooKeeper": (800, 5)}, "the clock of ZooKeeper is 1.5 s ahead of that of order"),
    ],
)
def test_clocks_that_are_apart_are_a_fault_with_the_remedy(readings: dict[str, tuple[int, int]], words: str) -> None:
    """Also if each of them is near this machine's."""
    assert found(**readings) == (False, f"{words}: let NTP set the clocks of all machines")


def test_clock_that_was_read_too_slowly_is_no_fault() -> None:
    """The answer may have been given at any moment of the reading."""
    assert found(order=(1_400, 500))[0]
    assert not found(order=(1_400, 300))[0]


def test_nothing_is_found_where_no_clock_could_be_read() -> None:
    assert judge({}) == []


class FakeSession:
    """Makes a node, dates it by a clock of its own, and deletes it."""

    def __init__(self, clock: ManualClock, refusal: Exception | None = None) -> None:
        self.nodes: list[str] = []
        self.made: list[str] = []
        self._clock = clock
        self._refusal = refusal

    async def create(self, path: str, *, ephemeral: bool, sequence: bool, timeout_s: float) -> Any:
        assert ephemeral
        assert sequence
        assert timeout_s > 0
        if self._refusal is not None:
            raise self._refusal
        self.nodes.append(path + "7")
        self.made.append(path + "7")
        return self.nodes[-1], SimpleNamespace(ctime=self._clock.now_ms() + 2_000)

    async def delete(self, path: str, *, timeout_s: float) -> None:
        self.nodes.remove(path)


async def test_clock_of_zookeeper_is_that_of_a_node_which_is_removed_again() -> None:
    clock = ManualClock()
    session: Any = FakeSession(clock)
    assert await of_zookeeper(session, clock) == {ZOOKEEPER: Reading(2_000, 0)}
    assert session.made == ["/countinghouse/clock-7"]
    assert session.nodes == []


@pytest.mark.parametrize("refusal", [Refused("not authorised"), NoNodeError()])
async def test_zookeeper_in_which_nothing_may_be_made_has_no_reading(refusal: Exception) -> None:
    """The command acts without a user there, or no stack has ever used it."""
    session: Any = FakeSession(ManualClock(), refusal)
    assert await of_zookeeper(session, ManualClock()) == {}


class FakeDatabase:
    """Answers with its own time; the first answer takes long, for it connects."""

    clock = ManualClock()

    def __init__(self, url: str, *, pool: int) -> None:
        self._ahead_ms = int(url.rpartition("/")[2])
        self._connected = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def now_ms(self) -> int:
        if self._ahead_ms == 0:
            raise Unavailable("DATABASE_UNAVAILABLE", "it does not answer")
        if not self._connected:
            self._connected = True
            self.clock.advance(60_000)
        return self.clock.now_ms() + self._ahead_ms


async def test_clock_of_a_database_is_read_on_an_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer is a finding of its own."""
    monkeypatch.setattr(examining_clocks, "Database", FakeDatabase)
    urls = {"order": "postgresql://host/3000", "ledger": "postgresql://host/0"}
    assert await of_databases(urls, FakeDatabase.clock) == {"the order database": Reading(3_000, 0)}
