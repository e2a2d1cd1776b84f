"""Lanes: the steps of each clerk's settle, drawn over time.

    cashier li      ──lock━━━pay━━post━━✔ settled in 18 ms
    accountant wu   ──lock━━━wait┄┄┄┄┄┄┄✘ already settled by li, 41 ms ago

The moments come from the databases: a payment's own history, the order's, and the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from services.checker.snapshot import Record, Snapshot
from services.testkit.client import CallResult
from services.testkit.harness import AnyHarness

#: Columns for the longest lane.
_WIDTH = 44
_LABEL = 15
#: Strokes between two words at the least.
_GAP = 2
#: What follows a word: work, waiting for a lock, or plain time.
_STROKES = {"wait": "┄", "frozen": "┄", "": "─"}


@dataclass(frozen=True, slots=True)
class Lane:
    """One line.

    Args:
        steps: (milliseconds since the press, word).
        mark: How it ended: ✔ did it, ↺ got the stored answer, ✘ was refused or died.
        end: How it ended, in words.
    """

    label: str
    steps: tuple[tuple[int, str], ...]
    length_ms: int
    mark: str
    end: str

    @classmethod
    def of_answer(cls, label: str, word: str, seen: CallResult, end: str = "") -> Lane:
        """Return a lane of which only the answer is known."""
        mark = "✘" if seen.error else "↺" if seen.replayed else "✔"
        said = str(seen.error) if seen.error else "the stored answer" if seen.replayed else "done"
        return cls(label, ((0, word),), seen.ended_ms - seen.began_ms, mark, end or said)

    def draw(self, per_column_ms: float) -> str:
        """Return the line, at a scale shared with the other lanes."""
        line, stroke = "─" * _GAP, _STROKES[""]
        for at_ms, word in self.steps:
            begins = len(line) == _GAP
            line += stroke * max(0 if begins else _GAP, round(at_ms / per_column_ms) + _GAP - len(line)) + word
            stroke = _STROKES.get(word, "━")
        line += stroke * max(_GAP, round(self.length_ms / per_column_ms) + _GAP - len(line))
        return f"{self.label:<{_LABEL}} {line}{self.mark} {self.end}".rstrip()


def draw(lanes: Sequence[Lane]) -> list[str]:
    """Return the lanes, one line each, to one scale."""
    longest_ms = max((lane.length_ms for lane in lanes), default=0)
    per_column_ms = max(longest_ms / _WIDTH, 0.25)
    return [lane.draw(per_column_ms) for lane in lanes]


def coloured(line: str) -> Text:
    """Return a drawn line with its mark in colour: green for done, cyan for replayed, red for refused."""
    text = Text(line)
    for mark, colour in (("✔", "green"), ("↺", "cyan"), ("✘", "red")):
        text.highlight_words([mark], style=colour)
    return text


async def lanes_of(harness: AnyHarness, order_id: str, seen: tuple[CallResult, CallResult]) -> list[Lane]:
    """Return a lane for each of the two clerks of this order, and one for each service that recorded it."""
    books = await harness.snapshot()
    labels = {clerk.name: f"{clerk.identity.role} {clerk.name}" for clerk in (harness.cashier, harness.accountant)}
    began_ms = min(answer.began_ms for answer in seen)
    payments = [row for row in books.payments if row["order_id"] == order_id]
    payments.sort(key=lambda row: int(row["created_at_ms"]))
    lanes = [_clerk_lane(books, row, labels[str(row["clerk_name"])], seen) for row in payments]
    return [*lanes, *_service_lanes(books, order_id, began_ms)]


def _clerk_lane(books: Snapshot, payment: Record, label: str, seen: tuple[CallResult, CallResult]) -> Lane:
    """Return the outcome of one clerk's settle.

    Its answer is the one with the payment's outcome; of several the one that began nearest to its acceptance.
    """
    agreeing = [one for one in seen if (one.error is not None) == (payment["state"] == "DECLINED")]
    answer = min(agreeing or seen, key=lambda one: abs(one.began_ms - int(payment["created_at_ms"])))
    began_ms = min(answer.began_ms, int(payment["created_at_ms"]))
    moments = {
        str(row["state"]): int(row["at_ms"]) - began_ms
        for row in books.payment_events
        if row["payment_id"] == payment["payment_id"]
    }
    posted = [int(row["posted_at_ms"]) for row in books.journals if row["payment_id"] == payment["payment_id"]]
    if "SUBMITTED" not in moments:
        refused = answer.error.message.partition(" was ")[2].partition(" at ")[0] if answer.error else ""
        end = refused or str(payment["decline_reason"])
        return Lane(label, ((0, "lock"), (1, "wait")), max(moments.values()), "✘", end)
    steps = [(0, "lock"), (moments["SUBMITTED"], "pay")]
    if posted:
        steps.append((posted[0] - began_ms, "post"))
    settled_ms = moments.get("SUCCEEDED", max(moments.values()))
    undone = ", reversed later" if "REVERSED" in moments else ""
    return Lane(label, tuple(steps), settled_ms, "✔", f"settled in {settled_ms} ms{undone}")


def _service_lanes(books: Snapshot, order_id: str, began_ms: int) -> list[Lane]:
    """Return what the order service, the ledger and the acquirer recorded about this order since the press."""
    payment_ids = {row["payment_id"] for row in books.payments if row["order_id"] == order_id}
    written = {
        "order": [
            (int(row["at_ms"]) - began_ms, str(row["to_state"]).lower())
            for row in books.order_events
            if row["order_id"] == order_id and row["at_ms"] >= began_ms
        ],
        "ledger": [
            (int(row["posted_at_ms"]) - began_ms, "undo" if row["reversal_of"] else "post")
            for row in books.journals
            if row["order_id"] == order_id and row["posted_at_ms"] >= began_ms
        ],
        "acquirer": [
            (int(row["decided_at_ms"]) - began_ms, "charge")
            for row in books.charges or ()
            if row["reference"] in payment_ids and row["decided_at_ms"] >= began_ms
        ],
    }
    return [Lane(label, tuple(steps), steps[-1][0], "✔", "") for label, steps in written.items() if steps]
