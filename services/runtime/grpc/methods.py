"""What the protos say of a method, read from their descriptors."""

from __future__ import annotations

from functools import cache

from google.protobuf import descriptor_pool

from coordination.channel import Idempotency


@cache
def idempotency(method: str) -> Idempotency:
    """Return whether `/package.Service/Method` may be sent again after a lost reply, and whether it is a read."""
    service, _, name = method.strip("/").partition("/")
    try:
        found = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return Idempotency.UNKNOWN
    return Idempotency(int(found.GetOptions().idempotency_level))


def is_read(method: str) -> bool:
    """Return whether `/package.Service/Method` changes nothing."""
    return idempotency(method) is Idempotency.NO_SIDE_EFFECTS


@cache
def is_stream(method: str) -> bool:
    """Return whether `/package.Service/Method` answers with a stream."""
    service, _, name = method.strip("/").partition("/")
    try:
        return bool(descriptor_pool.Default().FindMethodByName(f"{service}.{name}").server_streaming)
    except KeyError:
        return False


def method_names(service: str) -> tuple[str, ...]:
    """Return the methods of `package.Service`, as the registry lists them."""
    return tuple(method.name for method in descriptor_pool.Default().FindServiceByName(service).methods)
