"""`countinghouse metrics`: what an instance counts, as Prometheus reads it."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Annotated, Any

import typer
from prometheus_client.parser import text_string_to_metric_families

from coordination.registry.registration import Registry
from services.cli import output
from services.cli.arguments import calling
from services.cli.client import Client
from services.kernel.errors import NotFound, Unavailable
from services.kernel.principal import Role

#: A page is some 50 kB.
_MAX_BYTES = 16 << 20


@calling(Role.AUDITOR)
async def metrics(
    client: Client,
    instance: Annotated[
        str, typer.Argument(help="Instance, like payment-1; without it: the address of each instance's metrics.")
    ] = "",
) -> None:
    """Print the metrics of an instance, found through the registry.

    Example: countinghouse metrics payment-1
    """
    pages = await _pages(client)
    if not instance:
        _print_pages(pages, as_json=client.as_json)
        return
    if instance not in pages:
        raise NotFound(
            "INSTANCE_UNKNOWN", f"no instance {instance} is registered; there are {', '.join(pages) or 'none'}"
        )
    if not pages[instance]:
        raise NotFound("METRICS_OFF", f"{instance} serves no metrics; its COUNTINGHOUSE_METRICS_PORT is -1")
    text = await asyncio.to_thread(read_page, pages[instance], client.remaining_s)
    if client.as_json:
        output.print_json({"instance": instance, "samples": _samples(text)})
    else:
        for line in text.splitlines():
            output.print_line(line)


async def _pages(client: Client) -> dict[str, str]:
    """Return the address of each instance's metrics; empty if it serves none."""
    listings = await Registry(await client.session()).ls(timeout_s=client.remaining_s)
    return {
        url.parameters.get("instance", url.address): url.parameters.get("metrics", "")
        for listing in listings
        for url in listing.providers
    }


def _print_pages(pages: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        output.print_json({"instances": [{"instance": name, "metrics": page} for name, page in pages.items()]})
    else:
        rows = [(name, f"http://{page}/metrics" if page else "off") for name, page in pages.items()]
        output.print_table("metrics", ("instance", "address"), rows)


def read_page(address: str, timeout_s: float) -> str:
    """Return the page at `host:port`.

    Raises:
        Unavailable: METRICS_UNAVAILABLE.
    """
    host, _, port = address.rpartition(":")
    try:
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read(_MAX_BYTES).decode()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable("METRICS_UNAVAILABLE", f"no metrics are to be had at {address}: {error}") from error
    if answer.status != http.client.OK:
        raise Unavailable("METRICS_UNAVAILABLE", f"{address} answered {answer.status} instead of metrics")
    return text


def _samples(text: str) -> dict[str, Any]:
    """Each sample's value by its name and labels, as they are written on the page."""
    return {
        _name(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _name(name: str, labels: dict[str, str]) -> str:
    pairs = ",".join(f"{label}={json.dumps(value, ensure_ascii=False)}" for label, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name
