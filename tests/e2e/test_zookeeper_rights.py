"""Who may do what in a stack's ZooKeeper: in plain text nothing, without a user little, and each service its own."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from kazoo.exceptions import NoNodeError
from kazoo.security import OPEN_ACL_UNSAFE

from coordination.deadline import Deadline
from coordination.errors import Forbidden, Refused, Unavailable
from coordination.session import Session, requests
from services.devstack.stack import Stack
from services.devstack.state import INTERFACES
from services.runtime.zookeeper_paths import GENERATION_PATH, LOCKS_ROOT
from services.runtime.zookeeper_security import secured
from services.testkit.harness import Harness
from tests.e2e.checked import checked_books
from tests.e2e.command import command_line
from tests.e2e.conftest import FreshStack

PROVIDERS = {service: f"/dubbo/{interface}/providers" for service, interface in INTERFACES.items()}


@asynccontextmanager
async def session_of(stack: Stack, user: str = "") -> AsyncIterator[Session]:
    """A session of a user of the stack; of none without a name."""
    keys = stack.data / "keys"
    security = secured(keys / "ca.pem", keys / "zookeeper" / user if user else None)
    async with Session(stack.zookeeper, timeout_s=4.0, name=user or "stranger", security=security) as session:
        await session.wait_connected(10.0)
        yield session


async def is_refused(request: Awaitable[Any]) -> bool:
    try:
        await request
    except (Refused, Forbidden):
        return True
    return False


async def test_connection_in_plain_text_gets_nothing(stack: Stack) -> None:
    """Neither a session nor an answer to a command of four letters."""
    async with Session(stack.zookeeper, timeout_s=4.0, name="plain") as plain:
        with pytest.raises(Unavailable):
            await plain.wait_connected(2.0)
    host, _, port = stack.zookeeper.rpartition(":")
    for words in (b"srvr", b"dump", b"cons", b"mntr"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(words + b"\n")  # a record of TLS begins with five bytes
        async with asyncio.timeout(10.0):
            assert b"Zookeeper" not in await reader.read()
        writer.close()


async def test_server_is_known_by_its_certificate(stack: Stack) -> None:
    context = ssl.create_default_context(cafile=stack.data / "keys" / "ca.pem")
    host, _, port = stack.zookeeper.rpartition(":")
    for name, accepted in (("zookeeper.countinghouse", True), ("order.countinghouse", False)):
        try:
            _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
        except ssl.SSLCertVerificationError:
            assert not accepted
        else:
            assert accepted
            writer.close()


async def test_client_without_a_user_reads_where_services_are_and_no_more(stack: Stack) -> None:
    async with session_of(stack) as stranger:
        for providers in PROVIDERS.values():
            (first, *_) = await stranger.get_children(providers)
            assert await is_refused(stranger.create(f"{providers}/tri%3A%2F%2F10.0.0.1%3A1%2Fx", ephemeral=True))
            assert await is_refused(stranger.delete(f"{providers}/{first}"))
            assert await is_refused(stranger.set(f"{providers}/{first}", b"x"))
            assert await is_refused(stranger.create(f"{providers.rpartition('/')[0]}/configurators/override"))
        assert await is_refused(stranger.get_children(LOCKS_ROOT))
        assert await is_refused(stranger.create(f"{LOCKS_ROOT}/x"))
        assert await is_refused(stranger.set(GENERATION_PATH, b"9"))
        assert await is_refused(stranger.create("/anywhere"))
        assert await is_refused(stranger.create("/dubbo/config"))  # of rules
        assert await is_refused(stranger.create("/zookeeper/quota/dubbo"))


@pytest.mark.parametrize("user", ["order", "ledger"])
async def test_service_registers_itself_and_no_other_and_touches_no_lock(stack: Stack, user: str) -> None:
    """Nor does it write a rule, or change the generation, whichever client has made it."""
    async with session_of(stack, user) as session:
        own = f"{PROVIDERS[user]}/tri%3A%2F%2F127.0.0.1%3A1%2Fnone"
        await session.create(own, ephemeral=True)
        await session.delete(own)
        for service, providers in PROVIDERS.items():
            if service != user:
                assert await is_refused(session.create(f"{providers}/tri%3A%2F%2F127.0.0.1%3A1%2Fnone", ephemeral=True))
            (first, *_) = await session.get_children(providers)
            assert await is_refused(session.set(f"{providers}/{first}", b"x")) is (service != user)
            assert await is_refused(session.create(f"{providers.rpartition('/')[0]}/routers/rule"))
        assert await is_refused(session.get_children(LOCKS_ROOT))
        assert await is_refused(session.create(f"{LOCKS_ROOT}/x"))
        assert await is_refused(session.set(GENERATION_PATH, b"9"))
        assert await is_refused(session.delete(GENERATION_PATH))
        with pytest.raises((Refused, Forbidden)):
            await session.delete(LOCKS_ROOT)


async def test_locks_are_the_payment_services_alone(fresh_stack: FreshStack) -> None:
    """Every directory of theirs, also those that it makes by itself; an order is settled under them."""
    async with fresh_stack() as stack, Harness(stack) as harness:
        await harness.cashier.settle_ok(await harness.new_order(), timeout_s=10.0)
        async with session_of(stack, "payment") as payment, session_of(stack, "order") as order:
            shards = await payment.get_children(LOCKS_ROOT)
            assert shards
            for shard in shards:
                assert await is_refused(order.get_children(f"{LOCKS_ROOT}/{shard}"))
                assert await is_refused(order.create(f"{LOCKS_ROOT}/{shard}/x"))
        await checked_books(harness)


async def test_doctor_names_a_node_that_was_opened_meanwhile(stack: Stack) -> None:
    path, doctor = PROVIDERS["order"], ("doctor", "--json", "--data", str(stack.data))
    async with Session(stack.zookeeper, name="operator", security=stack.zookeeper_security()) as operator:
        await operator.wait_connected(10.0)
        before, _ = await operator.ask(requests.get_acl(path), Deadline.after(10.0))
        await operator.ask(requests.set_acl(path, OPEN_ACL_UNSAFE), Deadline.after(10.0))
        opened = await command_line(*doctor)
        await operator.ask(requests.set_acl(path, before), Deadline.after(10.0))
    assert (opened.returncode, found_of(opened)["ok"]) == (1, False)
    assert f"open to clients without a user: {path}, and 0 others" in found_of(opened)["detail"]
    assert found_of(await command_line(*doctor))["ok"]


def found_of(examined: CompletedProcess[str]) -> dict[str, Any]:
    (found,) = [check for check in json.loads(examined.stdout)["checks"] if check["name"] == "zookeeper rights"]
    return dict(found)


async def test_tree_that_was_open_is_closed_at_the_next_start(fresh_stack: FreshStack, tmp_path: Path) -> None:
    """As one that an earlier release has made: everything in it was open to all."""
    data = tmp_path / "data"
    async with fresh_stack(data=data, plaintext=True) as stack, Harness(stack) as harness:
        await harness.cashier.settle_ok(await harness.new_order(), timeout_s=10.0)
    async with fresh_stack(data=data) as stack, Harness(stack) as harness:
        await harness.cashier.settle_ok(await harness.new_order(), timeout_s=10.0)
        async with session_of(stack) as stranger, session_of(stack, "payment") as payment:
            assert await is_refused(stranger.get_children(LOCKS_ROOT))
            for shard in await payment.get_children(LOCKS_ROOT):
                assert await is_refused(stranger.create(f"{LOCKS_ROOT}/{shard}/x"))
            assert await is_refused(stranger.set(GENERATION_PATH, b"9"))
            with pytest.raises(NoNodeError):
                await payment.get(f"{LOCKS_ROOT}/none")
