"""Files of a data directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from coordination.files import write_whole
from services.kernel.json_input import parse_json

#: The user of ZooKeeper who may do everything, by a digest in its configuration.
SUPERUSER: Final = "super"


def signing_key(data: Path, *, outside: bool = False) -> Path:
    """Return where the private key of a data directory is; or that with which its acquirer signs."""
    return data / "keys" / ("acquirer/signing.key" if outside else "signing.key")


def ca_file(data: Path, *, outside: bool = False) -> Path:
    """Return where the authorities' certificates of a data directory are; or those of its acquirer."""
    return data / "keys" / ("acquirer/ca.pem" if outside else "ca.pem")


def zookeeper_user_file(data: Path, name: str) -> Path:
    """Return where a user of ZooKeeper is, `name:password`; `super` may do everything."""
    return data / "keys" / "zookeeper" / name


def database_url(data: Path, service: str) -> str:
    """SQLAlchemy's URL under which the database of a service is read."""
    elsewhere = databases_elsewhere(data)
    return elsewhere[service] if service in elsewhere else f"sqlite:///{data.absolute() / service}.db"


def databases_elsewhere(data: Path) -> dict[str, str]:
    """Return the URLs of the databases that are not files of the data directory, by service."""
    try:
        urls: dict[str, str] = parse_json((data / "databases.json").read_bytes())
    except FileNotFoundError:
        return {}
    return urls


def remote_database_url(servers: Sequence[str], role: str, database: str, parameters: Mapping[str, object]) -> str:
    """Return SQLAlchemy's URL of a database on PostgreSQL servers, one of which is the primary.

    Args:
        servers: Where they are, `host:port`.
        parameters: The password's file, and the authority's.
    """
    query = [f"{name}={quote(str(value))}" for name, value in parameters.items()]
    if len(servers) > 1:
        query = [*(f"host={server}" for server in servers), *query]
    where = "" if len(servers) > 1 else servers[0]
    return f"postgresql+asyncpg://{role}@{where}/{database}?{'&'.join(query)}"


def remember_databases(data: Path, urls: Mapping[str, str]) -> None:
    """Write down where the databases are, in URLs without passwords, for the commands that read the books."""
    write_whole(data / "databases.json", json.dumps(dict(urls), indent=1).encode(), mode=0o600)
