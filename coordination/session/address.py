"""The address of a ZooKeeper ensemble, in the spellings of ZooKeeper and of Dubbo's configuration files.

    host:2181,host:2181/chroot                    ZooKeeper's own
    host, host:2182,                              blanks, a comma at the end, no port: 2181
    [::1]:2181,[fe80::1%eth0]                     IPv6, in brackets
    zookeeper://host:2181?backup=host:2182,host   Dubbo's

Everything else is refused. Nothing is ignored silently: a client that knows two of three servers works
until the day on which it needs the third. ``;`` and ``|`` separate two *registries* in Dubbo; one of two ensembles
cannot tell the holder of a lock, so two are refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl

from coordination.errors import BadAddress

DEFAULT_PORT = 2181

_SCHEME = "zookeeper://"
_BACKUP = "backup"
_MAX_LENGTH = 4096
_SHOWN = 80
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_CHROOT = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9_.:@+-]+)*")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server.

    Attributes:
        host: a name, or an IP address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port``.

        Raises:
            BadAddress: it is none of these.
        """
        text = text.strip()
        if text.startswith("["):
            literal, closed, rest = text[1:].partition("]")
            if not closed or not _is_ipv6(literal) or (rest and not rest.startswith(":")):
                raise BadAddress(f"{_quoted(text)} is no IPv6 address in brackets, like [::1]:{DEFAULT_PORT}")
            return cls(literal, _port(rest[1:], text) if rest else DEFAULT_PORT)
        if text.count(":") > 1:
            raise BadAddress(f"{_quoted(text)} has more than one colon; write an IPv6 address as [::1]:{DEFAULT_PORT}")
        host, colon, port = text.partition(":")
        if not _HOST_NAME.fullmatch(host):
            raise BadAddress(f"{_quoted(text)} names no host; write host:{DEFAULT_PORT}")
        return cls(host, _port(port, text) if colon else DEFAULT_PORT)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class EnsembleAddress:
    """The servers of one ensemble, and the node under which all paths lie.

    Attributes:
        servers: one or more, each once, in the order given.
        chroot: ``/name/…``; empty: the root.
    """

    servers: tuple[ServerAddress, ...]
    chroot: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address in any spelling of the module's header.

        Raises:
            BadAddress: it cannot be parsed as a whole; the message says what is wrong and how to write it.
        """
        if len(text) > _MAX_LENGTH:
            raise BadAddress(f"the address of ZooKeeper has {len(text)} characters; {_MAX_LENGTH} is the limit")
        rest = text.strip().rstrip(";|").rstrip()
        if rest.lower().startswith(_SCHEME):
            rest = rest[len(_SCHEME) :]
        elif "://" in rest:
            raise BadAddress(
                f"{_quoted(rest.partition('://')[0])} is no way to reach ZooKeeper; write {_SCHEME}host:port"
            )
        if "@" in rest.partition("/")[0]:
            raise BadAddress("the address of ZooKeeper may not hold a user or a password")
        if ";" in rest or "|" in rest:
            raise BadAddress(
                "; and | separate two registries, and locks need one ensemble: separate its servers by commas"
            )
        rest, _, query = rest.partition("?")
        hosts, slash, chroot = rest.partition("/")
        servers = [ServerAddress.parse(part) for part in _parts(hosts)]
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name != _BACKUP:
                raise BadAddress(f"the parameter {_quoted(name)} is not supported in the address of ZooKeeper")
            servers += [ServerAddress.parse(part) for part in _parts(value)]
        if not servers:
            raise BadAddress(f"{_quoted(text)} names no server of ZooKeeper; write host:{DEFAULT_PORT}")
        chroot = f"{slash}{chroot}".strip().rstrip("/")
        if not _CHROOT.fullmatch(chroot):
            raise BadAddress(
                f"{_quoted(chroot)} is no path to end an address with; it comes once, after the last server"
            )
        return cls(tuple(dict.fromkeys(servers)), chroot)

    def __str__(self) -> str:
        return ",".join(map(str, self.servers)) + self.chroot


def parse_host(text: str) -> str:
    """Return a host as it is written without a port: a name, an IPv4 address, or an IPv6 address without brackets.

    Raises:
        BadAddress: it is none of these.
    """
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
        if not _is_ipv6(bare):
            raise BadAddress(f"{_quoted(text)} is no IPv6 address in brackets, like [::1]")
    if _is_ipv6(bare):
        return str(ipaddress.IPv6Address(bare))
    if not _HOST_NAME.fullmatch(bare):
        raise BadAddress(f"{_quoted(text)} is no host: a name or an IP address, without a port")
    return bare


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can call a host, as `parse_host` returns it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text) if part]


def _port(text: str, of: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65_535:
        raise BadAddress(f"{_quoted(of)} has no port from 1 to 65535 after its colon")
    return int(text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
