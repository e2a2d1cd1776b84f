"""The requests `Session.send` takes: each function describes one.

They are put on kazoo's connection without kazoo's two results, its callback thread and its sets of watchers: a reply
costs one step on the I/O thread and one on the loop. Replies are kazoo's: a `ZnodeStat` where a stat is spoken of, its
exceptions where a node is not as asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kazoo.exceptions import EXCEPTIONS, RolledBackError, RuntimeInconsistency
from kazoo.protocol import serialization as wire
from kazoo.security import OPEN_ACL_UNSAFE

CREATED, DELETED, CHANGED, CHILDREN_CHANGED = 1, 2, 3, 4  # what a watch event says of its node

_EPHEMERAL, _SEQUENCE = 1, 2  # flags of a create
_FAILED = -1  # the type of a transaction's part that was not done
_ADD_WATCH, _REMOVE_WATCHES = 106, 18  # ZooKeeper 3.6 has them, kazoo does not
_PERSISTENT_RECURSIVE, _ANY_WATCH = 1, 3


@dataclass(frozen=True, slots=True)
class Request:
    """One request as kazoo's connection takes it.

    It has no `watcher`: whatever is watched, the event comes to the session (`coordination.wire`).

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


Operation = Callable[[str], Request]
"""Makes the request, given the chroot under which all paths of the session lie ("" for none)."""


@dataclass(frozen=True, slots=True)
class Create:
    """A part of a transaction: a node to be made. Its result is the path.

    There is no stat: ZooKeeper takes a create2 in a transaction, but answers it as a create.
    """

    path: str
    data: bytes = b""
    ephemeral: bool = False
    sequence: bool = False


@dataclass(frozen=True, slots=True)
class Replace:
    """A part of a transaction: data to be written. Its result is the stat, whose mzxid is the transaction's zxid."""

    path: str
    data: bytes
    version: int = -1


@dataclass(frozen=True, slots=True)
class Delete:
    """A part of a transaction: a node to be deleted. Its result is True."""

    path: str
    version: int = -1


Part = Create | Replace | Delete


def create(path: str, data: bytes, *, ephemeral: bool = False, sequence: bool = False) -> Operation:
    """Create; the reply is (path, stat)."""
    flags = _flags(ephemeral, sequence)

    def request(chroot: str) -> Request:
        kazoos = wire.Create2(_under(chroot, path), data, OPEN_ACL_UNSAFE, flags)
        return _request(kazoos, partial(_read_created, chroot))

    return request


def get(path: str, *, watch: bool = False) -> Operation:
    """Read; the reply is (data, stat)."""
    return lambda chroot: _request(wire.GetData(_under(chroot, path), watch))


def exists(path: str, *, watch: bool = False) -> Operation:
    """Look; the reply is a stat or None."""
    return lambda chroot: _request(wire.Exists(_under(chroot, path), watch))


def get_children(path: str, *, watch: bool = False) -> Operation:
    """List; the reply is the children's names."""
    return lambda chroot: _request(wire.GetChildren(_under(chroot, path), watch))


def replace(path: str, data: bytes, version: int) -> Operation:
    """Write if the version matches; the reply is the stat."""
    return lambda chroot: _request(wire.SetData(_under(chroot, path), data, version))


def delete(path: str, version: int = -1) -> Operation:
    """Delete if the version matches; the reply is True."""
    return lambda chroot: _request(wire.Delete(_under(chroot, path), version))


def sync(path: str) -> Operation:
    """Let the server we are on catch up with its leader, so that the next read shows what is there now."""
    return lambda chroot: _request(wire.Sync(_under(chroot, path)))


def transaction(parts: Sequence[Part]) -> Operation:
    """Do all parts at one zxid, or none; the reply has a result for each.

    If none was done the results are exceptions: of the parts that were refused the reason, and of the others that
    they were rolled back or not tried. All of them together must stay under ZooKeeper's 1 MB a request.
    """

    def request(chroot: str) -> Request:
        whole = wire.Transaction([_part(chroot, part) for part in parts])
        return _request(whole, partial(_read_results, chroot))

    return request


def refusal(results: Sequence[Any]) -> Exception | None:
    """Return why nothing of a transaction was done; None if all was."""
    errors = [result for result in results if isinstance(result, Exception)]
    # All but the refused parts report that they were rolled back or not tried: that is no reason.
    reasons = [error for error in errors if not isinstance(error, RolledBackError | RuntimeInconsistency)]
    return next(iter(reasons or errors), None)


def add_watch(path: str) -> Operation:
    """Watch a node and all under it until the connection drops, each event told with its path; the reply is None.

    ZooKeeper older than 3.6 answers UnimplementedError.
    """

    def request(chroot: str) -> Request:
        payload = wire.write_string(_under(chroot, path)) + wire.int_struct.pack(_PERSISTENT_RECURSIVE)
        return Request(_ADD_WATCH, payload, _read_nothing)

    return request


def remove_watches(path: str) -> Operation:
    """End every watch of this session on a node; the reply is None."""

    def request(chroot: str) -> Request:
        payload = wire.write_string(_under(chroot, path)) + wire.int_struct.pack(_ANY_WATCH)
        return Request(_REMOVE_WATCHES, payload, _read_nothing)

    return request


def _request(kazoos: Any, read: Callable[[bytes, int], Any] | None = None) -> Request:
    return Request(kazoos.type, bytes(kazoos.serialize()), read or kazoos.deserialize)


def _part(chroot: str, part: Part) -> Any:
    path = _under(chroot, part.path)
    if isinstance(part, Create):
        return wire.Create(path, part.data, OPEN_ACL_UNSAFE, _flags(part.ephemeral, part.sequence))
    if isinstance(part, Replace):
        return wire.SetData(path, part.data, part.version)
    return wire.Delete(path, part.version)


def _flags(ephemeral: bool, sequence: bool) -> int:
    return _EPHEMERAL * ephemeral | _SEQUENCE * sequence


def _under(chroot: str, path: str) -> str:
    return path if not chroot else chroot if path == "/" else chroot + path


def _read_created(chroot: str, reply: bytes, offset: int) -> tuple[str, Any]:
    path, stat = wire.Create2.deserialize(reply, offset)
    return path[len(chroot) :], stat


def _read_results(chroot: str, reply: bytes, offset: int) -> list[Any]:
    results: list[Any] = []
    while True:
        header, offset = wire.MultiHeader.deserialize(reply, offset)
        if header.done:
            return results
        if header.type == wire.Create.type:
            path, offset = wire.read_string(reply, offset)
            results.append(path[len(chroot) :])
        elif header.type == wire.SetData.type:
            results.append(wire.SetData.deserialize(reply, offset))
            offset += wire.stat_struct.size
        elif header.type == wire.Delete.type:
            results.append(True)
        elif header.type == _FAILED:
            (code,) = wire.int_struct.unpack_from(reply, offset)
            offset += wire.int_struct.size
            results.append(EXCEPTIONS[code]())
        else:
            raise ValueError(f"a transaction was answered with a result of type {header.type}")


def _read_nothing(_reply: bytes, _offset: int) -> None:
    return None
