"""Fixtures of the integration tests: a real ZooKeeper for each module, and a session with it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from coordination.session import Session
from tests.integration.zookeeper import ZooKeeper, connected


@pytest.fixture(scope="module")
def zookeeper_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    """One server for a module's tests."""
    if shutil.which("java") is None:
        pytest.skip("no java: ZooKeeper cannot be started")
    server = ZooKeeper(tmp_path_factory.mktemp("zookeeper"))
    server.start()
    yield server
    server.resume()
    server.stop()


@pytest.fixture
def zookeeper(zookeeper_process: ZooKeeper) -> Iterator[ZooKeeper]:
    """The module's server; whatever a test does to it, the next finds it running."""
    yield zookeeper_process
    if zookeeper_process._process is None:
        zookeeper_process.start()
    zookeeper_process.resume()


@pytest.fixture
async def session(zookeeper: ZooKeeper) -> AsyncIterator[Session]:
    """A connected session."""
    async with connected(zookeeper) as session:
        yield session
