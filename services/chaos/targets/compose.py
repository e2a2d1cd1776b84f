"""The deployment of deploy/ as a target: containers are killed, paused and cut off from their networks.

    the host ──▶ published ports ──▶ payment-1, payment-2, order-1, … acquirer ──▶ zoo1–3, postgres or postgres1–3

It starts a deployment with a project name, ports and addresses of its own, so that one that runs already is not
touched, and removes all of it in the end. Docker does not restart a container that was killed by hand: that is done
here at once, as `restart: unless-stopped` would for one that died by itself.

The first process of a container cannot kill or stop itself. So failpoints only hold it (`holds_at_failpoints`), and it
is killed or paused from outside.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordination.session.security import Security
from services.chaos.acquirer_log import read_acquirer_log
from services.chaos.targets.docker import DOCKER_TIMEOUT_S, Docker, until
from services.chaos.targets.replicas import REPLICAS, PatroniReplicas
from services.chaos.targets.target import ACQUIRER, Replicas
from services.checker.acquirer_log import AcquirerLog
from services.checker.snapshot import ACQUIRER as ACQUIRER_DATABASE
from services.checker.snapshot import SERVICES
from services.devstack import dialers
from services.devstack.components import zookeeper
from services.devstack.deployment import open_deployment
from services.devstack.files import ca_file, database_url
from services.devstack.keys import mint
from services.devstack.options import GATEWAY
from services.devstack.state import INTERFACES, StackRefused
from services.kernel.clock import Clock
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tls import Dialer
from services.runtime.grpc.tokens import MAX_TTL_S
from services.testkit.waiting import NotBroughtAbout

DEPLOY: Final = Path(__file__).parents[3] / "deploy"
_FILES: Final = ("docker-compose.yml", "docker-compose.chaos.yml")
_REPLICATED: Final = "docker-compose.ha.yml"
_HOST: Final = "127.0.0.1"
_SERVERS: Final = ("zoo1", "zoo2", "zoo3")
_INSTANCES: Final = ("order-1", "order-2", "payment-1", "payment-2", "ledger-1", "ledger-2", ACQUIRER)
_POSTGRESQL: Final = "postgres"
#: What docker-compose.yml appends to COUNTINGHOUSE_PORTS, by container.
PORTS: Final[Mapping[str, str]] = dict(
    zip(
        (*_SERVERS, _POSTGRESQL, *_INSTANCES, GATEWAY),
        ("11", "12", "13", "32", "51", "52", "61", "62", "71", "72", "81", "80"),
        strict=True,
    )
)
#: The same of docker-compose.ha.yml, whose postgres1 has the port of the one server.
REPLICA_PORTS: Final[Mapping[str, str]] = dict(zip(REPLICAS, ("32", "33", "34"), strict=True))
_DIGITS: Final = range(190, 250)
_UP_TIMEOUT_S: Final = 480.0
_SERVE_WITHIN_S: Final = 60.0
_STOP_S: Final = 8
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ComposeOptions:
    """The deployment to start.

    Args:
        data: A folder for the containers' logs.
        project: The name of compose's project.
        replicated: With three PostgreSQL servers under Patroni instead of one.
    """

    data: Path
    project: str = f"countinghouse-chaos-{os.getpid()}"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    replicated: bool = False


class ComposeTarget:
    """See `Target`. `async with ComposeTarget(options, clock) as target:` starts and removes everything."""

    name = "compose"
    instances: tuple[str, ...] = _INSTANCES
    session_timeout_s = 4.0  # as in docker-compose.chaos.yml
    holds_at_failpoints = True
    links: tuple[str, ...] = ()
    shiftable_clocks: tuple[str, ...] = ()
    dialer: Callable[..., Dialer]
    zookeeper_security: Callable[[], Security]

    def __init__(self, options: ComposeOptions, clock: Clock) -> None:
        self._clock = clock
        self._resources = ExitStack()
        digits = free_digits()
        self._ports = {container: int(f"{digits}{ending}") for container, ending in PORTS.items()}
        meant = named(options.project, digits, replicated=options.replicated)
        self._environment = {**options.environment, **meant, "COMPOSE_ANSI": "never"}
        self._docker = Docker(options.project, self._environment)
        self.has_postgresql = not options.replicated
        self.has_gateway = True
        self.replicas: Replicas | None = PatroniReplicas(self._docker) if options.replicated else None
        self.zookeeper = ",".join(f"{_HOST}:{self._ports[server]}" for server in _SERVERS)
        self._logs = options.data / "containers.log"
        self._data = Path()

    async def __aenter__(self) -> Self:
        try:
            await self._docker.compose("up", "--detach", "--build", "--wait", timeout_s=_UP_TIMEOUT_S)
            opened = await asyncio.to_thread(open_deployment, self._environment, self._resources)
            self._data = Path(opened["COUNTINGHOUSE_DATA"])
            self.dialer = partial(dialers.of_stack, self._data, plaintext=False)
            self.zookeeper_security = partial(dialers.zookeeper_of_stack, self._data, plaintext=False)
        except BaseException:
            with suppress(StackRefused):  # the first error is the one to raise
                await self._remove()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._remove()

    # ---- what it is ------------------------------------------------------------------------------------

    @property
    def databases(self) -> Mapping[str, str]:
        return {service: database_url(self._data, service) for service in (*SERVICES, ACQUIRER_DATABASE)}

    def token(self, name: str, role: Role, *, outside: bool = False) -> str:
        return mint(self._data, Principal(name, role), MAX_TTL_S[role], self._clock, outside=outside)

    def address(self, instance: str) -> str:
        return f"{_HOST}:{self._ports[instance]}"

    async def acquirer_log(self) -> AcquirerLog:
        token = self.token("ops", Role.OPERATOR, outside=True)
        return await read_acquirer_log(self.dialer(outside=True), self.address(ACQUIRER), token)

    # ---- containers ------------------------------------------------------------------------------------

    async def kill(self, instance: str) -> None:
        await self._docker.kill(instance)
        await self._docker.start(instance)

    async def terminate(self, instance: str) -> None:
        await self._docker.run("stop", "--time", str(_STOP_S), self._docker.container(instance))
        await self._docker.start(instance)

    async def pause(self, name: str) -> None:
        await self._docker.pause(name)

    async def resume(self, name: str) -> None:
        await self._docker.resume(name)

    async def is_paused(self, instance: str) -> bool:
        return await self._docker.is_paused(instance)

    async def wait_serving(self, instance: str) -> None:
        if instance == GATEWAY:
            await until(partial(self._docker.is_healthy, GATEWAY), f"{instance} does not come back", _SERVE_WITHIN_S)
            return
        service = instance.partition("-")[0]
        dialer = self.dialer(outside=instance == ACQUIRER)
        request = health_pb2.HealthCheckRequest(service=INTERFACES.get(service, ""))
        address = self.address(instance)
        with suppress(TimeoutError):
            async with asyncio.timeout(_SERVE_WITHIN_S), dialer.open(address, service) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        answer = await stub.Check(request, timeout=2.0)
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                    await asyncio.sleep(_LOOK_S)
        raise NotBroughtAbout(f"{instance} does not come back")

    # ---- ZooKeeper and PostgreSQL ----------------------------------------------------------------------

    async def zookeeper_servers(self) -> dict[str, str]:
        modes = await asyncio.gather(
            *(zookeeper.mode(f"{_HOST}:{self._ports[server]}", ca_file(self._data)) for server in _SERVERS)
        )
        return dict(zip(_SERVERS, modes, strict=True))

    async def kill_server(self, server: str) -> None:
        await self._docker.kill(server)

    async def start_server(self, server: str) -> None:
        await self._docker.start(server)
        running = [(await self._docker.inspect(each))["State"]["Running"] for each in _SERVERS]
        if sum(running) * 2 > len(_SERVERS):
            address = f"{_HOST}:{self._ports[server]}"
            await until(lambda: zookeeper.mode(address, ca_file(self._data)), f"{server} does not serve again")

    async def stop_postgresql(self, *, fast: bool) -> None:
        how = ("stop", "--time", "30") if fast else ("kill",)
        await self._docker.run(*how, self._docker.container(_POSTGRESQL))

    async def start_postgresql(self) -> None:
        await self._docker.start(_POSTGRESQL)
        await until(self._postgresql_answers, "PostgreSQL does not answer again")

    # ---- links -----------------------------------------------------------------------------------------

    async def add_toxic(self, link: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        raise NotBroughtAbout(f"no proxy for {kind} {dict(attributes)} of {link}'s {stream}")

    async def cut(self, link: str) -> None:
        """Disconnect the instance from its networks, also if only its link to ZooKeeper is named."""
        await self._docker.disconnect(link.rpartition("/")[2])

    async def affected_connections(self, link: str) -> int:
        raise NotBroughtAbout(f"no proxy counts the connections of {link}")

    async def heal(self, link: str) -> None:
        """See `Target`. The instance gets its own addresses again, or registers anew under the ones it gets."""
        instance = link.rpartition("/")[2]
        if not await self._docker.reconnect(instance):
            await self._docker.restart(instance)

    async def shift_clock(self, instance: str, by_s: float) -> None:
        raise NotBroughtAbout(f"the clock of {instance} cannot be shifted by {by_s} s: containers share the host's")

    # ---- inside ----------------------------------------------------------------------------------------

    async def _postgresql_answers(self) -> bool:
        look = ("exec", self._docker.container(_POSTGRESQL), "pg_isready", "-q", "-h", _HOST, "-U", "postgres")
        with suppress(NotBroughtAbout):
            await self._docker.run(*look)
            return True
        return False

    async def _remove(self) -> None:
        """Remove everything of the deployment but the logs of its containers."""
        self._resources.close()
        with suppress(StackRefused, OSError):
            logs = await self._docker.compose("logs", "--no-color", "--timestamps", timeout_s=DOCKER_TIMEOUT_S)
            self._logs.write_text(logs, encoding="utf-8")
        await self._docker.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", timeout_s=_UP_TIMEOUT_S)


def named(project: str, digits: int, *, replicated: bool = False) -> dict[str, str]:
    """Return the environment in which docker compose means one deployment of its own, with failpoints.

    Args:
        digits: Its ports begin with them.
        replicated: As in `ComposeOptions`.
    """
    files = (*_FILES, _REPLICATED) if replicated else _FILES
    return {
        "COMPOSE_PROJECT_NAME": project,
        "COMPOSE_FILE": os.pathsep.join(str(DEPLOY / name) for name in files),
        "COUNTINGHOUSE_PORTS": str(digits),
        "COUNTINGHOUSE_SUBNETS": f"10.{digits}",
    }


def free_digits() -> int:
    """Return three digits with which every port of the deployment is free.

    Raises:
        StackRefused: PORT_BUSY.
    """
    for digits in _DIGITS:
        try:
            with ExitStack() as held:
                for ending in {*PORTS.values(), *REPLICA_PORTS.values()}:
                    held.enter_context(socket.create_server((_HOST, int(f"{digits}{ending}"))))
        except OSError:
            continue
        return digits
    raise StackRefused("PORT_BUSY", "no three digits are free for the deployment's ports; stop another one")
