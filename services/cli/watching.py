"""`countinghouse registry watch`: providers as they come, change and go.

A table that follows on a terminal; a line for each change elsewhere; with --json one JSON object for each.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, astuple, dataclass
from typing import Any

from rich.live import Live

from coordination.discovery import Directory, Discovery, Eligibility
from coordination.errors import BadProviderURL
from coordination.quoting import quoted
from coordination.registry.registration import DEFAULT_ROOT, NOT_INTERFACES
from coordination.session import Session
from coordination.session.node_watcher import NodeWatcher, children
from services.cli import output, streams
from services.cli.arguments import calling
from services.cli.client import Client
from services.kernel.clock import SystemClock
from services.kernel.principal import Role

#: How lines name an event; JSON keeps the names of its callers.
_SHOWN = {"there": "registered"}
_COLUMNS = ("interface", "address", "instance", "weight", "list", "why not called")


@dataclass(frozen=True, slots=True)
class ProviderRow:
    """One provider as consumers see it now.

    Args:
        list: The state of the directory's list: live, emptying, away.
        why_not: Why it gets no calls; empty if it may get some.
    """

    interface: str
    address: str
    instance: str
    weight: int
    list: str
    why_not: str


Rows = dict[tuple[str, str], ProviderRow]


@calling(Role.AUDITOR)
async def watch(client: Client) -> None:
    """Follow the registry until interrupted. --timeout is for connecting only.

    Example: countinghouse registry watch
    """
    session = await client.session()
    discovery = Discovery(session)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(discovery.close)
        registry = _Watched(session, discovery, client.remaining_s)
        stack.push_async_callback(registry.close)
        await registry.follow(_shown(client, stack))


async def directory_of(discovery: Discovery, interface: str, timeout_s: float) -> Directory | None:
    """Return the directory of an interface with the providers of every group and version.

    Returns:
        None: The name is no interface's, such as one that begins with a blank; others may make nodes of any name.
    """
    try:
        return await discovery.subscribe(interface, group="*", version="*", timeout_s=timeout_s)
    except BadProviderURL:
        return None


def no_interface(name: str) -> str:
    """Return what people are told of a node that is named as no interface is."""
    return f"cannot be read: {quoted(name)} under {DEFAULT_ROOT} is no interface's name"


class _Watched:
    """All interfaces of a registry, those too that come later."""

    def __init__(self, session: Session, discovery: Discovery, timeout_s: float) -> None:
        self._discovery = discovery
        self._directories: dict[str, Directory] = {}
        self._malformed: set[str] = set()
        self._timeout_s = timeout_s
        self._changed = asyncio.Event()
        self._listed = asyncio.Event()
        self._follower = NodeWatcher(session, DEFAULT_ROOT, children, self._interfaces, lambda: None)

    async def follow(self, show: Callable[[Rows, Rows], None]) -> None:
        """Call `show` with what was and what is, at first and at every change, until the reader has gone."""
        await self._listed.wait()
        before: Rows = {}
        first = True
        while True:
            self._changed.clear()
            now = {(row.interface, row.address): row for row in self._rows()}
            if first or now != before:
                show(before, now)
            if streams.unread():
                return
            before, first = now, False
            await self._changed.wait()

    async def close(self) -> None:
        """Stop."""
        await self._follower.close()

    async def _interfaces(self, names: list[str]) -> None:
        for name in sorted(set(names) - NOT_INTERFACES - self._directories.keys() - self._malformed):
            directory = await directory_of(self._discovery, name, self._timeout_s)
            if directory is None:
                self._malformed.add(name)
                print(no_interface(name), file=sys.stderr, flush=True)
                continue
            directory.subscribe(self._changed.set)
            self._directories[name] = directory
        self._listed.set()
        self._changed.set()

    def _rows(self) -> Iterator[ProviderRow]:
        for interface in sorted(self._directories):
            directory = self._directories[interface]
            for verdict in directory.eligibility(""):
                if verdict.registration.url is not None:
                    yield _row(interface, verdict, directory.state.value)


def _row(interface: str, verdict: Eligibility, state: str) -> ProviderRow:
    url = verdict.endpoint.url if verdict.endpoint else verdict.registration.url
    assert url is not None  # noqa: S101  those that cannot be read are not asked for
    return ProviderRow(interface, verdict.key, url.parameters.get("instance", ""), url.weight, state, verdict.why_not)


def _shown(client: Client, stack: AsyncExitStack) -> Callable[[Rows, Rows], None]:
    """Return how changes are shown: as a live table, as lines, or as JSON."""
    if client.as_json:
        return _print_json_lines
    if not sys.stdout.isatty():
        return _print_lines
    live = stack.enter_context(Live(_table({}), auto_refresh=False))
    return lambda _before, now: live.update(_table(now), refresh=True)


def _changes(before: Rows, now: Rows) -> Iterator[tuple[str, ProviderRow]]:
    for key in sorted(before.keys() | now.keys()):
        if key not in now:
            yield "gone", before[key]
        elif key not in before:
            yield "there", now[key]
        elif now[key] != before[key]:
            yield "changed", now[key]


def _print_lines(before: Rows, now: Rows) -> None:
    at = output.moment(SystemClock().now_ms())
    for event, row in _changes(before, now):
        parts = (
            at,
            _SHOWN.get(event, event).ljust(10),
            row.interface,
            row.address,
            row.instance,
            f"weight {row.weight}",
            row.list,
        )
        output.print_line("  ".join(part for part in (*parts, row.why_not) if part), flush=True)


def _print_json_lines(before: Rows, now: Rows) -> None:
    at_ms = SystemClock().now_ms()
    for event, row in _changes(before, now):
        output.print_json_line({"at_ms": at_ms, "event": event, **asdict(row)})


def _table(rows: Mapping[Any, ProviderRow]) -> Any:
    shown = [tuple(str(value) for value in astuple(row)) for row in rows.values()]
    return output.framed("providers", _COLUMNS, shown)
