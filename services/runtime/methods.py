"""What the protos say of a method, read from their descriptors."""

from __future__ import annotations

from functools import cache

from google.protobuf import descriptor_pb2, descriptor_pool

_READ = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
_REPEATABLE = (descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS, descriptor_pb2.MethodOptions.IDEMPOTENT)


@cache
def _level(method: str) -> int:
    service, _, name = method.strip("/").partition("/")
    try:
        found = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
    return int(found.GetOptions().idempotency_level)


def is_idempotent(method: str) -> bool:
    """Whether `/package.Service/Method` may be sent again when its reply was lost."""
    return _level(method) in _REPEATABLE


def is_read(method: str) -> bool:
    """Whether `/package.Service/Method` changes nothing."""
    return _level(method) == _READ


def method_names(service: str) -> tuple[str, ...]:
    """The methods of `package.Service`, as the registry lists them."""
    return tuple(method.name for method in descriptor_pool.Default().FindServiceByName(service).methods)
