"""Docker, for the containers of one project of compose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from services.chaos.targets.target import ACQUIRER
from services.devstack.state import StackRefused
from services.testkit.waiting import NotBroughtAbout

DOCKER_TIMEOUT_S: Final = 60.0
_PAUSE_TRIES: Final = 5
_LOOK_S: Final = 0.1
#: What Docker says of an address that another container has.
_TAKEN: Final = "Address already in use"


class Docker:
    """Runs docker for the containers of one project."""

    def __init__(self, project: str, environment: Mapping[str, str]) -> None:
        self._project = project
        self._environment = environment
        self._addresses: dict[str, dict[str, str]] = {}

    def container(self, name: str) -> str:
        """Return the name of an instance's or a server's container."""
        return f"{self._project}-{service_name(name)}-1"

    async def start(self, name: str) -> None:
        """Start a container that is down. Harmless if it runs."""
        await self.run("start", self.container(name))

    async def inspect(self, name: str) -> dict[str, Any]:
        """Return what docker says of a container."""
        (found,) = json.loads(await self.run("inspect", self.container(name)))
        return dict(found)

    async def networks(self, name: str) -> dict[str, str]:
        """Return the networks that a container is in, and its address in each."""
        networks = (await self.inspect(name))["NetworkSettings"]["Networks"]
        return {network: str(each["IPAddress"]) for network, each in networks.items()}

    async def kill(self, name: str) -> None:
        """Send SIGKILL to the first process of a container, which stays down."""
        await self.run("kill", self.container(name))

    async def pause(self, name: str) -> None:
        """Pause a container. A busy one may need more than one try.

        Raises:
            NotBroughtAbout: It cannot be paused.
        """
        for _ in range(_PAUSE_TRIES):
            with suppress(NotBroughtAbout):
                await self.run("pause", self.container(name))
            if await self.is_paused(name):
                return
        raise NotBroughtAbout(f"{name} cannot be paused")

    async def resume(self, name: str) -> None:
        """Resume a container. Harmless if it is not paused."""
        if await self.is_paused(name):
            await self.run("unpause", self.container(name))

    async def is_paused(self, name: str) -> bool:
        """Return whether a container is paused."""
        return bool((await self.inspect(name))["State"]["Paused"])

    async def is_healthy(self, name: str) -> bool:
        """Return whether a container's own health check says that it is."""
        return bool((await self.inspect(name))["State"]["Health"]["Status"] == "healthy")

    async def disconnect(self, name: str, *networks: str) -> None:
        """Take a container out of some of its networks, as compose names them; none named: out of all."""
        addresses = self._addresses.setdefault(name, {})
        wanted = {f"{self._project}_{network}" for network in networks}
        for network, address in (await self.networks(name)).items():
            if not wanted or network in wanted:
                addresses[network] = address
                await self.run("network", "disconnect", network, self.container(name))

    async def reconnect(self, name: str) -> bool:
        """Put a container back into the networks that it was taken out of.

        Returns:
            Whether it has its own addresses again: another that started meanwhile may have got one of them.
        """
        connected, own = await self.networks(name), True
        for network, address in self._addresses.get(name, {}).items():
            if network in connected:
                continue
            place = ("--alias", service_name(name), network, self.container(name))
            try:
                await self.run("network", "connect", "--ip", address, *place)
            except NotBroughtAbout as error:
                if _TAKEN not in str(error):
                    raise
                own = False
                await self.run("network", "connect", *place)
        return own

    async def restart(self, name: str) -> None:
        """Stop a container and start it again."""
        await self.run("restart", self.container(name))

    async def compose(self, *arguments: str, timeout_s: float) -> str:
        """Run docker compose on the deployment; return what it printed.

        Raises:
            StackRefused: DOCKER_FAILED.
        """
        try:
            return await self.run("compose", *arguments, timeout_s=timeout_s)
        except NotBroughtAbout as error:
            raise StackRefused("DOCKER_FAILED", str(error)) from error

    async def run(self, *arguments: str, timeout_s: float = DOCKER_TIMEOUT_S) -> str:
        """Run docker; return what it printed.

        Raises:
            NotBroughtAbout: It failed, or took too long.
        """
        command = f"docker {' '.join(arguments[:2])}"
        try:
            process = await asyncio.create_subprocess_exec(
                *("docker", *arguments),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise NotBroughtAbout(f"{command} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                printed, errors = await process.communicate()
        except TimeoutError:
            raise NotBroughtAbout(f"{command} took more than {timeout_s:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            words = errors.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise NotBroughtAbout(f"{command} failed: {words[-1]}")
        return printed.decode(errors="replace")


async def until(condition: Callable[[], Awaitable[object]], otherwise: str, within_s: float = DOCKER_TIMEOUT_S) -> None:
    """Wait until a condition holds.

    Raises:
        NotBroughtAbout: `otherwise`: it does not in time.
    """
    try:
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110  another process
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise NotBroughtAbout(otherwise) from None


def service_name(name: str) -> str:
    """Return an instance's name in docker-compose.yml."""
    return "acquirer" if name == ACQUIRER else name
