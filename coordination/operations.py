"""The requests `Session.send` takes: each function describes one, and hands it to kazoo when called with a
client.

Replies are kazoo's: a `ZnodeStat` where a stat is spoken of, its exceptions where a node is not as asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kazoo.client import KazooClient
from kazoo.protocol.states import WatchedEvent

Operation = Callable[[KazooClient], Any]
"""Hands one request to kazoo and returns its IAsyncResult."""

OnNews = Callable[[WatchedEvent], None]


def create(path: str, data: bytes, *, ephemeral: bool = False, sequence: bool = False) -> Operation:
    """Create; the reply is (path, stat)."""
    return lambda client: client.create_async(path, data, ephemeral=ephemeral, sequence=sequence, include_data=True)


def get(path: str, watch: OnNews | None = None) -> Operation:
    """Read; the reply is (data, stat)."""
    return lambda client: client.get_async(path, watch)


def exists(path: str, watch: OnNews | None = None) -> Operation:
    """Look; the reply is a stat or None."""
    return lambda client: client.exists_async(path, watch)


def get_children(path: str, watch: OnNews | None = None) -> Operation:
    """List; the reply is the children's names."""
    return lambda client: client.get_children_async(path, watch)


def replace(path: str, data: bytes, version: int) -> Operation:
    """Write if the version matches; the reply is the stat."""
    return lambda client: client.set_async(path, data, version)


def delete(path: str, version: int) -> Operation:
    """Delete if the version matches; the reply is True."""
    return lambda client: client.delete_async(path, version)


def sync(path: str) -> Operation:
    """Let the server we are on catch up with its leader, so that the next read shows what is there now."""
    return lambda client: client.sync_async(path)


def create_all(paths: Sequence[str]) -> Operation:
    """Create empty persistent nodes in one transaction; the reply is a list of results or errors."""

    def commit(client: KazooClient) -> Any:
        transaction = client.transaction()
        for path in paths:
            transaction.create(path)
        return transaction.commit_async()

    return commit
