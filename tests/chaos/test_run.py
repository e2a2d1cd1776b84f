"""A chaos run proves what it says it proves: faults are injected and observed, or it says that they were not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from countinghouse.acquirer.v1 import acquirer_pb2
from services.chaos import faults, reconciliation, runner
from services.chaos.runner import Result, RunConfig, run
from services.chaos.targets.local import LocalOptions, LocalTarget
from services.checker.findings import Check, Verdict
from services.checker.history import Phase, read_history
from services.kernel.clock import SystemClock
from services.testkit.client import RecordingClient, money
from services.testkit.waiting import NotBroughtAbout

SEED = 7


async def run_on(
    folder: Path,
    *names: str,
    length_s: float,
    guards_off: tuple[str, ...] = (),
    tell: Callable[[str], None] = lambda _sentence: None,
) -> Result:
    """A run on SQLite, where no server has to be installed."""
    clock = SystemClock()
    config = RunConfig(SEED, length_s, names, 15.0, "countinghouse chaos run --seed 7")
    options = LocalOptions(folder / "data", guards_off=guards_off, database="sqlite")
    async with LocalTarget(options, clock) as target:
        return await run(target, config, folder, clock, tell)


async def test_run_whose_processes_die_settles_each_order_once(tmp_path: Path) -> None:
    """Clerks are killed and frozen, the acquirer is silent: the books are right, and every fault was injected."""
    told: list[str] = []
    result = await run_on(tmp_path, "kill-at", "freeze-at", "acquirer-silent", length_s=10, tell=told.append)
    assert (result.verdict, result.reasons) == (Verdict.OK, ())
    assert set(result.injected) == {"kill-at", "freeze-at", "acquirer-silent"}
    assert told[-3] == "all faults have ended; waiting until no payment is open"
    assert re.fullmatch(r"nothing open after \d+\.\d s", told[-2])
    assert result.proofs["stale fences refused"] >= 1
    assert result.proofs["orders settled by two clerks at once"] >= 1
    assert [check.examined > 0 for check in result.checks if check.name == reconciliation.NAME] == [True]
    history = read_history(result.history)
    assert history.whole
    assert {moment.fault for moment in history.nemesis if moment.phase is Phase.ENDED} == set(result.injected)
    assert any(fault == "kill-at payment" for fault, _ in result.coverage)
    page = result.report.read_text(encoding="utf-8")
    assert "countinghouse chaos run --seed 7" in page
    assert not re.search(r"<link|<script[^>]*src|https?://(?!www.w3.org)", page), "one file, that needs no other"


@pytest.mark.long
async def test_fault_that_was_not_injected_makes_a_run_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The books are right; but what was to be shown was not."""

    class Missing(AbstractAsyncContextManager[dict[str, Any]]):
        async def __aenter__(self) -> dict[str, Any]:
            raise NotBroughtAbout("no process")

        async def __aexit__(self, *_: object) -> None:
            pass

    types = [replace(each, inject=lambda *_: Missing()) if each.name == "kill" else each for each in faults.ALL]
    monkeypatch.setattr(faults, "ALL", types)
    result = await run_on(tmp_path, "kill", "acquirer-slow", length_s=6)
    assert result.verdict is Verdict.UNKNOWN
    assert result.injected.keys() == {"acquirer-slow"}
    assert all("not injected" in reason or reason.endswith("injected: kill") for reason in result.reasons)


@pytest.mark.long
async def test_run_with_a_charge_that_no_payment_has_is_violated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The services' own answers do not come out even with the acquirer's, and the run says by how much."""

    async def and_charge(accountant: RecordingClient) -> Check:
        await accountant.ask_until_ok(acquirer_pb2.ChargeRequest(key="stranger:1", card="tok-mei", amount=money(700)))
        return await reconciliation.reconcile(accountant)

    monkeypatch.setattr(runner, "reconcile", and_charge)
    result = await run_on(tmp_path, "acquirer-slow", length_s=5)
    assert result.verdict is Verdict.VIOLATED
    violations = [reason for reason in result.reasons if reason.startswith(reconciliation.NAME)]
    assert len(violations) == 2
    assert "only theirs: stranger:1: theirs 7.00 CNY, ours nothing" in violations[0]
    assert "and the acquirer holds" in violations[1]


@pytest.mark.long
async def test_run_without_guards_is_violated(tmp_path: Path) -> None:
    """A holder that is frozen and overtaken settles a second time when it wakes, and the checker sees it."""
    result = await run_on(tmp_path, "freeze-at", length_s=8, guards_off=("lock", "fence", "state", "unique"))
    assert result.verdict is Verdict.VIOLATED


def countinghouse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", "chaos", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_run_that_cannot_be_planned_is_refused_before_a_stack_starts(tmp_path: Path) -> None:
    """A fault that does not exist, a run too short for its faults: a sentence, and no stack."""
    unknown = countinghouse("run", "--faults", "kill,earthquake", "--data", str(tmp_path / "a"))
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there is no fault 'earthquake' here; there are kill, pause" in unknown.stderr
    short = countinghouse("run", "--minutes", "0.1", "--data", str(tmp_path / "b"))
    assert short.returncode == 2
    assert "are too short for" in short.stderr
    assert "starting" not in unknown.stderr + short.stderr


def test_run_on_containers_without_docker_is_unknown(tmp_path: Path) -> None:
    """2, and a sentence: 1 would say that books are wrong."""
    ended = countinghouse("run", "--stack", "compose", "--data", str(tmp_path), PATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("countinghouse: docker compose up cannot be run: No such file or directory\n")


def test_sweep_of_a_seed_without_a_verdict_is_unknown(tmp_path: Path) -> None:
    """`sweep` ends with 2, says why, and keeps what the run left. ZooKeeper has no Java, so no stack starts."""
    data, missing = tmp_path / "data", {"PATH": str(tmp_path), "JAVA_HOME": ""}
    options = ("--faults", "kill", "--database", "sqlite", "--json", "--data", str(data))
    ended = countinghouse("sweep", "--seeds", "1-2", *options, **missing)
    assert ended.returncode == 2
    told = json.loads(ended.stdout)
    assert told["counts"] == {"ok": 0, "violated": 0, "unknown": 2}
    assert ended.stderr.count("Java") >= 2
    assert {path.name for path in data.iterdir()} == {"seed-1", "seed-2"}


def test_sweep_of_a_fault_that_does_not_exist_is_refused_before_a_run_starts(tmp_path: Path) -> None:
    """At once, and not for each seed."""
    data = tmp_path / "data"
    ended = countinghouse("sweep", "--seeds", "1-2", "--faults", "earthquake", "--data", str(data))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("there is no fault 'earthquake'") == 1
    assert not data.exists()


@pytest.mark.long
def test_sweep_of_a_seed_that_is_ok_leaves_nothing(tmp_path: Path) -> None:
    """`sweep` ends with 0 and a line for each."""
    ended = countinghouse(
        *("sweep", "--seeds", "7", "--faults", "acquirer-slow", "--minutes", "0.1", "--database", "sqlite"),
        *("--data", str(tmp_path)),
    )
    assert (ended.returncode, ended.stdout) == (0, "1 seeds: 1 ok, 0 violated, 0 unknown\n"), ended.stderr
    assert "[1/1] seed 7: ok" in ended.stderr
    assert list(tmp_path.iterdir()) == []
