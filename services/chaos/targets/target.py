"""A target: one running deployment that faults are injected into.

`local` is the embedded stack with an ensemble of three, PostgreSQL, an acquirer and a proxy in front of each process;
`compose` is the deployment of deploy/. `links`, `has_postgresql`, `replicas` and `shiftable_clocks` say what a target
lacks. Each method returns only when its effect was observed: a fault that was not observed was not injected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from coordination.session.security import Security
from services.checker.acquirer_log import AcquirerLog
from services.kernel.principal import Role
from services.runtime.grpc.tls import Dialer

#: The acquirer's instance.
ACQUIRER: Final = "acquirer-1"


class Replicas(Protocol):
    """PostgreSQL servers, one of which is the primary."""

    async def primary(self, *, besides: str = "") -> str:
        """Return the primary, once there is one.

        Args:
            besides: A server that is not meant, whatever it says of itself.

        Raises:
            NotBroughtAbout: There is none in time.
        """

    async def replaceable_primary(self) -> str:
        """Return the primary, once there is one whose place another server may take.

        Raises:
            NotBroughtAbout: There is none in time.
        """

    async def replica(self) -> str:
        """Return a server for which the primary waits.

        Raises:
            NotBroughtAbout: There is none.
        """

    async def kill(self, name: str) -> None:
        """Send SIGKILL to a server and what supervises it; both stay down."""

    async def freeze(self, name: str) -> None:
        """Pause a server and what supervises it."""

    async def cut_off(self, name: str) -> None:
        """Keep a server from ZooKeeper and the other servers. Clients reach it."""

    async def switch_over(self, primary: str) -> None:
        """Have a primary give its place to another server."""

    async def recover(self, name: str) -> None:
        """Undo whatever was done to a server; return when every server follows the primary.

        Raises:
            NotBroughtAbout: They do not in time.
        """


class Target(Protocol):
    """One running deployment.

    Attributes:
        name: `local` or `compose`.
        zookeeper: Where clients find it: `host:port,host:port`.
        instances: The services' processes, like `payment-1`, and `acquirer-1`.
        session_timeout_s: How long an instance that has died or is frozen keeps its locks.
        holds_at_failpoints: Whether a failpoint can only hold a process, which is then killed or paused from outside.
        links: The instances behind a proxy: toxics can be added to their connections.
        has_postgresql: Whether its database is one PostgreSQL server.
        replicas: The PostgreSQL servers, if there are several.
        shiftable_clocks: The instances whose wall clock can be shifted.
        has_gateway: Whether a gateway runs, by the name `gateway`.
        dialer: Returns what connects to the services, or with `outside=True` to the acquirer.
        zookeeper_security: Returns how a session comes to ZooKeeper.
    """

    name: str
    zookeeper: str
    instances: tuple[str, ...]
    session_timeout_s: float
    holds_at_failpoints: bool
    links: tuple[str, ...]
    has_postgresql: bool
    replicas: Replicas | None
    shiftable_clocks: tuple[str, ...]
    has_gateway: bool
    dialer: Callable[..., Dialer]
    zookeeper_security: Callable[[], Security]

    @property
    def databases(self) -> Mapping[str, str]:
        """SQLAlchemy URLs for the checker, by service; not through any proxy."""

    async def acquirer_log(self) -> AcquirerLog:
        """Return the acquirer's own log, oldest first."""

    def token(self, name: str, role: Role, *, outside: bool = False) -> str:
        """Return a token for `name` in `role`: for the services, or for the acquirer outside."""

    def address(self, instance: str) -> str:
        """Return where callers reach an instance, through any proxy in front of it."""

    # ---- processes -------------------------------------------------------------------------------------

    async def kill(self, instance: str) -> None:
        """Send SIGKILL. Its supervisor starts it again."""

    async def terminate(self, instance: str) -> None:
        """Send SIGTERM, and wait until it has ended. Its supervisor starts it again."""

    async def pause(self, name: str) -> None:
        """Send SIGSTOP to an instance or a ZooKeeper server, or pause its container."""

    async def resume(self, name: str) -> None:
        """Resume it. Harmless if it is not paused."""

    async def is_paused(self, instance: str) -> bool:
        """Return whether it is paused."""

    async def wait_serving(self, instance: str) -> None:
        """Wait until it is SERVING and registered.

        Raises:
            NotBroughtAbout: It is not in time.
        """

    # ---- ZooKeeper and PostgreSQL ----------------------------------------------------------------------

    async def zookeeper_servers(self) -> dict[str, str]:
        """Return each server with its mode: `leader`, `follower`, or empty if it does not answer."""

    async def kill_server(self, server: str) -> None:
        """Send SIGKILL to a ZooKeeper server, which stays down."""

    async def start_server(self, server: str) -> None:
        """Start it again; return when it serves, if there is a quorum. Harmless if it runs."""

    async def stop_postgresql(self, *, fast: bool) -> None:
        """Stop it: a fast shutdown, or SIGKILL."""

    async def start_postgresql(self) -> None:
        """Start it again; return when it answers. Harmless if it runs."""

    # ---- links and clocks ------------------------------------------------------------------------------

    async def add_toxic(self, link: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        """Add a toxic to a link."""

    async def cut(self, link: str) -> None:
        """Reset a link's connections and refuse new ones; `zookeeper/payment-1` is an instance's link to ZooKeeper."""

    async def affected_connections(self, link: str) -> int:
        """Return how many connections a toxic or a cut has affected since the link was healed."""

    async def heal(self, link: str) -> None:
        """Remove the toxics of a link, and accept connections. Harmless if it is whole."""

    async def shift_clock(self, instance: str, by_s: float) -> None:
        """Shift the wall clock of an instance by so many seconds; 0: no longer."""
