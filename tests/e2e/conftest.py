"""The embedded stack for the tests: one for the whole run, and fresh ones for tests that break theirs.

All tests here share one event loop, since a stack's supervisor lives in the loop that started it.

With COUNTINGHOUSE_TEST_DATABASE=postgresql every stack keeps its data in a PostgreSQL (tests/postgresql.py), each under
names of its own, and works under roles as in a deployment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.devstack.components import zookeeper
from services.devstack.components.zookeeper import ZooKeeperMissing
from services.devstack.stack import Stack, StackOptions
from services.kernel.principal import Role
from services.testkit.client import RecordingClient
from services.testkit.harness import open_client
from tests.e2e import databases
from tests.postgresql import server

#: Short, so that expiry and recovery can be waited for.
SESSION_TIMEOUT_S = 1.5
SETTINGS = {"lease_s": 1.5, "recovery_interval_s": 0.2, "drain_s": 2}
#: For tests under load. Each of its clients is one caller, and on a slow machine more calls of it are under way than
#: its budget allows; that limit is test_neighbours.py's.
UNDER_LOAD = SETTINGS | {"caller_budget": 1 << 14}

FreshStack = Callable[..., AbstractAsyncContextManager[Stack]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the asynchronous tests of this folder on the loop of their stack."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session", autouse=True)
def _database_server() -> Iterator[None]:
    if not databases.on_postgresql():
        yield
        return
    with server() as running, databases.use(running):
        yield


def options(data: Path, **changes: Any) -> StackOptions:
    """A stack for tests: failpoints on, short waits."""
    settings: dict[str, Any] = {
        "failpoints": True,
        "session_timeout_s": SESSION_TIMEOUT_S,
        "settings": SETTINGS,
        "start_timeout_s": 30.0,
        "database": databases.of(data),
    }
    return StackOptions(data, **(settings | changes))


@pytest.fixture(scope="session")
def _zookeeper_can_be_started() -> None:
    import os

    try:
        zookeeper.find(os.environ)
    except ZooKeeperMissing as error:
        pytest.skip(error.message)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Stack]:
    """The stack of the run, with two payment instances. Leave it as you found it."""
    async with Stack(options(tmp_path_factory.mktemp("stack") / "data", replicas={"payment": 2})) as running:
        yield running


@pytest.fixture
def fresh_stack(tmp_path: Path, _zookeeper_can_be_started: None) -> FreshStack:
    """`async with fresh_stack(…) as stack`: one of the test's own. `tell` gets its sentences."""

    @asynccontextmanager
    async def fresh(tell: Callable[[str], None] = lambda _sentence: None, **changes: Any) -> AsyncIterator[Stack]:
        data = changes.pop("data", tmp_path / "data")
        async with Stack(options(data, **changes), tell=tell) as running:
            yield running

    return fresh


@pytest_asyncio.fixture(loop_scope="session")
async def cashier(stack: Stack) -> AsyncIterator[RecordingClient]:
    """Li, at the counter."""
    async with open_client(stack, "li", Role.CASHIER) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def accountant(stack: Stack) -> AsyncIterator[RecordingClient]:
    """Wang, in the office."""
    async with open_client(stack, "wang", Role.ACCOUNTANT) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def operator(stack: Stack) -> AsyncIterator[RecordingClient]:
    """Who looks after the machinery."""
    async with open_client(stack, "ops", Role.OPERATOR) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def customer(stack: Stack) -> AsyncIterator[RecordingClient]:
    """Mei, who pays her own orders."""
    async with open_client(stack, "mei", Role.CUSTOMER) as client:
        yield client
