"""The shared messages of `countinghouse.type.v1`, to and from the kernel's types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import Message

from countinghouse.type.v1 import clerk_pb2, fence_pb2, money_pb2
from services.kernel.errors import InvalidArgument
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import StoredResponse, fingerprint
from services.kernel.ids import check_name
from services.kernel.money import Money, check_currency
from services.kernel.principal import Principal, Role

_ROLES: dict[Role, clerk_pb2.Role.ValueType] = {
    Role.CUSTOMER: clerk_pb2.ROLE_CUSTOMER,
    Role.CASHIER: clerk_pb2.ROLE_CASHIER,
    Role.ACCOUNTANT: clerk_pb2.ROLE_ACCOUNTANT,
    Role.AUDITOR: clerk_pb2.ROLE_AUDITOR,
    Role.OPERATOR: clerk_pb2.ROLE_OPERATOR,
    Role.SERVICE: clerk_pb2.ROLE_SERVICE,
    Role.ACQUIRER: clerk_pb2.ROLE_ACQUIRER,
}
_BY_NUMBER: dict[int, Role] = {int(number): role for role, number in _ROLES.items()}
_Member = TypeVar("_Member")


def stored_message(message: Message) -> StoredResponse:
    """Return a response as it is stored and sent."""
    return StoredResponse(ok=True, body=message.SerializeToString(deterministic=True))


def enum_in(members: Mapping[int, _Member], number: int, field: str) -> _Member:
    """Return the member of a required enum field.

    Args:
        members: By their numbers on the wire.

    Raises:
        InvalidArgument: FIELD_REQUIRED: it is UNSPECIFIED, or a number this release does not know.
    """
    if number not in members:
        names = ", ".join(str(member) for member in members.values())
        raise InvalidArgument.of_field("FIELD_REQUIRED", field, f"{field} is required: {names}")
    return members[number]


def optional_enum_in(members: Mapping[int, _Member], number: int, field: str) -> _Member | None:
    """Return the member of an enum field that may be left out; None: it was.

    An unknown number is refused and not taken for "left out": it has a meaning to a newer client.

    Raises:
        InvalidArgument: <FIELD>_UNKNOWN, for instance STATE_UNKNOWN.
    """
    if number == 0:
        return None
    if number not in members:
        names = ", ".join(str(member) for member in members.values())
        raise InvalidArgument.of_field(
            f"{field.upper()}_UNKNOWN", field, f"there is no {field} {number}; leave it out, or send {names}"
        )
    return members[number]


def money_in(message: money_pb2.Money) -> Money:
    """Return an amount in a request; raise InvalidArgument if it cannot be paid or its currency is not in ISO 4217."""
    check_currency(message.currency_code, "amount.currency_code")
    return money_of(message)


def money_of(message: money_pb2.Money) -> Money:
    """Return a stored amount, perhaps from before currencies were checked; raise InvalidArgument if there is none."""
    return Money(message.minor_units, message.currency_code)


def money_out(money: Money) -> money_pb2.Money:
    """Return the amount as a message."""
    return money_pb2.Money(minor_units=money.minor_units, currency_code=money.currency)


def fingerprint_without(request: Message, key_field: str) -> str:
    """Return the fingerprint of a request without its key: it tells a repeat from another operation under the key."""
    payload = type(request)()
    payload.CopyFrom(request)
    payload.ClearField(key_field)
    return fingerprint(payload.SerializeToString(deterministic=True))


def clerk_in(message: clerk_pb2.Clerk) -> Principal:
    """Return the clerk of a message; raise InvalidArgument without a name or a role."""
    name = check_name(message.name, "clerk.name")
    return Principal(name, enum_in(_BY_NUMBER, message.role, "clerk.role"), message.delegation)


def clerk_out(principal: Principal) -> clerk_pb2.Clerk:
    """Return a principal as a message."""
    return clerk_pb2.Clerk(name=principal.name, role=_ROLES[principal.role])


def represented_out(principal: Principal) -> clerk_pb2.Clerk:
    """Return a principal as one for whom a service acts: with their delegation, for the eyes of our services."""
    return clerk_pb2.Clerk(name=principal.name, role=_ROLES[principal.role], delegation=principal.delegation)


def fence_in(message: fence_pb2.Fence, *, required: bool) -> Fence:
    """Return the fence of a message; raise InvalidArgument if it is required and missing, or negative."""
    fence = Fence(message.generation, message.token)
    if fence == NO_FENCE and not required:
        return NO_FENCE
    if fence.generation < 1 or fence.token < 1:
        raise InvalidArgument.of_field(
            "FENCE_REQUIRED",
            "fence",
            "a fence is required: the generation and token of the order's lock, both 1 or more",
        )
    return fence


def fence_out(fence: Fence) -> fence_pb2.Fence:
    """Return the fence as a message."""
    return fence_pb2.Fence(generation=fence.generation, token=fence.token)
