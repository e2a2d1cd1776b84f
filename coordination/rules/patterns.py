"""The patterns that Dubbo's governance rules are made of: values, addresses, strings.

    ValuePattern     find*  1~100  $host              condition routes
    AddressPattern   10.0.0.*:50051  10.0.0.0/24      tag routes, `match` of configurators
    StringMatch      {exact: a}  {prefix: a}          `match` of configurators and tags

Each is parsed once and then only compared: nothing here asks DNS, and the time is linear in the text. Regular
expressions are refused: a bad one could block every call.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from coordination.errors import BadRule
from coordination.quoting import quoted

ANY = "*"
ANY_HOST = "0.0.0.0"  # noqa: S104  Dubbo's way to write "whatever the host"; nothing is bound to it

#: How many hosts' addresses are kept parsed.
HOSTS_KEPT = 4_096
_PORT_MAX = 65_535


def glob_matches(pattern: str, value: str) -> bool:
    """Tell whether `value` fits a pattern in which ``*`` stands for any text, the empty one too."""
    first, *others = pattern.split(ANY)
    if not others:
        return value == pattern
    if not value.startswith(first):
        return False
    position = len(first)
    for part in others[:-1]:
        found = value.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return value.endswith(others[-1]) and len(value) - len(others[-1]) >= position


@dataclass(frozen=True, slots=True)
class ValuePattern:
    """One value on the right of ``=`` or ``!=`` in a condition: text with ``*``, a range of integers, or ``$name``,
    which is what the consumer has under that name."""

    text: str

    @classmethod
    def parse(cls, text: str) -> ValuePattern:
        """Read it.

        Raises:
            BadRule: a range that is none.
        """
        if "~" in text:
            low, _, high = text.partition("~")
            if not (low or high) or not all(_is_integer(bound) for bound in (low, high) if bound):
                raise BadRule(f"{quoted(text)} is not a range of integers, like 1~100")
        return cls(text)

    @property
    def plain(self) -> bool:
        """Whether it stands for its own text and no other."""
        return not (ANY in self.text or "~" in self.text or self.text.startswith("$"))

    def matches(self, value: str, consumer: Mapping[str, str]) -> bool:
        """Tell whether `value` fits, for a consumer with these facts."""
        if "~" in self.text:
            low, _, high = self.text.partition("~")
            return _is_integer(value) and (not low or int(low) <= int(value)) and (not high or int(value) <= int(high))
        pattern = consumer.get(self.text[1:], "") if self.text.startswith("$") else self.text
        return glob_matches(pattern, value)


@dataclass(frozen=True, slots=True)
class Values:
    """The values on the right of ``=`` or of ``!=``. Plain ones are found at once, however many there are."""

    plain: frozenset[str] = frozenset()
    patterns: tuple[ValuePattern, ...] = ()

    @classmethod
    def of(cls, patterns: Iterable[ValuePattern]) -> Values:
        """Return the values of some patterns."""
        patterns = tuple(patterns)
        return cls(
            frozenset(pattern.text for pattern in patterns if pattern.plain),
            tuple(pattern for pattern in patterns if not pattern.plain),
        )

    def __bool__(self) -> bool:
        return bool(self.plain or self.patterns)

    def include(self, value: str, consumer: Mapping[str, str]) -> bool:
        """Tell whether `value` fits one of them, for a consumer with these facts."""
        return value in self.plain or any(pattern.matches(value, consumer) for pattern in self.patterns)


#: No value at all.
NO_VALUES = Values()


@dataclass(frozen=True, slots=True)
class AddressPattern:
    """Hosts, and perhaps one port: ``10.0.0.5:50051``, ``10.0.0.*``, ``10.0.0.1-9``, ``10.0.0.0/24``, ``*:50051``.

    ``0.0.0.0`` is any host. Names are compared as text.
    """

    host: str
    port: str
    network: IPv4Network | IPv6Network | None = None

    @classmethod
    def parse(cls, text: str) -> AddressPattern:
        """Read it.

        Raises:
            BadRule: it is none of the above.
        """
        text = text.strip()
        if "/" in text:
            network = _network(text)
            return cls(str(network), ANY, network)
        host, port = split_address(text)
        if not host or not (port == ANY or (_is_integer(port) and 0 < int(port) <= _PORT_MAX)):
            raise BadRule(f"{quoted(text)} is not an address, like 10.0.0.5:50051 or 10.0.0.*")
        return cls(host, port)

    def matches(self, host: str, port: int) -> bool:
        """Tell whether an address fits; port 0: the address has none."""
        if self.port not in (ANY, str(port)):
            return False
        if self.network is not None:
            address = _ip_address(host)
            return address is not None and address in self.network
        if self.host in (ANY, ANY_HOST):
            return True
        ours, theirs = self.host.split("."), host.split(".")
        if len(ours) == len(theirs):
            return all(_segment_matches(pattern, segment) for pattern, segment in zip(ours, theirs, strict=True))
        return glob_matches(self.host, host)


@dataclass(frozen=True, slots=True)
class StringMatch:
    """One of Dubbo's ways to compare a string: exact, prefix, wildcard, empty, noempty."""

    kind: str
    text: str

    @classmethod
    def parse(cls, rule: Any) -> StringMatch:
        """Read it from YAML.

        Raises:
            BadRule: not a mapping, or of a kind that is not supported.
        """
        (kind, text) = only_entry(rule, ("exact", "prefix", "wildcard", "empty", "noempty"))
        return cls(kind, text)

    def matches(self, value: str) -> bool:
        """Tell whether `value` fits; what is missing is the empty text."""
        match self.kind:
            case "exact":
                return value == self.text
            case "prefix":
                return value.startswith(self.text)
            case "wildcard":
                return glob_matches(self.text, value)
            case "empty":
                return not value
            case _:
                return bool(value)


def split_address(text: str) -> tuple[str, str]:
    """Split host and port; ``*`` if there is no port. IPv6 has a port only if it is in brackets."""
    if text.startswith("[") and (end := text.find("]")) > 0:
        return text[1:end], text[end + 1 :].removeprefix(":") or ANY
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, ANY


def only_entry(rule: Any, kinds: Iterable[str]) -> tuple[str, str]:
    """Return the one entry of a mapping from YAML.

    Raises:
        BadRule: it has another number of entries, or one of another kind.
    """
    if not isinstance(rule, Mapping) or len(rule) != 1:
        raise BadRule(f"{quoted(rule)} should say one of {', '.join(kinds)}")
    ((kind, value),) = rule.items()
    if kind not in kinds:
        raise BadRule(f"{quoted(kind)} is not supported, only {', '.join(kinds)}")
    return str(kind), str(value)


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= 18


def _segment_matches(pattern: str, segment: str) -> bool:
    """Compare one part of a dotted address: ``5``, ``*``, ``1-9``, or text with ``*``."""
    low, dash, high = pattern.partition("-")
    if dash and _is_integer(low) and _is_integer(high) and _is_integer(segment):
        return int(low) <= int(segment) <= int(high)
    return glob_matches(pattern, segment)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise BadRule(f"{quoted(text)} is not a network, like 10.0.0.0/24") from error


@lru_cache(maxsize=HOSTS_KEPT)
def _ip_address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address; None if it is a name. Kept, for a host is compared with many networks."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
