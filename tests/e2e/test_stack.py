"""The embedded stack as a whole: it starts, is kept alive, is stopped, and never leaves anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordination.registry import Registry
from coordination.session import Session
from countinghouse.payment.v1 import payment_pb2
from services.devstack import dialers, pruning, state
from services.devstack.child import Child
from services.devstack.components import zookeeper
from services.devstack.ports import HOST, PortReservation
from services.devstack.readiness import health
from services.devstack.stack import Stack
from services.devstack.state import INTERFACES, Instance, InstanceState, StackRefused
from services.kernel.principal import Role
from services.testkit.client import RecordingClient, new_id
from services.testkit.harness import open_client
from tests.e2e import databases
from tests.e2e.checked import refusal
from tests.e2e.command import command_line, document, processes_of, start_command_line
from tests.e2e.conftest import FreshStack, options

READY_S = 30.0
on_files = pytest.mark.skipif(databases.on_postgresql(), reason="spoils a file; see test_postgresql.py")


async def gone(data: Path, timeout_s: float = 10.0) -> None:
    """Waits until no process names this data directory."""
    deadline_s = time.monotonic() + timeout_s
    while left := processes_of(data):
        assert time.monotonic() < deadline_s, [psutil.Process(pid).cmdline() for pid in left]
        await asyncio.sleep(0.05)


async def liveness_of(stack: Stack, instance: Instance, timeout_s: float = 1.0) -> str:
    return await health(stack.dialer(), instance.address, instance.service, timeout_s)


async def readiness_of(stack: Stack, instance: Instance) -> str:
    return await health(stack.dialer(), instance.address, instance.service, interface=instance.interface)


async def until_ready(stack: Stack, instance: Instance, wanted: str, timeout_s: float = 60.0) -> None:
    """Waits until grpc.health says `wanted` of an instance's interface."""
    async with asyncio.timeout(timeout_s):
        while await readiness_of(stack, instance) != wanted:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)


async def settled_once_available(
    client: RecordingClient, order_id: str, timeout_s: float = 60.0
) -> payment_pb2.Payment:
    """Settles an order as soon as that is possible; until then the only answer allowed is UNAVAILABLE."""
    async with asyncio.timeout(timeout_s):
        while True:
            result = await client.settle_once(order_id)
            if result.answer.code != "UNAVAILABLE":
                return result.payment
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def up(data: Path, *arguments: str) -> AsyncIterator[dict[str, Any]]:
    """A stack left running by `countinghouse up --detach`, stopped in the end."""
    started = await command_line("up", "--detach", "--json", "--data", str(data), *arguments)
    assert started.returncode == 0, started.stderr
    try:
        yield json.loads(started.stdout)
    finally:
        await command_line("down", "--data", str(data))


