"""`--stack compose`: what Docker tells of a deployment, made into what every command knows of a stack."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.commands import app
from services.devstack import state
from services.devstack.deployment import open_deployment
from services.devstack.files import databases_elsewhere, signing_key
from services.devstack.state import StackRefused

Container = dict[str, Any]


def container(name: str, *published: str, inside: str = "2181/tcp") -> Container:
    """What `docker inspect` says of a container, as far as it is read."""
    bindings = [{"HostIp": "127.0.0.1", "HostPort": port} for port in published]
    return {
        "Id": f"id-{name}",
        "RestartCount": 2,
        "State": {"Pid": 4711},
        "Config": {"Labels": {"com.docker.compose.service": name}},
        "NetworkSettings": {"Ports": {"9100/tcp": None, inside: bindings}},
    }


RUNNING = [
    container("operator"),
    container("zoo1", "21811"),
    container("zoo2", "21812"),
    container("zoo3", "21813"),
    container("postgres", "21832"),
    container("payment-2", "21862"),
    container("payment-1", "21861"),
    container("ledger-1"),
    container("acquirer", "21881"),
]


TAKEN = [
    "keys/signing.key",
    "keys/ca.pem",
    "keys/revoked.json",
    "keys/countinghouse_checker.pgpass",
    "keys/acquirer/signing.key",
    "keys/acquirer/ca.pem",
    "keys/zookeeper/super",
]


class Docker:
    """Stands for the program; remembers what it was asked."""

    def __init__(self, containers: list[Container]) -> None:
        self.asked: list[list[str]] = []
        self._containers = containers

    def __call__(self, arguments: list[str], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        self.asked.append(arguments)
        answer = {"ps": self._ps, "inspect": self._inspect, "exec": self._exec}[arguments[1]]
        return subprocess.CompletedProcess(arguments, 0, answer(), b"")

    def _ps(self) -> bytes:
        return "\n".join(each["Id"] for each in self._containers).encode()

    def _inspect(self) -> bytes:
        return json.dumps(self._containers).encode()

    def _exec(self) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in TAKEN:
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(name), 0o600
                archive.addfile(member, io.BytesIO(name.encode()))
        return packed.getvalue()


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Docker:
    """A Docker on which the deployment runs."""
    stand_in = Docker(list(RUNNING))
    monkeypatch.setattr(subprocess, "run", stand_in)
    return stand_in


@pytest.mark.usefixtures("docker")
def test_deployment_is_a_data_directory_for_one_command() -> None:
    """With the key that signs, where everybody is, and where the books are; nothing of it is left."""
    with ExitStack() as resources:
        variables = open_deployment({}, resources)
        data = Path(variables["COUNTINGHOUSE_DATA"])
        assert signing_key(data).read_text() == "keys/signing.key"
        found = state.require(data)
        assert found.zookeeper == variables["COUNTINGHOUSE_ZOOKEEPER"]
        assert found.zookeeper == "127.0.0.1:21811,127.0.0.1:21812,127.0.0.1:21813"
        named = [(each.name, each.service, each.address, each.pid, each.restarts) for each in found.instances]
        assert named == [
            ("ledger-1", "ledger", "", 4711, 2),
            ("payment-1", "payment", "127.0.0.1:21861", 4711, 2),
            ("payment-2", "payment", "127.0.0.1:21862", 4711, 2),
        ]
        assert found.acquirer == "127.0.0.1:21881"
        assert set(databases_elsewhere(data)) == {"order", "payment", "ledger", "acquirer"}
        url = databases_elsewhere(data)["ledger"]
        assert url.startswith(
            "postgresql+asyncpg://countinghouse_checker@127.0.0.1:21832/countinghouse_ledger?passfile="
        )
        assert (data / "keys" / "countinghouse_checker.pgpass").exists()
        for path in (data, data / "keys", signing_key(data)):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    assert not data.exists()


def test_only_what_commands_need_is_taken_out(docker: Docker) -> None:
    """The operator holds every password; a command needs none of the services' and none of the owners'. It gets the
    superuser of ZooKeeper, and of the authorities the certificates, not the keys."""
    with ExitStack() as resources:
        open_deployment({}, resources)
    (taken,) = [asked for asked in docker.asked if asked[1] == "exec"]
    assert taken[2] == "id-operator"
    assert taken[-8:] == ["-c", *TAKEN]


@pytest.mark.parametrize(
    ("environment", "project"), [({}, "countinghouse"), ({"COMPOSE_PROJECT_NAME": "second"}, "second")]
)
def test_deployment_is_found_by_its_project_name(docker: Docker, environment: dict[str, str], project: str) -> None:
    """The variable is docker compose's own."""
    with ExitStack() as resources:
        open_deployment(environment, resources)
    assert docker.asked[0][-1] == f"label=com.docker.compose.project={project}"


