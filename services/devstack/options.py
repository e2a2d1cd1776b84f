"""What a stack is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coordination.errors import BadAddress
from coordination.session import EnsembleAddress
from services.devstack.state import INTERFACES
from services.kernel.errors import InvalidArgument
from services.kernel.guards import Guards

GATEWAY = "gateway"
SQLITE, POSTGRESQL = "sqlite", "postgresql"
_SCHEMES = ("postgresql", "postgresql+asyncpg")
_MAX_REPLICAS = 16


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to start.

    Args:
        data: Directory of everything the stack keeps; made if missing.
        zookeeper: Address of one to use (coordination/session/address.py); empty: one of our own.
        database: What the services keep their data in; see `components/databases.py`.
        services: Which services; none: ZooKeeper alone, with the stack's own PostgreSQL if it has one.
        replicas: Instances of a service; 1 unless named.
        ports: Port of a service's first instance, whose others take the ports after it; or of the gateway. Free ones
            unless named.
        guards_off: Guards to switch off, for demonstrations.
        failpoints: Whether tests may inject faults.
        plaintext: Whether the services, and the servers of the stack's own, serve and call without TLS.
        zookeeper_plaintext: Whether ZooKeeper, at `zookeeper` or of our own, has neither TLS nor users.
        session_timeout_s: How long a dead instance's locks and registrations last; 1 to 10 s.
        settings: Further settings of the services by name (`runtime/settings.py`), such as `lease_s`.
        settings_of: Settings of single instances by their names; they prevail over all others.
        environment_of: Further environment variables of single instances.
        gateway: Whether there is a gateway with a console.
        start_timeout_s: How long getting ready may take.
        detachable: Whether SIGTERM to this process stops the stack in good order.

    Raises:
        InvalidArgument: SERVICE_UNKNOWN, GUARD_UNKNOWN, DATABASE_UNKNOWN, ZOOKEEPER_ADDRESS or OUT_OF_RANGE.
    """

    data: Path
    zookeeper: str = ""
    database: str = field(default=SQLITE, repr=False)
    services: tuple[str, ...] = tuple(INTERFACES)
    replicas: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    guards_off: tuple[str, ...] = ()
    failpoints: bool = False
    plaintext: bool = False
    zookeeper_plaintext: bool = False
    session_timeout_s: float = 4.0
    settings: Mapping[str, object] = field(default_factory=dict)
    settings_of: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    environment_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gateway: bool = False
    start_timeout_s: float = 60.0
    detachable: bool = False

    def __post_init__(self) -> None:
        ports = [name for name in self.ports if name != GATEWAY or not self.gateway]
        for name in (*self.services, *self.replicas, *ports):
            if name not in INTERFACES:
                raise InvalidArgument(
                    "SERVICE_UNKNOWN", f"there is no service {name!r}; there are {', '.join(INTERFACES)}"
                )
        for name, count in self.replicas.items():
            if not 1 <= count <= _MAX_REPLICAS:
                raise InvalidArgument("OUT_OF_RANGE", f"{name} can have 1 to {_MAX_REPLICAS} instances, not {count}")
        for name, port in self.ports.items():
            if not 1 <= port <= 65_536 - self.replicas.get(name, 1):
                raise InvalidArgument("OUT_OF_RANGE", f"{port} is not a port for {name}; ports are 1 to 65535")
        Guards.without(self.guards_off)
        if self.zookeeper:
            try:
                EnsembleAddress.parse(self.zookeeper)
            except BadAddress as error:
                raise InvalidArgument("ZOOKEEPER_ADDRESS", str(error)) from error
        _check_database(self.database)


def _check_database(choice: str) -> None:
    if choice in (SQLITE, POSTGRESQL):
        return
    if choice.partition("://")[0] not in _SCHEMES or "@" not in choice:  # a URL may hold a password: not repeated
        raise InvalidArgument(
            "DATABASE_UNKNOWN", "a database is sqlite, postgresql, or like postgresql://superuser@host:5432/house"
        )
