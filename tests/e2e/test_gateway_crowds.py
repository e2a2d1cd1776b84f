"""Many readers and many requests at the gateway: each is bounded, and the others are served."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import psutil
import pytest

from services.devstack.stack import Stack
from services.gateway.app import CALLER_PER_S, MAX_STREAMS
from services.kernel.principal import Role
from services.testkit.client import new_id
from tests.e2e.conftest import FreshStack
from tests.e2e.test_gateway import ORDER, caller, created, settled

_READERS, _TOKENS = 500, 20
_REQUESTS = 1_000
#: What a reader may cost the gateway, in bytes.
_A_READER = 500_000
#: How long the memory of the gateway is looked at, and with how many readers.
_SHORT_S, _LONG_S, _WATCHING = 20.0, 600.0, 50
_LOOK_S = 2.0


@asynccontextmanager
async def unread(stack: Stack, address: str, number: int) -> AsyncIterator[Counter[int]]:
    """Connections that ask for the events and never read on; what each was answered."""
    host, _, port = address.rpartition(":")
    answers: Counter[int] = Counter()
    tokens = [stack.token(f"reader-{each}", Role.AUDITOR) for each in range(_TOKENS)]
    async with AsyncExitStack() as connections:
        for each in range(number):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            connections.callback(writer.close)
            head = (
                f"GET /v1/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {tokens[each % _TOKENS]}\r\n\r\n"
            )
            writer.write(head.encode())
            status = await reader.readline()
            answers[int(status.split()[1])] += 1
        yield answers


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_order_is_settled_while_many_readers_never_read(fresh_stack: FreshStack) -> None:
    """500 of them. So many as are let in are let in, the others are refused, and an order is settled meanwhile."""
    async with fresh_stack(gateway=True) as stack:
        address = stack.describe().gateway
        process = gateway_of(stack)
        before = process.memory_info().rss
        async with (
            unread(stack, address, _READERS) as answers,
            caller(stack, f"http://{address}", "li", Role.CASHIER) as li,
        ):
            assert set(answers) == {200, 429}
            assert 1 <= answers[200] <= MAX_STREAMS
            for _ in range(20):
                answer = await settled(li, await created(li), new_id())
                assert answer.status_code == 200, answer.text
            assert process.memory_info().rss - before < answers[200] * _A_READER


async def test_caller_who_asks_too_often_is_refused_and_others_are_served(fresh_stack: FreshStack) -> None:
    """Nothing is done for what is refused."""
    async with fresh_stack(gateway=True) as stack:
        address = f"http://{stack.describe().gateway}"
        async with (
            caller(stack, address, "wang", Role.ACCOUNTANT) as wang,
            caller(stack, address, "li", Role.CASHIER) as li,
        ):

            async def ask() -> int:
                answer = await wang.post("/v1/orders", json=ORDER, headers={"idempotency-key": new_id()})
                return int(answer.status_code)

            began_s = asyncio.get_running_loop().time()
            flood = asyncio.gather(*(ask() for _ in range(_REQUESTS)))
            for _ in range(5):
                assert (await settled(li, await created(li), new_id())).status_code == 200
            answers = Counter(await flood)
            took_s = asyncio.get_running_loop().time() - began_s
            assert set(answers) <= {200, 429}
            assert answers[200] <= CALLER_PER_S * (took_s + 2)  # a slow machine may not ask more often than that
            orders = 0
            page: dict[str, str] = {"pageSize": "100"}
            while True:
                found = (await li.get("/v1/orders", params=page)).json()
                orders += len(found["orders"])
                if not (token := found["nextPageToken"]):
                    break
                page["pageToken"] = token
            assert orders == answers[200] + 5


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(_SHORT_S, marks=pytest.mark.long), pytest.param(_LONG_S, marks=pytest.mark.soak)],
)
@pytest.mark.timeout(900)
async def test_memory_of_the_gateway_stays_flat_with_fifty_readers(fresh_stack: FreshStack, seconds: float) -> None:
    """Who read what happens; orders are settled all the time."""
    async with fresh_stack(gateway=True) as stack, AsyncExitStack() as readers:
        address, process = f"http://{stack.describe().gateway}", gateway_of(stack)
        li = await readers.enter_async_context(caller(stack, address, "li", Role.CASHIER))
        reading = [asyncio.create_task(read_on(stack, address, number)) for number in range(_WATCHING)]
        readers.push_async_callback(ended, reading)

        async def settle_for(length_s: float) -> list[int]:
            """The gateway's memory, every few seconds, while orders are settled."""
            looks, until = [], asyncio.get_running_loop().time() + length_s
            while (now := asyncio.get_running_loop().time()) < until:
                look_at = now + _LOOK_S
                while asyncio.get_running_loop().time() < look_at:
                    assert (await settled(li, await created(li), new_id())).status_code == 200
                looks.append(process.memory_info().rss)
            return looks

        first = max(await settle_for(min(10.0, seconds / 2)))  # the pools fill
        looks = await settle_for(seconds)
        assert max(looks) < first * 1.15
        assert all(not each.done() for each in reading)


async def read_on(stack: Stack, address: str, number: int) -> None:
    async with (
        caller(stack, address, f"reader-{number}", Role.AUDITOR) as client,
        client.stream("GET", "/v1/events", timeout=httpx.Timeout(60, read=None)) as answer,
    ):
        assert answer.status_code == 200
        async for _ in answer.aiter_bytes():
            pass


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def gateway_of(stack: Stack) -> psutil.Process:
    """Its process: the one that listens at its address."""
    port = int(stack.describe().gateway.rpartition(":")[2])
    children = psutil.Process().children(recursive=True)
    (found,) = [
        each
        for each in children
        if any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in each.net_connections("tcp"))
    ]
    return found
