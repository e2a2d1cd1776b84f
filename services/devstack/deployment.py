"""`countinghouse --stack compose …`: the deployment of deploy/docker-compose.yml, as every command knows a stack.

A command finds its stack by a data directory: the signing key, the databases, and the processes with their addresses.
A deployment keeps the first in its container `operator` and the others in its containers' ports. So before the command
begins, a directory of that form is made of what Docker reports, for the time of this one command, and named by the
environment variables that the commands read anyway.

The only secrets that are copied are the signing keys, the checker's password and ZooKeeper's superuser. A user who may
use the Docker daemon could copy them anyhow.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from services.devstack.files import (
    SUPERUSER,
    ca_file,
    remember_databases,
    remote_database_url,
    signing_key,
    zookeeper_user_file,
)
from services.devstack.state import ACQUIRER, INTERFACES, Instance, InstanceState, StackLock, StackRefused, StackState
from services.runtime.database.pgpass import Roles

#: COMPOSE_PROJECT_NAME names another, for docker compose as well.
PROJECT = "countinghouse"
HOUSE = "countinghouse"
_HOST = "127.0.0.1"
_ZOOKEEPERS = ("zoo1", "zoo2", "zoo3")
#: The one of docker-compose.yml, or those of docker-compose.ha.yml.
_DATABASES = ("postgres", "postgres1", "postgres2", "postgres3")
_DOCKER_TIMEOUT_S = 20.0
_LABEL = "com.docker.compose"


def open_deployment(environment: Mapping[str, str], resources: ExitStack) -> dict[str, str]:
    """Make the data directory of the deployment that runs here; return the variables that name it.

    Args:
        resources: Removes it again when closed.

    Raises:
        StackRefused: STACK_NOT_RUNNING, DOCKER_FAILED.
    """
    project = environment.get("COMPOSE_PROJECT_NAME") or PROJECT
    containers = {_service(each): each for each in _containers(project)}
    if "operator" not in containers:
        raise StackRefused(
            "STACK_NOT_RUNNING",
            f"no deployment {project} is running; start it with `make compose-up`, or name it by COMPOSE_PROJECT_NAME",
        )
    data = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="countinghouse-")))
    checker = Roles(HOUSE, "").checker
    wanted = ["signing.key", "ca.pem", "revoked.json", f"{checker}.pgpass"]
    wanted += [f"{ACQUIRER}/signing.key", f"{ACQUIRER}/ca.pem"]
    wanted.append(str(zookeeper_user_file(data, SUPERUSER).relative_to(data / "keys")))
    _take_out(containers["operator"]["Id"], data, [f"keys/{name}" for name in wanted])
    zookeeper = ",".join(address for name in _ZOOKEEPERS if (address := _published(containers.get(name))))
    outside = [ACQUIRER] if ACQUIRER in containers else []
    if servers := [address for name in _DATABASES if (address := _published(containers.get(name)))]:
        parameters = {"passfile": data / "keys" / f"{checker}.pgpass", "sslrootcert": ca_file(data)}
        remember_databases(data, _databases(servers, [*INTERFACES, *outside], parameters))
    lock = StackLock(data)
    lock.take()
    resources.callback(lock.give_up)
    instances = tuple(_instance(name, each) for name, each in sorted(containers.items()) if _is_instance(name))
    acquirer = _published(containers.get(ACQUIRER))
    StackState(os.getpid(), False, zookeeper, 0, instances, acquirer=acquirer).write(data)
    return {
        "COUNTINGHOUSE_DATA": str(data),
        "COUNTINGHOUSE_ZOOKEEPER": zookeeper,
        "COUNTINGHOUSE_CA_FILE": str(ca_file(data)),
        "COUNTINGHOUSE_ACQUIRER_CA_FILE": str(ca_file(data, outside=True)),
        "COUNTINGHOUSE_PLAINTEXT": "false",
    }


def _databases(servers: Sequence[str], services: Sequence[str], parameters: Mapping[str, object]) -> dict[str, str]:
    every = [Roles(HOUSE, service) for service in services]
    return {roles.service: remote_database_url(servers, roles.checker, roles.database, parameters) for roles in every}


def _is_instance(name: str) -> bool:
    service, _, number = name.rpartition("-")
    return service in INTERFACES and number.isdigit()


def _instance(name: str, container: Mapping[str, Any]) -> Instance:
    service = name.rpartition("-")[0]
    return Instance(
        name=name,
        service=service,
        interface=INTERFACES[service],
        pid=int(container["State"]["Pid"]),
        address=_published(container),
        state=InstanceState.STARTING,  # until it is asked
        restarts=int(container["RestartCount"]),
    )


def _containers(project: str) -> list[dict[str, Any]]:
    ids = _docker("ps", "--quiet", "--no-trunc", "--filter", f"label={_LABEL}.project={project}").decode().split()
    found: list[dict[str, Any]] = json.loads(_docker("inspect", *ids)) if ids else []
    return found


def _service(container: Mapping[str, Any]) -> str:
    return str(container["Config"]["Labels"].get(f"{_LABEL}.service", ""))


def _published(container: Mapping[str, Any] | None) -> str:
    """Return where the one port that a container publishes is to be found on this machine; empty: nowhere."""
    ports = container["NetworkSettings"]["Ports"] if container else {}
    published = [binding["HostPort"] for bindings in ports.values() for binding in bindings or ()]
    return f"{_HOST}:{published[0]}" if published else ""


def _take_out(container: str, data: Path, names: Sequence[str]) -> None:
    packed = _docker("exec", container, "tar", "-C", "/secrets/operator", "-c", *names)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(data, filter="data")
    signing_key(data).parent.chmod(0o700)


def _docker(*arguments: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603  our own arguments
            ["docker", *arguments],  # noqa: S607  whichever is on PATH
            capture_output=True,
            check=False,
            timeout=_DOCKER_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackRefused("DOCKER_FAILED", f"docker cannot be asked for the deployment: {error}") from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise StackRefused("DOCKER_FAILED", f"docker {arguments[0]} failed: {words[-1]}")
    return done.stdout
