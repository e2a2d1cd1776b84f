"""A provider of another language is found in ZooKeeper and called by our own client, as our services find each other.

It provides `countinghouse.interop.v1.ExchangeService`:

    // Eight CNY for one EUR; any other currency is refused.
    rpc Convert(countinghouse.type.v1.Money) returns (countinghouse.type.v1.Money);
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

import grpc

from coordination.channel import DiscoveredChannel, Idempotency
from coordination.discovery import Directory, DirectoryState, Discovery
from coordination.session import Session
from countinghouse.type.v1 import money_pb2
from services.kernel.ids import new_rng
from tests.interop.consumers import Wrong
from tests.interop.harness import Harness
from tests.interop.program import Program
from tests.interop.toolchain import Toolchain

EXCHANGE: Final = "countinghouse.interop.v1.ExchangeService"
_START_S = 30.0
_CALL_S = 5.0
#: For ZooKeeper's word to arrive. Sessions outlive their processes for longer.
_NEWS_S = 1.0


async def run(
    harness: Harness,
    toolchain: Toolchain,
    *,
    refuses: str = "INVALID_ARGUMENT",
    hears: bool = True,
    unregisters: bool = True,
) -> str:
    """Runs a toolchain's provider and calls it.

    Args:
        refuses: The code with which its Dubbo lets a servicer refuse.
        hears: Whether its Dubbo shows a servicer our metadata.
        unregisters: Whether its Dubbo does so when it stops.

    Returns:
        What was shown.

    Raises:
        Wrong: It was not found, not called or not gone.
    """
    stack = await harness.ready(toolchain)
    address = f"127.0.0.1:{free_port()}"
    async with (
        Session(stack.zookeeper, timeout_s=4.0, name="interop") as session,
        await harness.program(toolchain, "provider", address.rpartition(":")[2]) as program,
    ):
        discovery = Discovery(
            session, empty_list_grace_s=0
        )  # an empty list is believed at once: it is what is looked for
        try:
            directory = await discovery.subscribe(EXCHANGE)
            await _registered(directory, address, program)
            shown = [f"found as {_known(directory, address)} and called", await _call(directory, refuses)]
            if hears:
                shown.append(f"heard our metadata ({await program.says('called', _CALL_S)})")
            if unregisters:
                shown.append(await _unregisters(directory, address, program))
            else:
                await program.stop()
                shown.append("cannot unregister: its node goes with its session")
        finally:
            await discovery.close()
    return "; ".join(shown)


async def _registered(directory: Directory, address: str, program: Program) -> None:
    """Waits for its node, or for its end."""
    arrival = asyncio.create_task(until(directory, lambda: _known(directory, address) != "", _START_S))
    ended = asyncio.create_task(program.finished(_START_S))
    try:
        await asyncio.wait({arrival, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
            raise Wrong("the provider ended by itself")
        await arrival
    finally:
        for task in (arrival, ended):
            task.cancel()
        await asyncio.gather(arrival, ended, return_exceptions=True)


async def _call(directory: Directory, refuses: str) -> str:
    async with DiscoveredChannel(directory, idempotency=lambda _method: Idempotency.UNKNOWN, rng=new_rng()) as channel:
        convert = channel.unary_unary(
            f"/{EXCHANGE}/Convert",
            request_serializer=money_pb2.Money.SerializeToString,
            response_deserializer=money_pb2.Money.FromString,
        )
        clerk = (("clerk", "li"),)
        euros = money_pb2.Money(minor_units=100, currency_code="EUR")
        # A machine that is still warming up may take longer to connect to than a call waits of itself.
        given = await convert(euros, timeout=_CALL_S, metadata=clerk, wait_for_ready=True)
        if given != money_pb2.Money(minor_units=800, currency_code="CNY"):
            raise Wrong(f"100 EUR were answered with {given}")
        try:
            await convert(money_pb2.Money(minor_units=100, currency_code="USD"), timeout=_CALL_S, metadata=clerk)
        except grpc.aio.AioRpcError as error:
            if error.code().name != refuses or "only EUR" not in (error.details() or ""):
                raise Wrong(f"USD were refused with {error.code().name}, {error.details()}") from error
            return f"its refusal arrived as {refuses} with its words"
    raise Wrong("USD were not refused")


async def _unregisters(directory: Directory, address: str, program: Program) -> str:
    """Stops it, and sees whether its node goes with its process and not later, with its session."""
    began_s = time.monotonic()

    async def gone_s() -> float:
        await until(directory, lambda: not _known(directory, address), _START_S)
        return time.monotonic() - began_s

    going = asyncio.create_task(gone_s())
    try:
        await program.stop()
        async with asyncio.timeout(_NEWS_S):
            took_s = await going
    except TimeoutError:
        raise Wrong(f"its process has ended and its node is still there {_NEWS_S:g} s later") from None
    finally:
        going.cancel()
    if directory.state is not DirectoryState.LIVE:
        raise Wrong(f"whether it is gone is not known: {directory.state.value}")
    return f"unregistered {took_s * 1000:.0f} ms after SIGTERM"


async def until(directory: Directory, condition: Callable[[], bool], timeout_s: float) -> None:
    """Waits for a change of the directory after which `condition()`."""
    news = asyncio.Event()
    unsubscribe = directory.subscribe(news.set)
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                news.clear()
                await news.wait()
    except TimeoutError:
        raise Wrong(
            f"not so within {timeout_s:g} s; registered are {[str(e.url) for e in directory.endpoints]}"
        ) from None
    finally:
        unsubscribe()


def _known(directory: Directory, address: str) -> str:
    """The URL's beginning under which an address is registered; empty if it is not."""
    found = [str(endpoint.url) for endpoint in directory.endpoints if endpoint.address == address]
    return found[0].partition("?")[0] if found else ""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
