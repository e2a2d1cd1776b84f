"""A ZooKeeper ensemble of three on this machine, each server of which can be killed, frozen and started by itself.

    zookeeper-1, zookeeper-2, zookeeper-3       <data>/zookeeper-<n>, ports that stay theirs

Two of three are a quorum. Unlike the stack's single server none of them is restarted: the caller that kills one
decides when it comes back.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from services.devstack.child import Child
from services.devstack.components import zookeeper
from services.devstack.components.zookeeper import JavaInstallation, Member, ZooKeeperMissing
from services.devstack.keys import ZOOKEEPER, Keys
from services.devstack.ports import HOST, PortReservation

_SERVERS: Final = 3
_GRACE_S: Final = 2.0
_POLL_S: Final = 0.05


class ZooKeeperEnsemble:
    """Three servers of this process. `async with ZooKeeperEnsemble(data) as ensemble:` starts and stops them.

    Args:
        data: Directory of what they keep.
        keys: By which they are secured; None: they serve in plain text.

    Raises:
        ZooKeeperMissing: There is no Java with ZooKeeper's jars here.
    """

    def __init__(self, data: Path, environment: Mapping[str, str] | None = None, keys: Keys | None = None) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        installation = zookeeper.find(self._environment)
        if not isinstance(installation, JavaInstallation):
            raise ZooKeeperMissing("ZOOKEEPER_MISSING", "an ensemble needs Java and ZooKeeper's jars; run `make setup`")
        self._installation = installation
        self._data = data
        self._keys = keys
        self._ca_file = None if keys is None else keys.ca_file(ZOOKEEPER)
        self._ports: dict[str, PortReservation] = {}
        self._members: dict[str, Member] = {}
        self._children: dict[str, Child] = {}
        numbers = range(1, _SERVERS + 1)
        quorum = [(PortReservation(), PortReservation()) for _ in numbers]
        self._quorum_ports = [port for pair in quorum for port in pair]
        peers = tuple(f"{HOST}:{first.port}:{second.port}" for first, second in quorum)
        for number in numbers:
            self._ports[f"zookeeper-{number}"] = PortReservation()
            self._members[f"zookeeper-{number}"] = Member(number, peers)

    @property
    def servers(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._ports)

    def address(self, server: str) -> str:
        """Return where clients reach one of them."""
        return f"{HOST}:{self._ports[server].port}"

    async def __aenter__(self) -> Self:
        try:
            (self._data / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
            for server in self.servers:
                self._spawn(server)
            await asyncio.gather(*(self._until_serving(server) for server in self.servers))
            if self._keys is not None:
                from services.devstack.zookeeper_tree import prepare_as_superuser  # noqa: PLC0415

                address = ",".join(map(self.address, self.servers))
                await prepare_as_superuser(address, self._keys.ca_file(ZOOKEEPER), self._keys.zookeeper_user)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def modes(self) -> dict[str, str]:
        """Return each server with its mode: `leader`, `follower`, or empty if it does not serve."""
        found = await asyncio.gather(*(zookeeper.mode(self.address(server), self._ca_file) for server in self.servers))
        return dict(zip(self.servers, found, strict=True))

    async def kill(self, server: str) -> None:
        """SIGKILL; it stays down until `start`."""
        self._children[server].signal(signal.SIGKILL)
        await self._children[server].wait()

    async def start(self, server: str) -> None:
        """Start it again if it is down; return when it serves, if there is a quorum."""
        if self._children[server].ended:
            self._spawn(server)
        if sum(not child.ended for child in self._children.values()) * 2 > _SERVERS:
            await self._until_serving(server)

    def pause(self, server: str) -> None:
        """SIGSTOP: its connections stay open, and nothing is answered."""
        self._children[server].signal(signal.SIGSTOP)

    def resume(self, server: str) -> None:
        """SIGCONT. Harmless if it runs."""
        self._children[server].signal(signal.SIGCONT)

    async def close(self) -> None:
        """Stop them all. Idempotent."""
        await asyncio.gather(*(child.stop(_GRACE_S) for child in self._children.values()))
        for reservation in (*self._ports.values(), *self._quorum_ports):
            reservation.close()

    def _spawn(self, server: str) -> None:
        command = zookeeper.command(
            self._installation,
            self._data / server,
            self._ports[server].port,
            self._environment,
            self._members[server],
            secured=None if self._keys is None else zookeeper.secured_by(self._keys, server),
        )
        self._children[server] = Child.spawn(command)

    async def _until_serving(self, server: str) -> None:
        while not await zookeeper.serves(self.address(server), self._ca_file):  # noqa: ASYNC110  another process
            await asyncio.sleep(_POLL_S)
