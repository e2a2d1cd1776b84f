"""The PostgreSQL servers of deploy/docker-compose.ha.yml: which of them is the primary, and what can happen to them."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Final

from services.chaos.targets.docker import Docker, until
from services.testkit.waiting import NotBroughtAbout

REPLICAS: Final = ("postgres1", "postgres2", "postgres3")
#: Those in which the servers find ZooKeeper and each other. Clients reach them in others.
_BETWEEN_SERVERS: Final = ("coordination", "replication")
_PATRONI: Final = "/etc/countinghouse/patroni.yml"
_LOOK_TIMEOUT_S: Final = 3.0
#: Many times what Patroni's `ttl` allows.
_TAKEN_OVER_WITHIN_S: Final = 60.0
#: A server that was the primary may have to be rewound first.
_BACK_WITHIN_S: Final = 90.0
_PRIMARY, _REPLICA = "f", "t"
#: The role of a replica that ZooKeeper names.
_SYNCHRONOUS: Final = "Sync Standby"
_IS_REPLICA: Final = "SELECT pg_is_in_recovery()"
_STREAMING: Final = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


class PatroniReplicas:
    """See `Replicas`."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker

    async def primary(self, *, besides: str = "") -> str:
        found = ""

        async def look() -> bool:
            nonlocal found
            others = [name for name in REPLICAS if name != besides]
            said = await asyncio.gather(*(self._ask(name, _IS_REPLICA) for name in others))
            found = next((name for name, each in zip(others, said, strict=True) if each == _PRIMARY), "")
            return bool(found)

        await until(look, "no server is the primary", _TAKEN_OVER_WITHIN_S)
        return found

    async def replaceable_primary(self) -> str:
        """See `Replicas`. ZooKeeper must name a replica that has what is acknowledged: no other is promoted.

        While Patroni replaces that replica, for a second or two, it names none.
        """
        primary = ""

        async def look() -> bool:
            nonlocal primary
            primary = await self.primary()
            command = ("patronictl", "--config-file", _PATRONI, "list", "--format", "json")
            with suppress(NotBroughtAbout):
                members = json.loads(await self._docker.run("exec", self._docker.container(primary), *command))
                return any(each["Role"] == _SYNCHRONOUS and each["State"] == "streaming" for each in members)
            return False

        await until(look, "no replica may take the primary's place", _BACK_WITHIN_S)
        return primary

    async def replica(self) -> str:
        primary = await self.primary()
        query = "SELECT application_name FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') LIMIT 1"
        name = await self._ask(primary, query)
        if name not in REPLICAS:
            raise NotBroughtAbout(f"{primary} has no synchronous replica")
        return name

    async def kill(self, name: str) -> None:
        await self._docker.kill(name)

    async def freeze(self, name: str) -> None:
        await self._docker.pause(name)

    async def cut_off(self, name: str) -> None:
        await self._docker.disconnect(name, *_BETWEEN_SERVERS)

    async def switch_over(self, primary: str) -> None:
        """See `Replicas`. ZooKeeper may have another fault now, so Patroni is asked until it has done so."""
        command = ("patronictl", "--config-file", _PATRONI, "switchover", "--leader", primary, "--force")

        async def is_done() -> bool:
            with suppress(NotBroughtAbout):  # its exit code does not tell whether it succeeded
                await self._docker.run("exec", self._docker.container(primary), *command)
            return await self.primary() != primary

        await until(is_done, f"{primary} cannot be switched over", _TAKEN_OVER_WITHIN_S)

    async def recover(self, name: str) -> None:
        await self._docker.resume(name)
        await self._docker.reconnect(name)
        await self._docker.start(name)
        await until(self._all_follow, f"{name} does not follow the primary again", _BACK_WITHIN_S)

    async def _all_follow(self) -> bool:
        """Return whether one server is the primary, and every other one follows it."""
        said = await asyncio.gather(*(self._ask(name, _IS_REPLICA) for name in REPLICAS))
        if sorted(said) != [_PRIMARY, *[_REPLICA] * (len(REPLICAS) - 1)]:
            return False
        return await self._ask(REPLICAS[said.index(_PRIMARY)], _STREAMING) == str(len(REPLICAS) - 1)

    async def _ask(self, name: str, query: str) -> str:
        """Return a server's answer to a query; empty: it did not answer."""
        command = ("exec", self._docker.container(name), "psql", "--username", "postgres", "-Atc", query)
        with suppress(NotBroughtAbout):
            return (await self._docker.run(*command, timeout_s=_LOOK_TIMEOUT_S)).strip()
        return ""
