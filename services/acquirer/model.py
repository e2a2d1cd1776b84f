"""The states of a key at the acquirer. No I/O.

    (never seen) ──┬── charge ──▶ CHARGED ── reverse ──▶ REFUNDED
                   ├── charge ──▶ DECLINED
                   └── reverse ─▶ TOMBSTONE

| move | function |
|---|---|
| to CHARGED or DECLINED | `charge` |
| to REFUNDED or TOMBSTONE | `reverse` |

Invariants
1. A key moves money in once at most, and out once at most, and then in whole.
2. Asked again, with the same payload, a key is answered as it stands, whatever is asked and by which caller.
3. A key that was reversed moves no money in any more, not even for a charge that was sent before and arrives late.
4. A key that stands for a payload is refused with any other.

Both functions take the key as it stands and give it as it stands afterwards: the very same object when nothing is to
be changed. The store calls them under the key's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from services.kernel.errors import KeyMismatch, NotFound
from services.kernel.money import Money

#: Cards that decline, by how their tokens begin, and why.
DECLINING = {
    "tok-declined": "CARD_DECLINED",
    "tok-expired": "CARD_EXPIRED",
    "tok-short": "CARD_SHORT_OF_FUNDS",
}
#: The largest amount that a card is good for, in minor units of any currency.
CARD_LIMIT = 100_000_000


class ChargeState(StrEnum):
    """Where a key stands."""

    CHARGED = "CHARGED"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"
    TOMBSTONE = "TOMBSTONE"


#: The machine as a table: from → to; None is a key that was never seen.
MOVES: dict[ChargeState | None, frozenset[ChargeState]] = {
    None: frozenset({ChargeState.CHARGED, ChargeState.DECLINED, ChargeState.TOMBSTONE}),
    ChargeState.CHARGED: frozenset({ChargeState.REFUNDED}),
    ChargeState.DECLINED: frozenset(),
    ChargeState.REFUNDED: frozenset(),
    ChargeState.TOMBSTONE: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Payload:
    """What a merchant wants charged.

    Args:
        card: The card's token.
        reference: What it is for; the acquirer only repeats it.
    """

    card: str
    amount: Money
    reference: str


@dataclass(frozen=True, slots=True)
class Charge:
    """A key as it stands. Times are Unix milliseconds.

    Args:
        payload: None: a tombstone, for nothing was ever charged.
        number: Its place in the statement; 0 until it is written.
        refunded_at_ms: 0 unless REFUNDED.
    """

    key: str
    state: ChargeState
    payload: Payload | None
    decline_reason: str
    decided_at_ms: int
    number: int = 0
    refunded_at_ms: int = 0


def charge(standing: Charge | None, key: str, payload: Payload, now_ms: int) -> Charge:
    """Charge the card unless the key stands for something already.

    Raises:
        KeyMismatch: It stands for another payload.
    """
    if standing is None:
        reason = why_declined(payload)
        state = ChargeState.DECLINED if reason else ChargeState.CHARGED
        return Charge(key, state, payload, reason, now_ms)
    if standing.payload not in (None, payload):
        raise KeyMismatch(key)
    return standing


def reverse(standing: Charge | None, key: str, now_ms: int) -> Charge:
    """Refund a charge, or leave a tombstone that refuses one that comes later."""
    if standing is None:
        return Charge(key, ChargeState.TOMBSTONE, None, "", now_ms)
    if standing.state is ChargeState.CHARGED:
        return replace(standing, state=ChargeState.REFUNDED, refunded_at_ms=now_ms)
    return standing


def why_declined(payload: Payload) -> str:
    """Return why this card is declined; empty: it is not."""
    for begins, reason in DECLINING.items():
        if payload.card.startswith(begins):
            return reason
    return "CARD_LIMIT_EXCEEDED" if payload.amount.minor_units > CARD_LIMIT else ""


def charge_not_found(key: str) -> NotFound:
    """Return the answer for a key that was never decided on."""
    return NotFound("CHARGE_NOT_FOUND", f"nothing was ever decided on {key}", metadata={"key": key})


#: Entries of the log besides the states.
RECEIVED, REPEATED, REFUSED = "RECEIVED", "REPEATED", "REFUSED"


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request, as the log has it.

    Args:
        caller: From the token.
        payload: None: the request names none.
        at_ms: Unix milliseconds.
    """

    method: str
    caller: str
    key: str
    payload: Payload | None
    at_ms: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the log: what was received, or what was decided."""

    number: int
    request: LoggedRequest
    word: str


def moved_by(request: LoggedRequest, word: str, decided: Charge) -> Payload | None:
    """Return the payload that a decision's log entry shows; of a refund, which names only its key, what it moved."""
    return decided.payload if word == ChargeState.REFUNDED else request.payload
