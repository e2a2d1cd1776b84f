"""Lanes: what one person's press of a button went through, drawn over time.

    cashier li      ──lock━━pay━━post━━✔ 18 ms
    accountant wu   ──lock┄┄wait┄┄✘ already settled by li, 41 ms ago

The moments come from what the services wrote down: a payment's own history, the order's, and the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.checker.books import Books, Record
from services.demo.people import Seen
from services.kernel.errors import CountinghouseError

if TYPE_CHECKING:
    from services.demo.stage import Stage

#: Columns for the longest lane.
_WIDTH = 44


@dataclass(frozen=True, slots=True)
class Lane:
    """One line. `steps` are (milliseconds since the press, word); `end` says how it ended."""

    label: str
    steps: tuple[tuple[int, str], ...]
    length_ms: int
    good: bool
    end: str

    @classmethod
    def of_answer(cls, label: str, seen: Seen) -> Lane:
        """A lane of which only the answer is known."""
        good = seen.error is None
        end = str(seen.error) if seen.error else ("the stored answer" if seen.replayed else "charged")
        return cls(label, ((0, "pay"),), seen.ended_ms - seen.began_ms, good and not seen.replayed, end)

    def draw(self, per_column_ms: float) -> str:
        """The line, at a scale shared with the other lanes."""
        line = "──"
        last_word = ""
        for at_ms, word in self.steps:
            line += _stroke(last_word) * max(0, round(at_ms / per_column_ms) + 2 - len(line)) + word
            last_word = word
        line += _stroke(last_word) * max(2, round(self.length_ms / per_column_ms) + 2 - len(line))
        return f"{self.label:<15} {line}{'✔' if self.good else '✘'} {self.end}"


def draw(lanes: Sequence[Lane]) -> list[str]:
    """The lanes, one line each, to one scale."""
    longest_ms = max((lane.length_ms for lane in lanes), default=0)
    per_column_ms = max(longest_ms / _WIDTH, 0.25)
    return [lane.draw(per_column_ms) for lane in lanes]


async def lanes_of(stage: Stage, order_id: str, seen: tuple[Seen, Seen]) -> list[Lane]:
    """A lane for each of the two who pressed on this bill, and one for each service that took part."""
    books = await stage.books()
    people = {stage.cashier.name: stage.cashier, stage.accountant.name: stage.accountant}
    payments = sorted(
        (row for row in books.payments if row["order_id"] == order_id), key=lambda row: int(row["created_at_ms"])
    )
    lanes = []
    for payment in payments:
        person = people[str(payment["clerk_name"])]
        answer = _answer_for(payment, seen)
        lanes.append(_person_lane(books, payment, f"{person.role} {person.name}", answer))
    began_ms = min(answer.began_ms for answer in seen)
    return [*lanes, *_service_lanes(books, order_id, began_ms)]


def _answer_for(payment: Record, seen: tuple[Seen, Seen]) -> Seen:
    """The press that began nearest to the payment's acceptance."""
    return min(seen, key=lambda answer: abs(answer.began_ms - int(payment["created_at_ms"])))


def _person_lane(books: Books, payment: Record, label: str, seen: Seen) -> Lane:
    began_ms = min(seen.began_ms, int(payment["created_at_ms"]))
    steps = [(0, "lock")]
    claimed = _claimed_ms(books, payment)
    moments = {
        str(row["state"]): int(row["at_ms"])
        for row in books.payment_events
        if row["payment_id"] == payment["payment_id"]
    }
    posted = [int(row["posted_at_ms"]) for row in books.journals if row["payment_id"] == payment["payment_id"]]
    if "SUBMITTED" not in moments:
        steps.append(((claimed or moments.get("DECLINED", began_ms)) - began_ms, "wait") if not claimed else (1, "pay"))
        steps = [(0, "lock"), (1, "wait")]
    else:
        steps.append((moments["SUBMITTED"] - began_ms, "pay"))
        if posted:
            steps.append((posted[0] - began_ms, "post"))
    ended_ms = max(moments.values())
    good = payment["state"] in ("SUCCEEDED", "REVERSED", "REVERSING")
    return Lane(label, tuple(steps), ended_ms - began_ms, good, _end(payment, seen.error, ended_ms - began_ms))


def _end(payment: Record, error: CountinghouseError | None, took_ms: int) -> str:
    if payment["state"] == "SUCCEEDED":
        return f"settled in {took_ms} ms"
    if payment["state"] == "REVERSED":
        return "settled, then reversed"
    return error.message.partition(" was ")[2] if error and " was " in error.message else str(payment["decline_reason"])


def _claimed_ms(books: Books, payment: Record) -> int:
    """When the order was claimed for this payment; 0: it was not."""
    for row in books.order_events:
        if row["to_state"] == "PAYING" and row["payment_id"] == payment["payment_id"]:
            return int(row["at_ms"])
    return 0


def _service_lanes(books: Books, order_id: str, began_ms: int) -> list[Lane]:
    """What the order service and the ledger wrote about this bill, since the press."""
    order = [
        (int(row["at_ms"]) - began_ms, str(row["to_state"]).lower())
        for row in books.order_events
        if row["order_id"] == order_id and row["at_ms"] >= began_ms
    ]
    ledger = [
        (int(row["posted_at_ms"]) - began_ms, "undo" if row["reversal_of"] else "post")
        for row in books.journals
        if row["order_id"] == order_id and row["posted_at_ms"] >= began_ms
    ]
    lanes = []
    for label, steps in (("order", order), ("ledger", ledger)):
        if steps:
            lanes.append(Lane(label, tuple(steps), steps[-1][0], True, steps[-1][1]))
    return lanes


def _stroke(last_word: str) -> str:
    return {"lock": "━", "wait": "┄", "pay": "━", "post": "━"}.get(last_word, "─")
