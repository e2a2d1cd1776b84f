"""The instances of a running stack, looked at again and again: their health, and what their metrics say of their calls.

An instance that was registered once is shown for as long as the command runs, so that one that has gone is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from coordination.discovery import Directory
from coordination.registry import Endpoint
from services.cli.call_rates import CallRates, PageCounts, rates_since
from services.devstack.readiness import SERVING
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError

#: Not a state of grpc.health: ZooKeeper does not list the instance any more.
NOT_REGISTERED: Final = "NOT_REGISTERED"
#: Texts of others, from nodes that they write.
_MAX_CHARS: Final = 60


@dataclass(frozen=True, slots=True)
class InstanceLook:
    """One instance at one moment.

    Args:
        health: As grpc.health has it; or UNREACHABLE, or NOT_REGISTERED.
        calls: None: its metrics could not be read.
        problem: Why not; empty: they were, or there is no instance.
    """

    name: str
    service: str
    address: str
    health: str
    calls: CallRates | None
    problem: str = ""

    @property
    def note(self) -> str:
        """What people should know of it; empty: nothing."""
        if self.health == NOT_REGISTERED:
            return f"{self.name} is not registered any more"
        if self.health != SERVING:
            return f"{self.name} at {self.address} is {self.health}"
        return f"{self.name}: {self.problem}" if self.problem else ""


class InstanceLooks:
    """See the module.

    Args:
        directories: By service.
        health: Returns what grpc.health of a service answers at an address.
        page: Returns the page of metrics at an address. Raises CountinghouseError.
        watches: Returns how many watches of ours an address has.
    """

    def __init__(
        self,
        directories: Mapping[str, Directory],
        clock: Clock,
        *,
        health: Callable[[str, str], Awaitable[str]],
        page: Callable[[str], Awaitable[str]],
        watches: Callable[[str], int],
    ) -> None:
        self._directories = directories
        self._clock = clock
        self._health = health
        self._page = page
        self._watches = watches
        self._known: dict[str, tuple[str, str]] = {}  # service and address, by name
        self._before: dict[str, PageCounts] = {}  # by address

    async def look(self) -> list[InstanceLook]:
        """Look at all instances at once; return them by name."""
        registered = list(self._registered())
        looks = await asyncio.gather(*(self._look_at(*each) for each in registered))
        here = {look.name for look in looks}
        gone = [
            InstanceLook(name, service, address, NOT_REGISTERED, None)
            for name, (service, address) in self._known.items()
            if name not in here
        ]
        self._known |= {look.name: (look.service, look.address) for look in looks}
        addresses = {look.address for look in looks}
        self._before = {address: counts for address, counts in self._before.items() if address in addresses}
        return sorted([*looks, *gone], key=lambda look: (look.name, look.address))

    def _registered(self) -> Iterator[tuple[str, Endpoint]]:
        for service, directory in self._directories.items():
            for endpoint in directory.registered:
                yield service, endpoint

    async def _look_at(self, service: str, endpoint: Endpoint) -> InstanceLook:
        parameters, address = endpoint.url.parameters, endpoint.address
        name = parameters.get("instance", "")[:_MAX_CHARS] or address
        page = parameters.get("metrics", "")
        health, (calls, problem) = await asyncio.gather(self._health(service, address), self._calls(address, page))
        return InstanceLook(name, service, address, health, calls, problem)

    async def _calls(self, address: str, page: str) -> tuple[CallRates | None, str]:
        """Return the calls of an instance; or None, and why its metrics could not be read."""
        if not page:
            return None, "its metrics are off (COUNTINGHOUSE_METRICS_PORT is -1)"
        try:
            text = await self._page(page)
            now = await asyncio.to_thread(PageCounts.parse, text, self._clock.monotonic_s())
        except (CountinghouseError, ValueError, KeyError) as error:
            return None, error.message if isinstance(error, CountinghouseError) else f"no metrics are at {page}"
        before, self._before[address] = self._before.get(address), now
        return rates_since(before, now, watches=self._watches(address)), ""
