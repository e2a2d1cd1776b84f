"""What must be true after any run, one function each. No I/O.

A check looks at the books, counts what it examined, and says in words each thing that is wrong. It repeats what the
services promise from the outside: the tables of legal moves and the bytes that are hashed are written here once more,
on purpose, so that a mistake in theirs is found.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from services.checker.books import UNFINISHED, Books, Record
from services.checker.cards import cards_agree

_ORDER_MOVES = {
    ("UNPAID", "PAYING"),
    ("PAYING", "PAID"),
    ("UNPAID", "CANCELLED"),
    ("PAYING", "UNPAID"),
    ("PAID", "UNPAID"),
}
_PAYMENT_MOVES = {
    ("CREATED", "SUBMITTED"),
    ("CREATED", "DECLINED"),
    ("SUBMITTED", "SUCCEEDED"),
    ("SUBMITTED", "DECLINED"),
    ("SUBMITTED", "UNKNOWN"),
    ("UNKNOWN", "SUCCEEDED"),
    ("UNKNOWN", "DECLINED"),
    ("UNKNOWN", "REVERSING"),
    ("SUCCEEDED", "REVERSING"),
    ("REVERSING", "REVERSED"),
    ("REVERSING", "SUCCEEDED"),
}
_MOVE_MONEY = ("Pay", "Settle", "Reverse")
_GROWS_BY_DEBITS = ("ASSET", "EXPENSE")
#: Violations told of one check; the rest is counted.
_MAX_TOLD = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One check's result.

    Args:
        examined: How many things it looked at.
        violations: What is wrong, in words; at most 20, the last of which counts the others.
    """

    name: str
    examined: int
    violations: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.violations


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer a client got, for comparing it with what is stored.

    Args:
        key: Request id or ticket.
        ok: Whether the call succeeded.
        body: The response as received, or the google.rpc.Status of a refusal.
    """

    key: str
    ok: bool
    body: bytes


Violations = Iterator[str]
_Test = Callable[["_Evidence"], tuple[int, Iterable[str]]]


class _Evidence:
    """The books and what clients saw, with the lookups that the checks share."""

    def __init__(self, books: Books, answers: Iterable[Answered]) -> None:
        self.books = books
        self.answers = tuple(answers)
        self.legs = _grouped(books.postings, "journal_id")
        self.journals = {str(row["journal_id"]): row for row in books.journals}
        self.reversed = {str(row["reversal_of"]) for row in books.journals if row["reversal_of"]}
        self.payments = {str(row["payment_id"]): row for row in books.payments}
        self.payments_of_order = _grouped([row for row in books.payments if row["order_id"]], "order_id")
        self.journals_of_payment = _grouped(books.journals, "payment_id")

    def standing(self, journals: Iterable[Record]) -> list[Record]:
        """Those that are neither reversals nor reversed."""
        return [row for row in journals if not row["reversal_of"] and row["journal_id"] not in self.reversed]

    def amount(self, journal: Record) -> int:
        """What a journal moves, in minor units."""
        return sum(int(leg["amount"]) for leg in self.legs[str(journal["journal_id"])] if leg["amount"] > 0)


def run_checks(books: Books, answers: Iterable[Answered] = ()) -> list[Check]:
    """All checks, in the order in which a reader wants them."""
    evidence = _Evidence(books, answers)
    results = []
    for name, test in _CHECKS.items():
        examined, violations = test(evidence)
        told = list(violations)
        if len(told) > _MAX_TOLD:
            told = [*told[: _MAX_TOLD - 1], f"and {len(told) - _MAX_TOLD + 1} more"]
        results.append(Check(name, examined, tuple(told)))
    return results


def _postings_balance(evidence: _Evidence) -> tuple[int, Violations]:
    def violations() -> Violations:
        total: defaultdict[str, int] = defaultdict(int)
        currencies = {str(row["account_id"]): str(row["currency_code"]) for row in evidence.books.accounts}
        for journal_id, row in evidence.journals.items():
            legs = evidence.legs.get(journal_id, [])
            if len(legs) < 2:
                yield f"journal {journal_id} has {len(legs)} legs"
            if (difference := sum(int(leg["amount"]) for leg in legs)) != 0:
                yield f"journal {journal_id} is out of balance by {difference} {row['currency_code']}"
            for leg in legs:
                currency = currencies.get(str(leg["account_id"]), "nothing")
                total[currency] += int(leg["amount"])
                if currency != row["currency_code"]:
                    yield f"journal {journal_id} in {row['currency_code']} has a leg in {currency}"
        for currency, difference in total.items():
            if difference:
                yield f"all postings in {currency} sum to {difference}"
        for journal_id in evidence.legs.keys() - evidence.journals.keys():
            yield f"postings of journal {journal_id} stand without it"

    return len(evidence.books.postings), violations()


def _journals_unaltered(evidence: _Evidence) -> tuple[int, Violations]:
    def violations() -> Violations:
        previous = "0" * 64
        for place, row in enumerate(evidence.books.journals, start=1):
            if row["sequence"] != place:
                yield f"journal {row['journal_id']} has sequence {row['sequence']}, and is number {place}"
            if row["previous_hash"] != previous:
                yield f"journal {row['journal_id']} does not follow the one before"
            if row["hash"] != _hash(row, evidence.legs.get(str(row["journal_id"]), [])):
                yield f"journal {row['journal_id']} is not as it was written"
            previous = str(row["hash"])

    return len(evidence.books.journals), violations()


def _hash(journal: Record, legs: list[Record]) -> str:
    content = {
        "business_key": journal["business_key"],
        "clerk": [journal["clerk_name"], journal["clerk_role"]],
        "currency": journal["currency_code"],
        "format": 1,
        "journal_id": journal["journal_id"],
        "legs": [[leg["account_id"], leg["amount"]] for leg in legs],
        "memo": journal["memo"],
        "order_id": journal["order_id"],
        "payment_id": journal["payment_id"],
        "posted_at_ms": journal["posted_at_ms"],
        "reversal_of": journal["reversal_of"] or "",
        "sequence": journal["sequence"],
    }
    written = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{journal['previous_hash']}\n{written}".encode()).hexdigest()


def _settled_once(evidence: _Evidence) -> tuple[int, Violations]:
    by_order = _grouped([row for row in evidence.books.journals if row["order_id"]], "order_id")

    def violations() -> Violations:
        for order_id, journals in by_order.items():
            standing = evidence.standing(journals)
            if len(standing) > 1:
                yield f"order {order_id} was settled {len(standing)} times: {_names(standing)}"
            settled = sum(not row["reversal_of"] for row in journals)
            undone = sum(bool(row["reversal_of"]) for row in journals)
            if settled - undone not in (0, 1):
                yield f"order {order_id} has {settled} settle journals and {undone} reversals"

    return len(evidence.books.orders), violations()


def _reversed_once(evidence: _Evidence) -> tuple[int, Violations]:
    reversals = [row for row in evidence.books.journals if row["reversal_of"]]

    def violations() -> Violations:
        for journal_id, rows in _grouped(reversals, "reversal_of").items():
            if len(rows) > 1:
                yield f"journal {journal_id} was reversed {len(rows)} times"
            original = evidence.journals.get(journal_id)
            if original is None:
                yield f"journal {rows[0]['journal_id']} reverses {journal_id}, which does not exist"
            elif evidence.amount(original) != evidence.amount(rows[0]):
                yield f"journal {rows[0]['journal_id']} does not undo the whole of {journal_id}"

    return len(reversals), violations()


def _paid_means_charged(evidence: _Evidence) -> tuple[int, Violations]:
    """Order PAID ⇔ exactly one SUCCEEDED payment ⇔ one journal that stands, over the same amount."""
    by_order = _grouped([row for row in evidence.books.journals if row["order_id"]], "order_id")

    def violations() -> Violations:
        for order in evidence.books.orders:
            order_id = str(order["order_id"])
            succeeded = [row for row in evidence.payments_of_order.get(order_id, []) if row["state"] == "SUCCEEDED"]
            standing = evidence.standing(by_order.get(order_id, []))
            if order["state"] == "PAYING":
                continue  # not at its end; `_nothing_left_over` tells
            wanted = 1 if order["state"] == "PAID" else 0
            if len(succeeded) != wanted:
                yield f"order {order_id} is {order['state']} with {len(succeeded)} succeeded payments"
            if len(standing) != wanted:
                yield f"order {order_id} is {order['state']} with {len(standing)} settle journals that stand"
            if wanted and succeeded and order["payment_id"] not in [row["payment_id"] for row in succeeded]:
                yield f"order {order_id} names {order['payment_id']}; what succeeded: {_names(succeeded, 'payment_id')}"
            owed = (order["amount_minor_units"], order["currency_code"])
            for journal in standing:
                if (evidence.amount(journal), journal["currency_code"]) != owed:
                    moved = f"{evidence.amount(journal)} {journal['currency_code']}"
                    yield f"order {order_id} of {owed[0]} {owed[1]} was settled by {moved}"
        for order_id in by_order.keys() - {str(order["order_id"]) for order in evidence.books.orders}:
            yield f"journals of order {order_id} stand without it"

    return len(evidence.books.orders), violations()


def _payments_match_journals(evidence: _Evidence) -> tuple[int, Violations]:
    """SUCCEEDED: its one journal stands. REVERSED: its journal is undone. DECLINED: it has none, and never will."""

    def violations() -> Violations:
        for payment_id, payment in evidence.payments.items():
            journals = evidence.journals_of_payment.get(payment_id, [])
            standing = evidence.standing(journals)
            state = payment["state"]
            if state == "SUCCEEDED":
                owed = (payment["amount_minor"], payment["currency"])
                if [row["journal_id"] for row in standing] != [payment["journal_id"]]:
                    yield f"payment {payment_id} names {payment['journal_id']}; what stands: {_names(standing)}"
                elif (moved := (evidence.amount(standing[0]), standing[0]["currency_code"])) != owed:
                    yield f"payment {payment_id} of {owed[0]} {owed[1]} moved {moved[0]} {moved[1]}"
            elif state not in UNFINISHED and standing:
                yield f"payment {payment_id} is {state}, and journal {_names(standing)} stands"
            elif (
                state == "REVERSED"
                and payment["journal_id"]
                and payment["reversal_journal_id"]
                not in [row["journal_id"] for row in journals if row["reversal_of"] == payment["journal_id"]]
            ):
                yield f"payment {payment_id} is REVERSED, and no journal undoes {payment['journal_id']}"
            elif state == "DECLINED" and journals:
                yield f"payment {payment_id} is DECLINED, and {_names(journals)} moved money"
        for payment_id in evidence.journals_of_payment.keys() - evidence.payments.keys():
            yield f"journals of payment {payment_id} stand without it"

    return len(evidence.payments), violations()


def _one_charge_per_key(evidence: _Evidence) -> tuple[int, Violations]:
    """A ticket or request id moved money at most once."""
    keys: defaultdict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for row in evidence.books.payments:
        keys[str(row["request_caller"]), str(row["request_method"]), str(row["request_key"])].append(row)

    def violations() -> Violations:
        for (caller, method, key), payments in keys.items():
            charged = [row for row in payments if evidence.journals_of_payment.get(str(row["payment_id"]))]
            if len(charged) > 1:
                yield f"{method} {key} of {caller} charged {len(charged)} times: {_names(charged, 'payment_id')}"

    return len(keys), violations()


def _answers_true(evidence: _Evidence) -> tuple[int, Violations]:
    """Every acknowledged success is in the ledger; every definitive refusal had no effect."""
    requests = [row for row in evidence.books.requests if row["state"] == "DONE" and row["method"] in _MOVE_MONEY]
    by_key: dict[tuple[str, str, str], Record] = {}
    for row in evidence.books.payments:
        by_key[str(row["request_caller"]), str(row["request_method"]), str(row["request_key"])] = row
        by_key[str(row["reversal_caller"]), "Reverse", str(row["reversal_key"])] = row

    def violations() -> Violations:
        for row in requests:
            what = f"{row['method']} {row['key']} of {row['caller']}"
            reversing = row["method"] == "Reverse"
            payment = by_key.get((str(row["caller"]), str(row["method"]), str(row["key"])))
            if payment is None:
                if row["response_ok"] or not reversing:  # a reversal that is refused leaves no name on the payment
                    yield f"{what} was answered and has no payment"
                continue
            journals = [
                journal
                for journal in evidence.journals_of_payment.get(str(payment["payment_id"]), [])
                if bool(journal["reversal_of"]) == reversing
            ]
            never_charged = reversing and not payment["journal_id"]  # a card payment that was undone unseen
            if row["response_ok"] and not journals and not never_charged:
                yield f"{what} was acknowledged, and no journal moved its money"
            if not row["response_ok"] and journals:
                yield f"{what} was refused, and {_names(journals)} moved money"

    return len(requests), violations()


def _replays_identical(evidence: _Evidence) -> tuple[int, Violations]:
    """All definitive answers to one key are the same bytes, on the wire and in the table."""
    stored: defaultdict[str, set[bytes]] = defaultdict(set)
    for row in evidence.books.requests:
        if row["state"] == "DONE" and row["response"] is not None:
            stored[str(row["key"])].add(bytes(row["response"]))

    def violations() -> Violations:
        seen: defaultdict[str, set[tuple[bool, bytes]]] = defaultdict(set)
        for answer in evidence.answers:
            seen[answer.key].add((answer.ok, answer.body))
            if answer.body not in stored[answer.key]:
                yield f"{answer.key} was answered with something that is not stored"
        for key, different in seen.items():
            if len(different) > 1:
                yield f"{key} got {len(different)} different answers"

    return len(evidence.answers), violations()


def _fences_never_fall(evidence: _Evidence) -> tuple[int, Violations]:
    def falls(events: Iterable[Record], subject: str) -> Violations:
        for name, rows in _grouped(events, subject).items():
            for before, after in pairwise(rows):
                if _fence(after) < _fence(before):
                    yield f"{name}: fence fell from {_fence(before)} to {_fence(after)} at version {after['version']}"

    def violations() -> Violations:
        yield from falls([row for row in evidence.books.order_events if _fence(row) != (0, 0)], "order_id")
        yield from falls(evidence.books.payment_events, "payment_id")

    return len(evidence.books.order_events) + len(evidence.books.payment_events), violations()


def _moves_legal(evidence: _Evidence) -> tuple[int, Violations]:
    """Versions have no gap, and each state follows lawfully from the one before."""

    def violations() -> Violations:
        histories = (
            ("order", evidence.books.orders, evidence.books.order_events, "to_state", "UNPAID", _ORDER_MOVES),
            ("payment", evidence.books.payments, evidence.books.payment_events, "state", "CREATED", _PAYMENT_MOVES),
        )
        for noun, rows, events, state, first, moves in histories:
            history = _grouped(events, f"{noun}_id")
            for row in rows:
                name = str(row[f"{noun}_id"])
                steps = history.get(name, [])
                if [step["version"] for step in steps] != list(range(1, int(row["version"]) + 1)):
                    yield f"{noun} {name} is at version {row['version']}, and its history has {len(steps)} steps"
                    continue
                if steps[0][state] != first or steps[-1][state] != row["state"]:
                    yield f"{noun} {name} is {row['state']}, and its history ends {steps[-1][state]}"
                for before, after in pairwise(steps):
                    if (before[state], after[state]) not in moves:
                        yield f"{noun} {name} went from {before[state]} to {after[state]}"

    return len(evidence.books.order_events) + len(evidence.books.payment_events), violations()


def _requests_whole(evidence: _Evidence) -> tuple[int, Violations]:
    def violations() -> Violations:
        for row in evidence.books.requests:
            if (row["state"] == "DONE") != (row["response"] is not None):
                yield f"{row['method']} {row['key']} of {row['caller']} is {row['state']} " + (
                    "with a response" if row["response"] is not None else "without a response"
                )

    return len(evidence.books.requests), violations()


def _nothing_left_over(evidence: _Evidence) -> tuple[int, Violations]:
    books = evidence.books
    looked_at = (books.payments, books.orders, books.requests, books.outbox)
    return sum(map(len, looked_at)), iter(books.unfinished())


def _balances_true(evidence: _Evidence) -> tuple[int, Violations]:
    """Stored balances are what the postings sum to, and no limit was broken after any journal."""
    accounts = {str(row["account_id"]): row for row in evidence.books.accounts}

    def violations() -> Violations:
        balances = dict.fromkeys(accounts, 0)
        for journal in evidence.books.journals:
            for leg in evidence.legs.get(str(journal["journal_id"]), []):
                name = str(leg["account_id"])
                account = accounts.get(name)
                if account is None:
                    yield f"journal {journal['journal_id']} has a leg on {name}, which does not exist"
                    continue
                sign = 1 if account["kind"] in _GROWS_BY_DEBITS else -1
                balances[name] += sign * int(leg["amount"])
                if balances[name] < -int(account["overdraft_limit"]):
                    yield f"{name} fell to {balances[name]} with journal {journal['sequence']}"
        for name, account in accounts.items():
            if account["balance"] != balances[name]:
                yield f"{name} says {account['balance']}, and its postings sum to {balances[name]}"

    return len(accounts), violations()


def _names(rows: Iterable[Record], field_name: str = "journal_id") -> str:
    return ", ".join(str(row[field_name]) for row in rows) or "none"


def _fence(row: Record) -> tuple[int, int]:
    return int(row["fence_generation"]), int(row["fence_token"])


def _grouped(rows: Iterable[Record], field_name: str) -> dict[str, list[Record]]:
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for row in rows:
        groups[str(row[field_name])].append(row)
    return dict(groups)


_CHECKS: dict[str, _Test] = {
    "postings balance": _postings_balance,
    "journals unaltered": _journals_unaltered,
    "settled at most once": _settled_once,
    "reversed at most once": _reversed_once,
    "paid means charged": _paid_means_charged,
    "payments match journals": _payments_match_journals,
    "one charge per key": _one_charge_per_key,
    "cards agree": lambda evidence: cards_agree(evidence.books),
    "answers are true": _answers_true,
    "replays identical": _replays_identical,
    "fences never fall": _fences_never_fall,
    "moves are legal": _moves_legal,
    "requests are whole": _requests_whole,
    "nothing left over": _nothing_left_over,
    "balances true": _balances_true,
}
