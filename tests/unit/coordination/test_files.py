"""A file is replaced whole, and is on the disk afterwards."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from coordination.files import write_whole


def test_replaced_file_and_its_name_are_flushed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content before it takes the name, or a power cut leaves an empty file under it; then the directory."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_whole(tmp_path / "stack.json", b"new", mode=0o600)
    assert done == ["file", "replace", "directory"]
    assert (tmp_path / "stack.json").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600


def test_file_that_cannot_be_replaced_stands_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stack.json"
    write_whole(file, b"old", mode=0o600)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new", mode=0o600)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["stack.json"]
