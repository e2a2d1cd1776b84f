"""`countinghouse registry`: who is registered in ZooKeeper, as Dubbo's consumers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.cli import output
from services.cli.arguments import calling
from services.kernel.principal import Role

if TYPE_CHECKING:
    from coordination.url import ProviderURL
    from services.cli.client import Client


@calling(Role.AUDITOR)
async def registry(client: Client) -> None:
    """Lists every interface with its providers and consumers.

    Example: countinghouse registry --json
    """
    from coordination.registry import Registry  # noqa: PLC0415  `--help` does without

    listings = await Registry(await client.session()).ls(timeout_s=client.remaining_s)
    if client.as_json:
        output.print_json(
            {
                "interfaces": [
                    {
                        "interface": listing.interface,
                        "providers": [_as_dict(url) for url in listing.providers],
                        "consumers": [_as_dict(url) for url in listing.consumers],
                        "malformed": list(listing.malformed),
                    }
                    for listing in listings
                ]
            }
        )
        return
    rows = [
        (
            listing.interface,
            url.address,
            url.parameters.get("instance", ""),
            url.parameters.get("pid", ""),
            str(url.weight),
            output.moment(url.timestamp_ms),
        )
        for listing in listings
        for url in listing.providers
    ]
    output.print_table("providers", ("interface", "address", "instance", "pid", "weight", "since"), rows)
    for listing in listings:
        for name in listing.malformed:
            print(f"cannot be read: {listing.interface}: {name}")


def _as_dict(url: ProviderURL) -> dict[str, Any]:
    return {"url": str(url), "address": url.address, "parameters": dict(url.parameters)}
