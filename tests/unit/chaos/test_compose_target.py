"""The deployment as a target: what Docker is called for, and that nothing has happened before it has.

A stand-in for the program `docker` records its arguments; tests/chaos/test_containers.py has the real one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.chaos import faults
from services.chaos.plan import make_plan
from services.chaos.targets.compose import ComposeOptions, ComposeTarget
from services.kernel.clock import SystemClock
from services.testkit.waiting import NotBroughtAbout

PROJECT = "chaos"
PAYMENT, POSTGRESQL = f"{PROJECT}-payment-1-1", f"{PROJECT}-postgres-1"
#: Describes a container; PostgreSQL answers at the third time, and `kill` finds no container.
STAND_IN = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> asked
case "$1 $2" in
  "network disconnect") sed -i "/$3/d" networks ;;
  "network connect")
    [ "$3" = --ip ] || { printf '%s 10.190.7.7\\n' "$5" >> networks; exit 0; }
    [ "$4" != "$(cat taken 2>/dev/null)" ] || { echo "Error response from daemon: Address already in use" >&2; exit 1; }
    printf '%s %s\\n' "$7" "$4" >> networks ;;
  exec*) echo again >> tries; [ "$(wc -l < tries)" -ge 3 ] || exit 2 ;;
  kill*) echo "Error response from daemon: no such container" >&2; exit 1 ;;
  pause*) echo again >> pauses; [ "$(wc -l < pauses)" -ge 2 ] || exit 1 ;;
  inspect*)
    networks=$(sed 's/\\(.*\\) \\(.*\\)/"\\1": {"IPAddress": "\\2"}/' networks | paste -sd, -)
    [ "$(cat pauses 2>/dev/null | wc -l)" -ge 2 ] && paused=true || paused=false
    echo '[{"NetworkSettings": {"Networks": {'"$networks"'}}, "State": {"Paused": '"$paused"'}}]' ;;
esac
"""

#: postgres2 is the primary; ZooKeeper names a synchronous replica at the third look.
WITH_REPLICAS = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> asked
case "$*" in
  *postgres2-1\\ psql*) echo f ;;
  *psql*) echo t ;;
  *patronictl*)
    echo again >> looks
    [ "$(wc -l < looks)" -ge 3 ] && role="Sync Standby" || role=Replica
    echo '[{"Role": "Leader", "State": "running"}, {"Role": "'"$role"'", "State": "streaming"}]' ;;
esac
"""

#: postgres2 is the primary until it is asked twice to give its place to another.
SWITCHING = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> asked
[ "$(grep -c switchover asked)" -ge 2 ] && primary=postgres3 || primary=postgres2
case "$*" in
  *$primary-1\\ psql*) echo f ;;
  *psql*) echo t ;;
esac
"""


@pytest.fixture
def target(tmp_path: Path) -> ComposeTarget:
    """A deployment that was not started, on the stand-in."""
    program = tmp_path / "docker"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (tmp_path / "networks").write_text("chaos_coordination 10.190.0.9\nchaos_data 10.190.1.7\n")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    return ComposeTarget(ComposeOptions(tmp_path, PROJECT, environment), SystemClock())


def told(tmp_path: Path, *verbs: str) -> list[str]:
    """What the stand-in was told, as far as it begins with one of these."""
    return [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith(verbs)]


def test_plan_of_a_minute_has_room_for_every_fault(target: ComposeTarget) -> None:
    """It is how long a run is unless something else is said, and the seed a fresh one."""
    types = faults.available(target)
    for seed in range(300):
        plan = make_plan(types, target, seed, 60.0)
        assert {injection.fault for injection in plan} == {each.name for each in types}


async def test_instance_that_was_cut_off_gets_its_own_addresses_again(target: ComposeTarget, tmp_path: Path) -> None:
    """It is registered under one of them. To cut off or heal twice is harmless."""
    for _ in range(2):
        await target.cut("zookeeper/payment-1")
    for _ in range(2):
        await target.heal("zookeeper/payment-1")
    assert told(tmp_path, "network") == [
        f"network disconnect chaos_coordination {PAYMENT}",
        f"network disconnect chaos_data {PAYMENT}",
        f"network connect --ip 10.190.0.9 --alias payment-1 chaos_coordination {PAYMENT}",
        f"network connect --ip 10.190.1.7 --alias payment-1 chaos_data {PAYMENT}",
    ]