class TestStarted:
    """Ready means SERVING and registered, for everybody."""

    async def test_every_instance_is_serving_and_registered_under_its_own_process(self, stack: Stack) -> None:
        assert [instance.name for instance in stack.instances] == ["payment-1", "payment-2", "order-1", "ledger-1"]
        async with Session(stack.zookeeper, name="test", security=stack.zookeeper_security()) as session:
            listings = {listing.interface: listing for listing in await Registry(session).ls()}
        for instance in stack.instances:
            assert instance.state is InstanceState.SERVING
            assert await liveness_of(stack, instance) == "SERVING"
            (url,) = [url for url in listings[instance.interface].providers if url.address == instance.address]
            assert url.parameters["pid"] == str(instance.pid)
            assert url.parameters["instance"] == instance.name

    async def test_frozen_zookeeper_readiness_fails_and_liveness_does_not(
        self, stack: Stack, cashier: RecordingClient
    ) -> None:
        """Nobody restarts an instance that still answers reads."""
        order_id = await cashier.new_order()
        os.kill(stack.zookeeper_pid, signal.SIGSTOP)
        try:
            for instance in stack.instances:
                await until_ready(stack, instance, "NOT_SERVING")
                assert await liveness_of(stack, instance) == "SERVING"
            assert await cashier.order_state(order_id) == "UNPAID"
        finally:
            os.kill(stack.zookeeper_pid, signal.SIGCONT)
        for instance in stack.instances:
            await until_ready(stack, instance, "SERVING")

    async def test_health_and_reflection_answer_on_every_service(self, stack: Stack) -> None:
        for instance in stack.instances:
            async with stack.dialer().open(instance.address, instance.service) as channel:
                checking = health_pb2_grpc.HealthStub(channel)
                request = health_pb2.HealthCheckRequest(service=instance.interface)
                answer = await checking.Check(request, timeout=5)  # type: ignore[attr-defined]
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # stubs of grpc
                questions = [
                    reflection_pb2.ServerReflectionRequest(list_services=""),
                    reflection_pb2.ServerReflectionRequest(file_containing_symbol=instance.interface),
                ]
                replies = [reply async for reply in stub.ServerReflectionInfo(iter(questions), timeout=5)]
                names = {service.name for service in replies[0].list_services_response.service}
                assert {instance.interface, "grpc.health.v1.Health"} <= names
                assert replies[1].file_descriptor_response.file_descriptor_proto

    async def test_data_directory_is_readable_by_its_owner_only(self, stack: Stack) -> None:
        for path in stack.data.rglob("*"):
            if path.is_dir() or path.name in ("verify.jwks", "revoked.json", "ca.pem"):
                continue
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path

    async def test_idle_stack_uses_less_than_450_mb(self, fresh_stack: FreshStack) -> None:
        """ZooKeeper and one instance of each service, resident, before the first call: 450 MB."""
        async with fresh_stack() as stack:
            pids = [stack.zookeeper_pid, *(stack.instance(f"{name}-1").pid for name in INTERFACES)]
            megabytes = sum(psutil.Process(pid).memory_info().rss for pid in pids) >> 20
        assert megabytes < 450


class TestKeptAlive:
    """What crashes is started again; what is frozen is not taken for dead."""

    @pytest.mark.parametrize("name", ["payment-2", "order-1", "ledger-1"])
    async def test_killed_instance_comes_back(self, stack: Stack, name: str) -> None:
        before = stack.instance(name)
        stack.kill(name)
        assert stack.instance(name).state is not InstanceState.SERVING
        await stack.wait_serving(name)
        after = stack.instance(name)
        assert after.pid != before.pid
        assert after.restarts == before.restarts + 1
        assert await liveness_of(stack, after) == "SERVING"
        async with open_client(stack, "li", Role.CASHIER) as client:
            order_id = await client.new_order()
            assert (await client.settle_ok(order_id)).state == payment_pb2.PAYMENT_STATE_SUCCEEDED

    async def test_killed_zookeeper_comes_back_on_its_port(self, stack: Stack) -> None:
        address, pid = stack.zookeeper, stack.zookeeper_pid
        stack.kill("zookeeper")
        await stack.wait_until(lambda: stack.zookeeper_pid not in (0, pid), 30)
        async with open_client(stack, "li", Role.CASHIER) as client:
            order_id = await client.new_order()
            payment = await settled_once_available(client, order_id)
        assert payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
        assert stack.zookeeper == address

    async def test_killed_acquirer_comes_back_on_its_port(self, stack: Stack) -> None:
        """It is outside the house, in no registry: its clients know its address."""
        address, pid = stack.acquirer, stack.instance("acquirer-1").pid
        assert stack.instance("acquirer-1").interface == ""
        stack.kill("acquirer-1")
        await stack.wait_until(lambda: stack.instance("acquirer-1").pid not in (0, pid), 10)
        await stack.wait_serving("acquirer-1")
        assert stack.instance("acquirer-1").address == stack.acquirer == address
        async with open_client(stack, "li", Role.CASHIER) as client:
            payment = await client.settle_ok(
                await client.new_order(), source=payment_pb2.SOURCE_CARD, card="tok-mei", timeout_s=10
            )
        assert payment.state in (payment_pb2.PAYMENT_STATE_SUCCEEDED, payment_pb2.PAYMENT_STATE_UNKNOWN)

    async def test_frozen_instance_is_left_alone(self, stack: Stack) -> None:
        before = stack.instance("payment-2")
        stack.kill("payment-2", signal.SIGSTOP)
        try:
            assert await liveness_of(stack, before, 0.3) == "UNREACHABLE"
            assert stack.instance("payment-2") == before
        finally:
            stack.kill("payment-2", signal.SIGCONT)
        await until_ready(stack, before, "SERVING")
        assert stack.instance("payment-2").pid == before.pid

    async def test_restarts_can_be_held_back(self, stack: Stack) -> None:
        before = stack.instance("payment-2")
        stack.restarts = False
        try:
            stack.kill("payment-2")
            await stack.wait_until(lambda: stack.instance("payment-2").pid == 0, 5)
            with pytest.raises(TimeoutError):
                await stack.wait_serving("payment-2", timeout_s=1.0)
        finally:
            stack.restarts = True
        await stack.wait_serving("payment-2")
        assert stack.instance("payment-2").pid != before.pid

    async def test_stack_json_follows_every_restart(self, stack: Stack) -> None:
        stack.kill("payment-2")
        await stack.wait_serving("payment-2")
        found = state.require(stack.data)
        assert found.instances == stack.instances
        assert not found.detachable


