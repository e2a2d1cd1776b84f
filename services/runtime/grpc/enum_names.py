"""The names of enum numbers that a peer sent: a newer one may send numbers that this version does not know."""

from __future__ import annotations

from typing import Any


def name_of(enum: Any, number: int, prefix: str = "") -> str:
    """Return the name of an enum's number without its prefix: PAID; of an unknown number, the number: 99.

    The enum's own `Name` raises ValueError for an unknown number.

    Args:
        enum: As the generated code has it, like `order_pb2.OrderState`.
        prefix: Like `ORDER_STATE_`.
    """
    known = enum.DESCRIPTOR.values_by_number.get(number)
    return str(known.name).removeprefix(prefix) if known else str(number)
