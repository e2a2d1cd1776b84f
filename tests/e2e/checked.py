"""The books of a running stack, checked; what a test looks up in them; and how a call was refused."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from services.checker.registry import run_checks
from services.checker.snapshot import Snapshot
from services.kernel.errors import CountinghouseError
from services.runtime.grpc import status
from services.testkit.client import CallResult
from services.testkit.harness import Harness

#: What is left between two commits has to be finished in this time, on a machine that others use too.
QUIET_S = 15.0


async def checked_books(harness: Harness) -> Snapshot:
    """Return the books, once nothing is under way; fail if that takes too long or a check finds something."""
    books = (await harness.settled_snapshot(QUIET_S)).snapshot
    assert books.unfinished() == []
    broken = [check for check in run_checks(books, harness.connections.answers) if not check.ok]
    assert broken == [], broken
    return books


def charges(books: Snapshot, order_id: str) -> list[str]:
    """Return the payments that charged an order, reversals not counted."""
    return [str(row["payment_id"]) for row in books.journals if row["order_id"] == order_id and not row["reversal_of"]]


def at_acquirer(books: Snapshot, payment_id: str) -> list[str]:
    """Return where the keys of a payment stand at the acquirer."""
    return [str(row["state"]) for row in books.charges or () if str(row["key"]).startswith(f"{payment_id}:")]


def states(books: Snapshot, payment_ids: Iterable[str]) -> list[str]:
    """Return where payments stand."""
    found = {str(row["payment_id"]): str(row["state"]) for row in books.payments}
    return [found[payment_id] for payment_id in payment_ids]


async def refusal(call: Awaitable[Any]) -> tuple[str, CountinghouseError]:
    """Return the status code and the error with which a call was refused; fail if it was not."""
    try:
        answer = await call
    except CountinghouseError as error:
        return status.code_of(error).name, error
    assert isinstance(answer, CallResult), f"this should have been refused, and was answered: {answer}"
    assert answer.error is not None, f"this should have been refused, and was answered: {answer}"
    return answer.answer.code, answer.error
