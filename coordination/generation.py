"""The generation of the ensemble: an integer that tells a rebuilt ZooKeeper from the one the databases know.

A lock's token is a zxid, and zxids start again when an ensemble is wiped: old fences in the databases would
then refuse every new holder, or worse, an old holder would outrank it. So fences are (generation, zxid),
the generation is kept here and beside the data, and a service does not start on an ensemble that is behind
its database.

Invariants
1. The node's number never falls: `advance` writes only upwards, and only over the version it has read.
2. A missing node is a first start only if the database is at 0; otherwise the ensemble was rebuilt.

Which function makes each move
    ensure   missing -> 1, for a database that has seen none
    advance  any -> higher, by the operator's repair command
"""

from __future__ import annotations

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError

from coordination.deadline import Deadline
from coordination.errors import CoordinationError, GenerationBehind
from coordination.session import DEFAULT_TIMEOUT_S, Session

PATH = "/countinghouse/generation"
FIRST = 1


async def read(session: Session, timeout_s: float = DEFAULT_TIMEOUT_S, *, path: str = PATH) -> int | None:
    """Return the ensemble's generation, or None if it has none.

    Raises:
        Unavailable: ZooKeeper is away.
        CoordinationError: the node does not hold an integer.
    """
    found = await _read(session, path, Deadline.after(timeout_s))
    return None if found is None else found[0]


async def ensure(
    session: Session, database_generation: int, timeout_s: float = DEFAULT_TIMEOUT_S, *, path: str = PATH
) -> int:
    """Return the ensemble's generation, making the first one for a database that has seen none (0).

    Raises:
        GenerationBehind: it is missing or lower although the database has seen `database_generation`.
        Unavailable: ZooKeeper is away.
    """
    deadline = Deadline.after(timeout_s)
    found = await _read(session, path, deadline)
    if found is None and database_generation == 0:
        found = await _create(session, path, FIRST, deadline)
    if found is None or found[0] < database_generation:
        raise GenerationBehind(found[0] if found else None, database_generation)
    return found[0]


async def advance(session: Session, to: int, timeout_s: float = DEFAULT_TIMEOUT_S, *, path: str = PATH) -> int:
    """Raise the ensemble's generation to at least `to`; returns what it is then. Never lowers it.

    Raises:
        Unavailable: ZooKeeper is away; the write may have happened.
    """
    deadline = Deadline.after(timeout_s)
    found = await _read(session, path, deadline) or await _create(session, path, to, deadline)
    while found[0] < to:
        try:
            await session.set(path, str(to).encode(), version=found[1], timeout_s=deadline.remaining_s() or 0.0)
            return to
        except BadVersionError:  # somebody else wrote: look whether it was enough
            found = await _read(session, path, deadline) or await _create(session, path, to, deadline)
    return found[0]


async def _read(session: Session, path: str, deadline: Deadline) -> tuple[int, int] | None:
    """Return (generation, version of the node)."""
    try:
        data, stat = await session.get(path, timeout_s=deadline.remaining_s() or 0.0)
    except NoNodeError:
        return None
    try:
        return int(data), stat.version
    except ValueError:
        raise CoordinationError(f"{path} should hold the generation, a number, and holds {data!r}") from None


async def _create(session: Session, path: str, value: int, deadline: Deadline) -> tuple[int, int]:
    """Create the node, or read the one that somebody else has just created."""
    await session.ensure_path(path.rpartition("/")[0], timeout_s=deadline.remaining_s() or 0.0)
    try:
        _, stat = await session.create(path, str(value).encode(), timeout_s=deadline.remaining_s() or 0.0)
        return value, stat.version
    except NodeExistsError:
        found = await _read(session, path, deadline)
        if found is None:
            raise CoordinationError(f"{path} comes and goes: is somebody repairing the ensemble?") from None
        return found