class TestWithoutZooKeeper:
    """Services start in any order, and wait for what is missing."""

    async def test_zookeeper_may_come_later(self, fresh_stack: FreshStack, tmp_path: Path) -> None:
        """`up --zookeeper` with nobody there yet: the services wait, and are ready when it has come."""
        reservation = PortReservation()
        address = f"{HOST}:{reservation.port}"

        async def come_later() -> Child:
            await asyncio.sleep(2.5)
            (tmp_path / "logs").mkdir()
            return Child.spawn(
                zookeeper.command(
                    zookeeper.find(os.environ), tmp_path / "zookeeper", reservation.port, dict(os.environ)
                )
            )

        coming = asyncio.ensure_future(come_later())
        try:
            started_s = time.monotonic()
            async with fresh_stack(zookeeper=address, zookeeper_plaintext=True) as running:
                assert time.monotonic() - started_s > 2.5
                assert running.zookeeper_pid == 0
                assert all(instance.restarts == 0 for instance in running.instances)
        finally:
            await (await coming).stop(3)
            reservation.close()

    async def test_zookeeper_that_never_comes_is_named(self, tmp_path: Path) -> None:
        start_s = "12" if databases.on_postgresql() else "3"  # its databases have to be made before it is looked for
        done = await command_line(
            "up", "--data", str(tmp_path / "data"), "--zookeeper", "127.0.0.1:1", "--start-timeout", start_s
        )
        assert done.returncode == 1
        assert "127.0.0.1:1 does not answer" in done.stderr
        assert processes_of(tmp_path / "data") == []

    async def test_lost_zookeeper_fails_calls_in_time_and_recovers(
        self, stack: Stack, cashier: RecordingClient
    ) -> None:
        order_id, payment = await cashier.new_order(), stack.instance("payment-1")
        stack.restarts = False
        try:
            stack.kill("zookeeper")
            code, error = await refusal(cashier.settle_once(order_id, timeout_s=2.0))
            assert (code, error.reason) == ("UNAVAILABLE", "ZOOKEEPER_UNAVAILABLE")
            assert await cashier.order_state(order_id) == "UNPAID"
            await until_ready(stack, payment, "NOT_SERVING")
        finally:
            stack.restarts = True
        for instance in stack.instances:
            await until_ready(stack, instance, "SERVING")
        assert (await cashier.settle_ok(order_id)).state == payment_pb2.PAYMENT_STATE_SUCCEEDED


