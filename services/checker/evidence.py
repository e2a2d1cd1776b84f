"""What the checks read: the snapshot, the history, the acquirer's log; with the lookups that they share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from services.checker.acquirer_log import AcquirerLog
from services.checker.history import History, Outcome, RecordedCall, is_stored
from services.checker.snapshot import Record, Snapshot, caller_of, person, was_parked

#: Whose key, for which method.
Key = tuple[str, str, str]

#: What the services remember under a request id or ticket, and answer again to the byte.
REMEMBERED = ("CreateOrder", "CancelOrder", "IssueTicket", "Pay", "Settle", "Reverse", "Park", "OpenAccount")


@dataclass(frozen=True, slots=True)
class Answered:
    """One definitive answer that a client got, to be compared with the stored one.

    Args:
        key: Request id or ticket.
        ok: Whether the call succeeded.
        body: The response as received, or the google.rpc.Status of a refusal.
    """

    key: str
    ok: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class DefinitiveAnswer:
    """One definitive answer, from the history or from `Answered`.

    Args:
        owner: None: the caller and method of the key are not known.
        sha256: Of the answer's bytes; empty: not known.
        content: What the answer says, as far as it is known.
    """

    key: str
    owner: Key | None
    ok: bool
    sha256: str
    content: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that the checks read.

    Args:
        history: None: none was given.
        acquirer: The acquirer's log; None: none was given.
        now_ms: When the books were read, in Unix milliseconds; 0: not known.
        ended: Whether all work is over, so that what is left is wrong; False: the stack may go on with it.
        restored: Whether the books are those of a backup: the acquirer may then know of payments that they do not.
    """

    snapshot: Snapshot
    answers: tuple[Answered, ...]
    history: History | None
    acquirer: AcquirerLog | None
    now_ms: int
    ended: bool
    restored: bool = False

    @property
    def calls(self) -> tuple[RecordedCall, ...]:
        return self.history.calls if self.history else ()

    @property
    def acquirer_log(self) -> AcquirerLog:
        return self.acquirer or ()

    @cached_property
    def legs(self) -> Mapping[str, list[Record]]:
        """The postings of each journal."""
        return grouped(self.snapshot.postings, "journal_id")

    @cached_property
    def journals(self) -> Mapping[str, Record]:
        return {str(row["journal_id"]): row for row in self.snapshot.journals}

    @cached_property
    def reversed(self) -> frozenset[str | None]:
        """The journals that another one reverses, and None."""
        return frozenset(row["reversal_of"] for row in self.snapshot.journals)

    @cached_property
    def orders(self) -> Mapping[str, Record]:
        return {str(row["order_id"]): row for row in self.snapshot.orders}

    @cached_property
    def payments(self) -> Mapping[str, Record]:
        return {str(row["payment_id"]): row for row in self.snapshot.payments}

    @cached_property
    def payments_of_order(self) -> Mapping[str, list[Record]]:
        """The payments of each order; those without an order under the empty id."""
        return grouped(self.snapshot.payments, "order_id")

    @cached_property
    def payments_of_key(self) -> Mapping[Key, list[Record]]:
        """The payments that each Settle or Pay made, each Reverse undoes or undid, or each Park parked."""
        found: defaultdict[Key, list[Record]] = defaultdict(list)
        for row in self.snapshot.payments:
            found[settling_key(row)].append(row)
            found[reversal_key(row)].append(row)
            if was_parked(row):
                found[caller_of(row, "parking_"), "Park", str(row["parking_key"])].append(row)
        return dict(found)

    @cached_property
    def journals_of_order(self) -> Mapping[str, list[Record]]:
        return grouped((row for row in self.snapshot.journals if row["order_id"]), "order_id")

    @cached_property
    def journals_of_payment(self) -> Mapping[str, list[Record]]:
        return grouped(self.snapshot.journals, "payment_id")

    @cached_property
    def requests(self) -> Mapping[Key, Record]:
        """The requests of all services. Each method is of one service, so no two meet."""
        rows = (*self.snapshot.requests, *self.snapshot.order_requests, *self.snapshot.ledger_requests)
        return {(caller_of(row), str(row["method"]), str(row["key"])): row for row in rows}

    @cached_property
    def stored(self) -> Mapping[Key, str]:
        """The digest of each stored response."""
        return {
            key: _digest(bytes(row["response"])) for key, row in self.requests.items() if row["response"] is not None
        }

    @cached_property
    def definitive_answers(self) -> tuple[DefinitiveAnswer, ...]:
        """Every definitive answer to a remembered request."""
        found = [
            DefinitiveAnswer(each.key, None, each.ok, hashlib.sha256(each.body).hexdigest()) for each in self.answers
        ]
        for key, attempts in self.calls_of_key.items():
            for attempt in attempts:
                ok, answer = attempt.outcome is Outcome.OK, attempt.answer
                if ok or is_refused_for_ever(attempt):
                    content = (answer.reason, answer.state, answer.payment_id, answer.version)
                    found.append(DefinitiveAnswer(key[2], key, ok, answer.sha256, content))
        return tuple(found)

    @cached_property
    def calls_of_key(self) -> Mapping[Key, list[RecordedCall]]:
        """The recorded attempts at each remembered request."""
        found: defaultdict[Key, list[RecordedCall]] = defaultdict(list)
        for call in self.calls:
            if call.kind in REMEMBERED:
                found[key_of(call)].append(call)
        return dict(found)

    def may_be_removed(self, key: Key, *, ok: bool = True) -> bool:
        """Return whether an absent request may have been removed for its age: see runtime/database/retention.py.

        Args:
            ok: Whether it was answered with a success.
        """
        if key in self.requests:
            return False
        match key[1]:
            case "IssueTicket":
                return bool(self.snapshot.removals)
            case "Pay":
                paid_order = any(row["order_id"] for row in self.payments_of_key.get(key, ()))
                return bool(self.snapshot.removals) and not paid_order
            case "CreateOrder" | "CancelOrder":
                return bool(self.snapshot.order_removals) and not ok
        return False

    def standing(self, journals: Iterable[Record]) -> list[Record]:
        """Return those that are neither reversals nor reversed."""
        return [row for row in journals if not row["reversal_of"] and row["journal_id"] not in self.reversed]

    def amount(self, journal: Record) -> int:
        """Return what a journal moves, in minor units."""
        return sum(max(0, int(leg["amount"])) for leg in self.legs.get(str(journal["journal_id"]), ()))


