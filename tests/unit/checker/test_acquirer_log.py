"""The acquirer's log as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.checker.acquirer_log import AcquirerRecord, MalformedLog, read_acquirer_log

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


def test_a_key_says_whose_payment_it_is() -> None:
    """Payment ids may have a colon in them; attempts have none."""
    assert AcquirerRecord(1, "pay:1:2", "charge", 1, "CNY", "CHARGED").payment_id == "pay:1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
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
def test_what_is_no_entry_is_named(tmp_path: Path, line: Any, words: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(_CHARGED)}\n{line}\n")
    with pytest.raises(MalformedLog) as refused:
        read_acquirer_log(path)
    assert str(refused.value).startswith(f"{path}, {words}")
