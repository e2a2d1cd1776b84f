"""The tree of errors: what each carries."""

from __future__ import annotations

import pytest

from services.kernel import errors
from services.kernel.fence import Fence


@pytest.mark.parametrize(
    ("error", "definitive"),
    [
        (errors.InvalidArgument("R", "m"), False),
        (errors.NotFound("R", "m"), False),
        (errors.AlreadyExists("R", "m"), True),
        (errors.FailedPrecondition("R", "m"), True),
        (errors.Aborted("R", "m"), False),
        (errors.Unavailable("R", "m"), False),
        (errors.OutcomeUnknown("R", "m"), False),
    ],
)
def test_only_definitive_refusals_may_be_stored(error: errors.CountinghouseError, definitive: bool) -> None:
    """Passing and unknown failures must be tried again, not replayed."""
    assert error.definitive is definitive


def test_error_reads_as_its_message() -> None:
    """For people the sentence, for programs the reason."""
    error = errors.NotFound("ORDER_NOT_FOUND", "there is no order o1")
    assert (str(error), error.reason) == ("there is no order o1", "ORDER_NOT_FOUND")


def test_stale_fence_names_both_fences_and_its_guard() -> None:
    """So that the demo can say which guard caught a frozen holder."""
    error = errors.StaleFence("o1", Fence(1, 10), Fence(1, 11))
    assert error.metadata == {"subject": "order o1", "carried": "1.a", "seen": "1.b", "guard": "fence"}
    assert error.retry_after_ms is not None


def test_passing_error_has_a_retry_time() -> None:
    """A request in progress soon, an absent dependency a little later; a mismatch never helps."""
    assert errors.RequestInProgress("r1").retry_after_ms == 200
    assert errors.Unavailable("R", "m").retry_after_ms == 1_000
    assert errors.KeyMismatch("r1").retry_after_ms is None


def test_field_at_fault_is_named() -> None:
    """With what is wrong with it."""
    error = errors.InvalidArgument.of_field("FIELD_REQUIRED", "order_id", "order_id is required")
    assert error.fields == (("order_id", "order_id is required"),)


def test_metadata_is_the_errors_own() -> None:
    """Changing what it was made from does not change it."""
    facts = {"a": "1"}
    error = errors.Aborted("R", "m", metadata=facts)
    facts["a"] = "2"
    assert error.metadata == {"a": "1"}
