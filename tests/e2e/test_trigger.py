"""`countinghouse trigger` on a running stack: each situation ends ok, and leaves nothing frozen or armed behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from services.demo.situations import SITUATIONS
from services.devstack.stack import Stack
from services.devstack.state import InstanceState
from services.testkit.harness import ONE, Harness
from services.testkit.waiting import wait_until
from tests.e2e.command import command_line, document, start_command_line
from tests.e2e.conftest import FreshStack, options

#: On a busy machine; a command that is interrupted takes its faults back within seconds.
_WITHIN_S = 60.0

pytestmark = pytest.mark.timeout(240)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Stack]:
    """A stack of this module's own, for its processes are killed."""
    data = tmp_path_factory.mktemp("trigger") / "data"
    async with Stack(options(data, replicas={"payment": 2})) as stack:
        yield stack


def frozen(stack: Stack) -> list[str]:
    """The instances whose process is stopped."""
    return [
        instance.name
        for instance in stack.instances
        if instance.pid and psutil.Process(instance.pid).status() == psutil.STATUS_STOPPED
    ]


async def settles_at(stack: Stack, instance: str) -> None:
    """Settles a new order at an instance, which no fault keeps from it."""
    async with Harness(stack) as harness:
        await harness.cashier.settle_ok(await harness.new_order(), at=instance)


@pytest.mark.parametrize("name", SITUATIONS)
async def test_situation_comes_about_ends_ok_and_is_taken_back(running: Stack, name: str) -> None:
    done = await command_line("trigger", name, "--json", "--data", str(running.data))
    found = document(done)
    assert (done.returncode, found["verdict"]) == (0, "ok"), found
    assert done.stderr == ""
    assert found["steps"][-1] == "nothing is left frozen or armed"
    assert found["still_armed"] == []
    assert frozen(running) == []
    await running.wait_serving()
    await settles_at(running, ONE)
    checked = await command_line("check", "--json", "--data", str(running.data))
    assert document(checked)["verdict"] == "ok"


async def test_commands_that_it_names_show_the_books(running: Stack) -> None:
    done = await command_line("trigger", "two-clerks", "--json", "--data", str(running.data))
    for command in document(done)["commands"]:
        shown = await command_line(*command.split()[1:])
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interruption_takes_the_fault_back(running: Stack, number: signal.Signals) -> None:
    """The holder goes on, and the order is settled as if it had only been slow."""
    process = await start_command_line("trigger", "frozen-holder", "--data", str(running.data))

    async def is_frozen() -> bool:
        return ONE in frozen(running)

    try:
        await wait_until(is_frozen, f"{ONE} did not freeze", _WITHIN_S)
        process.send_signal(number)
        async with asyncio.timeout(_WITHIN_S):
            output, errors = await process.communicate()
        assert frozen(running) == []
    finally:
        running.kill(ONE, signal.SIGCONT)
        if process.returncode is None:
            process.kill()
    assert process.returncode == 130, errors.decode()
    assert output.decode().splitlines()[-1].endswith("nothing is left frozen or armed")
    await settles_at(running, ONE)


async def test_stack_without_failpoints_does_what_needs_none_and_refuses_the_rest(fresh_stack: FreshStack) -> None:
    """One payment instance is enough where nothing has to go on while it is frozen."""
    async with fresh_stack(failpoints=False) as stack:
        for name in ("double-click", "two-clerks"):
            done = await command_line("trigger", name, "--json", "--data", str(stack.data))
            assert document(done)["verdict"] == "ok"
        refused = await command_line("trigger", "lost-reply", "--data", str(stack.data))
        assert refused.returncode == 2
        assert "`countinghouse up --failpoints`" in refused.stderr
        assert refused.stdout == ""


async def test_payment_of_a_killed_instance_is_finished_by_its_next_process(fresh_stack: FreshStack) -> None:
    """Where there is no other instance."""
    async with fresh_stack() as stack:
        done = await command_line("trigger", "killed-mid-payment", "--json", "--data", str(stack.data))
        found = document(done)
        assert found["verdict"] == "ok", found
        assert "finished by the next process" in found["detail"]
        assert stack.instance(ONE).state is InstanceState.SERVING
        refused = await command_line("trigger", "frozen-holder", "--data", str(stack.data))
        assert refused.returncode == 2
        assert "--replicas payment=2" in refused.stderr
