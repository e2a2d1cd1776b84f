"""The requests that `Session.send` takes: each function builds one.

They are put on kazoo's connection without kazoo's two results, its callback thread and its sets of watchers: a reply
costs one step on the I/O thread and one on the loop. Replies are kazoo's: a `ZnodeStat` for a stat, and its
exceptions for results about a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from kazoo.exceptions import NoNodeError, RolledBackError, RuntimeInconsistency
from kazoo.protocol import serialization as wire
from kazoo.security import ACL, OPEN_ACL_UNSAFE

from coordination.session.error_codes import error_of, outcome

CREATED, DELETED, CHANGED, CHILDREN_CHANGED = 1, 2, 3, 4  # kinds of watch events

# ZooKeeper's numbers of operations. kazoo has no type for the last three, which need ZooKeeper 3.6 or newer.
_CREATE, _DELETE, _EXISTS, _GET, _SET, _GET_ACL, _SET_ACL, _GET_CHILDREN = 1, 2, 3, 4, 5, 6, 7, 8
_SYNC, _TRANSACTION, _CREATE2 = 9, 14, 15
_REMOVE_WATCHES, _READ_MANY, _ADD_WATCH = 18, 22, 106
_FAILED = -1  # of a part that was not done

_EPHEMERAL, _SEQUENCE = 1, 2  # flags of a create
_PERSISTENT_RECURSIVE, _ANY_WATCH = 1, 3  # kinds of watches
_END_OF_PARTS = wire.multiheader_struct.pack(-1, True, -1)
_OPEN_TO_ALL = bytes(wire.Create("", b"", OPEN_ACL_UNSAFE, 0).serialize()[8:-4])


@dataclass(frozen=True, slots=True)
class Request:
    """One request as kazoo's connection takes it.

    It has no `watcher`: whatever is watched, the event comes to the session (`coordination.session.pipeline`).

    Attributes:
        type: ZooKeeper's number of the operation.
        payload: what is asked, serialized.
        read: takes a reply and the offset where its body begins.
    """

    type: int
    payload: bytes = field(repr=False)
    read: Callable[[bytes, int], Any] = field(repr=False)

    def serialize(self) -> bytes:
        """Return what is asked."""
        return self.payload

    def deserialize(self, reply: bytes, offset: int) -> Any:
        """Return what was answered."""
        return self.read(reply, offset)


@dataclass(frozen=True, slots=True)
class Scope:
    """What all requests of a session have in common.

    Attributes:
        chroot: under which all paths lie; "" for the root.
        acl: who may do what with the nodes that are created, serialized.
        acls: the same for those at certain paths and below them: pairs of a path and a list.
    """

    chroot: str = ""
    acl: bytes = _OPEN_TO_ALL
    acls: tuple[tuple[str, bytes], ...] = ()

    def acl_of(self, path: str) -> bytes:
        """Return the access control list of a node that is created at a path below the chroot."""
        for directory, acl in self.acls:
            if path == directory or path.startswith(f"{directory}/"):
                return acl
        return self.acl


#: Makes the request.
Operation = Callable[[Scope], Request]


def serialized(acl: Sequence[ACL]) -> bytes:
    """Return an access control list as ZooKeeper takes it."""
    return bytes(wire.Create("", b"", acl, 0).serialize()[8:-4])


@dataclass(frozen=True, slots=True)
class Create:
    """A part of a transaction: a node to be made. Its result is the path.

    There is no stat: ZooKeeper takes a create2 in a transaction, but answers it as a create.
    """

    path: str
    data: bytes = b""
    ephemeral: bool = False
    sequence: bool = False

    type: ClassVar[int] = _CREATE

    def payload(self, scope: Scope) -> bytes:
        """Return it serialized."""
        flags = _EPHEMERAL * self.ephemeral | _SEQUENCE * self.sequence
        return _path(scope, self.path) + _bytes(self.data) + scope.acl_of(self.path) + _int(flags)


@dataclass(frozen=True, slots=True)
class Replace:
    """A part of a transaction: data to be written. Its result is the stat, whose mzxid is the transaction's zxid."""

    path: str
    data: bytes
    version: int = -1

    type: ClassVar[int] = _SET

    def payload(self, scope: Scope) -> bytes:
        """Return it serialized."""
        return _path(scope, self.path) + _bytes(self.data) + _int(self.version)


