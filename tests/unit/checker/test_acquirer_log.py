"""The acquirer's log as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.checker.acquirer_log import AcquirerRecord, MalformedLog, log_of_rows, read_acquirer_log

_CHARGED = {
    "sequence": 1,
    "key": "pay_1:2",
    "kind": "charge",
    "amount_minor": 1250,
    "currency": "CNY",
    "decision": "CHARGED",
}


def test_every_entry_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    asked = _CHARGED | {"sequence": 2, "kind": "query", "decision": "RECEIVED", "amount_minor": 0, "currency": ""}
    path.write_text(f"{json.dumps(_CHARGED)}\n{json.dumps(asked)}\n")
    assert read_acquirer_log(path) == (
        AcquirerRecord(1, "pay_1:2", "charge", 1250, "CNY", "CHARGED"),
        AcquirerRecord(2, "pay_1:2", "query", 0, "", "RECEIVED"),
    )


@pytest.mark.parametrize(
    ("kind", "decisions"),
    [
        ("charge", {"RECEIVED", "CHARGED", "DECLINED", "REPEATED", "REFUSED"}),
        ("reverse", {"RECEIVED", "REFUNDED", "TOMBSTONE", "REPEATED", "REFUSED"}),
        ("query", {"RECEIVED", "REPEATED"}),
    ],
)
def test_each_kind_has_its_decisions(tmp_path: Path, kind: str, decisions: set[str]) -> None:
    """And no others."""
    path = tmp_path / "log.jsonl"
    accepted = set()
    for decision in ("RECEIVED", "CHARGED", "DECLINED", "REFUNDED", "TOMBSTONE", "REPEATED", "REFUSED"):
        path.write_text(json.dumps(_CHARGED | {"kind": kind, "decision": decision}))
        try:
            accepted |= {entry.decision for entry in read_acquirer_log(path)}
        except MalformedLog:
            continue
    assert accepted == decisions


def test_key_names_its_payment() -> None:
    """Payment ids may have a colon in them; attempts have none."""
    assert AcquirerRecord(1, "pay:1:2", "charge", 1, "CNY", "CHARGED").payment_id == "pay:1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("[" * 20_000, "line 2: it is nested too deeply", id="deep"),
        ("{", "line 2: Expecting property name"),
        ("7", "line 2: an entry has sequence, key, kind, amount_minor, currency, decision"),
        (json.dumps({"sequence": 1}), "line 2: an entry has sequence"),
        (json.dumps(_CHARGED | {"card": "tok"}), "line 2: an entry has sequence"),
        (json.dumps(_CHARGED | {"amount_minor": "5"}), "line 2: amount_minor is no int: '5'"),
        (json.dumps(_CHARGED | {"key": 5}), "line 2: key is no str: 5"),
        (json.dumps(_CHARGED | {"kind": "transfer"}), "line 2: there is no transfer that was CHARGED"),
        (json.dumps(_CHARGED | {"decision": "REFUNDED"}), "line 2: there is no charge that was REFUNDED"),
    ],
)
def test_invalid_line_is_named(tmp_path: Path, line: Any, words: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(_CHARGED)}\n{line}\n")
    with pytest.raises(MalformedLog) as refused:
        read_acquirer_log(path)
    assert str(refused.value).startswith(f"{path}, {words}")


def _row(**changed: Any) -> dict[str, Any]:
    """A row of the acquirer's own table, with columns that the checker does not read."""
    row = {"number": 1, "key": "pay_1:2", "method": "Charge", "amount_minor": 1250, "currency": "CNY"}
    return {**row, "word": "CHARGED", "card": "tok-mei", "at_ms": 1, **changed}


@pytest.mark.parametrize(
    ("method", "word", "kind"),
    [("Charge", "CHARGED", "charge"), ("ReverseByKey", "REFUNDED", "reverse"), ("GetCharge", "RECEIVED", "query")],
)
def test_rows_of_the_acquirers_database_are_entries(method: str, word: str, kind: str) -> None:
    assert log_of_rows([_row(), _row(number=2, method=method, word=word)]) == (
        AcquirerRecord(1, "pay_1:2", "charge", 1250, "CNY", "CHARGED"),
        AcquirerRecord(2, "pay_1:2", kind, 1250, "CNY", word),
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "Transfer"}, "there is no Transfer that was CHARGED"),
        ({"word": "LOST"}, "there is no charge that was LOST"),
        ({"amount_minor": "1250"}, "amount_minor is no int: '1250'"),
    ],
)
def test_row_that_is_no_entry_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(MalformedLog) as refused:
        log_of_rows([_row(), _row(number=7, **changed)])
    assert str(refused.value) == f"the acquirer's database, entry 7 of its log: {said}"
