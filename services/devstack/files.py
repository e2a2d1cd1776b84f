"""Files of a data directory, and how one is replaced."""

from __future__ import annotations

import os
from pathlib import Path


def signing_key(data: Path) -> Path:
    """Where the private key of a data directory is."""
    return data / "keys" / "signing.key"


def database_url(data: Path, service: str) -> str:
    """SQLAlchemy's URL of the database that the instances of a service share."""
    return f"sqlite:///{data.absolute() / service}.db"


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """Replaces a file: readers see the old or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
