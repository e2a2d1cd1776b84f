"""What the instances of a running stack count, as Prometheus would read it."""

from __future__ import annotations

import asyncio
import http.client

from prometheus_client.parser import text_string_to_metric_families

from coordination.registry import Registry
from coordination.session import Session
from services.devstack.stack import Stack

_TIMEOUT_S = 5.0


async def pages(stack: Stack) -> dict[str, str]:
    """Where each instance's metrics are, as the registry has it; empty for one that serves none."""
    async with Session(stack.zookeeper, name="test", security=stack.zookeeper_security()) as session:
        listings = await Registry(session).ls()
    return {
        url.parameters["instance"]: url.parameters.get("metrics", "")
        for listing in listings
        for url in listing.providers
    }


async def samples(page: str) -> dict[str, dict[tuple[str, ...], float]]:
    """The values at `host:port` by name, and then by the values of their labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(_read, page)):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def _read(page: str) -> str:
    host, _, port = page.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
