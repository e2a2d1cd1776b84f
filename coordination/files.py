"""Atomic replacement of a file, also over a power cut or a full disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file atomically; it is on the disk when this returns.

    Readers see the old or the new file, never a part, whenever the process or the machine ends. Not for two threads
    of a process at once.

    Args:
        path: the file; its directory must exist.
        content: all of it.
        mode: its permissions, less the umask.

    Raises:
        OSError: the old file stands, and nothing is left behind.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Sync a directory to the disk: files made, renamed or removed in it stay so after a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