class TestRefusals:
    """What cannot be started says so in one sentence, exit code 2, and leaves nothing running."""

    async def test_second_supervisor_on_the_same_data_is_refused(self, stack: Stack) -> None:
        with pytest.raises(StackRefused, match="is running on"):
            await Stack(options(stack.data)).start()
        done = await command_line("up", "--data", str(stack.data))
        assert done.returncode == 2
        assert "is running on" in done.stderr
        assert state.require(stack.data).instances == stack.instances

    async def test_down_does_not_end_a_stack_that_belongs_to_another_program(self, stack: Stack) -> None:
        done = await command_line("down", "--data", str(stack.data))
        assert done.returncode == 2
        assert str(os.getpid()) in done.stderr

    async def test_busy_port_is_named(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            done = await command_line("up", "--data", str(tmp_path / "data"), "--port", f"order={port}")
        assert done.returncode == 2
        assert str(port) in done.stderr
        assert processes_of(tmp_path / "data") == []

    @on_files
    @pytest.mark.parametrize("service", ["payment"])
    async def test_damaged_database_is_named(self, tmp_path: Path, service: str) -> None:
        data = tmp_path / "data"
        data.mkdir()
        (data / f"{service}.db").write_bytes(b"this has never been a database" * 200)
        done = await command_line("up", "--data", str(data))
        assert done.returncode == 2
        assert f"{service}.db" in done.stderr
        assert processes_of(data) == []

    @on_files
    @pytest.mark.long
    @pytest.mark.parametrize("service", ["order", "ledger"])
    async def test_newer_database_is_named(self, tmp_path: Path, service: str) -> None:
        data = tmp_path / "data"
        data.mkdir()
        with contextlib.closing(sqlite3.connect(data / f"{service}.db")) as database:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("INSERT INTO alembic_version VALUES ('9999')")
            database.commit()
        done = await command_line("up", "--data", str(data))
        assert done.returncode == 2
        assert f"{service}.db" in done.stderr
        assert "9999" in done.stderr

    @pytest.mark.long
    async def test_guards_off_in_production_is_refused(self, tmp_path: Path) -> None:
        done = await command_line(
            "up", "--data", str(tmp_path / "data"), "--guards-off", "lock", COUNTINGHOUSE_PROFILE="production"
        )
        assert done.returncode == 2
        assert "production" in done.stderr

    @pytest.mark.long
    async def test_rebuilt_ensemble_is_refused_until_the_doctor_repairs_it(self, fresh_stack: FreshStack) -> None:
        async with fresh_stack() as running:
            data = running.data
        (data / "zookeeper" / "data").rename(data / "zookeeper" / "lost")
        refused = await command_line("up", "--data", str(data))
        assert refused.returncode == 2
        assert "countinghouse doctor --new-generation 2" in refused.stderr
        mended = await command_line("doctor", "--data", str(data), "--new-generation", "2")
        assert mended.returncode == 0, mended.stdout
        async with fresh_stack(data=data) as again, open_client(again, "li", Role.CASHIER) as client:
            payment = await client.settle_ok(await client.new_order())
            assert payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED


class TestStopped:
    """Nothing is left running, whenever and however it ends, and nothing is lost."""

    @pytest.mark.long
    async def test_up_down_and_up_again_keep_the_data(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        async with up(data):
            made = await command_line(
                *("order", "create", "--customer", "mei", "--amount", "0.05", "--currency", "CNY", "--json"),
                *("--data", str(data)),
            )
            order_id = document(made)["order"]["order_id"]
            first = state.require(data)
            assert len(processes_of(data)) >= 5
        assert state.read(data) is None
        assert processes_of(data) == []
        async with up(data):
            assert state.require(data).zookeeper == first.zookeeper
            read = await command_line("order", "get", order_id, "--json", "--data", str(data))
            assert document(read)["order"]["state"] == "ORDER_STATE_UNPAID"

    async def test_foreground_ends_with_ctrl_c(self, tmp_path: Path) -> None:
        process = await start_command_line("up", "--json", "--data", str(tmp_path / "data"))
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            first = await process.stdout.readuntil(b"\n}\n")
        assert len(json.loads(first)["services"]) == 3
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            await process.communicate()
        assert process.returncode == 0
        assert processes_of(tmp_path / "data") == []

    @pytest.mark.parametrize(
        ("number", "after_s"),
        [
            (signal.SIGINT, 0.1),
            (signal.SIGTERM, 0.3),
            pytest.param(signal.SIGINT, 0.5, marks=pytest.mark.long),
            (signal.SIGINT, 0.8),
            pytest.param(signal.SIGTERM, 1.2, marks=pytest.mark.long),
            pytest.param(signal.SIGINT, 1.8, marks=pytest.mark.long),
        ],
    )
    async def test_ctrl_c_during_the_start_leaves_nothing(
        self, tmp_path: Path, number: signal.Signals, after_s: float
    ) -> None:
        process = await start_command_line("up", "--data", str(tmp_path / "data"))
        await asyncio.sleep(after_s)
        process.send_signal(number)
        async with asyncio.timeout(20):
            _, errors = await process.communicate()
        pythons_own = errors.startswith(b"Could not import runpy")  # it had not begun to look for our program
        assert process.returncode in (0, 130, -number) or pythons_own, errors.decode()
        assert b", in main\n" not in errors  # before `main` an interruption is Python's own
        assert processes_of(tmp_path / "data") == []

    async def test_ctrl_c_while_waiting_for_a_detached_stack_leaves_nothing(self, tmp_path: Path) -> None:
        process = await start_command_line("up", "--detach", "--data", str(tmp_path / "data"))
        async with asyncio.timeout(READY_S):
            while len(processes_of(tmp_path / "data")) < 2:  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            await process.communicate()
        assert process.returncode == 130
        assert processes_of(tmp_path / "data") == []

    async def test_start_that_is_cancelled_leaves_nothing(self, tmp_path: Path) -> None:
        starting = Stack(options(tmp_path / "data"))
        task = asyncio.ensure_future(starting.start())
        await starting.wait_until(lambda: starting.zookeeper_pid != 0, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes_of(tmp_path / "data") == []
        assert state.read(tmp_path / "data") is None

    async def test_killed_supervisor_takes_its_processes_along(self, tmp_path: Path) -> None:
        """SIGKILL leaves no time to clean up; the next `up` finds a free directory."""
        data = tmp_path / "data"
        process = await start_command_line("up", "--json", "--data", str(data))
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            await process.stdout.readuntil(b"\n}\n")
        found = state.require(data)
        os.kill(found.instances[0].pid, signal.SIGSTOP)
        process.kill()
        await process.communicate()
        await gone(data)
        async with up(data):
            assert state.require(data).supervisor != found.supervisor

    async def test_frozen_process_does_not_hold_up_the_end(self, fresh_stack: FreshStack) -> None:
        async with fresh_stack(services=("ledger",)) as running:
            running.kill("ledger-1", signal.SIGSTOP)
            data = running.data
        assert processes_of(data) == []

    @pytest.mark.long
    async def test_two_stacks_run_beside_each_other(self, stack: Stack, fresh_stack: FreshStack) -> None:
        """The other one on explicit ports, which its instances take in turn."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        async with fresh_stack(ports={"payment": port}, replicas={"payment": 2}) as other:
            assert other.instance("payment-1").address == f"127.0.0.1:{port}"
            assert other.instance("payment-2").address == f"127.0.0.1:{port + 1}"
            assert other.zookeeper != stack.zookeeper
            async with open_client(other, "li", Role.CASHIER) as there, open_client(stack, "li", Role.CASHIER) as here:
                order_id = new_id("ord")
                assert (await there.new_order()) != (await here.new_order())
                code, error = await refusal(here.settle_once(order_id))
                assert (code, error.reason) == ("NOT_FOUND", "ORDER_NOT_FOUND")
        await stack.wait_serving()


class TestPruning:
    """Old requests are removed by the stack itself, while it runs."""

    @on_files
    @pytest.mark.long
    async def test_old_requests_of_every_service_are_removed(
        self, fresh_stack: FreshStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And no others: an order made a moment ago still answers to its request id."""
        monkeypatch.setattr(pruning, "_FIRST_S", 0.5)
        monkeypatch.setattr(pruning, "_INTERVAL_S", 0.5)
        long_ago = """
            INSERT INTO requests (caller, caller_role, method, key, state, fingerprint, attempt, owner, lease_until_ms,
            expires_at_ms, order_id, response_ok, response, created_at_ms, updated_at_ms)
            VALUES ('old', 'customer', :method, 'k', 'EXPIRED', '', 0, '', 0, 1, '', 0, NULL, 1, 1)
        """
        async with fresh_stack() as running, open_client(running, "li", Role.CASHIER) as client:
            await client.new_order()
            for service, method in (("order", "CreateOrder"), ("payment", "Pay"), ("ledger", "OpenAccount")):
                with contextlib.closing(sqlite3.connect(running.data / f"{service}.db", timeout=30)) as database:
                    database.execute(long_ago, {"method": method})
                    database.commit()
            async with asyncio.timeout(60):
                for service in ("order", "payment", "ledger"):
                    while callers_in(running.data / f"{service}.db") & {"old"}:  # noqa: ASYNC110  another process
                        await asyncio.sleep(0.1)
            assert "li" in callers_in(running.data / "order.db")


def callers_in(database: Path) -> set[str]:
    """Whose requests a service remembers."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        return {row[0] for row in connection.execute("SELECT caller FROM requests")}


class TestDetached:
    """`up --detach`, and what the other commands see of it."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        return tmp_path / "data"

    async def test_detached_up_returns_when_ready(self, data: Path) -> None:
        async with up(data, "--replicas", "payment=2"):
            done = await command_line("status", "--json", "--data", str(data))
            assert done.returncode == 0
            found = document(done)
            assert set(found) == {"zookeeper", "acquirer", "gateway", "services"}
            outside = dialers.of_stack(data, plaintext=False, outside=True)
            assert await health(outside, found["acquirer"], "acquirer") == "SERVING"
            assert await zookeeper.serves(found["zookeeper"], data / "keys" / "ca.pem")
            assert [part["name"] for part in found["services"]] == ["payment-1", "payment-2", "order-1", "ledger-1"]
            for part in found["services"]:
                assert set(part) == {"name", "interface", "address", "pid", "state", "revoked"}
                assert (part["state"], part["revoked"]) == ("SERVING", False)
                assert psutil.pid_exists(part["pid"])
                service, house = part["name"].rpartition("-")[0], dialers.of_stack(data, plaintext=False)
                assert await health(house, part["address"], service) == "SERVING"

            os.kill(found["services"][0]["pid"], signal.SIGSTOP)
            frozen = await command_line("status", "--json", "--data", str(data))
            assert frozen.returncode == 1
            assert document(frozen)["services"][0]["state"] == "UNREACHABLE"
            os.kill(found["services"][0]["pid"], signal.SIGCONT)

    @pytest.mark.long
    async def test_detached_up_reports_a_refusal_as_in_the_foreground(self, data: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            done = await command_line("up", "--detach", "--data", str(data), "--port", f"ledger={port}")
        assert done.returncode == 2
        assert str(port) in done.stderr
        assert processes_of(data) == []

    @on_files
    async def test_process_that_refuses_later_ends_the_detached_stack(self, data: Path) -> None:
        """A restart that meets a newer database is not tried again and again; the stack ends and says why."""
        process = await start_command_line("up", "--json", "--data", str(data))
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            await process.stdout.readuntil(b"\n}\n")
        with contextlib.closing(sqlite3.connect(data / "order.db")) as database:
            database.execute("UPDATE alembic_version SET version_num = '9999'")
            database.commit()
        (order,) = [instance for instance in state.require(data).instances if instance.service == "order"]
        os.kill(order.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
        assert process.returncode == 2
        assert b"9999" in errors
        assert processes_of(data) == []
