"""A stack that another process runs, seen through what it writes into its data directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from services.devstack.state import Instance, InstanceState, StackLock, StackRefused, StackState
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tokens import TokenSigner
from services.testkit.attached_stack import AttachedStack
from services.testkit.harness import StackHarness
from services.testkit.waiting import NotBroughtAbout
from tests.fakes.clock import ManualClock
from tests.tokens import verifier_of

PAYMENT = Instance("payment-1", "payment", "", 0, "127.0.0.1:5001", InstanceState.SERVING)
STACK = StackState(
    os.getpid(), True, "127.0.0.1:2181", 4712, (PAYMENT,), acquirer="127.0.0.1:7000", acquirer_pid=4711, plaintext=True
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[StackLock]:
    lock = StackLock(tmp_path)
    lock.take()
    STACK.write(tmp_path)
    yield lock
    lock.give_up()


def attached(data: Path) -> AttachedStack:
    return AttachedStack(data, ManualClock())


def test_what_the_supervisor_writes_is_what_the_stack_is(tmp_path: Path, running: StackLock) -> None:
    """Also what it writes later."""
    stack = attached(tmp_path)
    assert (stack.zookeeper, stack.zookeeper_pid, stack.acquirer) == ("127.0.0.1:2181", 4712, "127.0.0.1:7000")
    assert stack.instances == (PAYMENT,)
    later = replace(PAYMENT, address="127.0.0.1:5009")
    replace(STACK, instances=(later,)).write(tmp_path)
    assert stack.instance("payment-1") == later


def test_acquirer_is_an_instance_by_its_name(tmp_path: Path, running: StackLock) -> None:
    outside = attached(tmp_path).instance("acquirer-1")
    assert (outside.address, outside.pid) == ("127.0.0.1:7000", 4711)
    replace(STACK, acquirer="").write(tmp_path)
    with pytest.raises(InvalidArgument, match=r"there are payment-1$"):
        attached(tmp_path).instance("acquirer-1")


def test_directory_without_a_running_stack_is_refused(tmp_path: Path, running: StackLock) -> None:
    """At first, and when it has stopped meanwhile."""
    stack = attached(tmp_path)
    running.give_up()
    for ask in (stack.describe, lambda: attached(tmp_path)):
        with pytest.raises(StackRefused, match="countinghouse up"):
            ask()


def test_harness_of_a_stack_that_has_stopped_is_left_without_an_error(tmp_path: Path, running: StackLock) -> None:
    """There is nothing left that could be frozen."""
    keys_of(tmp_path)
    harness = StackHarness(attached(tmp_path))
    running.give_up()
    harness.thaw_all()


def keys_of(data: Path) -> TokenSigner:
    (data / "keys" / "acquirer").mkdir(parents=True)
    TokenSigner.from_file(data / "keys" / "acquirer" / "signing.key", SystemClock())
    return TokenSigner.from_file(data / "keys" / "signing.key", SystemClock())


@pytest.mark.parametrize("role", [Role.CASHIER, Role.OPERATOR, Role.SERVICE])
def test_token_is_signed_with_the_key_of_the_directory(tmp_path: Path, running: StackLock, role: Role) -> None:
    """For an hour, or as long as the role allows."""
    verifier = verifier_of(keys_of(tmp_path), SystemClock())
    token = AttachedStack(tmp_path, SystemClock()).token("li", role)
    assert verifier.verify(token) == Principal("li", role)


@pytest.mark.parametrize(("second", "instances"), [("payment-1", 1), ("payment-2", 2)])
def test_second_clerk_uses_the_second_payment_instance_if_there_is_one(
    tmp_path: Path, running: StackLock, second: str, instances: int
) -> None:
    keys_of(tmp_path)
    both = (PAYMENT, replace(PAYMENT, name="payment-2"))
    replace(STACK, instances=both[:instances]).write(tmp_path)
    assert StackHarness(attached(tmp_path)).second == second


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("ours", [True, False])
def test_signal_goes_to_processes_of_the_supervisor_only(
    tmp_path: Path, running: StackLock, child: subprocess.Popen[bytes], ours: bool
) -> None:
    """The number of a process that has ended may be another program's."""
    instance = replace(PAYMENT, pid=child.pid)
    replace(STACK, supervisor=os.getpid() if ours else 1, instances=(instance,)).write(tmp_path)
    attached(tmp_path).kill("payment-1", signal.SIGKILL)
    if ours:
        assert child.wait(30) == -signal.SIGKILL
    else:
        assert psutil.Process(child.pid).ppid() == os.getpid()
        assert child.poll() is None


def test_signal_to_an_instance_without_a_process_goes_nowhere(tmp_path: Path, running: StackLock) -> None:
    """0 would mean all processes of our own group; a number that is free, none."""
    attached(tmp_path).kill("payment-1", signal.SIGKILL)
    replace(STACK, instances=(replace(PAYMENT, pid=2**22 + 1),)).write(tmp_path)
    attached(tmp_path).kill("payment-1", signal.SIGKILL)


async def test_instance_that_restarts_is_waited_for(
    tmp_path: Path, running: StackLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarting = replace(PAYMENT, state=InstanceState.RESTARTING)
    replace(STACK, instances=(restarting,)).write(tmp_path)
    looks = []

    async def serves_after_the_first_look(_seconds: float) -> None:
        looks.append(1)
        STACK.write(tmp_path)

    monkeypatch.setattr("asyncio.sleep", serves_after_the_first_look)
    await attached(tmp_path).wait_serving("payment-1")
    assert looks == [1]


async def test_instance_that_does_not_come_back_is_named(tmp_path: Path, running: StackLock) -> None:
    replace(STACK, instances=(replace(PAYMENT, state=InstanceState.REFUSED),)).write(tmp_path)
    with pytest.raises(NotBroughtAbout, match="payment-1 does not serve again"):
        await attached(tmp_path).wait_serving("payment-1", timeout_s=0.0)
