"""A Java provider has one interface at one port in two groups and versions; our client reaches each of them.

Dubbo's server finds the group and version in the metadata of a call; without them any of its groups answers.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from coordination.channel import DiscoveredChannel, Idempotency
from coordination.channel.load_balancing import RoundRobin
from coordination.discovery import Directory, Discovery
from coordination.session import Session
from countinghouse.type.v1 import money_pb2
from services.kernel.ids import new_rng
from tests.interop.consumers import Wrong
from tests.interop.harness import Harness
from tests.interop.providers import EXCHANGE, free_port, until
from tests.interop.toolchain import Toolchain

#: By group and version: how many CNY one EUR is.
_RATES: Final = {("retail", "1.0.0"): 8, ("trade", "2.0.0"): 9}
_START_S = 30.0
_CALL_S = 5.0
_CALLS = 10


async def run(harness: Harness, toolchain: Toolchain) -> str:
    """Runs the provider, and calls each group by itself and both together.

    Returns:
        What was shown.

    Raises:
        Wrong: A group was not found, or another answered.
    """
    stack = await harness.ready(toolchain)
    port = free_port()
    async with (
        Session(stack.zookeeper, timeout_s=4.0, name="interop") as session,
        await harness.program(toolchain, "groups", str(port)),
    ):
        discovery = Discovery(session, empty_list_grace_s=0)
        try:
            for (group, version), rate in _RATES.items():
                directory = await discovery.subscribe(EXCHANGE, group=group, version=version)
                await _found(directory, 1)
                rates = await _rates(directory)
                if set(rates) != {rate}:
                    raise Wrong(f"{group} {version} answered with rates {dict(rates)}, not {rate}")
            directory = await discovery.subscribe(EXCHANGE, group="*", version="*")
            await _found(directory, len(_RATES))
            if len({endpoint.address for endpoint in directory.endpoints}) != 1:
                raise Wrong(f"one address was expected: {[endpoint.key for endpoint in directory.endpoints]}")
            rates = await _rates(directory)
            if rates != Counter(dict.fromkeys(_RATES.values(), _CALLS // len(_RATES))):
                raise Wrong(f"any group, in turn, answered with rates {dict(rates)}")
        finally:
            await discovery.close()
    return "two groups at one address are two endpoints; each answers the calls made to it, alone and in turn"


async def _rates(directory: Directory) -> Counter[int]:
    """Calls so often, and counts the rates in the answers."""
    rates: Counter[int] = Counter()
    async with DiscoveredChannel(
        directory, idempotency=lambda _method: Idempotency.UNKNOWN, picker=RoundRobin(), rng=new_rng()
    ) as channel:
        convert = channel.unary_unary(
            f"/{EXCHANGE}/Convert",
            request_serializer=money_pb2.Money.SerializeToString,
            response_deserializer=money_pb2.Money.FromString,
        )
        for _ in range(_CALLS):
            given = await convert(
                money_pb2.Money(minor_units=100, currency_code="EUR"), timeout=_CALL_S, wait_for_ready=True
            )
            rates[given.minor_units // 100] += 1
    return rates


async def _found(directory: Directory, number: int) -> None:
    await until(directory, lambda: len(directory.endpoints) == number, _START_S)
