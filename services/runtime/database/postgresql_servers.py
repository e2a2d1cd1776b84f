"""Which of several PostgreSQL servers is the primary: found out anew for each connection.

    postgresql+asyncpg://user@/database?host=postgres1:5432&host=postgres2:5432&host=postgres3:5432

The server that was the primary last is asked first, and `_HEAD_START_S` later, or once it has refused, all others at
once. The first that says of itself that it is the primary is connected to. So a server that is dead, frozen or cut off
costs a new connection no more than the head start.

Two servers may say so for a moment: one that was cut off does not know yet that another has taken its place. What is
committed on it is not acknowledged, since it waits for a replica that it cannot reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

_HEAD_START_S: Final = 0.3
_Server = tuple[str, int]


class Servers:
    """The servers that a URL names.

    Args:
        hosts: Their names or addresses.
        ports: The port of each.
    """

    def __init__(self, hosts: Sequence[str], ports: Sequence[int]) -> None:
        self._servers: list[_Server] = list(zip(hosts, ports, strict=True))

    async def connect(self, open_one: Callable[[str, int], Awaitable[Any]]) -> Any:
        """Return a connection to the primary.

        Args:
            open_one: Opens a connection to one server, and raises an exception unless it is the primary.

        Raises:
            Exception: None is; as `open_one` raised of the server that was the primary last.
        """
        asked: dict[asyncio.Task[Any], _Server] = {}

        def ask(server: _Server) -> None:
            asked[asyncio.ensure_future(open_one(*server))] = server

        first, *others = self._servers
        found: asyncio.Task[Any] | None = None
        try:
            ask(first)
            await asyncio.wait(asked, timeout=_HEAD_START_S)
            found = _primary_among(asked)
            if found is None:
                for server in others:
                    ask(server)
            while found is None and (waiting := [each for each in asked if not each.done()]):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                found = _primary_among(asked)
        finally:
            for each in asked:
                if each is not found:
                    each.cancel()
                    each.add_done_callback(_dropped)
        if found is None:
            return next(iter(asked)).result()  # raises
        self._servers.sort(key=lambda server: server != asked[found])
        return found.result()


def _primary_among(asked: dict[asyncio.Task[Any], _Server]) -> asyncio.Task[Any] | None:
    """Return an attempt that has come to a connection; None: no attempt has."""
    return next((each for each in asked if each.done() and not each.cancelled() and each.exception() is None), None)


def _dropped(attempt: asyncio.Task[Any]) -> None:
    """Close a connection that came too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()