async def test_instance_whose_address_another_has_is_started_again(target: ComposeTarget, tmp_path: Path) -> None:
    """It registers under the one that it gets."""
    await target.cut("zookeeper/payment-1")
    (tmp_path / "taken").write_text("10.190.0.9")
    await target.heal("zookeeper/payment-1")
    assert told(tmp_path, "network connect", "restart") == [
        f"network connect --ip 10.190.0.9 --alias payment-1 chaos_coordination {PAYMENT}",
        f"network connect --alias payment-1 chaos_coordination {PAYMENT}",
        f"network connect --ip 10.190.1.7 --alias payment-1 chaos_data {PAYMENT}",
        f"restart {PAYMENT}",
    ]


async def test_start_of_postgresql_returns_when_it_answers(target: ComposeTarget, tmp_path: Path) -> None:
    await target.start_postgresql()
    asked = f"exec {POSTGRESQL} pg_isready -q -h 127.0.0.1 -U postgres"
    assert told(tmp_path, "start", "exec") == [f"start {POSTGRESQL}", asked, asked, asked]


async def test_pause_returns_when_the_container_is_paused(target: ComposeTarget, tmp_path: Path) -> None:
    """A busy one may have to be told twice."""
    await target.pause("payment-1")
    assert told(tmp_path, "pause") == [f"pause {PAYMENT}"] * 2


async def test_kill_that_docker_refuses_was_not_brought_about(target: ComposeTarget, tmp_path: Path) -> None:
    with pytest.raises(NotBroughtAbout, match=f"docker kill {PAYMENT} failed: .*no such container"):
        await target.kill("payment-1")
    assert told(tmp_path, "start") == []


async def test_primary_that_is_cut_off_keeps_the_network_of_its_clients(tmp_path: Path, target: ComposeTarget) -> None:
    """So what it acknowledges meanwhile would be lost. It gets its address between the servers again."""
    del target  # the stand-in
    (tmp_path / "networks").write_text("chaos_coordination 10.190.0.9\nchaos_data 10.190.1.7\n")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    replicated = ComposeTarget(ComposeOptions(tmp_path, PROJECT, environment, replicated=True), SystemClock())
    assert replicated.replicas is not None
    await replicated.replicas.cut_off("postgres2")
    assert told(tmp_path, "network") == [f"network disconnect chaos_coordination {PROJECT}-postgres2-1"]


async def test_primary_is_lost_once_another_server_may_take_its_place(tmp_path: Path, target: ComposeTarget) -> None:
    """While Patroni replaces the synchronous replica, ZooKeeper names none: no server would be promoted."""
    del target
    (tmp_path / "docker").write_text(WITH_REPLICAS)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    replicated = ComposeTarget(ComposeOptions(tmp_path, PROJECT, environment, replicated=True), SystemClock())
    assert replicated.replicas is not None
    assert await replicated.replicas.replaceable_primary() == "postgres2"
    listed = f"exec {PROJECT}-postgres2-1 patronictl --config-file /etc/countinghouse/patroni.yml list --format json"
    assert [each for each in told(tmp_path, "exec") if "patronictl" in each] == [listed] * 3


async def test_switchover_is_asked_for_until_another_server_is_the_primary(
    tmp_path: Path, target: ComposeTarget
) -> None:
    """`patronictl` ends with 0 also if it did not succeed."""
    del target
    (tmp_path / "docker").write_text(SWITCHING)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    replicated = ComposeTarget(ComposeOptions(tmp_path, PROJECT, environment, replicated=True), SystemClock())
    assert replicated.replicas is not None
    await replicated.replicas.switch_over("postgres2")
    assert len([each for each in told(tmp_path, "exec") if "switchover" in each]) == 2


def test_faults_of_the_primary_are_those_of_a_deployment_with_several_servers(tmp_path: Path) -> None:
    """And those of the one server are not among them; a run of three minutes has room for all."""
    replicated = ComposeTarget(ComposeOptions(tmp_path, PROJECT, {}, replicated=True), SystemClock())
    one = ComposeTarget(ComposeOptions(tmp_path, PROJECT, {}), SystemClock())
    of_several = {each.name for each in faults.available(replicated)} - {each.name for each in faults.available(one)}
    assert of_several == {"primary-kill", "primary-freeze", "primary-cut-off", "switchover", "replica-freeze"}
    assert not any(each.name.startswith("postgresql") for each in faults.available(replicated))
    types = faults.available(replicated)
    for seed in range(100):
        assert {each.fault for each in make_plan(types, replicated, seed, 240.0)} == {each.name for each in types}
