"""One server in several groups and versions: each is an endpoint of its own, and every call says which it is for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from prometheus_client import CollectorRegistry

from coordination.channel.load_balancing import RoundRobin, Standing
from coordination.discovery import Consumer, Directory
from coordination.metrics import Metrics
from coordination.registry import Service
from tests.integration.echo import INTERFACE, Context, Echo, Stub, channel_to
from tests.integration.provider import provider_url
from tests.integration.zookeeper import until

GROUP, VERSION = "tri-service-group", "tri-service-version"


def directory_of_any(port: int, *services: tuple[str, str]) -> Directory:
    """Return the directory of a consumer of any group and version, with one address registered in several."""
    consumer = Consumer("tests").url(Service(INTERFACE, "*", "*"))
    directory = Directory(INTERFACE, consumer=consumer, empty_list_grace_s=0)
    read(directory, port, *services)
    return directory


def read(directory: Directory, port: int, *services: tuple[str, str]) -> None:
    """Let the directory hear of these groups and versions, and no others."""
    directory.take(
        directory.reader.read(
            provider_url(port, INTERFACE, **_parameters(group, version)).node_name() for group, version in services
        )
    )


def _parameters(group: str, version: str) -> dict[str, str]:
    return {key: value for key, value in (("group", group), ("version", version)) if value}


async def test_call_carries_group_and_version_of_its_endpoint() -> None:
    """Each gets its share, whatever the caller says of groups by itself; other metadata stay."""
    echo, heard = Echo(), Counter[Any]()

    async def note(context: Context) -> None:
        said = dict(context.invocation_metadata() or ())
        assert said["who"] == "li"
        heard[said.get(GROUP), said.get(VERSION)] += 1

    echo.before_answer = note
    services = (("", ""), ("a", ""), ("b", "2.0"))
    async with echo.serving() as port, channel_to(directory_of_any(port, *services), picker=RoundRobin()) as channel:
        stub = Stub(channel)
        for number in range(30):
            metadata = (("who", "li"), (GROUP, "mine")) if number % 2 else Metadata(("who", "li"))
            await stub.charge(b"hi", timeout=5.0, metadata=metadata)
        plain = heard.pop(("mine", None), 0) + heard.pop((None, None), 0)  # who is in no group says nothing of it
        assert (plain, heard) == (10, {("a", None): 10, ("b", "2.0"): 10})


async def test_stream_carries_group_and_version_of_its_endpoint() -> None:
    """As every kind of call does."""
    echo = Echo()
    said: list[object] = []

    async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        said.append(dict(context.invocation_metadata() or ()).get(GROUP))
        yield request

    echo.stream = stream  # type: ignore[method-assign]
    async with echo.serving() as port, channel_to(directory_of_any(port, ("a", ""))) as channel:
        assert [response async for response in Stub(channel).stream(b"hi", timeout=5.0)] == [b"hi"]
    assert said == ["a"]


async def test_failing_group_is_ejected_alone() -> None:
    """Although both have one address."""
    echo = Echo()

    async def fail_in_a(context: Context) -> None:
        if dict(context.invocation_metadata() or ()).get(GROUP) == "a":
            await context.abort(grpc.StatusCode.INTERNAL, "no")

    echo.before_answer = fail_in_a
    async with (
        echo.serving() as port,
        channel_to(directory_of_any(port, ("a", ""), ("b", "")), picker=RoundRobin()) as channel,
    ):
        failed = 0
        for _ in range(10):
            try:
                await Stub(channel).charge(b"hi", timeout=5.0)
            except AioRpcError:
                failed += 1
        standings = {verdict.address: verdict.standing for verdict in channel.explain(f"/{INTERFACE}/Charge", b"")}
        assert failed == 2
        assert standings[f"127.0.0.1:{port}?group=a"] is Standing.EJECTED
        assert standings[f"127.0.0.1:{port}?group=b"] is Standing.CHOSEN


async def test_series_of_an_endpoint_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before its limbo has passed, and no other's; at the end none is left."""
    monkeypatch.setattr("coordination.channel.endpoint_pool.REMOVED_ENDPOINT_TTL_S", 0.1)
    echo, counted = Echo(), CollectorRegistry()

    def addresses(name: str) -> set[str]:
        return {
            sample.labels["address"] for metric in counted.collect() for sample in metric.samples if sample.name == name
        }

    async def fail_in_a(context: Context) -> None:
        if dict(context.invocation_metadata() or ()).get(GROUP) == "a":
            await context.abort(grpc.StatusCode.INTERNAL, "no")

    echo.before_answer = fail_in_a
    async with echo.serving() as port:
        directory = directory_of_any(port, ("a", ""), ("b", ""))
        a, b = f"127.0.0.1:{port}?group=a", f"127.0.0.1:{port}?group=b"
        async with channel_to(directory, picker=RoundRobin(), metrics=Metrics(counted)) as channel:
            for _ in range(10):
                await asyncio.gather(Stub(channel).charge(b"hi", timeout=5.0), return_exceptions=True)
            assert addresses("coordination_attempts_total") == {a, b}
            assert addresses("coordination_ejections_total") == {a}
            read(directory, port, ("b", ""))
            assert addresses("coordination_attempts_total") == {a, b}
            await until(lambda: addresses("coordination_attempts_total") == {b})
            assert addresses("coordination_ejections_total") == set()
            assert await Stub(channel).charge(b"hi", timeout=5.0) == b"hi"
        assert addresses("coordination_attempts_total") == set()


async def test_call_that_outlives_its_endpoint_leaves_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take some seconds more than the endpoint is remembered, and fail then; the endpoint is not probed."""
    monkeypatch.setattr("coordination.channel.endpoint_pool.REMOVED_ENDPOINT_TTL_S", 0.05)
    echo, counted, begun, enough = Echo(), CollectorRegistry(), asyncio.Event(), asyncio.Event()

    async def wait(context: Context) -> None:
        begun.set()
        await enough.wait()
        await context.abort(grpc.StatusCode.INTERNAL, "no")

    echo.before_answer = wait
    async with echo.serving() as port:
        directory = directory_of_any(port, ("a", ""))
        async with channel_to(directory, metrics=Metrics(counted)) as channel:
            calls = [asyncio.ensure_future(Stub(channel).charge(b"hi", timeout=20.0)) for _ in range(2)]
            await begun.wait()
            read(directory, port)
            await until(lambda: not channel._pool.connections)
            enough.set()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert [error.code() for error in ended if isinstance(error, AioRpcError)] == [grpc.StatusCode.INTERNAL] * 2
            samples = [sample for metric in counted.collect() for sample in metric.samples]
            assert [sample for sample in samples if "address" in sample.labels] == []
            assert channel._pool._probing == {}


async def test_message_of_another_program_is_escaped() -> None:
    """It is kept for people, who read it on a terminal; not all of it, and not as it is."""
    echo = Echo()

    async def fail(context: Context) -> None:
        await context.abort(grpc.StatusCode.INTERNAL, "\x1b[2J" + "x" * 5000)

    echo.before_answer = fail
    async with echo.serving() as port, channel_to(directory_of_any(port, ("a", ""), ("b", ""))) as channel:
        for _ in range(4):
            await asyncio.gather(Stub(channel).charge(b"hi", timeout=5.0), return_exceptions=True)
        whys = [verdict.why for verdict in channel.explain(f"/{INTERFACE}/Charge", b"")]
        whys += [channel._pool.outliers[key].why for key in channel._pool.connections]
        assert any("INTERNAL" in why for why in whys)
        assert all(why.isprintable() and len(why) < 500 for why in whys)
