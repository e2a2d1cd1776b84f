"""Calling: what a channel over a directory costs beside grpc.aio's own, to the same server in the same minute.

`make bench-call`, or `python -m tests.bench.calling [--json]`. The server is a process of its own that answers at
once, so what is measured is the caller's processor time and little else: the ratio is the worst there is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import uvloop

from coordination.channel import DiscoveredChannel
from coordination.channel.load import Load
from coordination.channel.load_balancing import Candidate, PickerName, by_name
from services.cli import output
from tests.bench.figures import Figure
from tests.integration.echo import INTERFACE, directory_of, idempotency
from tests.integration.provider import started

_CALLERS = (1, 16)
_WARM_UP = 300
_PER_BLOCK = 1500
_BLOCKS = 7
_TIMEOUT_S = 5.0
_TARGET_AT_16 = "≥ 0.7"


async def measure() -> list[Figure]:
    """Calls a second, block by block in turn, and the median of the blocks' ratios."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(started("-", INTERFACE))
        plain = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        ours = await stack.enter_async_context(
            DiscoveredChannel(directory_of(server.port), idempotency=idempotency, rng=random.Random(1))
        )
        look = f"/{INTERFACE}/Look"
        figures = []
        for callers in _CALLERS:
            figures += await _compare(plain.unary_unary(look), ours.unary_unary(look), callers)
    return [*figures, *_picking()]


async def _compare(plain: Any, ours: Any, callers: int) -> list[Figure]:
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for call in (plain, ours):
        await _per_s(call, _WARM_UP, callers)
    for _ in range(_BLOCKS):
        rates["plain"].append(await _per_s(plain, _PER_BLOCK, callers))
        rates["ours"].append(await _per_s(ours, _PER_BLOCK, callers))
    ratio = statistics.median(ours / plain for plain, ours in zip(rates["plain"], rates["ours"], strict=True))
    label = f"{callers} caller{'s' if callers > 1 else ''}"
    return [
        Figure(f"calls_{callers}_plain_per_s", f"{label}: grpc.aio's channel", statistics.median(rates["plain"]), "/s"),
        Figure(f"calls_{callers}_ours_per_s", f"{label}: DiscoveredChannel", statistics.median(rates["ours"]), "/s"),
        Figure(f"calls_{callers}_ratio", f"{label}: ours / plain", ratio, "×", _TARGET_AT_16 if callers == 16 else ""),
    ]


async def _per_s(call: Any, times: int, callers: int) -> float:
    numbers = iter(range(times))

    async def caller() -> None:
        for _ in numbers:
            await call(b"hi", timeout=_TIMEOUT_S)

    began_s = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return times / (time.perf_counter() - began_s)


def _picking() -> list[Figure]:
    """What one pick among five costs."""
    candidates = [Candidate(endpoint, 100, Load()) for endpoint in directory_of(*range(1, 6)).endpoints]
    figures = []
    for name in PickerName:
        pick: Callable[..., Any] = by_name(name, random.Random(1)).pick
        began_s = time.perf_counter()
        for number in range(_PER_BLOCK):
            pick(candidates, f"order-{number}")
        each_us = (time.perf_counter() - began_s) / _PER_BLOCK * 1e6
        figures.append(Figure(f"pick_{name}_us", f"one pick of five, {name}", each_us, "µs"))
    return figures


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.calling", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    figures = uvloop.run(measure())
    if arguments.json:
        output.print_json({figure.key: round(figure.value, 3) for figure in figures})
    else:
        rows = [(figure.what, figure.shown, figure.target) for figure in figures]
        output.print_table("Calling", ("what", "measured", "target"), rows)


if __name__ == "__main__":
    main()