def key_of(call: RecordedCall) -> Key:
    """Return the key under which the services remember a call."""
    asked = call.arguments
    return person(asked.clerk, asked.role), call.kind, asked.key


def settling_key(payment: Record) -> Key:
    """Return the key of the Settle or Pay that made a payment."""
    return caller_of(payment, "request_"), str(payment["request_method"]), str(payment["request_key"])


def reversal_key(payment: Record) -> Key:
    """Return the key of the Reverse of a payment; its last part is empty if there is none."""
    return caller_of(payment, "reversal_"), "Reverse", str(payment["reversal_key"])


def title(key: Key) -> str:
    """Return a request in words."""
    return f"{key[1]} {key[2]} of {key[0]}"


def is_refused_for_ever(call: RecordedCall) -> bool:
    """Return whether the caller got the stored answer of its request, and that is a refusal."""
    return call.outcome is Outcome.FAIL and is_stored(call)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def grouped(rows: Iterable[Record], field_name: str) -> dict[str, list[Record]]:
    """Return rows by one of their columns, in their order."""
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for row in rows:
        groups[str(row[field_name])].append(row)
    return dict(groups)


def names(rows: Iterable[Record], field_name: str = "journal_id") -> str:
    """Return one column of some rows, in words."""
    return ", ".join(str(row[field_name]) for row in rows) or "none"