@dataclass(frozen=True, slots=True)
class Delete:
    """A part of a transaction: a node to be deleted. Its result is True."""

    path: str
    version: int = -1

    type: ClassVar[int] = _DELETE

    def payload(self, scope: Scope) -> bytes:
        """Return it serialized."""
        return _path(scope, self.path) + _int(self.version)


Part = Create | Replace | Delete


def create(path: str, data: bytes, *, ephemeral: bool = False, sequence: bool = False) -> Operation:
    """Create; the reply is (path, stat)."""
    node = Create(path, data, ephemeral, sequence)
    return lambda scope: Request(_CREATE2, node.payload(scope), partial(_read_created, scope.chroot))


def create_outside_chroot(path: str) -> Operation:
    """Create an empty node at a path from ZooKeeper's root, such as the chroot itself; the reply is (path, stat)."""

    def request(scope: Scope) -> Request:
        acl = scope.acl_of(path.removeprefix(scope.chroot))
        return create(path, b"")(Scope(acl=acl))

    return request


def get(path: str, *, watch: bool = False) -> Operation:
    """Read; the reply is (data, stat)."""
    return lambda scope: Request(_GET, _path(scope, path) + _flag(watch), wire.GetData.deserialize)


def exists(path: str, *, watch: bool = False) -> Operation:
    """Look; the reply is a stat or None."""
    return lambda scope: Request(_EXISTS, _path(scope, path) + _flag(watch), wire.Exists.deserialize)


def get_children(path: str, *, watch: bool = False) -> Operation:
    """List; the reply is the children's names."""
    return lambda scope: Request(_GET_CHILDREN, _path(scope, path) + _flag(watch), wire.GetChildren.deserialize)


def get_children_of(paths: Sequence[str]) -> Operation:
    """List nodes in one request, which costs ZooKeeper much less than one for each; `names_of` reads the reply.

    More than one needs ZooKeeper 3.6: older ones answer UnimplementedError.
    """
    if len(paths) == 1:
        body = _flag(False)
        return lambda scope: Request(
            _GET_CHILDREN, _path(scope, paths[0]) + body, lambda *reply: [_read_names(*reply)[0]]
        )

    def request(scope: Scope) -> Request:
        head = wire.multiheader_struct.pack(_GET_CHILDREN, False, -1)
        payload = b"".join(head + _path(scope, path) + _flag(False) for path in paths)
        return Request(_READ_MANY, payload + _END_OF_PARTS, _read_results)

    return request


def names_of(paths: Sequence[str], reply: Sequence[Any]) -> dict[str, list[str]]:
    """Return the children's names of each node that was listed with others; of one that is not there, none.

    Raises:
        Unavailable, KazooException: one of them could not be listed for another reason (`error_codes.outcome`).
    """
    for names in reply:
        if isinstance(names, Exception) and not isinstance(names, NoNodeError):
            raise outcome(names)
    return {path: [] if isinstance(names, NoNodeError) else names for path, names in zip(paths, reply, strict=True)}


def replace(path: str, data: bytes, version: int) -> Operation:
    """Write if the version matches; the reply is the stat."""
    node = Replace(path, data, version)
    return lambda scope: Request(_SET, node.payload(scope), wire.SetData.deserialize)


def get_acl(path: str) -> Operation:
    """Read who may do what with a node; the reply is (list, stat)."""
    return lambda scope: Request(_GET_ACL, _path(scope, path), wire.GetACL.deserialize)


def set_acl(path: str, acl: Sequence[ACL]) -> Operation:
    """Say who may do what with a node and in it, whatever was said before; the reply is the stat."""
    return lambda scope: Request(_SET_ACL, _path(scope, path) + serialized(acl) + _int(-1), wire.SetACL.deserialize)


