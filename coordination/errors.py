"""The errors of coordination.

    CoordinationError
    ├── Unavailable         ZooKeeper did not answer in time; ask again later
    │   ├── Refused         ZooKeeper answered that it did not do it: throttled, over quota, not authorised
    │   │   └── Forbidden   a node that we need is missing, and ZooKeeper does not let us create it
    │   └── WrongProcess    the session was started before fork; build one in the child
    ├── LockTimeout         another holder has the resource           (locks/errors.py)
    ├── LockLost            the resource may no longer be ours        (locks/errors.py)
    ├── NoProviders         no provider of an interface is registered
    ├── BadAddress          an address of ZooKeeper cannot be understood
    ├── BadProviderURL      a provider's address cannot be read or written
    ├── BadRule             a governance rule cannot be understood
    └── EnsembleUnfit       the ensemble must not be used with this database
        ├── GenerationBehind        it is younger than the database: it was rebuilt
        ├── ZxidBehind              it is an older backup
        └── GenerationUnbelievable  its generation is no number that can follow

ZooKeeper's own answers about a node (``NoNodeError``, ``NodeExistsError``, ``BadVersionError``) stay kazoo's
exceptions: they are results, not failures of coordination.
"""

from __future__ import annotations


class CoordinationError(Exception):
    """Root of the tree."""


class Unavailable(CoordinationError):
    """ZooKeeper is away: not connected, or no reply before the deadline.

    Attributes:
        retry_after_s: seconds after which asking again makes sense.
        maybe_done: True if the request had been handed over, so that ZooKeeper may still have done it.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0, *, maybe_done: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.maybe_done = maybe_done


class Refused(Unavailable):
    """ZooKeeper answered that it did not carry out the request, for a reason other than the node. Nothing was done."""


class WrongProcess(Unavailable):
    """The session belongs to the parent process; its threads did not survive the fork."""

    def __init__(self, started_in_pid: int, pid: int) -> None:
        super().__init__(
            f"the ZooKeeper session was started in process {started_in_pid} and cannot be used in {pid}, "
            "its child: build a Session after the fork"
        )


class Forbidden(Refused):
    """A node that we need is missing, and ZooKeeper does not let us create it.

    Attributes:
        path: the node, from ZooKeeper's root.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"ZooKeeper has no {path}, and its access lists do not let us create it: "
            "create it for us, or allow us CREATE on the node above it"
        )
        self.path = path


class NoProviders(CoordinationError):
    """No provider of an interface is known.

    Attributes:
        away: True if ZooKeeper could not be asked and no list was cached.
        disabled: how many are registered and disabled, by a rule or by their own URL.
    """

    def __init__(self, interface: str, *, away: bool = False, disabled: int = 0) -> None:
        why = " (ZooKeeper is away and no list was cached)" if away else ""
        found = f"every provider of {interface} is disabled ({disabled})" if disabled else ""
        super().__init__(found or f"no provider of {interface} is registered{why}")
        self.interface = interface
        self.away = away
        self.disabled = disabled


class BadAddress(CoordinationError, ValueError):
    """Not an address of a ZooKeeper ensemble; the message says what is wrong with it and how to write one."""


class BadProviderURL(CoordinationError, ValueError):
    """Not a provider's URL, or one that Dubbo's notation cannot carry."""


class BadRule(CoordinationError, ValueError):
    """A governance rule that is malformed, or asks for what is not supported; it says where, and what."""


class EnsembleUnfit(CoordinationError):
    """The ensemble must not be used with this database: its fencing tokens would not protect it.

    Attributes:
        database: the generation the database has seen; the next one repairs it.
    """

    def __init__(self, message: str, database: int) -> None:
        super().__init__(message)
        self.database = database


class GenerationBehind(EnsembleUnfit):
    """The ensemble's generation is behind the database's, so its zxids may start again below used fences.

    Attributes:
        ensemble: the generation in ZooKeeper, or None if there is none.
    """

    def __init__(self, ensemble: int | None, database: int) -> None:
        super().__init__(
            f"this ZooKeeper was made anew: its generation is {ensemble or 'missing'}, the database's {database}",
            database,
        )
        self.ensemble = ensemble


class ZxidBehind(EnsembleUnfit):
    """The ensemble has the right generation and an older state than the newest fence: it is an older backup."""

    def __init__(self, zxid: int, newest: int, database: int) -> None:
        super().__init__(
            f"this ZooKeeper has lost what it had: it is at zxid 0x{zxid:x}, and fences up to 0x{newest:x} were used",
            database,
        )


class GenerationUnbelievable(EnsembleUnfit):
    """The node of the generation does not hold a generation that can follow the database's."""

    def __init__(self, path: str, database: int) -> None:
        super().__init__(f"{path} does not hold a generation that can follow {database}", database)
