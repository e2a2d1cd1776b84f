"""What the protos say of a method, read from their descriptors."""

from __future__ import annotations

from functools import cache

from google.protobuf import descriptor_pool

from coordination.channel import Idempotency


@cache
def idempotency(method: str) -> Idempotency:
    """Whether `/package.Service/Method` may be sent again when its reply was lost, and whether it changes anything."""
    service, _, name = method.strip("/").partition("/")
    try:
        found = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return Idempotency.UNKNOWN
    return Idempotency(int(found.GetOptions().idempotency_level))


def is_read(method: str) -> bool:
    """Whether `/package.Service/Method` changes nothing."""
    return idempotency(method) is Idempotency.NO_SIDE_EFFECTS


def method_names(service: str) -> tuple[str, ...]:
    """The methods of `package.Service`, as the registry lists them."""
    return tuple(method.name for method in descriptor_pool.Default().FindServiceByName(service).methods)
