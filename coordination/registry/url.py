"""A provider's URL, in the notation Dubbo's clients of every language read out of a node's name.

The same notation names consumers and, in Dubbo 2.6, rules (``override://``, ``condition://``).

    tri://10.0.0.5:50051/pkg.Service?interface=pkg.Service&side=provider&…&weight=100
    └ protocol  └ address  └ path      └ parameters

The node's name is the whole URL, percent-encoded once with upper-case escapes (Java's consumers look for
"%3F").

Invariants
1. ``ProviderURL.parse(url.node_name()) == url`` for everything the constructor accepts.
2. A name written here has no escapes left after one decoding, unless a value holds a character the notation
   uses itself (``& = ? # % +``) or white space: Java decodes once and never meets an escape, dubbo-go
   decodes values twice and finds the same.
3. Reading is tolerant: unknown parameters are kept, the path or the interface may be missing, and names
   written by Java, dubbo-go and Python are all understood. The only error is BadProviderURL.
4. A number that is missing, malformed or above its bound is its default: whatever a provider writes, a call can
   compute with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self
from urllib.parse import quote, unquote, unquote_plus

from coordination.errors import BadProviderURL
from coordination.quoting import quoted

#: The registry protocol's version, which every Dubbo release since 2.6 has written; not a release number.
DUBBO_VERSION = "2.0.2"

#: A longer URL is refused: parsing a megabyte would block the event loop.
MAX_CHARACTERS = 16_384

DEFAULT_WEIGHT = 100
#: Dubbo's: a provider without ``warmup`` reaches its weight after ten minutes.
DEFAULT_WARMUP_MS = 600_000

#: The largest weight, warm-up or timeout that is read, as in rules: none of these, nor a sum of weights, can become too
#: large for a float.
MAX_NUMBER = 999_999_999
#: The latest timestamp that is read, milliseconds.
MAX_TIMESTAMP_MS = 999_999_999_999_999

CONSUMER = "consumer"
#: Protocols whose URLs may have no port: consumers, and rules for every port.
PORTLESS = frozenset({CONSUMER, "override", "absent", "route", "condition", "script", "tag"})

#: Timestamps that can only be Unix seconds (2001 to 5138), which is what dubbo-go writes; Java writes milliseconds.
_SECONDS = range(1_000_000_000, 100_000_000_000)


_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"[^\s/?#@&=\[\]%]+")
#: Characters that stand for themselves in a value: all but those the notation needs, see invariant 2.
_PLAIN = "!$'()*,-./:;<>@[]^_`{|}~\"\\"


@dataclass(frozen=True, slots=True)
class ProviderURL:
    """One provider (or consumer) of an interface.

    Attributes:
        protocol: "tri" for gRPC providers; "consumer" for consumers; "override", "condition" … for rules.
        host: name or address; IPv6 without brackets.
        port: 1–65535; 0, "none", for the PORTLESS only.
        path: normally the interface's name; may be empty.
        parameters: everything after the "?", decoded, in the order written.

    Raises:
        BadProviderURL: one of these is not so.
    """

    protocol: str
    host: str
    port: int
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _PROTOCOL.fullmatch(self.protocol):
            raise BadProviderURL(f"not a protocol: {quoted(self.protocol)}")
        if not _HOST.fullmatch(self.host) or not self.host.isprintable():
            raise BadProviderURL(f"not a host: {quoted(self.host)}")
        if not (0 if self.protocol in PORTLESS else 1) <= self.port <= 65535:
            raise BadProviderURL(f"not a port: {quoted(self.port)}")
        if self.path.startswith("/") or self.path != self.path.strip():
            raise BadProviderURL(f"not a path: {quoted(self.path)}")
        if "" in self.parameters:
            raise BadProviderURL("a parameter without a name")
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    @classmethod
    def provider(
        cls,
        interface: str,
        host: str,
        port: int,
        *,
        application: str,
        methods: tuple[str, ...],
        release: str,
        timestamp_ms: int,
        weight: int = DEFAULT_WEIGHT,
        **more: str,
    ) -> Self:
        """Return the URL under which a gRPC service registers.

        Args:
            interface: full gRPC service name; it is the path, too, which Java uses to call.
            application: the provider's application.
            methods: the service's method names.
            release: version of the software.
            timestamp_ms: when the provider started, Unix milliseconds; consumers warm up by it.
            weight: share of the traffic, 100 by default as in Dubbo; 0 for none.
            more: further parameters, such as ``group`` or ``version``.
        """
        parameters = {
            "interface": interface,
            "side": "provider",
            "application": application,
            "methods": ",".join(methods),
            "dubbo": DUBBO_VERSION,
            "release": release,
            "timestamp": str(timestamp_ms),
            "weight": str(weight),
        }
        return cls("tri", host, port, interface, parameters | more)

    @classmethod
    def consumer(cls, interface: str, host: str, *, application: str, timestamp_ms: int, **more: str) -> Self:
        """Return the URL under which a consumer makes itself known, as Dubbo's DynamicDirectory writes it."""
        parameters = {
            "interface": interface,
            "side": "consumer",
            "category": "consumers",
            "check": "false",
            "application": application,
            "dubbo": DUBBO_VERSION,
            "timestamp": str(timestamp_ms),
        }
        return cls(CONSUMER, host, 0, interface, parameters | more)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a node's name or a plain URL.

        Raises:
            BadProviderURL: it is neither.
        """
        if len(text) > MAX_CHARACTERS:
            raise BadProviderURL(f"{len(text)} characters are too many for a URL, {MAX_CHARACTERS} are allowed")
        url = text if "://" in text else unquote_plus(text)
        protocol, separator, rest = url.partition("://")
        if not separator:
            raise BadProviderURL(f"not a URL: {quoted(text)}")
        location, _, query = rest.partition("?")
        authority, _, path = location.partition("/")
        user, _, address = authority.rpartition("@")
        host, port = _split_address(address, text)
        parameters: dict[str, str] = {}
        for pair in query.split("&"):
            key, _, value = pair.partition("=")
            if key:
                parameters[_decoded(key)] = _decoded(value)
        if user:
            parameters.setdefault("application", unquote(user.partition(":")[0]))  # as Dubbo takes it
        return cls(protocol, host, port, unquote(path).strip().lstrip("/"), parameters)

    def node_name(self) -> str:
        """Return the name of this provider's node: the URL, encoded once."""
        return quote(str(self), safe="")

    def __str__(self) -> str:
        address = self.address if self.port else _bracketed(self.host)
        query = "&".join(f"{_plain(key)}={_plain(value)}" for key, value in self.parameters.items())
        return f"{self.protocol}://{address}/{_plain(self.path)}" + (f"?{query}" if query else "")

    @property
    def address(self) -> str:
        """``host:port``, as gRPC takes it; IPv6 in brackets."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def interface(self) -> str:
        """The interface provided: ``interface``, else Python's apache-dubbo's ``service``, else the path."""
        return self.parameters.get("interface") or self.parameters.get("service") or self.path

    @property
    def group(self) -> str:
        """Dubbo's group; empty if none."""
        return self.parameters.get("group", "")

    @property
    def version(self) -> str:
        """Dubbo's version of the interface; empty if none."""
        return self.parameters.get("version", "")

    @property
    def weight(self) -> int:
        """Share of the traffic, 0 or more; 100 if missing, malformed or above MAX_NUMBER."""
        return max(0, self._number("weight", DEFAULT_WEIGHT))

    @property
    def timestamp_ms(self) -> int:
        """When the provider started, Unix milliseconds; 0 if unknown. dubbo-go's seconds are understood."""
        timestamp = max(0, self._number("timestamp", 0, MAX_TIMESTAMP_MS))
        return timestamp * 1000 if timestamp in _SECONDS else timestamp

    @property
    def warmup_ms(self) -> int:
        """Milliseconds after its start until it gets its whole weight; 0: at once. Dubbo's default if missing."""
        return max(0, self._number("warmup", DEFAULT_WARMUP_MS))

    @property
    def disabled(self) -> bool:
        """Whether it is not to be called: ``disabled``, or, where that is missing, not ``enabled``."""
        if self.parameters.get("disabled"):
            return self.parameters["disabled"].lower() == "true"
        return (self.parameters.get("enabled") or "true").lower() != "true"

    @property
    def application(self) -> str:
        """The provider's or consumer's application; empty if missing."""
        return self.parameters.get("application", "")

    @property
    def tag(self) -> str:
        """The tag it belongs to (``dubbo.tag``); empty if none."""
        return self.parameters.get("dubbo.tag", "")

    def timeout_ms(self, method: str) -> int:
        """Return how long a call of `method` may take, milliseconds: ``<method>.timeout``, else ``timeout``; 0 if
        neither is given."""
        return max(0, self._number(f"{method}.timeout", 0)) or max(0, self._number("timeout", 0))

    def with_parameters(self, changed: Mapping[str, str]) -> ProviderURL:
        """Return this URL with some parameters set."""
        return replace(self, parameters={**self.parameters, **changed})

    def _number(self, name: str, default: int, most: int = MAX_NUMBER) -> int:
        try:
            number = int(self.parameters.get(name, default))
        except ValueError:
            return default
        return number if abs(number) <= most else default


def _split_address(authority: str, text: str) -> tuple[str, int]:
    """Split host and port; an IPv6 address may lack its brackets, for Java writes none."""
    if authority.startswith("[") and (end := authority.find("]")) > 0:
        host, port = authority[1:end], authority[end + 1 :].removeprefix(":")
    elif ":" in authority:
        host, _, port = authority.rpartition(":")
    else:
        host, port = authority, ""
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5):
        raise BadProviderURL(f"not a port: {quoted(port)} in {quoted(text)}")
    return host, int(port or 0)


def _decoded(text: str) -> str:
    return unquote(text) if "%" in text else text


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _plain(text: str) -> str:
    return quote(text, safe=_PLAIN)
