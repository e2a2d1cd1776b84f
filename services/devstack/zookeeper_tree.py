"""The directories in ZooKeeper, and who may do what in them. Made by the operator, at every start.

    python -m services.devstack.zookeeper_tree --zookeeper HOSTS [--replicas SERVER,SERVER] FOLDER

FOLDER has ca.pem, and a file for each user.

| directory | who may create and delete in it | who may read it |
|---|---|---|
| `/`, `/dubbo`, `/dubbo/<interface>` and its `configurators` and `routers` | the operator | every client |
| `/dubbo/<interface>/providers` | the service of the interface | every client |
| `/dubbo/<interface>/consumers` | every service | every client |
| `/countinghouse` | every service creates the first generation | every service |
| `/countinghouse/locks` and below | the payment service | the payment service |
| `/patroni` and below, with `--replicas` | the PostgreSQL servers | the PostgreSQL servers |

A PostgreSQL server shows ZooKeeper its certificate, and is known by the common name in it.

The operator is ZooKeeper's superuser, whom no list stops. A client needs no user: it reaches the port, and believes the
authority. What an earlier release has left, open to all, gets the list that it would get today.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kazoo.security import ACL, Id, Permissions, make_digest_acl_credential

from coordination.deadline import Deadline
from coordination.errors import Unavailable
from coordination.registry.registration import CATEGORIES, DEFAULT_ROOT
from coordination.session import Session, requests
from services.devstack.files import SUPERUSER
from services.devstack.state import INTERFACES
from services.runtime.zookeeper_paths import GENERATION_PATH, LOCKS_ROOT
from services.runtime.zookeeper_security import READABLE, secured_for_operator

_TIMEOUT_S = 20.0
_PAUSE_S = 0.2
_COUNTINGHOUSE: Final = GENERATION_PATH.rpartition("/")[0]
#: Where Patroni keeps who the primary is (`namespace` in deploy/postgres/patroni.yml).
_PATRONI: Final = "/patroni"
#: ZooKeeper's own, where it lets every client set limits for others.
_RESERVED: Final = ("/zookeeper", "/zookeeper/quota")
_FILL: Final = Permissions.READ | Permissions.CREATE | Permissions.DELETE


def digest(user: str) -> str:
    """Return as what ZooKeeper knows a user, given as `name:password`: `name:` and a digest of both."""
    name, _, password = user.partition(":")
    return str(make_digest_acl_credential(name, password))


async def prepare(session: Session, users: Mapping[str, str], replicas: Sequence[str] = ()) -> None:
    """Make the directories that are missing, and set the list of everything, whatever it was before.

    Args:
        session: Of the superuser.
        users: `name:password` of the user of each service.
        replicas: The common names of the PostgreSQL servers under Patroni.

    Raises:
        Unavailable: ZooKeeper is away.
    """
    deadline = Deadline.after(_TIMEOUT_S)
    directories = _directories(users, replicas)
    for path in directories:
        await session.ensure_path(path, timeout_s=deadline.remaining_s() or 0.0)
    # From the top, and each level before the one below is looked at: what is added meanwhile is seen.
    await _close(session, dict.fromkeys(("/",) if session.chroot else ("/", *_RESERVED), READABLE), deadline)
    await _close(session, directories, deadline)
    async for level in _levels(session, deadline):
        await _close(session, {p: _acl_of_node(p, directories) for p in level if p not in directories}, deadline)


async def open_nodes(session: Session, timeout_s: float) -> list[str]:
    """Return the nodes that a client without a user may change, and the locks that it may read.

    Args:
        session: Of the superuser.

    Raises:
        Unavailable: ZooKeeper is away.
    """
    deadline = Deadline.after(timeout_s)
    found: list[str] = []
    async for level in _levels(session, deadline):
        replies = await session.ask_all([requests.get_acl(path) for path in level], deadline)
        for path, reply in zip(level, replies, strict=True):
            allowed = () if f"{path}/".startswith(f"{LOCKS_ROOT}/") else READABLE
            if reply and {acl for acl in reply[0] if acl.id.scheme == "world"} - {*allowed}:
                found.append(path)
    return found


async def _levels(session: Session, deadline: Deadline) -> AsyncIterator[list[str]]:
    """Return the paths of the house, those of one depth at a time: a level is read when the one above was handled."""
    level = [DEFAULT_ROOT, _COUNTINGHOUSE]
    while level:
        yield level
        found = await session.ask_all([requests.get_children(path) for path in level], deadline)
        level = [f"{path}/{name}" for path, names in zip(level, found, strict=True) for name in names or ()]


async def prepare_as_superuser(
    address: str,
    ca_file: Path,
    user_file: Callable[[str], Path],
    timeout_s: float = _TIMEOUT_S,
    replicas: Sequence[str] = (),
) -> None:
    """Prepare the ensemble at an address; raises as `prepare`, but tries again after a connection that dropped.

    Args:
        ca_file: The authorities of its servers.
        user_file: Returns the file of a user, `name:password`.
        replicas: As `prepare`.
        timeout_s: How long it may take, the wait until the ensemble answers included.
    """
    users = {service: user_file(service).read_text().strip() for service in INTERFACES}
    security = replace(secured_for_operator(ca_file, user_file(SUPERUSER)), acls=lists_at_creation(users, replicas))
    async with Session(address, name="operator", security=security) as session:
        deadline = Deadline.after(timeout_s)
        while True:
            await session.wait_connected(deadline.remaining_s() or 0.0)
            try:
                await prepare(session, users, replicas)
            except Unavailable:
                if deadline.expired():
                    raise
                await asyncio.sleep(_PAUSE_S)
            else:
                return


def lists_at_creation(users: Mapping[str, str], replicas: Sequence[str] = ()) -> dict[str, Sequence[ACL]]:
    """Return with which list each directory is to be created, the deepest first, as `Security.acls` takes them.

    A service that starts meanwhile finds a directory with its rights, or none, and never one that is closed to it.
    """
    directories = _directories(users, replicas)
    return {path: directories[path] for path in sorted(directories, key=len, reverse=True)}


def _directories(users: Mapping[str, str], replicas: Sequence[str]) -> dict[str, Sequence[ACL]]:
    ids = {service: Id("digest", digest(user)) for service, user in users.items()}
    found: dict[str, Sequence[ACL]] = {DEFAULT_ROOT: READABLE}
    for service, interface in INTERFACES.items():
        found[f"{DEFAULT_ROOT}/{interface}"] = READABLE
        for category in CATEGORIES:
            fillers = {"providers": [ids[service]], "consumers": list(ids.values())}.get(category, [])
            acl = [*READABLE, *(ACL(_FILL, each) for each in fillers)]
            found[f"{DEFAULT_ROOT}/{interface}/{category}"] = acl
    # Only the operator may delete the generation: without it the ensemble looks new.
    found[_COUNTINGHOUSE] = [ACL(Permissions.READ | Permissions.CREATE, each) for each in ids.values()]
    found[LOCKS_ROOT] = [ACL(Permissions.ALL, ids["payment"])]
    if replicas:
        found[_PATRONI] = [ACL(Permissions.ALL, Id("x509", f"CN={name}")) for name in replicas]
    return found


def _acl_of_node(path: str, directories: Mapping[str, Sequence[ACL]]) -> Sequence[ACL]:
    """Return the list of what is there besides the directories."""
    if path.startswith(f"{LOCKS_ROOT}/"):
        return directories[LOCKS_ROOT]
    directory = path.rpartition("/")[0]
    if directory in directories and directory.endswith("/providers"):
        owners = [acl.id for acl in directories[directory] if acl not in READABLE]
        return [*READABLE, *(ACL(Permissions.ALL, owner) for owner in owners)]
    return READABLE


async def _close(session: Session, wanted: Mapping[str, Sequence[ACL]], deadline: Deadline) -> None:
    """Set the lists that are not as wanted."""
    found = await session.ask_all([requests.get_acl(path) for path in wanted], deadline)
    wrong = [path for path, reply in zip(wanted, found, strict=True) if reply and set(reply[0]) != set(wanted[path])]
    await session.ask_all([requests.set_acl(path, wanted[path]) for path in wrong], deadline)


def main() -> None:
    """Make the directories of an ensemble, and say who may do what in them."""
    parser = argparse.ArgumentParser(prog="python -m services.devstack.zookeeper_tree", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where ca.pem is, and a file for each user")
    parser.add_argument("--zookeeper", required=True, help="host:port,host:port")
    parser.add_argument("--replicas", default="", help="the PostgreSQL servers under Patroni, like postgres1,postgres2")
    given = parser.parse_args()
    replicas = list(filter(None, given.replicas.split(",")))
    folder = given.folder
    asyncio.run(prepare_as_superuser(given.zookeeper, folder / "ca.pem", folder.joinpath, replicas=replicas))


if __name__ == "__main__":
    main()
