"""`countinghouse registry …`: providers and consumers in ZooKeeper, as consumers see them, and operators' rules.

Everything here needs ZooKeeper and nothing else. What `offline`, `online` and `weight` write are Dubbo's own rules:
consumers in every language follow them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from coordination.discovery import Directory, Discovery, Eligibility
from coordination.registry import Endpoint, ProviderURL, Service
from coordination.registry.registration import InterfaceListing, Registry
from coordination.rules import Changes, Overrides
from coordination.rules.overrides import OverrideRefused
from services.cli import output
from services.cli.arguments import calling
from services.cli.client import Client
from services.cli.explaining import explain
from services.cli.watching import directory_of, no_interface, watch
from services.kernel.errors import FailedPrecondition, NotFound
from services.kernel.principal import Role

_HELP = ("--help",)
#: Rules take effect within a second; after this another one prevails.
_EFFECT_S = 2.0
_MOST_WEIGHT = 1_000_000


class _LsByDefault(TyperGroup):
    """`registry` alone is `registry ls`, its options included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        completed = not args and ctx.resilient_parsing  # by a shell, which asks for the commands there are
        if not completed and (not args or (args[0].startswith("-") and args[0] not in _HELP)):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_LsByDefault, help="Show providers and consumers; take a provider out of the traffic.")


def _share(number: int) -> int:
    if not 0 <= number <= _MOST_WEIGHT:
        raise typer.BadParameter(f"{number} is out of range; it is 0 to {_MOST_WEIGHT}")
    return number


Target = Annotated[str, typer.Argument(metavar="ADDRESS|INSTANCE", help="Provider, like 10.0.0.5:50051 or payment-1.")]
Interface = Annotated[
    str,
    typer.Option("--interface", help="Change only this interface. [default: all that it provides]", show_default=False),
]


@app.command("ls")
@calling(Role.AUDITOR)
async def ls(client: Client) -> None:
    """List every interface with its providers, as rules have them, and its consumers.

    Example: countinghouse registry ls
    """
    session = await client.session()
    listings = await Registry(session).ls(timeout_s=client.remaining_s)
    discovery = Discovery(session)
    try:
        directories = await asyncio.gather(
            *(directory_of(discovery, listing.interface, client.remaining_s) for listing in listings)
        )
    finally:
        await discovery.close()
    both = list(zip(listings, directories, strict=True))
    found = [(listing, directory) for listing, directory in both if directory is not None]
    malformed = [listing.interface for listing, directory in both if directory is None]
    if client.as_json:
        interfaces = [_listing_as_dict(listing, directory) for listing, directory in found]
        output.print_json({"interfaces": interfaces, "malformed": malformed})
        return
    _print_providers([verdict for _, directory in found for verdict in directory.eligibility("")])
    _print_consumers([listing for listing, _ in found])
    for listing, _ in found:
        for name in listing.malformed:
            output.print_line(f"cannot be read: {listing.interface}: {name}")
    for name in malformed:
        output.print_line(no_interface(name))


@app.command("offline")
@calling(Role.OPERATOR)
async def offline(client: Client, target: Target, interface: Interface = "") -> None:
    """Take a provider out of the traffic: it goes on running, and gets no calls.

    Example: countinghouse registry offline payment-1
    """
    await _change(client, target, interface, lambda _url: {"disabled": True})


@app.command("online")
@calling(Role.OPERATOR)
async def online(client: Client, target: Target, interface: Interface = "") -> None:
    """Let a provider have calls again, after `offline`.

    Example: countinghouse registry online payment-1
    """
    await _change(client, target, interface, lambda _url: {"disabled": None})


@app.command("weight", context_settings={"ignore_unknown_options": True})  # -1 is a number that is out of range
@calling(Role.OPERATOR)
async def weight(
    client: Client,
    target: Target,
    number: Annotated[
        int, typer.Argument(metavar="N", help="Share of the calls; 100 is the default, 0 none.", callback=_share)
    ],
    interface: Interface = "",
) -> None:
    """Give a provider another share of the calls; the weight it registered with takes the rule away again.

    Example: countinghouse registry weight payment-1 20
    """
    await _change(client, target, interface, lambda url: {"weight": None if url and url.weight == number else number})


