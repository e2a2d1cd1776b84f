"""Directories and their memory, without ZooKeeper."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from coordination.discovery import Directory, DirectoryState, _CacheFile
from coordination.errors import NoProviders
from coordination.url import ProviderURL

NODE = ProviderURL("tri", "h", 1, "a.B").node_name()


def test_away_and_empty_are_told_apart() -> None:
    """Going away takes nobody out; an empty list read from ZooKeeper does."""
    directory = Directory("a.B")
    directory._away()
    assert directory.state is DirectoryState.UNKNOWN
    directory._read([NODE])
    directory._away()
    assert (directory.state, len(directory.endpoints)) == (DirectoryState.AWAY, 1)
    directory._read([])
    assert (directory.state, directory.endpoints) == (DirectoryState.LIVE, ())


def test_memory_never_replaces_what_was_read() -> None:
    """A file read late does not undo ZooKeeper's list, and an empty memory says nothing."""
    directory = Directory("a.B")
    directory._recall([])
    assert directory.state is DirectoryState.UNKNOWN
    directory._read([])
    directory._recall([NODE])
    assert (directory.state, directory.endpoints) == (DirectoryState.LIVE, ())


def test_subscribers_hear_of_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """The same list again is no news; a subscriber that fails keeps none of the others from hearing."""
    directory, heard = Directory("a.B"), list[int]()

    def fail() -> None:
        raise RuntimeError("a subscriber's own fault")

    directory.subscribe(fail)
    unsubscribe = directory.subscribe(lambda: heard.append(len(directory.endpoints)))
    with caplog.at_level(logging.CRITICAL):
        directory._read([NODE])
        directory._read([NODE])
        directory._read([])
        unsubscribe()
        directory._read([NODE])
    assert heard == [1, 0]
    assert directory.changed.is_set()


async def test_nobody() -> None:
    """wait_any() fails in time, saying whether ZooKeeper could be asked."""
    directory = Directory("a.B")
    with pytest.raises(NoProviders) as caught:
        await directory.wait_any(0.01)
    assert caught.value.away
    directory._read([])
    with pytest.raises(NoProviders) as caught:
        await directory.wait_any(0.01)
    assert not caught.value.away
    assert caught.value.interface == "a.B"


@pytest.mark.parametrize("content", [None, "", "nonsense", "{}", '["a", 1]'])
def test_a_broken_memory_is_no_memory(tmp_path: Path, content: str | None) -> None:
    """A missing or damaged file costs the cold start and nothing else."""
    path = tmp_path / "a.B.json"
    if content is not None:
        path.write_text(content)
    assert _CacheFile(path).load() in ([], ["a"])


def test_memory_is_written_whole(tmp_path: Path) -> None:
    """What was saved is what is loaded, and no draft is left."""
    cache = _CacheFile(tmp_path / "deep" / "a.B.json")
    cache.save(["b", "a"])
    cache.save(["c"])
    assert cache.load() == ["c"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.B.json"]
