"""How a process ends that cannot start: whether starting it again may help is told by its exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from services.kernel.errors import CountinghouseError, Unavailable
from services.runtime import process
from services.runtime.database.database import DatabaseRefused
from services.runtime.process import Program

PROGRAM = Program(
    name="order", interface="countinghouse.order.v1.OrderService", package=Path("nowhere"), append_only=()
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("DATABASE_UNAVAILABLE", "the database is away"), 1),
        (DatabaseRefused("DATABASE_LOGIN", "the database refuses us"), 2),
        (CountinghouseError("PORT_BUSY", "the port is taken"), 2),
    ],
)
def test_exit_code_distinguishes_absence_from_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: CountinghouseError, code: int
) -> None:
    """One line on standard error says why, and of which program it is."""

    async def serve(_settings: Any) -> None:
        raise error

    monkeypatch.setattr("services.runtime.log.configure", lambda *_names: None)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    with pytest.raises(SystemExit) as ended:
        process.run(PROGRAM, {"": serve})
    assert ended.value.code == code
    assert capsys.readouterr().err == f"order: {error.message}\n"
