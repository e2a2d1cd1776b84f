"""`countingfake demo` as a command: what it hands on, what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from services.checker.findings import Check, Findings, Verdict
from services.cli.demo import demo
from services.demo.acts import ActResult
from services.demo.run import RunResult
from services.kernel.guards import NAMES
from tests.unit.checker.dataset import legal


class FakeRun:
    """Stands for `services.demo.run.run`; remembers what was asked."""

    def __init__(self) -> None:
        self.verdict = Verdict.OK
        self.acts: tuple[ActResult, ...] = (ActResult("double click", True, "1 charge"),)
        self.checks: tuple[Check, ...] = (Check("balances true", 4),)
        self.data = Path()
        self.guards_off: tuple[str, ...] = ()
        self.seed = -1
        self.only: tuple[str, ...] = ()

    async def run(self, data: Path, guards_off: tuple[str, ...], seed: int, **more: Any) -> RunResult:
        self.data, self.guards_off, self.seed, self.only = data, guards_off, seed, more["only"]
        _fill(data)
        more["on_ready"](1.5)
        for act in self.acts:
            more["on_act"](act)
        return RunResult(self.verdict, self.acts, self.checks, 12.34, seed, legal().snapshot())


def _fill(data: Path) -> None:
    data.mkdir(exist_ok=True)
    (data / "order.db").write_bytes(b"")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    found = FakeRun()
    monkeypatch.setattr("services.cli.demo.run", found.run)
    return found


def play(**options: Any) -> int:
    """Runs the command; its exit code."""
    defaults: dict[str, Any] = {"guards_off": None, "act": None, "seed": None, "as_json": False, "keep": None}
    with pytest.raises(SystemExit) as ended:
        demo(**(defaults | options))
    return int(str(ended.value.code))


@pytest.mark.parametrize(
    ("given", "off"),
    [
        (None, ()),
        (["lock"], ("lock",)),
        (["unique,lock"], ("lock", "unique")),
        (["lock, fence", "state"], ("lock", "fence", "state")),
        (["lock,", "lock"], ("lock",)),
        ([",".join(NAMES)], NAMES),
    ],
)
def test_guards_are_named_once_or_in_lists(fake: FakeRun, given: list[str] | None, off: tuple[str, ...]) -> None:
    """In whichever order, they are told in the order in which a payment meets them."""
    play(guards_off=given)
    assert fake.guards_off == off


def test_unknown_guard_is_refused_with_those_there_are(fake: FakeRun) -> None:
    with pytest.raises(typer.BadParameter, match="umbrella") as refused:
        demo(guards_off=["lock,umbrella"], act=None, seed=None, as_json=False, keep=None)
    assert ", ".join(NAMES) in refused.value.message
    assert fake.seed == -1


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.OK, 0), (Verdict.VIOLATED, 1), (Verdict.UNKNOWN, 2)])
def test_exit_code_is_the_verdict(fake: FakeRun, verdict: Verdict, code: int) -> None:
    """An act that could not be brought about ends with 2: nothing is proved."""
    fake.verdict = verdict
    assert play(as_json=True) == code


def test_json_document_has_acts_and_violations(fake: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """As the issue has it, with the violations of each check; an act that proved nothing is null."""
    fake.verdict = Verdict.VIOLATED
    fake.acts = (ActResult("lost reply", None, "the reply was not lost"), ActResult("reversal", True, "fine"))
    fake.checks = (Check("balances true", 4, ("drawer:CNY says 1",)), Check("moves are legal", 26))
    play(as_json=True, seed=7)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "verdict": "violated",
        "acts": [
            {"name": "lost reply", "ok": None, "detail": "the reply was not lost"},
            {"name": "reversal", "ok": True, "detail": "fine"},
        ],
        "checks": [
            {"name": "balances true", "ok": False, "examined": 4, "violations": ["drawer:CNY says 1"]},
            {"name": "moves are legal", "ok": True, "examined": 26, "violations": []},
        ],
        "seconds": 12.34,
        "seed": 7,
    }


def test_plain_lines_elsewhere_than_on_a_terminal(fake: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    fake.verdict = Verdict.VIOLATED
    fake.acts = (ActResult("double click", False, "2 charges"),)
    settled = Findings(40, [f"order {number} was settled twice" for number in range(40)]).check("settled at most once")
    fake.checks = (Check("balances true", 4, ("drawer:CNY says 1",)), settled)
    play(guards_off=["ticket"], seed=7)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("without ticket (seed 7) …")
    assert lines[1] == "Ready after 1.5 s."
    assert "violated: double click: 2 charges" in lines
    assert "  broken: balances true: drawer:CNY says 1" in lines
    assert [line for line in lines if "settled at most once: " in line] == [
        "  broken: settled at most once: order 0 was settled twice",
        "  broken: settled at most once: order 1 was settled twice",
        "  broken: settled at most once: order 2 was settled twice",
        "  broken: settled at most once: and 37 more",
    ]
    assert any(
        line.split() == ["drawer:CNY", "asset", "27.50", "CNY", "5.00", "CNY", "22.50", "CNY"] for line in lines
    ), lines
    assert lines[-1] == "verdict: violated (12.3 s, seed 7)"


def test_data_that_is_not_kept_is_removed(fake: FakeRun) -> None:
    play()
    assert not fake.data.exists()


def test_kept_data_stays(fake: FakeRun, tmp_path: Path) -> None:
    play(keep=tmp_path / "kept")
    assert fake.data == tmp_path / "kept"
    assert (tmp_path / "kept" / "order.db").exists()


def test_seeds_differ_unless_one_is_given(fake: FakeRun) -> None:
    seeds = set()
    for _ in range(5):
        play()
        seeds.add(fake.seed)
    assert len(seeds) > 1
    play(seed=0)
    assert fake.seed == 0


def test_only_the_named_acts_are_run(fake: FakeRun) -> None:
    play(act=["reversal", "double click"])
    assert fake.only == ("reversal", "double click")
