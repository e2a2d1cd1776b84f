"""An order's queue as it stands in ZooKeeper: the names of its nodes, their order, and who they say they are.

    <root>/<shard>/<order>-<nonce>-<sequence>       ephemeral, data: who (JSON)

Pure: nothing here asks ZooKeeper. An order's shard is its CRC-32 modulo the number of shards. The nonce tells one
attempt's nodes from all others; all nodes of one batch carry the same. The sequence is the counter of the shard's
directory, signed, 32 bits wide, and it wraps.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_ORDER_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# Java prints the number with %010d: ten characters, the sign included, so nine or ten digits after a sign.
_NODE = re.compile(r"([A-Za-z0-9_.:-]{1,64})-([0-9a-f]{16})-(\d{10}|-\d{9,10})")


MAX_HOLDER_BYTES = 1500  # as it is written into each node: 500 of them stay under ZooKeeper's 1 MB a request


@dataclass(frozen=True, slots=True)
class Holder:
    """Who stands in a queue, as shown to the others.

    Attributes:
        clerk: the person's id.
        role: cashier or accountant.
        instance: the service process that acts for them.
        payment: the payment they are settling.
        since_ms: when they asked, Unix milliseconds by their own clock; for display only.
    """

    clerk: str
    role: str
    instance: str
    payment: str
    since_ms: int

    def to_json(self) -> bytes:
        """Return the node's data."""
        fields = {
            "clerk": self.clerk,
            "role": self.role,
            "instance": self.instance,
            "payment": self.payment,
            "since_ms": self.since_ms,
        }
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Holder:
        """Read a node's data; what is missing or malformed reads as "?" (or 0), for it is only shown."""
        try:
            fields = json.loads(data) if len(data) <= MAX_HOLDER_BYTES else None
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            fields = {}
        since_ms = fields.get("since_ms")
        return cls(
            clerk=str(fields.get("clerk", "?")),
            role=str(fields.get("role", "?")),
            instance=str(fields.get("instance", "?")),
            payment=str(fields.get("payment", "?")),
            since_ms=since_ms if isinstance(since_ms, int) else 0,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """One node of an order's queue: position 0 holds; token is its czxid."""

    position: int
    token: int
    holder: Holder


@dataclass(frozen=True, slots=True)
class NodeName:
    """A lock node's name, taken apart."""

    order_id: str
    nonce: str
    sequence: int

    @classmethod
    def parse(cls, name: str) -> NodeName | None:
        """Take a name apart from the right, since order ids may hold '-'; None if it is not a lock's."""
        match = _NODE.fullmatch(name)
        return cls(match[1], match[2], int(match[3])) if match else None


def check_order_id(order_id: str) -> None:
    """Do nothing if it is one.

    Raises:
        ValueError: it is not.
    """
    if not _ORDER_ID.fullmatch(order_id):
        raise ValueError(f"not an order id (1-64 of A-Z a-z 0-9 _ . : -): {order_id!r}")


def shard_name(number: int) -> str:
    """Return the name of a shard's directory."""
    return f"{number:04d}"


def shard_of(order_id: str, shards: int) -> str:
    """Return the name of the directory that holds an order's nodes."""
    return shard_name(zlib.crc32(order_id.encode()) % shards)


def ahead_by(sequence: int, other: int) -> int:
    """Return how far `sequence` stands ahead of `other` in the queue; negative if behind it.

    ZooKeeper's counter is a signed 32-bit one that wraps, so 2147483647 stands one ahead of -2147483648.
    """
    return (other - sequence + 2**31) % 2**32 - 2**31


def line_of(order_id: str, names: Iterable[str]) -> list[str]:
    """Return the names of one order's nodes, out of a shard's, in queue order."""
    prefix = order_id + "-"
    nodes = [
        (name, node.sequence)
        for name in names
        if name.startswith(prefix) and (node := NodeName.parse(name)) and node.order_id == order_id
    ]
    if not nodes:
        return []
    some = nodes[0][1]
    return [name for name, _ in sorted(nodes, key=lambda node: ahead_by(some, node[1]))]


def made_by(nonce: str, listings: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return the paths of one attempt's nodes, by order id, out of the names in each shard."""
    return {
        node.order_id: f"{shard}/{name}"
        for shard, names in listings.items()
        for name in names
        if nonce in name and (node := NodeName.parse(name)) and node.nonce == nonce
    }
