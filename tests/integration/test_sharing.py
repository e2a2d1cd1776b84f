"""How calls are shared out over real servers: weights, slow ones, orders."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from coordination.channel import DiscoveredChannel
from coordination.channel.load_balancing import PickerName, Standing, by_name
from coordination.registry import Endpoint
from tests.integration.echo import INTERFACE, Context, Echo, Stub, channel_to, dead_port, directory_of
from tests.integration.provider import provider_url


@asynccontextmanager
async def serving(number: int) -> AsyncIterator[dict[int, Echo]]:
    """Serve so many; yields them by port."""
    async with AsyncExitStack() as stack:
        yield {await stack.enter_async_context(echo.serving()): echo for echo in (Echo() for _ in range(number))}


async def call(stub: Stub, times: int, at_once: int) -> None:
    """Make so many calls, by so many callers at once."""
    numbers = iter(range(times))

    async def caller() -> None:
        for number in numbers:
            assert await stub.put(str(number).encode(), timeout=10.0) == str(number).encode()

    await asyncio.gather(*(caller() for _ in range(at_once)))


def binomial_sd(times: int, share: float) -> float:
    return math.sqrt(times * share * (1 - share))


@pytest.mark.parametrize("name", PickerName)
async def test_weight_zero_moves_all_calls_away_at_the_next_pick(name: PickerName) -> None:
    """An operator sets one instance's weight to 0: not one more call goes there; set back, it gets its share."""
    async with serving(2) as echoes:
        one, other = echoes

        def with_weight(weight: int) -> list[str]:
            urls = [provider_url(one, INTERFACE, weight=str(weight)), provider_url(other, INTERFACE)]
            return [url.node_name() for url in urls]

        directory = directory_of(one, other)
        key = iter(range(10**6))
        async with channel_to(
            directory, picker=by_name(name, random.Random(7)), hash_key=lambda *_: f"order-{next(key)}"
        ) as channel:
            stub = Stub(channel)
            await call(stub, 100, 4)
            assert 20 < echoes[one].carried_out < 80
            directory.take(directory.reader.read(with_weight(0)))
            before = echoes[one].carried_out
            await call(stub, 100, 4)
            assert echoes[one].carried_out == before
            directory.take(directory.reader.read(with_weight(100)))
            await call(stub, 100, 4)
            assert echoes[one].carried_out - before > 20


