"""`countinghouse check`: what it reads, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli import check as module
from services.cli.commands import app
from tests.unit.checker.archive import archive, archive_acquirer, log, record
from tests.unit.checker.dataset import DatasetBuilder, with_cards

Run = Callable[..., Result]


@pytest.fixture
def dataset() -> DatasetBuilder:
    """A legal dataset, not written yet."""
    return with_cards()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command on the data directory."""

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["check", "--data", str(tmp_path), "--settle-s", "0", *arguments])

    return call


@pytest.fixture
def files(tmp_path: Path) -> Callable[[DatasetBuilder], list[str]]:
    """Writes down what callers and acquirer know; the options that name it."""

    def write(dataset: DatasetBuilder) -> list[str]:
        record(tmp_path / "history.jsonl", dataset.history().calls)
        log(tmp_path / "log.jsonl", dataset.acquirer_log())
        return ["--history", str(tmp_path / "history.jsonl"), "--acquirer-log", str(tmp_path / "log.jsonl")]

    return write


def archived(data: Path, dataset: DatasetBuilder) -> dict[str, str]:
    """Puts the books into databases; their URLs."""
    return asyncio.run(archive(data, dataset))


def checks_of(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_legal_dataset_is_ok(
    tmp_path: Path, dataset: DatasetBuilder, run: Run, files: Callable[[DatasetBuilder], list[str]]
) -> None:
    """With all three witnesses every check is examined."""
    archived(tmp_path, dataset)
    result = run(*files(dataset), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verdict"] == "ok"
    found = checks_of(result)
    assert [name for name, check in found.items() if check["not_examined"] or check["verdict"] != "ok"] == []
    assert found["orders linearizable"] == {
        "name": "orders linearizable",
        "ok": True,
        "verdict": "ok",
        "examined": 5,
        "violations": [],
        "undecided": [],
        "not_examined": "",
    }
    assert found["acquirer agrees with ledger"]["examined"] == 2


def test_missing_evidence_is_named(tmp_path: Path, dataset: DatasetBuilder, run: Run) -> None:
    """The databases alone may be ok; what was not examined stands beside it."""
    archived(tmp_path, dataset)
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[-1] == "verdict: ok; 9 checks not examined (the acquirer's log was not read, no history was given)"
    table = {line[:27].strip(): line[27:].split(maxsplit=1)[1] for line in lines if line and "verdict" not in line}
    assert table["orders linearizable"] == "not examined: no history was given"
    assert table["charged once per key"] == "not examined: the acquirer's log was not read"
    assert table["balances true"] == "ok"


def test_absent_acquirer_is_named_in_a_sentence(tmp_path: Path, dataset: DatasetBuilder, run: Run) -> None:
    archived(tmp_path, dataset)
    said = f"  there is no acquirer's database in {tmp_path}; its log may be given by --acquirer-log"
    assert said in run().stdout.splitlines()
    asyncio.run(archive_acquirer(tmp_path, dataset))
    assert "--acquirer-log" not in run().stdout


def test_log_in_the_acquirers_database_is_examined(tmp_path: Path, dataset: DatasetBuilder, run: Run) -> None:
    """Nobody has to name it."""
    archived(tmp_path, dataset)
    asyncio.run(archive_acquirer(tmp_path, dataset))
    result = run("--json")
    found = checks_of(result)
    assert result.exit_code == 0
    for name in ("acquirer log whole", "charged once per key", "acquirer agrees with ledger"):
        assert (found[name]["verdict"], found[name]["not_examined"]) == ("ok", ""), name
        assert found[name]["examined"] > 0, name


def test_double_charge_in_the_acquirers_database_is_a_violation(
    tmp_path: Path, dataset: DatasetBuilder, run: Run
) -> None:
    dataset.at_acquirer(next(row for row in dataset.payments if row["request_key"] == "settle-carded-1"), "CHARGED")
    archived(tmp_path, dataset)
    asyncio.run(archive_acquirer(tmp_path, dataset))
    result = run()
    assert result.exit_code == 1
    assert "and then CHARGED" in result.stdout


def test_named_log_is_examined_instead_of_the_acquirers_database(
    tmp_path: Path, dataset: DatasetBuilder, run: Run, files: Callable[[DatasetBuilder], list[str]]
) -> None:
    archived(tmp_path, dataset)
    asyncio.run(archive_acquirer(tmp_path, dataset))
    dataset.at_acquirer(next(row for row in dataset.payments if row["request_key"] == "settle-carded-1"), "CHARGED")
    assert run(*files(dataset)[2:]).exit_code == 1


def test_entry_in_the_acquirers_database_that_is_none_is_refused(
    tmp_path: Path, dataset: DatasetBuilder, run: Run
) -> None:
    """In one sentence; it is no verdict."""
    dataset.charges[0] = replace(dataset.charges[0], decision="LOST")
    archived(tmp_path, dataset)
    asyncio.run(archive_acquirer(tmp_path, dataset))
    result = run()
    assert type(result.exception).__name__ == "StackRefused"
    assert "entry 1 of its log: there is no charge that was LOST" in str(result.exception)


def test_open_payment_is_unknown_without_a_history_and_a_violation_with_one(
    tmp_path: Path, dataset: DatasetBuilder, run: Run, files: Callable[[DatasetBuilder], list[str]]
) -> None:
    """A history is of a run that is over; without one the stack may go on."""
    dataset.accept("", "Pay", "ticket-unused", "li")
    dataset.request_of("li", "Pay", "ticket-unused")["state"] = "IN_PROGRESS"
    archived(tmp_path, dataset)
    result = run()
    assert result.exit_code == 2
    said = "nothing left over: Pay ticket-unused of li (cashier) is IN_PROGRESS"
    assert f"  unknown: {said}: still open" in result.stdout.splitlines()
    assert "broken" not in result.stdout
    over = run(*files(dataset))
    assert over.exit_code == 1
    assert f"  broken: {said}" in over.stdout.splitlines()


def test_violation_is_printed_and_ends_with_1(tmp_path: Path, dataset: DatasetBuilder, run: Run) -> None:
    dataset.accounts[0]["balance"] += 1
    archived(tmp_path, dataset)
    result = run()
    assert result.exit_code == 1
    assert (
        "  broken: balances true: drawer:CNY says 27.31 CNY, and its postings sum to 27.30 CNY"
        in result.stdout.splitlines()
    )
    assert any(line.startswith("balances true") and line.endswith("VIOLATED") for line in result.stdout.splitlines())
    assert result.stdout.splitlines()[-1] == "verdict: violated"


def test_undecided_check_is_printed_and_ends_with_2(
    tmp_path: Path, dataset: DatasetBuilder, run: Run, files: Callable[[DatasetBuilder], list[str]]
) -> None:
    """It is not silently ok."""
    dataset.calls.remove(dataset.call_of("make-open"))
    archived(tmp_path, dataset)
    result = run(*files(dataset))
    assert result.exit_code == 2
    told = "  unknown: orders linearizable: order open: it was made before the history begins"
    assert told in result.stdout.splitlines()
    assert any(line.endswith("UNKNOWN") for line in result.stdout.splitlines())
    assert result.stdout.splitlines()[-1] == "verdict: unknown"


def test_lines_of_a_violation_stand_below_each_other(
    tmp_path: Path, dataset: DatasetBuilder, run: Run, files: Callable[[DatasetBuilder], list[str]]
) -> None:
    archived(tmp_path, dataset)
    dataset.settle("open")
    result = run(*files(dataset))
    lines = result.stdout.splitlines()
    place = lines.index("  broken: orders linearizable: order open: these calls cannot be put in one sequence:")
    assert lines[place + 1].startswith("      +0.000000 s to +")
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--history", None, "cannot be read: No such file or directory"),
        ("--acquirer-log", None, "cannot be read: No such file or directory"),
        ("--history", "{}\n", "line 1: a history begins with its one `run`; record it anew"),
        ("--acquirer-log", "{}\n", "line 1: an entry has sequence"),
        ("--history", "", "file.jsonl: the file is empty; record it anew"),
        ("--acquirer-log", "", "file.jsonl: the file is empty; record it anew"),
    ],
)
def test_invalid_file_ends_with_2(run: Run, tmp_path: Path, option: str, content: str | None, words: str) -> None:
    """Before any database is looked at."""
    file = tmp_path / "file.jsonl"
    if content is not None:
        file.write_text(content)
    result = run(option, str(file))
    assert result.exception is not None
    assert words in str(result.exception)
    assert type(result.exception).__name__ == "StackRefused"


