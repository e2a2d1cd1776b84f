"""A governance rule as stored in ZooKeeper: one YAML mapping, parsed with limits.

As Dubbo's own reader, this one takes any scalar for any other and ignores unknown keys. Anything else it cannot parse
is a BadRule that names the place.

Invariants
1. A document is measured before anything is built from it: its length, its nodes, its depth, the length of each text.
   Nothing that is refused is built or rendered, so that no rule blocks the event loop.
2. Anchors and aliases are refused: a few of them stand for millions of nodes (CVE-2017-18640). So are tags.
3. An empty entry of a list is skipped and logged. A list of conditions in which nothing but empty entries is left makes
   the rule bad: it must not be taken for "no condition".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import yaml

from coordination.errors import BadRule
from coordination.quoting import quoted

log = logging.getLogger(__name__)

MAX_CHARACTERS = 65_536
MAX_NODES = 2_000
MAX_DEPTH = 16
#: Of one text: some are numbers to YAML, and reading a long one takes the square of its length.
MAX_TEXT_CHARACTERS = 4_096
#: Of one text that is a number to YAML. A longer one may be too large for a float (in base 60, from 350 characters), or
#: have more digits than Python writes as text (hexadecimal, from 3,572).
MAX_NUMBER_CHARACTERS = 256
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class RuleDocument:
    """One mapping of a rule, with typed access.

    Args:
        values: the mapping, as YAML gave it.
        origin: where the rule is written, for messages.
    """

    def __init__(self, values: Any, origin: str) -> None:
        if not isinstance(values, Mapping):
            raise BadRule(f"{origin}: {quoted(values)} is not a mapping")
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
        """Return a list of scalars as texts, without empty ones; empty if missing.

        Raises:
            BadRule: there are entries, and all of them are empty.
        """
        return tuple(self._scalar(key, value) for _, value in self._entries(key))

    def documents(self, key: str) -> tuple[RuleDocument, ...]:
        """Return a list of mappings, without empty ones; empty if missing. Raises as `texts`."""
        return tuple(RuleDocument(value, f"{self.origin}, {key} {number}") for number, value in self._entries(key))

    def document(self, key: str) -> RuleDocument | None:
        """Return a mapping; None if missing."""
        return RuleDocument(self._values[key], f"{self.origin}, {key}") if key in self else None

    def items(self) -> dict[str, str]:
        """Return all entries as texts."""
        return {str(key): self._scalar(str(key), value) for key, value in self._values.items()}

    @property
    def mapping(self) -> Mapping[str, Any]:
        """The mapping as YAML gave it."""
        return self._values

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
                raise BadRule(f"{self.origin}: {quoted(key)} is not supported, only {', '.join(keys)}")

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise BadRule(f"{self.origin}: {key} should be a list, not {quoted(value)}")
        return value

    def _entries(self, key: str) -> list[tuple[int, Any]]:
        """Return the entries of a list that say something, with their places, counted from 1."""
        entries = list(enumerate(self._list(key), 1))
        left = [(number, value) for number, value in entries if not _is_empty(value)]
        if entries and not left:
            raise BadRule(f"{self.origin}: {key} has empty entries only")
        if len(left) < len(entries):
            log.warning("%s: %s empty entries of %s are skipped", self.origin, len(entries) - len(left), key)
        return left

    def _scalar(self, key: str, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if value is None or isinstance(value, Mapping | list):
            raise BadRule(f"{self.origin}: {key} should be plain text, not {quoted(value)}")
        return str(value)


def load(text: str, origin: str) -> Any:
    """Return what a YAML document says.

    Raises:
        BadRule: too large, not YAML, or with anchors, aliases or tags.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadRule(f"{origin}: {len(text)} characters are too many for a rule, {MAX_CHARACTERS} are allowed")
    try:
        _measure(text, origin)
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except BadRule:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, ArithmeticError) as error:
        raise BadRule(f"{origin}: not YAML{_place(getattr(error, 'problem_mark', None))}") from None


def _measure(text: str, origin: str) -> None:
    """Refuse what is too large to be built, before it is.

    Raises:
        BadRule: it is, or it has anchors, aliases or tags.
    """
    nodes = depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise BadRule(f"{origin}: anchors and aliases are not allowed; write each value out")
        if getattr(event, "tag", None) not in (None, "!"):
            raise BadRule(f"{origin}: tags are not allowed; write plain values")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.ScalarEvent):
            _measure_text(event, origin)
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise BadRule(f"{origin}: more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH}")


def _measure_text(event: yaml.ScalarEvent, origin: str) -> None:
    length = len(event.value)
    if length > MAX_TEXT_CHARACTERS:
        raise BadRule(f"{origin}: a text of {length} characters; {MAX_TEXT_CHARACTERS} are allowed")
    if length > MAX_NUMBER_CHARACTERS and event.implicit[0] and _is_number(event.value):
        raise BadRule(
            f"{origin}: a number of {length} characters{_place(event.start_mark)}; {MAX_NUMBER_CHARACTERS} are allowed"
        )


def _place(mark: Any) -> str:
    return "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"


def _is_number(text: str) -> bool:
    """Tell whether a plain text is a number to YAML."""
    resolvers = yaml.CSafeLoader.yaml_implicit_resolvers.get(text[:1], ())
    return any(tag in _NUMBERS and pattern.match(text) for tag, pattern in resolvers)


def _is_empty(value: Any) -> bool:
    """Tell whether an entry of a list says nothing: missing, blank, or a collection without anything in it."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})