def delete(path: str, version: int = -1) -> Operation:
    """Delete if the version matches; the reply is True."""
    node = Delete(path, version)
    return lambda scope: Request(_DELETE, node.payload(scope), lambda _reply, _offset: True)


def sync(path: str) -> Operation:
    """Have our server catch up with its leader, so that the next read is up to date."""
    return lambda scope: Request(_SYNC, _path(scope, path), _read_nothing)


def transaction(parts: Sequence[Part]) -> Operation:
    """Do all parts at one zxid, or none; the reply has a result for each.

    If none was done the results are exceptions: of the parts that were refused the reason, and of the others that
    they were rolled back or not tried. All of them together must stay under ZooKeeper's 1 MB a request.
    """

    def request(scope: Scope) -> Request:
        payload = b"".join(wire.multiheader_struct.pack(part.type, False, -1) + part.payload(scope) for part in parts)
        return Request(_TRANSACTION, payload + _END_OF_PARTS, _read_results)

    return request


def refusal(results: Sequence[Any]) -> Exception | None:
    """Return why nothing of a transaction was done; None if all was."""
    errors = [result for result in results if isinstance(result, Exception)]
    # All but the refused parts report that they were rolled back or not tried: that is no reason.
    reasons = [error for error in errors if not isinstance(error, RolledBackError | RuntimeInconsistency)]
    return next(iter(reasons or errors), None)


def add_watch(path: str) -> Operation:
    """Watch a node and all under it until the connection drops, each event comes with its path; the reply is None.

    Older than 3.6 ZooKeeper answers UnimplementedError.
    """

    kind = _int(_PERSISTENT_RECURSIVE)
    return lambda scope: Request(_ADD_WATCH, _path(scope, path) + kind, _read_nothing)


def remove_watches(path: str) -> Operation:
    """End every watch of this session on a node; the reply is None."""
    kind = _int(_ANY_WATCH)
    return lambda scope: Request(_REMOVE_WATCHES, _path(scope, path) + kind, _read_nothing)


def _path(scope: Scope, path: str) -> bytes:
    chroot = scope.chroot
    return _bytes((path if not chroot else chroot if path == "/" else chroot + path).encode())


def _bytes(data: bytes) -> bytes:
    return _int(len(data)) + data


def _int(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def _flag(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def _read_created(chroot: str, reply: bytes, offset: int) -> tuple[str, Any]:
    path, stat = wire.Create2.deserialize(reply, offset)
    return path[len(chroot) :], stat


def _read_results(reply: bytes, offset: int) -> list[Any]:
    """Read what the parts of a transaction, or of a request for many things, were answered."""
    results: list[Any] = []
    while True:
        kind, done, _ = wire.multiheader_struct.unpack_from(reply, offset)
        offset += wire.multiheader_struct.size
        if done:
            return results
        if kind == _CREATE:
            path, offset = wire.read_string(reply, offset)
            results.append(path)  # kazoo takes the chroot off
        elif kind == _DELETE:
            results.append(True)
        elif kind == _SET:
            results.append(wire.SetData.deserialize(reply, offset))
            offset += wire.stat_struct.size
        elif kind == _GET_CHILDREN:
            names, offset = _read_names(reply, offset)
            results.append(names)
        elif kind == _FAILED:
            (code,) = wire.int_struct.unpack_from(reply, offset)
            offset += wire.int_struct.size
            results.append(error_of(code))
        else:
            raise ValueError(f"a part was answered with a result of type {kind}")


def _read_names(reply: bytes, offset: int) -> tuple[list[str], int]:
    (count,) = wire.int_struct.unpack_from(reply, offset)
    offset += wire.int_struct.size
    names: list[str] = []
    for _ in range(count):
        name, offset = wire.read_string(reply, offset)
        names.append(name)
    return names, offset


def _read_nothing(_reply: bytes, _offset: int) -> None:
    return None
