"""The log of the supervisor, which libraries write with others' words in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.stack import _log_to


@pytest.fixture
def _root_logger() -> Iterator[None]:
    """Gives the root logger its handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_root_logger")
def test_foreign_text_in_the_log_is_escaped_and_makes_no_record(tmp_path: Path) -> None:
    """Neither a terminal that shows it nor a reader of its lines is deceived."""
    _log_to(tmp_path / "stack.log")
    logging.getLogger("kazoo").warning("node %s", "a\x1b[2J\x9b31m\u202e\udcff\n2026-01-01 00:00:00 kazoo all is well")
    first, second = (tmp_path / "stack.log").read_text(encoding="utf-8").splitlines()
    assert r"a\x1b[2J\x9b31m\u202e\udcff" in first
    assert second.startswith("    ")
