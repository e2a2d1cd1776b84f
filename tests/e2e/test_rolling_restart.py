"""Every instance is replaced, one after the other and then three at once, and no client notices."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from services.devstack.state import INTERFACES
from services.testkit.failpoints import DELAY
from services.testkit.harness import Harness
from tests.e2e.clients import Clients, clients_of
from tests.e2e.command import command_line
from tests.e2e.conftest import UNDER_LOAD, FreshStack
from tests.e2e.endings import Endings
from tests.e2e.load import Load, Work, told

#: Eight works of twelve calls: 50 calls a second.
_RATE_PER_S = 50 * 8 / 12
_DRAIN_S = 3.0
#: A call of the instance is held up here for so long, so that each is told to stop in the middle of one.
_HELD_UP_AT = {"order": "claimed", "payment": "submitted", "ledger": "posted"}
_HELD_UP_S = 0.8


def mixed(clients: Clients) -> Work:
    """Settles, tickets and pays, and reads, in turn."""

    async def settle() -> None:
        await clients.settle(await clients.new_order())

    async def pay_an_order() -> None:
        await clients.pay_an_order(await clients.ticket(await clients.new_order()))

    turns: list[Callable[[], Awaitable[object]]] = [
        settle,
        clients.look_at_an_order,
        clients.pay_a_merchant,
        clients.list_orders,
        pay_an_order,
        clients.look_at_a_payment,
        clients.look_at_an_account,
        clients.sum_the_books,
    ]

    async def work(number: int) -> None:
        await turns[number % len(turns)]()

    return work


@dataclass(slots=True)
class Restarts:
    """Who was told to stop, and how long they took to go and to be back."""

    harness: Harness
    endings: Endings
    took: list[str] = field(default_factory=list)

    async def restart(self, *names: str) -> None:
        """SIGTERM to instances that are each in the middle of a call, all at once; returns when they are back."""
        stack = self.harness.stack
        await asyncio.gather(*(self._amid_a_call(name) for name in names))
        pids, told_s = {name: stack.instance(name).pid for name in names}, time.monotonic()
        for name in names:
            stack.kill(name, signal.SIGTERM)
        gone_s = await asyncio.gather(*(self._gone(name, pids[name], told_s) for name in names))
        await stack.wait_serving(*names)
        self.took.append(f"{', '.join(names)}: gone after {max(gone_s):.2f} s, back {time.monotonic() - told_s:.2f} s")

    async def _amid_a_call(self, name: str) -> None:
        """Waits until some call is held up in an instance."""
        point = _HELD_UP_AT[name.rpartition("-")[0]]
        failpoints = self.harness.failpoints
        # After a slow or a lost call callers prefer the other instance for some time (coordination/channel/load.py).
        await failpoints.arm(name, point, DELAY, delay_s=_HELD_UP_S)
        await failpoints.wait_fired(name, point, more_than=0, within_s=60)

    async def _gone(self, name: str, pid: int, told_s: float) -> float:
        """Waits for the end of a process; it must be in time, and the one that was asked for."""
        assert await self.endings.of(self.harness.stack, name, pid, _DRAIN_S + 20) == "exit code 0"
        return time.monotonic() - told_s


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [pytest.param(1, id="once"), pytest.param(3, id="long", marks=pytest.mark.soak)])
async def test_rolling_restart_is_not_noticed(
    fresh_stack: FreshStack, capsys: pytest.CaptureFixture[str], rounds: int
) -> None:
    """Under 50 calls a second from clients outside: none fails. Each process goes when told, within its drain, although
    it is in the middle of a call; payments come to their end though the services they need restart as well.

    Order and ledger come back where they were, payment somewhere else.
    """
    load, endings = Load(), Endings()
    replicas, settings = dict.fromkeys(INTERFACES, 2), UNDER_LOAD | {"drain_s": _DRAIN_S}
    async with (
        fresh_stack(endings.hear, replicas=replicas, settings=settings, ports=free_ports("order", "ledger")) as stack,
        Harness(stack) as harness,
        clients_of(stack, load) as clients,
    ):
        restarts = Restarts(harness, endings)
        from_s = load.now_s()
        async with load.offered(mixed(clients), rate_per_s=_RATE_PER_S):
            for turn in range(rounds):
                for instance in stack.instances:
                    await restarts.restart(instance.name)
                await restarts.restart(*(f"{service}-{turn % 2 + 1}" for service in INTERFACES))
        lasted_s = load.now_s() - from_s
        with capsys.disabled():
            print("\n" + "\n".join(restarts.took) + "\n" + load.summary())  # noqa: T201  a measurement, not a check
        assert load.failed() == [], told(load.failed())
        assert len(load.among(since_s=from_s)) > 45 * lasted_s
        checked = await command_line("check", "--data", str(stack.data))
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "verdict: ok" in checked.stdout


def free_ports(*services: str) -> dict[str, int]:
    """Two free ports for each service, of which the first is named; none of those the kernel gives to connections,
    which could be taken while an instance is away.
    """
    rng = random.Random()
    found: dict[str, int] = {}
    while len(found) < len(services):
        port = rng.randrange(20_000, 32_000, 2)
        if port not in found.values() and is_free(port) and is_free(port + 1):
            found[services[len(found)]] = port
    return found


def is_free(port: int) -> bool:
    """Whether one could listen there now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
