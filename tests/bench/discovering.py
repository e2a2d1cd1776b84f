"""What one change of a list of providers costs the event loop: part of `make bench`.

A provider leaves and another comes; measured is what the loop does until the next call could be made: the list is
read, governed, and routed. The ratio to reading the whole list is what tells a change that costs one provider from one
that costs all of them, on any machine.
"""

from __future__ import annotations

import random
import time

from coordination.channel import DiscoveredChannel, Idempotency
from coordination.discovery import Directory
from coordination.registry import ProviderURL
from coordination.rules import Rules
from coordination.rules.configurators import parse_configurators
from tests.bench.figures import Figure, median_ms

_INTERFACE = "countinghouse.order.v1.OrderService"
_PROVIDERS = 1_000
_CHANGES = 20
_SEED = 7


async def measure() -> list[Figure]:
    """Both, without ZooKeeper: what it takes to answer is not the loop's time."""
    names = [_node(number) for number in range(_PROVIDERS)]
    whole_s = [_took_s(Directory(_INTERFACE), names) for _ in range(_CHANGES // 4)]
    directory = Directory(_INTERFACE)
    changes_s = []
    async with DiscoveredChannel(directory, idempotency=lambda _method: Idempotency.UNKNOWN, rng=random.Random(_SEED)):
        directory.take(directory.reader.read(names))
        for number in range(_CHANGES):
            names = [*names[1:], _node(_PROVIDERS + number)]
            changes_s.append(_took_s(directory, names))
        rules_s = [await _governed_s(directory, number) for number in range(_CHANGES)]
    change_ms, whole_ms = median_ms(changes_s), median_ms(whole_s)
    return [
        Figure("provider_change_ms", f"one change among {_PROVIDERS} providers", change_ms, "ms", "at most 20 ms"),
        Figure("provider_rule_ms", f"a rule about all {_PROVIDERS}", median_ms(rules_s), "ms", "at most 20 ms"),
        Figure("provider_list_ms", f"reading {_PROVIDERS} providers", whole_ms, "ms"),
        Figure("provider_change_ratio", "a change, part of reading all", change_ms / whole_ms, "", "at most 0.2"),
    ]


def _took_s(directory: Directory, names: list[str]) -> float:
    began_s = time.thread_time()  # of the processor: what else the machine does is not counted
    directory.take(directory.reader.read(names))
    directory.candidates("GetOrder")
    return time.thread_time() - began_s


async def _governed_s(directory: Directory, number: int) -> float:
    text = f"configs: [{{side: consumer, addresses: [0.0.0.0], parameters: {{timeout: {500 + number}}}}}]"
    rules = Rules(configurators=parse_configurators(text, f"{_INTERFACE}::"))
    began_s = time.thread_time()
    await directory.govern(rules)
    return time.thread_time() - began_s


def _node(number: int) -> str:
    url = ProviderURL.provider(
        _INTERFACE,
        f"10.0.{number // 250}.{number % 250 + 1}",
        50051,
        application="countinghouse-order",
        methods=("CreateOrder", "GetOrder", "ListOrders", "CancelOrder", "ClaimOrder", "CompleteOrder"),
        release="countinghouse",
        timestamp_ms=1_700_000_000_000 + number,
        instance=f"order-{number}",
        pid="4711",
    )
    return url.node_name()
