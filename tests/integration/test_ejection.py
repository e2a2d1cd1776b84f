"""An endpoint whose calls fail gets none for a while, and comes back at no user's expense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError
from prometheus_client import CollectorRegistry

from coordination.channel import DiscoveredChannel
from coordination.channel.load_balancing import Standing
from coordination.channel.outcomes import DETAILS_KEY
from coordination.metrics import Metrics
from tests.integration.echo import INTERFACE, Cable, Context, Echo, InTurn, Stub, channel_to, dead_port, directory_of
from tests.integration.provider import provider_url, started
from tests.integration.zookeeper import until


@dataclass(slots=True)
class Three:
    """Three servers, each behind a cable; calls go to the first as long as it may have some."""

    echoes: list[Echo]
    cables: list[Cable]
    channel: DiscoveredChannel
    stub: Stub
    counted: CollectorRegistry
    picker: InTurn

    def standing(self, number: int) -> Standing:
        return self.channel.explain(f"/{INTERFACE}/Put", b"")[number].standing

    def out(self) -> float | None:
        return self.counted.get_sample_value("coordination_ejected", {"interface": INTERFACE})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time out is a fifth of a second."""
    monkeypatch.setattr("coordination.channel.outlier_detection.FIRST_OUT_S", 0.2)


@asynccontextmanager
async def three(**settings: Any) -> AsyncIterator[Three]:
    """Serve them; connected."""
    async with AsyncExitStack() as stack:
        echoes = [Echo() for _ in range(3)]
        cables = [Cable(await stack.enter_async_context(echo.serving())) for echo in echoes]
        ports = [await stack.enter_async_context(cable.laid()) for cable in cables]
        rows = sorted(zip(ports, echoes, cables, strict=True), key=lambda row: str(row[0]))  # as the directory has them
        ports, echoes, cables = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
        counted, picker = CollectorRegistry(), InTurn(*ports)
        channel = await stack.enter_async_context(
            channel_to(directory_of(*ports), picker=picker, metrics=Metrics(counted), **settings)
        )
        stub = Stub(channel)
        for port in ports:
            picker.ports = (port,)
            await stub.put(b"warm", timeout=5.0)
        picker.ports = tuple(ports)
        for echo in echoes:
            echo.carried_out = 0
        yield Three(echoes, cables, channel, stub, counted, picker)