async def test_warming_up_is_looked_at_anew_at_every_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight is asked for with the time of the pick."""
    now_ms = 0
    async with serving(2) as echoes:
        old, new = echoes
        monkeypatch.setattr(Endpoint, "weight_at", lambda self, at_ms: at_ms if self.url.port == new else 100)
        async with channel_to(
            directory_of(old, new), picker=by_name("random", random.Random(7)), now_ms=lambda: now_ms
        ) as channel:
            await call(Stub(channel), 50, 1)
            assert echoes[new].carried_out == 0
            now_ms = 100
            await call(Stub(channel), 400, 4)
            assert abs(echoes[new].carried_out - 200) <= 5 * binomial_sd(400, 0.5)


async def test_power_of_two_choices_avoids_a_slow_endpoint() -> None:
    """One of three takes ten times as long. With twelve callers it gets less than a sixth of the calls, half of its
    share, and under weighted random a third of them (± 5 standard deviations)."""
    shares = {}
    for name in (PickerName.POWER_OF_TWO_CHOICES, PickerName.WEIGHTED_RANDOM):
        async with serving(3) as echoes:
            slow, *others = echoes

            def taking(seconds: float) -> Any:
                async def work(_: Context) -> None:
                    await asyncio.sleep(seconds)

                return work

            for port, echo in echoes.items():
                echo.before_answer = taking(0.1 if port == slow else 0.01)
            async with channel_to(directory_of(*echoes), picker=by_name(name, random.Random(7))) as channel:
                await call(Stub(channel), 600, 12)
            shares[name] = echoes[slow].carried_out / 600
            assert abs(echoes[others[0]].carried_out - echoes[others[1]].carried_out) < 150
    assert shares[PickerName.POWER_OF_TWO_CHOICES] < 1 / 6, shares
    assert abs(shares[PickerName.WEIGHTED_RANDOM] - 1 / 3) * 600 <= 5 * binomial_sd(600, 1 / 3), shares


async def test_consistent_hash_keeps_a_key_at_its_endpoint_until_that_dies() -> None:
    """When its endpoint dies another takes over, and no other key moves."""
    async with serving(3) as echoes, AsyncExitStack() as mortal:
        dying = Echo()
        port = await mortal.enter_async_context(dying.serving())
        async with channel_to(
            directory_of(*echoes, port),
            picker=by_name("consistenthash", random.Random(7)),
            hash_key=lambda _method, request: request,
        ) as channel:
            owners = await owners_of(channel, {**echoes, port: dying})
            assert set(owners.values()) == {*echoes, port}
            assert await owners_of(channel, {**echoes, port: dying}) == owners
            await mortal.aclose()
            after = await owners_of(channel, echoes)
            assert {key for key in owners if owners[key] != after[key]} == {
                key for key in owners if owners[key] == port
            }


async def owners_of(channel: DiscoveredChannel, echoes: dict[int, Echo]) -> dict[str, int]:
    """Return which port carries out the calls of each of some keys."""
    put: Any = channel.unary_unary(f"/{INTERFACE}/Put", request_serializer=str.encode)
    owners = {}
    for number in range(60):
        before = {port: echo.carried_out for port, echo in echoes.items()}
        await put(f"key-{number}", timeout=5.0)
        (owners[f"key-{number}"],) = [port for port, echo in echoes.items() if echo.carried_out > before[port]]
    return owners


async def test_explaining_covers_every_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each registered provider has a verdict: who is chosen, and why the others are not. Nothing is sent."""
    async with serving(5) as echoes:
        ruled_out, drained, warming, ejected, chosen = echoes
        dead = dead_port()
        names = [provider_url(port, INTERFACE).node_name() for port in (warming, ejected, chosen, dead)]
        names.append(provider_url(ruled_out, INTERFACE, disabled="true").node_name())
        names.append(provider_url(drained, INTERFACE, weight="0").node_name())
        names.append("nonsense")
        directory = directory_of()
        directory.take(directory.reader.read(names))
        monkeypatch.setattr(Endpoint, "weight_at", lambda self, _: 1 if self.url.port == warming else self.weight)
        echoes[ejected].healthy = False
        async with channel_to(directory, picker=by_name("roundrobin", random.Random(7))) as channel:
            channel.get_state(try_to_connect=True)
            connections = {
                connection.endpoint.url.port: connection for connection in channel._pool.connections.values()
            }
            for port in (drained, warming, ejected, chosen):
                await connections[port].channel.channel_ready()
            while (state := connections[dead].channel.get_state()) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                await connections[dead].channel.wait_for_state_change(state)
            for _ in range(2):
                channel._pool.failed(connections[ejected], grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE: gone")
            verdicts = {verdict.address: verdict for verdict in channel.explain(f"/{INTERFACE}/Put", b"hi")}
            assert {address: verdict.standing for address, verdict in verdicts.items()} == {
                f"127.0.0.1:{ruled_out}": Standing.RULED_OUT,
                f"127.0.0.1:{drained}": Standing.WEIGHT_ZERO,
                f"127.0.0.1:{warming}": Standing.WARMING_UP,
                f"127.0.0.1:{ejected}": Standing.EJECTED,
                f"127.0.0.1:{chosen}": Standing.CHOSEN,
                f"127.0.0.1:{dead}": Standing.UNREACHABLE,
                "nonsense": Standing.RULED_OUT,
            }
            assert "disabled" in verdicts[f"127.0.0.1:{ruled_out}"].why
            assert "weight 1 of 100" in verdicts[f"127.0.0.1:{warming}"].why
            assert "UNAVAILABLE: gone" in verdicts[f"127.0.0.1:{ejected}"].why
            assert all(verdict.why for verdict in verdicts.values())
            assert sum(echo.carried_out for echo in echoes.values()) == 0