app.command("watch")(watch)
app.command("explain")(explain)


# ---- changing --------------------------------------------------------------------------------------------


async def _change(
    client: Client, target: str, interface: str, changes_for: Callable[[ProviderURL | None], Changes]
) -> None:
    """Write what is wanted of `target`, wait until it has effect, and report that."""
    session = await client.session()
    overrides, discovery = Overrides(session), Discovery(session)
    done = []
    try:
        for service, address, url in await _find(client, target, interface, overrides):
            changes = changes_for(url)
            written = await overrides.change(service, address, changes, timeout_s=client.remaining_s)
            directory = await discovery.subscribe(
                service.interface, group=service.group, version=service.version, timeout_s=client.remaining_s
            )
            endpoint = await _in_effect(directory, address, url, changes, client.remaining_s)
            done.append(_as_done(service, address, overrides.path(service), written, directory, endpoint))
    except OverrideRefused as error:
        raise FailedPrecondition("RULE_NOT_OURS", str(error)) from error
    finally:
        await discovery.close()
    if client.as_json:
        output.print_json({"changes": done})
        return
    for change in done:
        output.print_line(_sentence(change))


async def _find(
    client: Client, target: str, interface: str, overrides: Overrides
) -> list[tuple[Service, str, ProviderURL | None]]:
    """Return what `target` is: registered providers, or else addresses that a rule still names.

    Raises:
        NotFound: PROVIDER_NOT_FOUND, listing those registered.
    """
    found: dict[tuple[Service, str], ProviderURL | None] = {}
    known: list[str] = []
    for listing in await Registry(await client.session()).ls(timeout_s=client.remaining_s):
        for url in listing.providers if interface in ("", listing.interface) else ():
            instance = url.parameters.get("instance", "")
            known.append(f"{instance} ({url.address})" if instance else url.address)
            if target in (url.address, instance):
                found[Service(listing.interface, url.group, url.version), url.address] = url
    if not found:
        for override in await overrides.ls(timeout_s=client.remaining_s):
            if override.address == target and interface in ("", override.service.interface):
                found[override.service, override.address] = None
    if not found:
        there = ", ".join(dict.fromkeys(known)) or "none"
        of = f" of {interface}" if interface else ""
        raise NotFound("PROVIDER_NOT_FOUND", f"no provider{of} is called {target}; registered: {there}")
    return [(service, address, url) for (service, address), url in found.items()]


async def _in_effect(
    directory: Directory, address: str, url: ProviderURL | None, changes: Changes, timeout_s: float
) -> Endpoint | None:
    """Wait until consumers treat a provider as wanted; return it, or None if it is not registered.

    Raises:
        FailedPrecondition: OVERRULED: another rule prevails.
    """
    if url is None:
        return None

    wanted: dict[str, object] = {
        "disabled": bool(changes.get("disabled")),
        "weight": url.weight if changes.get("weight") is None else changes["weight"],
    }
    news = asyncio.Event()
    unsubscribe = directory.subscribe(news.set)
    try:
        async with asyncio.timeout(min(timeout_s, _EFFECT_S)):
            while True:
                news.clear()
                endpoint = _registered(directory, address)
                if endpoint is None:
                    return None  # it has just gone
                actual = {"disabled": endpoint.url.disabled, "weight": endpoint.weight}
                if all(actual[name] == wanted[name] for name in changes):
                    return endpoint
                await news.wait()
    except TimeoutError:
        endpoint = _registered(directory, address)
        changed_by = endpoint.changed_by if endpoint else {}
        by = ", ".join(f"{name} by {origin}" for name, origin in changed_by.items() if name in changes)
        raise FailedPrecondition(
            "OVERRULED", f"the rule was written, and {address} is still treated otherwise: {by or 'as it registered'}"
        ) from None
    finally:
        unsubscribe()