async def unavailable(context: Context) -> None:
    """Answer as a server does that cannot serve."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


async def test_endpoint_is_ejected_after_two_failures() -> None:
    """Two failures in a row: no further call goes there; the log of reasons and the metrics say so."""
    async with three() as servers:
        servers.echoes[0].before_answer = unavailable
        servers.echoes[0].healthy = False
        for _ in range(50):
            assert await servers.stub.put(b"hi", timeout=5.0) == b"hi"
        assert [echo.carried_out for echo in servers.echoes] == [2, 50, 0]
        verdict = servers.channel.explain(f"/{INTERFACE}/Put", b"")[0]
        assert verdict.standing is Standing.EJECTED
        assert "UNAVAILABLE: 'not now'" in verdict.why
        assert servers.out() == 1


async def test_answers_are_no_failures() -> None:
    """A server may refuse a request as often as it likes, and a caller if it says so in its own words. So it may say
    UNAVAILABLE, for what it cannot do now (without ZooKeeper, say) may be little of what it does."""
    async with three() as servers:
        for code, trailers in (
            (grpc.StatusCode.FAILED_PRECONDITION, ()),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, ((DETAILS_KEY, b"your quota"),)),
            (grpc.StatusCode.DEADLINE_EXCEEDED, ()),
        ):

            async def refuse(context: Context, code: grpc.StatusCode = code, trailers: Any = trailers) -> None:
                await context.abort(code, "no", trailers)

            servers.echoes[0].before_answer = refuse
            for _ in range(4):
                with pytest.raises(AioRpcError):
                    await servers.stub.put(b"hi", timeout=5.0)
        assert servers.echoes[0].carried_out == 12

        async def not_now(context: Context) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now", ((DETAILS_KEY, b"no ZooKeeper"),))

        servers.echoes[0].before_answer = not_now
        for _ in range(4):
            assert await servers.stub.put(b"hi", timeout=5.0) == b"hi"
        assert servers.echoes[0].carried_out == 16
        assert servers.standing(0) is not Standing.EJECTED


async def test_ejected_endpoint_returns_after_a_probe(quick: None) -> None:
    """While its health check fails it stays out, longer every time; when it answers, calls go there again. No call
    of a user fails or is used to try."""
    async with three() as servers:
        sick = servers.echoes[0]
        sick.before_answer, sick.healthy = unavailable, False
        for _ in range(2):
            await servers.stub.put(b"hi", timeout=5.0)
        tried = sick.carried_out
        enough = asyncio.Event()
        calling = asyncio.create_task(calls_until(enough, servers.stub))
        await until(lambda: sick.health_checks >= 2)
        assert sick.carried_out == tried
        sick.before_answer, sick.healthy = None, True
        await until(lambda: servers.standing(0) is not Standing.EJECTED)
        assert sick.health_checks >= 3
        await until(lambda: sick.carried_out > tried)
        enough.set()
        assert await calling == []
        assert servers.out() == 0


async def test_server_without_health_service_comes_back_too(quick: None) -> None:
    """UNIMPLEMENTED is an answer."""
    async with three() as servers:
        servers.echoes[0].before_answer, servers.echoes[0].healthy = unavailable, None
        for _ in range(2):
            await servers.stub.put(b"hi", timeout=5.0)
        assert servers.standing(0) is Standing.EJECTED
        await until(lambda: servers.standing(0) is not Standing.EJECTED)


async def test_endpoint_on_probation_is_ejected_by_one_failure(quick: None) -> None:
    """Healthy by its own account, and its calls fail all the same: each return costs one attempt, and the next is
    later than the last."""
    async with three() as servers:
        servers.echoes[0].before_answer = unavailable
        waits_s = []
        for times_out in range(3):
            before = servers.echoes[0].carried_out
            while servers.standing(0) is not Standing.EJECTED:
                assert await servers.stub.put(b"hi", timeout=5.0) == b"hi"
            assert servers.echoes[0].carried_out - before == (1 if times_out else 2)
            began = time.monotonic()
            await until(lambda: servers.standing(0) is not Standing.EJECTED)
            waits_s.append(time.monotonic() - began)
        assert waits_s[0] < waits_s[1] < waits_s[2]


async def test_calls_cut_short_and_deadlines_of_ours_count() -> None:
    """An endpoint that has fallen silent is out after two reads that were given up, or two writes that ran into their
    deadline; one that had no time to answer is not blamed."""
    async with three() as servers:
        servers.cables[0].fall_silent()
        for _ in range(2):
            with pytest.raises(AioRpcError):
                await servers.stub.put(b"hi", timeout=0.02)
        assert servers.standing(0) is not Standing.EJECTED
        for _ in range(2):
            assert await servers.stub.look(b"hi", timeout=3.0) == b"hi"
        assert servers.standing(0) is Standing.EJECTED
    async with three() as servers:
        servers.cables[0].fall_silent()
        for _ in range(2):
            with pytest.raises(AioRpcError) as caught:
                await servers.stub.put(b"hi", timeout=0.6)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert servers.standing(0) is Standing.EJECTED


async def test_half_are_kept_out_besides_those_that_cannot_be_reached() -> None:
    """Two of four refuse connections; the one of the others that fails is out all the same."""
    failing, healthy, dead = Echo(), Echo(), [dead_port(), dead_port()]
    failing.before_answer, failing.healthy = unavailable, False
    async with (
        failing.serving() as one,
        healthy.serving() as other,
        channel_to(directory_of(*dead, one, other), *dead, one, other) as channel,
    ):
        for _ in range(5):
            assert await asyncio.gather(*(Stub(channel).put(b"hi", timeout=5.0) for _ in range(4))) == [b"hi"] * 4
        assert (failing.carried_out, healthy.carried_out) == (4, 20)
        standings = {verdict.address: verdict.standing for verdict in channel.explain(f"/{INTERFACE}/Put", b"")}
        assert {standings[f"127.0.0.1:{port}"] for port in dead} == {Standing.UNREACHABLE}
        assert standings[f"127.0.0.1:{one}"] is Standing.EJECTED


async def test_at_most_half_of_the_endpoints_are_ejected(quick: None) -> None:
    """With two of three failing one stays in: calls that may be repeated still succeed, by the healthy one."""
    async with three() as servers:
        for echo in servers.echoes[:2]:
            echo.before_answer, echo.healthy = unavailable, False
        for _ in range(20):
            assert await servers.stub.put(b"hi", timeout=5.0) == b"hi"
        assert servers.standing(0) is Standing.EJECTED
        assert servers.standing(1) is not Standing.EJECTED
        assert servers.echoes[1].carried_out >= 20
        assert servers.echoes[2].carried_out == 20


async def test_all_endpoints_are_used_when_all_fail(quick: None) -> None:
    """Nobody is spared when everybody is bad; and the first success brings its endpoint back at once."""
    async with three() as servers:
        for echo in servers.echoes:
            echo.before_answer, echo.healthy = unavailable, False
        for _ in range(4):
            with pytest.raises(AioRpcError):
                await servers.stub.put(b"hi", timeout=5.0)
        assert servers.out() == 3
        before = [echo.carried_out for echo in servers.echoes]
        with pytest.raises(AioRpcError):
            await servers.stub.put(b"hi", timeout=5.0)
        assert [echo.carried_out - had for echo, had in zip(servers.echoes, before, strict=True)] == [1, 1, 1]
        servers.echoes[0].before_answer = None
        before = [echo.carried_out for echo in servers.echoes]
        assert await servers.stub.put(b"hi", timeout=5.0) == b"hi"
        assert [echo.carried_out - had for echo, had in zip(servers.echoes, before, strict=True)] == [1, 0, 0]
        assert servers.out() == 2


async def test_drained_endpoint_does_not_stand_in_for_one_that_is_out() -> None:
    """Weight 0 stays 0, although the only other endpoint fails."""
    drained, failing = Echo(), Echo()
    failing.before_answer = unavailable
    async with drained.serving() as one, failing.serving() as other:
        directory = directory_of(other)
        names = [provider_url(one, INTERFACE, weight="0").node_name(), provider_url(other, INTERFACE).node_name()]
        directory.take(directory.reader.read(names))
        async with channel_to(directory) as channel:
            for _ in range(4):
                with pytest.raises(AioRpcError):
                    await Stub(channel).put(b"hi", timeout=5.0)
        assert (drained.carried_out, failing.carried_out) == (0, 4)


async def test_process_that_was_frozen_gets_calls_again(quick: None) -> None:
    """SIGSTOP, then SIGCONT: out while it is frozen, back soon after, and no write fails on the way."""
    echo = Echo()
    with started("-", INTERFACE) as provider:
        async with (
            echo.serving() as port,
            channel_to(directory_of(provider.port, port), provider.port, port) as channel,
            grpc.aio.insecure_channel(f"127.0.0.1:{provider.port}") as direct,
        ):
            stub = Stub(channel)
            count: Any = direct.unary_unary(f"/{INTERFACE}/Count")
            await stub.put(b"warm", timeout=5.0)
            provider.freeze()
            enough = asyncio.Event()
            calling = [asyncio.create_task(calls_until(enough, stub)) for _ in range(2)]
            address = f"127.0.0.1:{provider.port}"

            def standing() -> Standing:
                verdicts = channel.explain(f"/{INTERFACE}/Put", b"")
                return next(verdict.standing for verdict in verdicts if verdict.address == address)

            await until(lambda: standing() is Standing.EJECTED)
            provider.thaw()
            await until(lambda: standing() not in (Standing.EJECTED, Standing.UNREACHABLE))
            had = int(await count(b"", timeout=5.0))
            await until(lambda: counted(count, had))
            enough.set()
            assert await asyncio.gather(*calling) == [[], []]
            assert echo.carried_out > 2


async def counted(count: Any, had: int) -> bool:
    """Tell whether a provider has carried out more than it had."""
    return int(await count(b"", timeout=2.0)) > had


async def calls_until(enough: asyncio.Event, stub: Stub) -> list[AioRpcError]:
    """Make one write after the other until it is enough; returns the errors."""
    errors = []
    while not enough.is_set():
        try:
            assert await stub.put(b"hi", timeout=6.0) == b"hi"
        except AioRpcError as error:
            errors.append(error)
        await asyncio.sleep(0.002)
    return errors
