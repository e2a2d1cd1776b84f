"""What `countinghouse doctor` finds of clocks: that of this machine, of ZooKeeper, and of the databases' servers.

Tokens and certificates are good by the clock of each machine, and leases by the database's
(`runtime/database/clock.py`). A SQLite file has no clock but this machine's, and is not asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from kazoo.exceptions import KazooException

from coordination.deadline import Deadline
from coordination.errors import CoordinationError
from coordination.session import Session
from services.cli.finding import Finding
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.runtime.database.database import Database
from services.runtime.zookeeper_paths import GENERATION_PATH

#: Clocks that NTP sets are some milliseconds apart.
MAX_SKEW_MS: Final = 1_000
ZOOKEEPER: Final = "ZooKeeper"
_THIS_MACHINE: Final = "this machine"
#: A node of our session's, which ZooKeeper dates and removes with the session.
_DATED_NODE: Final = f"{GENERATION_PATH.rpartition('/')[0]}/clock-"
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A clock, read once.

    Args:
        ahead_ms: By how much it is ahead of this machine's.
        error_ms: By how much that may be wrong: half of the time that the reading took.
    """

    ahead_ms: int
    error_ms: int


Readings = dict[str, Reading]


async def read_clock(ask: Callable[[], Awaitable[int]], clock: Clock) -> Reading:
    """Return how a clock stands beside this machine's.

    Args:
        ask: Returns its Unix time in milliseconds.
    """
    began_ms = clock.now_ms()
    answered_ms = await ask()
    ended_ms = clock.now_ms()
    return Reading(answered_ms - (began_ms + ended_ms) // 2, (ended_ms - began_ms + 1) // 2)


async def of_zookeeper(session: Session, clock: Clock) -> Readings:
    """Return the reading of ZooKeeper's clock, which is its leader's; none if ZooKeeper lets us create no node."""
    deadline = Deadline.after(_TIMEOUT_S)

    async def ask() -> int:
        path, stat = await session.create(
            _DATED_NODE, ephemeral=True, sequence=True, timeout_s=deadline.remaining_s() or 0.0
        )
        with suppress(CoordinationError, KazooException):  # it goes with the session
            await session.delete(path, timeout_s=deadline.remaining_s() or 0.0)
        return int(stat.ctime)

    try:
        return {ZOOKEEPER: await read_clock(ask, clock)}
    except (CoordinationError, KazooException):
        return {}


async def of_databases(urls: Mapping[str, str], clock: Clock) -> Readings:
    """Return the reading of each server's clock, by service; none of a server that does not answer.

    Args:
        urls: Of the databases that are no files, by service.
    """
    found: Readings = {}
    for service, url in urls.items():
        with suppress(CountinghouseError):
            async with Database(url, pool=1) as database:
                await database.now_ms()  # connecting takes a time of its own
                found[f"the {service} database"] = await read_clock(database.now_ms, clock)
    return found


def judge(readings: Readings) -> list[Finding]:
    """Return what is found of the clocks; nothing if none could be read."""
    if not readings:
        return []
    clocks = {_THIS_MACHINE: Reading(0, 0), **readings}
    apart = [words for pair in combinations(clocks, 2) if (words := _apart(clocks, *pair))]
    if apart:
        return [Finding("clocks", False, f"{'; '.join(apart)}: let NTP set the clocks of all machines")]
    stand = ", ".join(f"{name} {reading.ahead_ms:+d} ms" for name, reading in readings.items())
    return [Finding("clocks", True, f"beside this machine's: {stand}")]


def _apart(clocks: Readings, one: str, other: str) -> str:
    """Return that two clocks are too far apart, as far as the readings can say; empty: they are not."""
    ahead_ms = clocks[other].ahead_ms - clocks[one].ahead_ms
    error_ms = clocks[one].error_ms + clocks[other].error_ms
    if abs(ahead_ms) - error_ms <= MAX_SKEW_MS:
        return ""
    first, second = (other, one) if ahead_ms > 0 else (one, other)
    return f"the clock of {first} is {abs(ahead_ms) / 1000:.1f} s ahead of that of {second}"