@pytest.mark.parametrize("left", [[], RUNNING[1:]])
def test_deployment_that_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch, left: list[Container]) -> None:
    """Also one without the container that holds the keys."""
    monkeypatch.setattr(subprocess, "run", Docker(left))
    with ExitStack() as resources, pytest.raises(StackRefused, match="compose-up") as refusal:
        open_deployment({}, resources)
    assert refusal.value.reason == "STACK_NOT_RUNNING"


def test_error_of_docker_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: list[str], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(arguments, 1, b"", b"\nCannot connect to the Docker daemon\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with ExitStack() as resources, pytest.raises(StackRefused, match="Cannot connect to the Docker daemon"):
        open_deployment({}, resources)


def test_machine_without_docker_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with ExitStack() as resources, pytest.raises(StackRefused) as refusal:
        open_deployment({}, resources)
    assert refusal.value.reason == "DOCKER_FAILED"


@pytest.mark.parametrize("command", ["up", "down", "demo"])
def test_up_and_down_on_a_deployment_are_refused(docker: Docker, command: str) -> None:
    """A deployment is not ours to stop."""
    result = CliRunner().invoke(app, ["--stack", "compose", command])
    assert result.exit_code == 2
    assert "docker compose" in result.output
    assert docker.asked == []


@pytest.mark.usefixtures("docker")
def test_authorities_of_a_deployment_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls its services from outside needs them."""
    monkeypatch.setattr(os, "environ", dict(os.environ))  # a command names its stack there
    printed = CliRunner().invoke(app, ["--stack", "compose", "key", "ca"])
    assert (printed.exit_code, printed.stdout) == (0, "keys/ca.pem")
    outside = CliRunner().invoke(app, ["--stack", "compose", "key", "ca", "--acquirer"])
    assert (outside.exit_code, outside.stdout) == (0, "keys/acquirer/ca.pem")


@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize("command", [["key", "ls"], ["key", "rotate"], ["revoke"]])
def test_keys_of_a_deployment_are_changed_in_its_operator_container(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine has a copy of one key; what would be rotated is not here."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    result = CliRunner().invoke(app, ["--stack", "compose", *command])
    assert (result.exit_code, "deploy/README.md" in result.output) == (2, True)


def test_chaos_ignores_the_stack_variable(docker: Docker, tmp_path: Path) -> None:
    """The variable is for commands that look for a stack; said in so many words, the option is in the wrong place."""
    run = ["chaos", "run", "--faults", "earthquake", "--data", str(tmp_path)]
    named = CliRunner().invoke(app, run, env={"COUNTINGHOUSE_STACK": "compose"})
    assert (named.exit_code, "no fault 'earthquake'" in named.output) == (2, True)
    said = CliRunner().invoke(app, ["--stack", "compose", *run])
    assert (said.exit_code, "chaos run --stack compose" in said.output) == (2, True)
    assert docker.asked == []


def test_local_stack_does_without_docker(docker: Docker, tmp_path: Path) -> None:
    """It is what is meant unless something else is said, in the environment or by the option."""
    for arguments in ([], ["--stack", "local"]):
        result = CliRunner().invoke(app, [*arguments, "token", "--role", "cashier", "--data", str(tmp_path)])
        assert result.exit_code == 1
    assert docker.asked == []
