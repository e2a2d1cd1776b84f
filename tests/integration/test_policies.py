"""To how many endpoints a call goes, and whose answer counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from coordination.channel import Broadcast, Failfast, Failover, Failsafe, Forking, Policy
from coordination.channel.channel import DiscoveredChannel, maybe_sent_before, never_sent, sends
from coordination.metrics import Metrics
from services.testkit.fair_clock import fair_s
from tests.integration.echo import INTERFACE, Context, Echo, InTurn, Stub, channel_to, dead_port, directory_of
from tests.integration.zookeeper import until


@dataclass(slots=True)
class Three:
    """Three servers, asked in order."""

    echoes: list[Echo]
    channel: DiscoveredChannel
    stub: Stub
    counted: CollectorRegistry

    @property
    def carried_out(self) -> list[int]:
        return [echo.carried_out for echo in self.echoes]

    def repeated(self, why: str) -> float | None:
        return self.counted.get_sample_value("coordination_retries_total", {"interface": INTERFACE, "why": why})


@asynccontextmanager
async def three(policy: Policy) -> AsyncIterator[Three]:
    """Serve them; connected."""
    async with AsyncExitStack() as stack:
        echoes = [Echo() for _ in range(3)]
        served = [(await stack.enter_async_context(echo.serving()), echo) for echo in echoes]
        served.sort(key=lambda one: str(one[0]))  # as the directory has them
        ports = [port for port, _ in served]
        counted = CollectorRegistry()
        channel = await stack.enter_async_context(
            channel_to(directory_of(*ports), picker=InTurn(*ports), policy=policy, metrics=Metrics(counted))
        )
        channel.get_state(try_to_connect=True)
        for connection in channel._pool.connections.values():
            await connection.channel.channel_ready()
        yield Three([echo for _, echo in served], channel, Stub(channel), counted)


def after(seconds: float, code: grpc.StatusCode = grpc.StatusCode.OK) -> Any:
    """Return what makes a server take its time, and then perhaps fail."""

    async def answer(context: Context) -> None:
        await asyncio.sleep(seconds)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, f"after {seconds}")

    return answer


class TestForking:
    """The first OK wins."""

    async def test_first_ok_wins_and_the_others_are_cancelled(self) -> None:
        """All are asked at once; the quickest answers; the others are cancelled at their servers."""
        async with three(Forking(3)) as servers:
            servers.echoes[0].before_answer = after(20.0)
            servers.echoes[1].before_answer = lambda _: until(lambda: servers.carried_out == [1, 1, 1])
            servers.echoes[2].before_answer = after(20.0)
            began = fair_s()
            call = servers.stub.look(b"hi", timeout=30.0)
            assert await call == b"hi"
            assert fair_s() - began < 2.0
            assert await call.code() is grpc.StatusCode.OK
            await until(lambda: [echo.cancelled for echo in servers.echoes] == [1, 0, 1])
            assert servers.repeated("forked") == 2

    async def test_staggered_forking_asks_the_second_only_when_late(self) -> None:
        """The second is asked only if the first has not answered in time; the third not at all."""
        async with three(Forking(2, stagger_s=0.15)) as servers:
            assert await servers.stub.look(b"hi", timeout=5.0) == b"hi"
            assert servers.carried_out == [1, 0, 0]
            servers.echoes[0].before_answer = after(0.6)
            began, fairly_began = time.monotonic(), fair_s()
            assert await servers.stub.look(b"hi", timeout=5.0) == b"hi"
            assert time.monotonic() - began >= 0.15
            assert fair_s() - fairly_began < 0.6
            assert servers.carried_out == [2, 1, 0]

    async def test_failure_does_not_win(self) -> None:
        """One that fails is followed by the next at once; an OK that comes later wins; if all fail it is the first
        failure that counts."""
        async with three(Forking(3, stagger_s=9.0)) as servers:
            servers.echoes[0].before_answer = after(0.0, grpc.StatusCode.UNAVAILABLE)
            servers.echoes[1].before_answer = after(0.0, grpc.StatusCode.NOT_FOUND)
            assert await servers.stub.look(b"hi", timeout=5.0) == b"hi"
            servers.echoes[2].before_answer = after(0.0, grpc.StatusCode.INTERNAL)
            with pytest.raises(AioRpcError) as caught:
                await servers.stub.look(b"hi", timeout=5.0)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert sends(caught.value) == 3

    async def test_cancelled_forking_call_cancels_every_attempt(self) -> None:
        """All attempts end at their servers."""
        async with three(Forking(3)) as servers:
            for echo in servers.echoes:
                echo.before_answer = after(20.0)
            call = servers.stub.look(b"hi", timeout=30.0)
            await until(lambda: servers.carried_out == [1, 1, 1])
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: [echo.cancelled for echo in servers.echoes] == [1, 1, 1])

    async def test_forking_is_refused_for_writes(self) -> None:
        """No write is ever sent to two at once, not even one that may be repeated."""
        async with three(Forking(2)) as servers:
            for write in (servers.stub.put, servers.stub.charge):
                with pytest.raises(ValueError, match="methods without side effects"):
                    write(b"hi", timeout=5.0)
            assert servers.carried_out == [0, 0, 0]


class TestBroadcast:
    """Everybody is told."""

    async def test_broadcast_reaches_every_endpoint(self) -> None:
        """One answer comes back when all have answered."""
        async with three(Broadcast()) as servers:
            servers.echoes[1].before_answer = after(0.3)
            began = time.monotonic()
            assert await servers.stub.put(b"hi", timeout=5.0) == b"hi"
            assert time.monotonic() - began >= 0.3
            assert servers.carried_out == [1, 1, 1]

    async def test_broadcast_fails_with_the_first_failure(self) -> None:
        """The others carry it out all the same, and the error says so."""
        async with three(Broadcast()) as servers:
            servers.echoes[0].before_answer = after(0.3, grpc.StatusCode.ABORTED)
            servers.echoes[2].before_answer = after(0.1, grpc.StatusCode.INTERNAL)
            with pytest.raises(AioRpcError, match=r"after 0\.1") as caught:
                await servers.stub.put(b"hi", timeout=5.0)
            assert servers.carried_out == [1, 1, 1]
            assert (sends(caught.value), maybe_sent_before(caught.value)) == (3, True)

    async def test_broadcast_fails_if_an_endpoint_is_unreachable(self) -> None:
        """It is not enough that the others know; and the error does not say that nothing was sent."""
        echo, dead = Echo(), dead_port()
        async with (
            echo.serving() as port,
            channel_to(directory_of(dead, port), policy=Broadcast()) as channel,
        ):
            with pytest.raises(AioRpcError, match=f"{dead} cannot be reached") as caught:
                await Stub(channel).put(b"hi", timeout=5.0)
            assert echo.carried_out == 1
            assert not never_sent(caught.value)
            assert sends(caught.value) == 1

    async def test_broadcast_without_endpoints_is_never_sent(self) -> None:
        """Never sent."""
        async with channel_to(directory_of(), policy=Broadcast()) as channel:
            with pytest.raises(AioRpcError, match="is registered") as caught:
                await Stub(channel).put(b"hi", timeout=0.2)
            assert never_sent(caught.value)

    async def test_broadcast_is_refused_for_methods_that_may_not_be_repeated(self) -> None:
        """Three charges are two too many."""
        async with three(Broadcast()) as servers:
            with pytest.raises(ValueError, match="may be repeated"):
                servers.stub.charge(b"hi", timeout=5.0)


class TestFailsafe:
    """An empty answer in place of a failure."""

    async def test_failsafe_answers_empty_and_logs(self, caplog: pytest.LogCaptureFixture) -> None:
        """After all attempts have failed; the call's code tells the truth, and the log has a warning."""
        async with three(Failsafe()) as servers:
            for echo in servers.echoes:
                echo.before_answer = after(0.0, grpc.StatusCode.UNAVAILABLE)
            call = servers.stub.look(b"hi", timeout=5.0)
            with caplog.at_level(logging.WARNING):
                assert await call == b""
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert servers.carried_out == [1, 1, 1]
            assert "Look failed and is answered empty: UNAVAILABLE after 0.0" in caplog.text
            servers.echoes[0].before_answer = None
            assert await servers.stub.look(b"hi", timeout=5.0) == b"hi"

    async def test_empty_answer_has_the_methods_type(self) -> None:
        """As the stub would have read it from no bytes; also when nobody can be reached."""
        async with channel_to(directory_of(dead_port()), policy=Failsafe(Failfast())) as channel:
            look: Any = channel.unary_unary(
                f"/{INTERFACE}/Look", response_deserializer=health_pb2.HealthCheckResponse.FromString
            )
            call = look(b"hi", timeout=2.0)
            assert await call == health_pb2.HealthCheckResponse()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE

    async def test_failsafe_is_refused_for_writes_unless_allowed(self) -> None:
        """Nobody is told that a write was not done without having asked not to be."""
        async with three(Failsafe()) as servers:
            with pytest.raises(ValueError, match="is for reads"):
                servers.stub.put(b"hi", timeout=5.0)
        async with three(Failsafe(Failfast(), writes=True)) as servers:
            servers.echoes[0].before_answer = after(0.0, grpc.StatusCode.ABORTED)
            assert await servers.stub.put(b"hi", timeout=5.0) == b""


