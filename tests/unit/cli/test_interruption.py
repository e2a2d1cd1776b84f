"""Ctrl-C while something must not be interrupted."""

from __future__ import annotations

import signal

import pytest

from services.cli.interruption import held_back, ignored


def test_interruption_that_is_held_back_comes_later() -> None:
    imported = []

    def load() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            imported.append("module")

    with pytest.raises(KeyboardInterrupt):
        load()
    assert imported == ["module"]


def test_interruption_that_is_ignored_never_comes() -> None:
    """The next one does."""
    with ignored():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
