"""What a session may believe of itself, from the packets acknowledged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordination.session.liveness import MARGIN_FRACTION, Backoff, SessionValidity


@given(st.floats(1, 60), st.lists(st.floats(0, 1000), min_size=1))
def test_validity_never_exceeds_the_last_acknowledgement(timeout_s: float, sent_at: list[float]) -> None:
    """Belief ends a margin before (latest acknowledged send time + timeout), in whatever order replies come."""
    validity = SessionValidity(1, timeout_s, float("-inf"))
    for moment in sent_at:
        renewed = validity.renewed(moment)
        assert renewed.until >= validity.until
        validity = renewed
    assert validity.until == max(sent_at) + timeout_s * (1 - MARGIN_FRACTION)


def test_backoff_starts_again_only_when_a_request_was_answered() -> None:
    """kazoo's own `reset`, after a handshake, changes nothing; a copy begins anew."""
    backoff = Backoff(max_tries=-1, delay=1.0, max_delay=10.0)
    backoff._cur_delay = 8.0
    backoff.reset()
    assert backoff._cur_delay == 8.0
    assert backoff.copy()._cur_delay == 1.0
    backoff.answered()
    assert backoff._cur_delay == 1.0
