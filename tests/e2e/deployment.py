"""A deployment of deploy/docker-compose.yml that is started for a test, as tests use a stack."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordination.session.security import Security
from services.devstack import dialers, state
from services.devstack.deployment import open_deployment
from services.devstack.keys import mint
from services.devstack.state import Instance
from services.kernel.clock import SystemClock
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tls import Dialer
from tests.e2e.command import command_line, document

HEALTHY_S = 120.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running deployment, as tests use a stack.

    Args:
        environment: In which docker compose means this one.
    """

    environment: dict[str, str]
    data: Path
    healthy_after_s: float
    instances: tuple[Instance, ...] = ()

    @property
    def zookeeper(self) -> str:
        return state.require(self.data).zookeeper

    def instance(self, name: str) -> Instance:
        (found,) = [each for each in state.require(self.data).instances if each.name == name]
        return found

    def token(self, name: str, role: Role, *, outside: bool = False) -> str:
        return mint(self.data, Principal(name, role), 3600, SystemClock(), outside=outside)

    def dialer(self, *, outside: bool = False) -> Dialer:
        """What connects to its services, or to its acquirer."""
        return dialers.of_stack(self.data, plaintext=False, outside=outside)

    def zookeeper_security(self) -> Security:
        """How an operator's session connects to its ensemble."""
        return dialers.zookeeper_of_stack(self.data, plaintext=False)

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `countinghouse --stack compose …`."""
        project = self.environment["COMPOSE_PROJECT_NAME"]
        return await command_line("--stack", "compose", *arguments, COMPOSE_PROJECT_NAME=project)

    async def json(self, *arguments: str) -> Any:
        """The document a command prints."""
        return document(await self.command(*arguments, "--json"))


def skip_without_docker() -> None:
    """Skips the test where no daemon answers."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker daemon answers here")


def compose(environment: dict[str, str], *arguments: str) -> str:
    """Runs docker compose on a deployment; what it printed."""
    done = subprocess.run(
        ["docker", "compose", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextmanager
def running(environment: dict[str, str]) -> Iterator[Deployment]:
    """A deployment whose image is built, started from nothing and healthy; all of it is removed in the end."""
    try:
        began_s = time.monotonic()
        compose(environment, "up", "--detach", "--wait", "--wait-timeout", str(int(HEALTHY_S * 3)))
        took_s = time.monotonic() - began_s
        with ExitStack() as resources:
            opened = open_deployment(environment, resources)
            yield Deployment(environment, Path(opened["COUNTINGHOUSE_DATA"]), took_s)
    finally:
        compose(environment, "down", "--volumes", "--remove-orphans", "--timeout", "5")
