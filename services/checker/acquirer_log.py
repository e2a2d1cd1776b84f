"""The acquirer's own log: the third witness, beside the callers and the databases. JSON, one entry a line.

    {"sequence": 7, "key": "pay_01:1", "kind": "charge", "amount_minor": 1250, "currency": "CNY", "decision": "CHARGED"}

| kind | decisions |
|---|---|
| `charge` | RECEIVED; CHARGED, DECLINED; REPEATED (answered as it stood), REFUSED (another payload) |
| `reverse` | RECEIVED; REFUNDED (it was charged), TOMBSTONE (it never will be); REPEATED |
| `query` | RECEIVED |

Sequences count from 1. Of an entry without an amount, `amount_minor` is 0 and `currency` empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from services.kernel.json_input import parse_json

#: The kind of each request, by the method that carries it.
KINDS: Final = {"Charge": "charge", "ReverseByKey": "reverse", "GetCharge": "query"}

_DECISIONS: dict[str, frozenset[str]] = {
    "charge": frozenset({"RECEIVED", "CHARGED", "DECLINED", "REPEATED", "REFUSED"}),
    "reverse": frozenset({"RECEIVED", "REFUNDED", "TOMBSTONE", "REPEATED", "REFUSED"}),
    "query": frozenset({"RECEIVED", "REPEATED"}),
}


class MalformedLog(ValueError):
    """A line or row that is no entry; the message has its number."""


@dataclass(frozen=True, slots=True)
class AcquirerRecord:
    """One entry.

    Args:
        key: The merchant's, `payment_id:attempt`.
        kind: `charge`, `reverse` or `query`.
        decision: As the table in the header.
    """

    sequence: int
    key: str
    kind: str
    amount_minor: int
    currency: str
    decision: str

    @property
    def payment_id(self) -> str:
        return self.key.rpartition(":")[0]


#: The log as a whole, in the order in which it was written.
AcquirerLog = tuple[AcquirerRecord, ...]


def read_acquirer_log(path: Path) -> AcquirerLog:
    """Read a log.

    Raises:
        OSError: The file cannot be read.
        MalformedLog: A line is no entry, or the file is empty: that is no evidence that nothing was charged.
    """
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                records.append(_record(parse_json(line)))
            except ValueError as error:
                raise MalformedLog(f"{path}, line {number}: {error}") from None
    if not records:
        raise MalformedLog(f"{path}: the file is empty")
    return tuple(records)


def log_of_rows(rows: Iterable[Mapping[str, Any]]) -> AcquirerLog:
    """Return the log that the acquirer's own table holds.

    Raises:
        MalformedLog: A row is no entry.
    """
    records = []
    for row in rows:
        told = {
            "sequence": row["number"],
            "key": row["key"],
            "kind": KINDS.get(row["method"], row["method"]),
            "amount_minor": row["amount_minor"],
            "currency": row["currency"],
            "decision": row["word"],
        }
        try:
            records.append(_record(told))
        except ValueError as error:
            raise MalformedLog(f"the acquirer's database, entry {row['number']} of its log: {error}") from None
    return tuple(records)


def _record(told: Any) -> AcquirerRecord:
    kinds = {part.name: {"int": int, "str": str}[str(part.type)] for part in fields(AcquirerRecord)}
    if not isinstance(told, dict) or told.keys() != kinds.keys():
        raise ValueError(f"an entry has {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(told[name]) is not kind:
            raise ValueError(f"{name} is no {kind.__name__}: {told[name]!r}")
    record = AcquirerRecord(**told)
    if record.decision not in _DECISIONS.get(record.kind, ()):
        raise ValueError(f"there is no {record.kind} that was {record.decision}")
    return record
