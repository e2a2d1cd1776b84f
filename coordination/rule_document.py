"""A governance rule as it stands in ZooKeeper: one YAML mapping, read with limits.

Dubbo's own reader takes any scalar for any other and ignores keys it does not know; so does this one. What it
cannot take is a BadRule that says where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from coordination.errors import BadRule

MAX_CHARACTERS = 65_536
"""A longer rule is refused: reading a megabyte of YAML would hold up the event loop for seconds."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RuleDocument:
    """One mapping of a rule, with typed access.

    Args:
        values: the mapping, as YAML gave it.
        origin: where it stands, for messages.
    """

    def __init__(self, values: Any, origin: str) -> None:
        if not isinstance(values, Mapping):
            raise BadRule(f"{origin}: {_shown(values)} is not a mapping")
        self.origin = origin
        self._values = values

    @classmethod
    def parse(cls, text: str, origin: str) -> RuleDocument:
        """Read a whole rule.

        Raises:
            BadRule: too long, no YAML, or no mapping.
        """
        return cls(load(text, origin), origin)

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value, as Java parses it: only "true" is true."""
        value = self._values.get(key)
        return default if value is None else str(value).lower() == "true"

    def text(self, key: str, default: str = "") -> str:
        """Return a scalar as text."""
        value = self._values.get(key)
        if value is None:
            return default
        return self._scalar(key, value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of scalars as texts; empty if missing."""
        return tuple(self._scalar(key, value) for value in self._list(key))

    def documents(self, key: str) -> tuple[RuleDocument, ...]:
        """Return a list of mappings; empty if missing."""
        return tuple(
            RuleDocument(value, f"{self.origin}, {key} {number}") for number, value in enumerate(self._list(key), 1)
        )

    def document(self, key: str) -> RuleDocument | None:
        """Return a mapping; None if missing."""
        return RuleDocument(self._values[key], f"{self.origin}, {key}") if key in self else None

    def items(self) -> dict[str, str]:
        """Return all entries as texts."""
        return {str(key): self._scalar(str(key), value) for key, value in self._values.items()}

    def raw(self, key: str) -> Any:
        """Return a value as YAML gave it; None if missing."""
        return self._values.get(key)

    def only(self, *keys: str) -> None:
        """Refuse any other key: a condition that is not understood must not be taken for none.

        Raises:
            BadRule: there is one.
        """
        for key in self._values:
            if key not in keys:
                raise BadRule(f"{self.origin}: {key!r} is not supported, only {', '.join(keys)}")

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise BadRule(f"{self.origin}: {key} should be a list, not {_shown(value)}")
        return value

    def _scalar(self, key: str, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if value is None or isinstance(value, Mapping | list):
            raise BadRule(f"{self.origin}: {key} should be plain text, not {_shown(value)}")
        return str(value)


def load(text: str, origin: str) -> Any:
    """Return what a YAML document says.

    Raises:
        BadRule: too long, or no YAML.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadRule(f"{origin}: {len(text)} characters are too many for a rule")
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506  a safe loader, the fast one if there is one
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise BadRule(f"{origin}: not YAML: {problem}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
