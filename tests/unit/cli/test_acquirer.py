"""How faults are written on the command line, and how the log is shown."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from countinghouse.acquirer.v1 import acquirer_pb2 as pb
from services.cli.acquirer import _KINDS, _fault, log


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("down", pb.Fault(kind=pb.FAULT_KIND_DOWN)),
        ("drop-reply:Charge,times=1", pb.Fault(kind=pb.FAULT_KIND_DROP_REPLY, method="Charge", times=1)),
        ("delay-before,delay=250", pb.Fault(kind=pb.FAULT_KIND_DELAY_BEFORE, delay_ms=250)),
        (
            "notice-lost:Charge,times=2,subject=pay_7d0q:1",
            pb.Fault(kind=pb.FAULT_KIND_NOTICE_LOST, method="Charge", times=2, subject="pay_7d0q:1"),
        ),
    ],
)
def test_fault_is_read(text: str, fault: pb.Fault) -> None:
    assert _fault(text) == fault


@pytest.mark.parametrize("text", ["", "up", "down:", "down,times=x", "down,delay=", "drop-reply times=1", "DOWN"])
def test_invalid_fault_is_refused(text: str) -> None:
    """The kinds are named."""
    with pytest.raises(typer.BadParameter, match="drop-reply"):
        _fault(text)


def test_kinds_are_those_of_the_proto() -> None:
    names = {name.removeprefix("FAULT_KIND_").lower().replace("_", "-") for name in pb.FaultKind.keys()}  # noqa: SIM118
    assert names - {"unspecified"} == set(_KINDS)


async def test_log_names_the_decision(capsys: pytest.CaptureFixture[str]) -> None:
    """The field of the wire is called `word`; JSON keeps that."""

    class Acquirer:
        as_json = False

        async def read_list(self, *_: object) -> pb.ListLogResponse:
            return pb.ListLogResponse(entries=[pb.LogEntry(number=1, method="Charge", key="pay_1:1", word="CHARGED")])

    show: Any = log.__wrapped__  # type: ignore[attr-defined]  # the function that `calling` makes a command of
    await show(Acquirer(), key="", limit=50, page="", jsonl=False)
    head, row = (line.split() for line in capsys.readouterr().out.splitlines() if line.strip())
    assert head[:5] == ["number", "at", "method", "key", "decision"]
    assert "CHARGED" in row
