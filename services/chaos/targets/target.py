"""What faults can lay their hands on: the processes, servers and lines of one deployment.

`local` is the embedded stack with an ensemble of three, PostgreSQL, an acquirer and a proxy in front of each; `compose`
is the deployment of deploy/. A world says what it can do (`kinds`), and each of its methods returns only when what it
was asked for has really happened: a fault that was not seen to strike has not struck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from services.chaos.plan import Kind
from services.checker.acquirer_log import AcquirerLog
from services.kernel.principal import Role


class NotBroughtAbout(Exception):
    """A fault did not strike: what it needed was not there, or did not happen in time."""


class World(Protocol):
    """One running deployment."""

    @property
    def name(self) -> str:
        """`local` or `compose`."""
        ...

    @property
    def holds_at_failpoints(self) -> bool:
        """Whether processes can only be held at a failpoint, and are struck there from outside."""
        ...

    @property
    def zookeeper(self) -> str:
        """Where clients find it: `host:port,host:port`."""
        ...

    @property
    def databases(self) -> Mapping[str, str]:
        """SQLAlchemy URLs the checker may read, by service; not through any proxy."""
        ...

    @property
    def instances(self) -> tuple[str, ...]:
        """The services' processes, like `payment-1`, and `acquirer-1`."""
        ...

    async def acquirer_log(self) -> AcquirerLog | None:
        """The bank's own log, oldest first; None: there is no bank."""
        ...

    def kinds(self) -> tuple[Kind, ...]:
        """The faults this world can bring about, with the targets it has."""
        ...

    def token(self, name: str, role: Role) -> str:
        """A token under which `name` acts as `role`."""
        ...

    def address(self, instance: str) -> str:
        """Where callers reach an instance, through whatever stands in front of it."""
        ...

    # ---- processes -------------------------------------------------------------------------------------

    async def incarnation(self, instance: str) -> str:
        """Names this life of an instance: another one after each start."""
        ...

    async def kill(self, instance: str) -> None:
        """SIGKILL; it is started again by whoever looks after it."""
        ...

    async def terminate(self, instance: str) -> float:
        """SIGTERM; returns the seconds until it had ended. It is started again."""
        ...

    async def pause(self, instance: str) -> None:
        """SIGSTOP, or what the containers have for it."""
        ...

    async def resume(self, instance: str) -> None:
        """Lets a paused one go on. Harmless if it is not."""
        ...

    async def is_paused(self, instance: str) -> bool:
        """Whether it stands still."""
        ...

    async def wait_serving(self, instance: str, within_s: float = 30.0) -> None:
        """Waits until it is SERVING and registered.

        Raises:
            NotBroughtAbout: Not within `within_s` seconds.
        """
        ...

    # ---- ZooKeeper and PostgreSQL ----------------------------------------------------------------------

    async def zookeeper_servers(self) -> dict[str, str]:
        """Each server with its mode: `leader`, `follower`, or empty if it does not answer."""
        ...

    async def kill_server(self, server: str) -> None:
        """SIGKILL to a ZooKeeper server, which stays down."""
        ...

    async def start_server(self, server: str) -> None:
        """Starts it again; returns when it serves, if there is a quorum. Harmless if it runs."""
        ...

    async def pause_server(self, server: str) -> None:
        """SIGSTOP to a ZooKeeper server."""
        ...

    async def resume_server(self, server: str) -> None:
        """SIGCONT to it."""
        ...

    async def stop_postgresql(self, *, politely: bool) -> None:
        """Stops it: a fast shutdown, or SIGKILL."""
        ...

    async def start_postgresql(self) -> None:
        """Starts it again; returns when it answers. Harmless if it runs."""
        ...

    # ---- lines and clocks ------------------------------------------------------------------------------

    async def spoil(self, line: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        """Adds a toxic to a line, like `payment-1`, `postgresql/ledger` or `acquirer-1`."""
        ...

    async def cut(self, line: str) -> None:
        """Resets a line's connections and refuses new ones."""
        ...

    async def concerned(self, line: str) -> int:
        """How many connections what spoils or cuts a line has concerned since it was mended."""
        ...

    async def mend(self, line: str) -> None:
        """As if nothing had been."""
        ...

    async def shift_clock(self, instance: str, by_s: float) -> None:
        """Lets the wall clock of one instance be wrong by so many seconds; 0: right again."""
        ...