def test_databases_may_be_named_in_a_file(tmp_path: Path, dataset: DatasetBuilder, run: Run) -> None:
    """One a line; an option of its own is stronger."""
    urls = archived(tmp_path / "elsewhere", dataset)
    listed = tmp_path / "databases"
    lines = ["# the databases of the 7th", "", *(f" {service}={url}" for service, url in urls.items())]
    listed.write_text("\n".join([*lines, "ledger=sqlite:///nowhere.db"]))
    result = run("--databases", str(listed), "--database", f"ledger={urls['ledger']}", "--json")
    assert result.exit_code == 0
    assert checks_of(result)["balances true"]["examined"] == 5


@pytest.mark.parametrize("line", ["bank=sqlite:///x.db", "order=mysql://me:secret@x", "=sqlite:///x.db"])
def test_line_that_names_no_database_is_a_usage_error(tmp_path: Path, run: Run, line: str) -> None:
    """And is not repeated: it may hold a password."""
    listed = tmp_path / "databases"
    listed.write_text(line)
    result = run("--databases", str(listed))
    assert result.exit_code == 2
    assert line not in result.output


def test_file_of_databases_that_is_not_there_is_a_usage_error(tmp_path: Path, run: Run) -> None:
    assert run("--databases", str(tmp_path / "nowhere")).exit_code == 2


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    """And goes away when there is nothing to wait for any more."""
    shown = StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", shown)
    progress = module._Progress()
    progress.step("balances true", 0, 0)
    progress.step("orders linearizable", 64, 130)
    progress.end()
    wanted = "\r\x1b[Kbalances true …\r\x1b[Korders linearizable 64 of 130 …\r\x1b[K"
    assert shown.getvalue() == (wanted if is_terminal else "")
