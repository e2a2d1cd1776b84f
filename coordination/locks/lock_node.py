"""The nodes of a resource's queue in ZooKeeper: their names, their order, and the holders in their data.

    <root>/<shard>/<resource>-<nonce>-<sequence>       ephemeral, data: the holder (JSON)

Pure: nothing here calls ZooKeeper. A resource's shard is its CRC-32 modulo the number of shards. The nonce tells one
attempt's nodes from all others; all nodes of one batch carry the same. The sequence is the counter of the shard's
directory, signed, 32 bits wide, and it wraps.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coordination.quoting import well_formed

_RESOURCE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# Java prints the number with %010d: ten characters, the sign included, so nine or ten digits after a sign.
_NODE = re.compile(r"([A-Za-z0-9_.:-]{1,64})-([0-9a-f]{16})-(\d{10}|-\d{9,10})")


MAX_HOLDER_BYTES = 1500  # as it is written into each node: 500 of them stay under ZooKeeper's 1 MB a request


@dataclass(frozen=True, slots=True)
class Holder:
    """A holder or waiter of a resource, as shown to the others.

    Attributes:
        owner: the owner's name, such as a user's.
        details: further fields to show, such as the process that acts for the owner; not named `owner` or `since_ms`.
        since_ms: when it asked, Unix milliseconds by its own clock; for display only.
    """

    owner: str
    details: Mapping[str, str] = field(default_factory=dict)
    since_ms: int = 0

    def __str__(self) -> str:
        """Return the owner, and the details in parentheses."""
        details = ", ".join(detail for detail in self.details.values() if detail)
        return f"{self.owner} ({details})" if details else self.owner

    def to_json(self) -> bytes:
        """Return the node's data: one flat object."""
        fields = {"owner": self.owner, **self.details, "since_ms": self.since_ms}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Holder:
        """Read a node's data; what is missing or malformed reads as "?" (or 0), for it is only shown.

        Lone surrogates are escaped: answers and errors name the holder, and no encoding takes them.

        The first release wrote `clerk` where `owner` is now.
        """
        try:
            fields = json.loads(data) if len(data) <= MAX_HOLDER_BYTES else None
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            return cls("?")
        since_ms = fields.pop("since_ms", 0)
        first_release = fields.pop("clerk", "?")
        owner = fields.pop("owner", first_release)
        details = {well_formed(str(name)): well_formed(str(value)) for name, value in fields.items()}
        return cls(well_formed(str(owner)), details, since_ms if isinstance(since_ms, int) else 0)


@dataclass(frozen=True, slots=True)
class Place:
    """One node of a resource's queue: position 0 holds; token is its czxid."""

    position: int
    token: int
    holder: Holder


@dataclass(frozen=True, slots=True)
class NodeName:
    """A lock node's name, parsed."""

    resource_id: str
    nonce: str
    sequence: int

    @classmethod
    def parse(cls, name: str) -> NodeName | None:
        """Parse a name from the right, since resource ids may hold '-'; None if it is not a lock's."""
        match = _NODE.fullmatch(name)
        return cls(match[1], match[2], int(match[3])) if match else None


def check_resource_id(resource_id: str) -> None:
    """Raise ValueError unless it is a resource id."""
    if not _RESOURCE_ID.fullmatch(resource_id):
        raise ValueError(f"not a resource id (1-64 of A-Z a-z 0-9 _ . : -): {resource_id!r}")


def shard_name(number: int) -> str:
    """Return the name of a shard's directory."""
    return f"{number:04d}"


def shard_of(resource_id: str, shards: int) -> str:
    """Return the name of the directory that holds a resource's nodes."""
    return shard_name(zlib.crc32(resource_id.encode()) % shards)


def ahead_by(sequence: int, other: int) -> int:
    """Return how far `sequence` stands ahead of `other` in the queue; negative if behind it.

    ZooKeeper's counter is a signed 32-bit one that wraps, so 2147483647 stands one ahead of -2147483648.
    """
    return (other - sequence + 2**31) % 2**32 - 2**31


def queue_of(resource_id: str, names: Iterable[str]) -> list[str]:
    """Return the names of one resource's nodes, out of a shard's, in queue order."""
    prefix = resource_id + "-"
    nodes = [
        (name, node.sequence)
        for name in names
        if name.startswith(prefix) and (node := NodeName.parse(name)) and node.resource_id == resource_id
    ]
    if not nodes:
        return []
    some = nodes[0][1]
    return [name for name, _ in sorted(nodes, key=lambda node: ahead_by(some, node[1]))]


def made_by(nonce: str, listings: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return the paths of one attempt's nodes, by resource id, out of the names in each shard."""
    return {
        node.resource_id: f"{shard}/{name}"
        for shard, names in listings.items()
        for name in names
        if nonce in name and (node := NodeName.parse(name)) and node.nonce == nonce
    }
