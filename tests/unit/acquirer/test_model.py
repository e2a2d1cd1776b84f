"""What a key may become at the bank, whatever is asked in whatever order."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.acquirer.model import (
    CARD_LIMIT,
    DECLINING,
    MOVES,
    Charge,
    ChargeState,
    Payload,
    charge,
    reverse,
    why_declined,
)
from services.kernel.errors import KeyMismatch
from services.kernel.money import Money

GOOD = Payload("tok-mei", Money(300, "CNY"), "pay_1")
BAD = Payload("tok-declined", Money(300, "CNY"), "pay_1")


def test_every_state_has_its_row() -> None:
    assert set(MOVES) == {None, *ChargeState}


@given(
    st.lists(
        st.sampled_from(
            [("charge", GOOD), ("charge", BAD), ("charge", replace(GOOD, reference="pay_2")), ("reverse", None)]
        ),
        max_size=8,
    )
)
def test_key_moves_in_once_and_out_once(steps: list[tuple[str, Payload | None]]) -> None:
    """Whatever comes in whatever order: only legal moves, one payload for ever, and no money in after a reversal."""
    standing: Charge | None = None
    moved_in = moved_out = 0
    reversed_once = False
    for now_ms, (step, payload) in enumerate(steps, start=1):
        before = standing
        try:
            standing = charge(before, "k", payload, now_ms) if payload else reverse(before, "k", now_ms)
        except KeyMismatch:
            assert before is not None
            assert before.payload != payload
            continue
        if standing is not before:
            assert standing.state in MOVES[before.state if before else None]
            moved_in += standing.state is ChargeState.CHARGED
            moved_out += standing.state is ChargeState.REFUNDED
            assert before is None or standing.payload == before.payload
        reversed_once |= step == "reverse"
        assert not (reversed_once and standing.state is ChargeState.CHARGED)
    assert moved_in <= 1
    assert moved_out == (moved_in if reversed_once else 0)


def test_late_charge_meets_the_tombstone() -> None:
    """Of any payload, since a tombstone has none."""
    stone = reverse(None, "k", 1)
    assert charge(stone, "k", GOOD, 2) is stone
    assert charge(stone, "k", BAD, 3) is stone


def test_decline_is_not_undone() -> None:
    """Nothing was charged, and nothing will be: there is nothing to give back."""
    declined = charge(None, "k", BAD, 1)
    assert reverse(declined, "k", 2) is declined
    assert charge(declined, "k", BAD, 3) is declined


@pytest.mark.parametrize(
    "other",
    [replace(GOOD, card="tok-tom"), replace(GOOD, amount=Money(301, "CNY")), replace(GOOD, amount=Money(300, "EUR"))],
)
def test_key_stands_for_one_payload(other: Payload) -> None:
    """Also after it was refunded."""
    charged = charge(None, "k", GOOD, 1)
    for standing in (charged, reverse(charged, "k", 2)):
        with pytest.raises(KeyMismatch):
            charge(standing, "k", other, 3)


@pytest.mark.parametrize(("begins", "reason"), DECLINING.items())
def test_declined_card_has_a_reason(begins: str, reason: str) -> None:
    """Whatever follows."""
    assert why_declined(replace(GOOD, card=f"{begins}-7")) == reason
    assert charge(None, "k", replace(GOOD, card=begins), 1).decline_reason == reason


def test_card_has_its_limit() -> None:
    """Of one charge, in minor units of any currency."""
    assert why_declined(replace(GOOD, amount=Money(CARD_LIMIT, "JPY"))) == ""
    assert why_declined(replace(GOOD, amount=Money(CARD_LIMIT + 1, "JPY"))) == "CARD_LIMIT_EXCEEDED"