async def test_failfast_sends_once() -> None:
    """Not even a read is sent again."""
    async with three(Failfast()) as servers:
        servers.echoes[0].before_answer = after(0.0, grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(AioRpcError):
            await servers.stub.look(b"hi", timeout=5.0)
        assert servers.carried_out == [1, 0, 0]


async def test_policy_for_each_method() -> None:
    """Chosen by full method name."""
    chosen = {f"/{INTERFACE}/Look": Forking(3), f"/{INTERFACE}/Put": Broadcast()}
    async with Echo().serving() as one, Echo().serving() as two:
        echo = Echo()
        async with (
            echo.serving() as three,
            channel_to(directory_of(one, two, three), policy=lambda method: chosen.get(method, Failover())) as channel,
        ):
            stub = Stub(channel)
            assert await stub.put(b"hi", timeout=5.0) == b"hi"
            assert echo.carried_out == 1
            assert await stub.charge(b"hi", timeout=5.0) == b"hi"


@pytest.mark.parametrize(
    "make", [lambda: Failover(0), lambda: Forking(0), lambda: Forking(2, stagger_s=-1.0)], ids=["0", "none", "before"]
)
def test_policies_that_make_no_sense_are_refused(make: Any) -> None:
    """When they are made, not when they are used."""
    with pytest.raises(ValueError, match="or more"):
        make()
