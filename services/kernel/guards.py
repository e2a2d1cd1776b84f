"""The guards against settling twice, by name, so that each can be switched off to see what it stops.

All are on. Switching one off is for demonstrations: the start logs a warning, and the production profile refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from services.kernel.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Guards:
    """Which guards are on."""

    #: The ticket or request row is consumed by a conditional update, and its stored response replayed.
    ticket: bool = True
    #: A clerk waits for their turn at the order's lock.
    lock: bool = True
    #: A write with a smaller fence than the row has seen is refused.
    fence: bool = True
    #: States change by conditional updates, and a settled order is not settled again.
    state: bool = True
    #: Unique indexes: one active payment per order, one journal per business key, one reversal per journal.
    unique: bool = True
    #: What a dead process left unfinished is finished by the others.
    recovery: bool = True
    #: A card payment asks the acquirer under one key, however often it asks.
    acquirer_key: bool = True

    @classmethod
    def without(cls, names: Iterable[str]) -> Guards:
        """Return all guards but those named.

        Raises:
            InvalidArgument: GUARD_UNKNOWN.
        """
        off = [name.strip() for name in names if name.strip()]
        for name in off:
            if name not in NAMES:
                raise InvalidArgument("GUARD_UNKNOWN", f"there is no guard {name!r}; the guards are {', '.join(NAMES)}")
        return cls(**{_field_of(name): False for name in off})

    @property
    def off(self) -> tuple[str, ...]:
        """The names of the guards that are off."""
        return tuple(name for name in NAMES if not getattr(self, _field_of(name)))


#: In the order in which a payment meets them.
NAMES = tuple(field.name.replace("_", "-") for field in fields(Guards))


def _field_of(name: str) -> str:
    return name.replace("-", "_")