def _registered(directory: Directory, address: str) -> Endpoint | None:
    return next((endpoint for endpoint in directory.registered if endpoint.address == address), None)


def _as_done(
    service: Service, address: str, path: str, written: bool, directory: Directory, endpoint: Endpoint | None
) -> dict[str, Any]:
    return {
        "interface": service.interface,
        "group": service.group,
        "version": service.version,
        "address": address,
        "instance": endpoint.url.parameters.get("instance", "") if endpoint else "",
        "path": path,
        "written": written,
        "registered": endpoint is not None,
        "disabled": endpoint.url.disabled if endpoint else None,
        "weight": endpoint.weight if endpoint else None,
        "callable_providers": len(directory.endpoints),
    }


def _sentence(change: dict[str, Any]) -> str:
    name = f"{change['instance']} ({change['address']})" if change["instance"] else change["address"]
    state = (
        "is not registered"
        if not change["registered"]
        else "is offline"
        if change["disabled"]
        else f"is online with weight {change['weight']}"
    )
    how = f"written to {change['path']}" if change["written"] else f"as {change['path']} said already"
    alone = "; no provider is left to be called" if not change["callable_providers"] else ""
    return f"{name} {state} for {change['interface']}: {how}{alone}"


# ---- showing ---------------------------------------------------------------------------------------------


def standing(verdict: Eligibility) -> str:
    """Return in a few words how rules change a provider for consumers; empty if they do not."""
    if verdict.why_not or verdict.endpoint is None:
        return verdict.why_not
    registered = verdict.endpoint.registered.weight
    if verdict.endpoint.weight == registered:
        return ""
    return f"weight {registered} changed by {verdict.endpoint.changed_by.get('weight', 'a rule')}"


def _print_providers(eligibility: Sequence[Eligibility]) -> None:
    rows = [
        (
            verdict.registration.url.interface,
            verdict.address,
            verdict.registration.url.parameters.get("instance", ""),
            verdict.registration.url.parameters.get("pid", ""),
            str(verdict.endpoint.weight if verdict.endpoint else verdict.registration.url.weight),
            output.moment(verdict.registration.started_ms),
            standing(verdict),
        )
        for verdict in eligibility
        if verdict.registration.url is not None
    ]
    output.print_table("providers", ("interface", "address", "instance", "pid", "weight", "since", "standing"), rows)


def _print_consumers(listings: Sequence[InterfaceListing]) -> None:
    rows = [
        (
            listing.interface,
            url.host,
            url.application,
            url.parameters.get("instance", ""),
            url.parameters.get("pid", ""),
            output.moment(url.timestamp_ms),
        )
        for listing in listings
        for url in listing.consumers
    ]
    if rows:
        print()
        output.print_table("consumers", ("interface", "host", "application", "instance", "pid", "since"), rows)


def _listing_as_dict(listing: InterfaceListing, directory: Directory) -> dict[str, Any]:
    return {
        "interface": listing.interface,
        "providers": [
            _url_as_dict(verdict.registration.url) | _governed_as_dict(verdict)
            for verdict in directory.eligibility("")
            if verdict.registration.url is not None
        ],
        "consumers": [_url_as_dict(url) for url in listing.consumers],
        "malformed": list(listing.malformed),
    }


def _url_as_dict(url: ProviderURL) -> dict[str, Any]:
    address = url.address if url.port else url.host
    return {"url": str(url), "address": address, "parameters": dict(url.parameters)}


def _governed_as_dict(verdict: Eligibility) -> dict[str, Any]:
    endpoint = verdict.endpoint
    return {
        "weight": endpoint.weight if endpoint else None,
        "disabled": endpoint.url.disabled if endpoint else None,
        "changed_by": dict(endpoint.changed_by) if endpoint else {},
        "why_not": verdict.why_not,
    }
