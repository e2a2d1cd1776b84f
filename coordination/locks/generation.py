"""The generation of the ensemble: an integer that tells a rebuilt ZooKeeper from the one the databases know.

A lock's token is a zxid, and zxids start again when an ensemble is wiped: old fences in the databases would then refuse
every new holder, or worse, an old holder would outrank a new one. So fences are (generation, zxid),
the generation is kept here and beside the data, and a service does not work on an ensemble that is behind
its database: in its generation, or under the same generation in its zxid (an older backup).

Invariants
1. The node's number never falls: `advance` writes only upwards, and only over the version it has read. What is
   no generation that can follow the database's (MAX_AHEAD) is written over: no database has taken it over.
2. A missing node is a first start only if the database is at 0; otherwise the ensemble was rebuilt.

Which function makes each move
    ensure   missing -> 1, for a database that has seen none
    advance  any -> higher, by the operator's repair command
"""

from __future__ import annotations

import re

from kazoo.exceptions import BadVersionError, NoAuthError, NodeExistsError, NoNodeError

from coordination.deadline import Deadline
from coordination.errors import (
    CoordinationError,
    Forbidden,
    GenerationBehind,
    GenerationUnbelievable,
    Refused,
    ZxidBehind,
)
from coordination.session import requests
from coordination.session.session import DEFAULT_TIMEOUT_S, Session, Watch

FIRST = 1
#: So far may an ensemble be ahead of a database, such as one from a backup: each is an ensemble that was lost.
MAX_AHEAD = 1000

_MAX = 2**63 - 1
_GARBAGE = 0


async def read(session: Session, timeout_s: float = DEFAULT_TIMEOUT_S, *, path: str) -> int | None:
    """Return the ensemble's generation, or None if it has none.

    Raises:
        Unavailable: ZooKeeper is away.
        GenerationUnbelievable: the node does not hold one.
    """
    found = await _read(session, path, Deadline.after(timeout_s))
    if found is not None and found[0] == _GARBAGE:
        raise GenerationUnbelievable(path, 0)
    return None if found is None else found[0]


def judge(found: int | None, zxid: int, database_generation: int, newest_zxid: int, *, path: str) -> int:
    """Return the generation of an ensemble that may be used with a database.

    Args:
        found: the ensemble's generation; None: it has none.
        zxid: how far the ensemble is.
        database_generation: the newest generation that the database has seen.
        newest_zxid: of the newest fence under that generation; 0: none.

    Raises:
        EnsembleUnfit: it may not.
    """
    if found is None or FIRST <= found < database_generation:
        raise GenerationBehind(found, database_generation)
    if not FIRST <= found <= database_generation + MAX_AHEAD:
        raise GenerationUnbelievable(path, database_generation)
    if found == database_generation and zxid < newest_zxid:
        raise ZxidBehind(zxid, newest_zxid, database_generation)
    return found


async def ensure(
    session: Session,
    database_generation: int,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    newest_zxid: int = 0,
    watch: Watch | None = None,
    path: str,
) -> int:
    """Return the ensemble's generation, making the first one for a database that has seen none (0).

    Args:
        watch: called when the generation may have changed.

    Raises:
        EnsembleUnfit: as `judge`.
        Forbidden: there is none yet, and ZooKeeper does not let us create it.
        Unavailable: ZooKeeper is away.
    """
    deadline = Deadline.after(timeout_s)
    await session.ask(requests.sync(path), deadline)
    found = await _read(session, path, deadline, watch)
    if found is None and database_generation == 0:
        await _create(session, path, FIRST, deadline)
        found = await _read(session, path, deadline, watch)
    held = None if found is None else found[0]
    return judge(held, session.last_zxid, database_generation, newest_zxid, path=path)


async def advance(session: Session, to: int, timeout_s: float = DEFAULT_TIMEOUT_S, *, path: str) -> int:
    """Raise the ensemble's generation to at least `to`; return what it is then. Never lowers it.

    What cannot be a generation beside `to` is written over.

    Raises:
        ValueError: `to` is no generation: 1 to 2^63 - 1.
        Unavailable: ZooKeeper is away; the write may have happened.
    """
    if not FIRST <= to <= _MAX:
        raise ValueError(f"a generation is a number from {FIRST} to {_MAX}, not {to}")
    deadline = Deadline.after(timeout_s)
    found = await _read(session, path, deadline) or await _create(session, path, to, deadline)
    while not to <= found[0] <= to + MAX_AHEAD:
        try:
            await session.set(path, str(to).encode(), version=found[1], timeout_s=deadline.remaining_s() or 0.0)
            return to
        except BadVersionError:  # another process wrote: check whether its number is high enough
            found = await _read(session, path, deadline) or await _create(session, path, to, deadline)
    return found[0]


async def _read(session: Session, path: str, deadline: Deadline, watch: Watch | None = None) -> tuple[int, int] | None:
    """Return (generation, version of the node); the generation is _GARBAGE if the node holds something else."""
    try:
        data, stat = await session.get(path, watch=watch, timeout_s=deadline.remaining_s() or 0.0)
    except NoNodeError:
        return None
    held = int(data) if re.fullmatch(rb"[0-9]{1,19}", data) else _GARBAGE
    return held if FIRST <= held <= _MAX else _GARBAGE, stat.version


async def _create(session: Session, path: str, value: int, deadline: Deadline) -> tuple[int, int]:
    """Create the node, or read the one that another process has just created."""
    await session.ensure_path(path.rpartition("/")[0], timeout_s=deadline.remaining_s() or 0.0)
    try:
        _, stat = await session.create(path, str(value).encode(), timeout_s=deadline.remaining_s() or 0.0)
        return value, stat.version
    except Refused as refusal:
        if isinstance(refusal.__cause__, NoAuthError):
            raise Forbidden(path) from refusal
        raise
    except NodeExistsError:
        found = await _read(session, path, deadline)
        if found is None:
            raise CoordinationError(
                f"{path} is created and deleted at the same time: is the ensemble being repaired?"
            ) from None
        return found
