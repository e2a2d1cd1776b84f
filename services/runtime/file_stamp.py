"""Whether a file of keys has changed."""

from __future__ import annotations

from pathlib import Path


def file_stamp(file: Path) -> tuple[int, int]:
    """Return what tells one content of a file from another: files of ours are replaced, never written into.

    Returns:
        Zeros if it cannot be looked at.
    """
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
