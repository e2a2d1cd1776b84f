"""Theirs against ours, key for key. No I/O.

| class | what is found | what mends it |
|---|---|---|
| only theirs | they hold money under a key of a payment that has none, or of no payment of ours | `REFUND` |
| only ours | our payment succeeded, and they hold nothing under its key | `ASK_AGAIN` |
| amount differs | they hold another amount than our payment has | `REVERSE` |
| duplicate | they hold money for one payment under several keys | `REFUND` of those that are not its own |
| late | they hold it, and our payment does not know its outcome yet | `ASK_NOW` |
| late | our payment succeeded, and its bill is not PAID by it yet | `WAIT` |

Where our own books disagree with our own payments nothing is mended from here: that is for people (`LOOK`), and for
`countinghouse check`. Payments that are under way and of which the acquirer holds nothing differ in nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

#: States of a payment that has come to its end without money.
_WITHOUT_MONEY = ("CREATED", "DECLINED", "REVERSED")
_SUCCEEDED, _UNKNOWN = "SUCCEEDED", "UNKNOWN"
_CHARGED = "CHARGED"


class Kind(StrEnum):
    """How the two sides differ."""

    ONLY_THEIRS = "only theirs"
    ONLY_OURS = "only ours"
    AMOUNT = "amount differs"
    DUPLICATE = "duplicate"
    LATE = "late"


class Action(StrEnum):
    """What mends it, in words for people."""

    REFUND = "reverse the key at the acquirer"
    ASK_AGAIN = "ask the acquirer again under the payment's key; if it will not charge, reverse the payment"
    REVERSE = "reverse the payment, in the books and at the acquirer"
    ASK_NOW = "let the payment service ask the acquirer now"
    WAIT = "wait until the order service has been told"
    LOOK = "people have to look: `countinghouse check`"


@dataclass(frozen=True, slots=True)
class Amount:
    """Money of one side; a sum may be zero."""

    minor_units: int
    currency: str

    def __str__(self) -> str:
        return f"{self.minor_units} {self.currency}"


@dataclass(frozen=True, slots=True)
class Theirs:
    """A key at the acquirer.

    Args:
        state: CHARGED, DECLINED, REFUNDED or TOMBSTONE.
        amount: None: a tombstone.
        reference: The payment that it was charged for, as we said then.
    """

    key: str
    state: str
    amount: Amount | None
    reference: str


@dataclass(frozen=True, slots=True)
class Ours:
    """A payment by card.

    Args:
        state: As in the proto, without its prefix.
        key: Empty: it has never been submitted.
        amount: None: as before.
    """

    payment_id: str
    order_id: str
    state: str
    key: str
    amount: Amount | None
    card: str
    attention: str


@dataclass(frozen=True, slots=True)
class Bill:
    """A bill that is PAID: by which payment, and how much it was."""

    payment_id: str
    amount: Amount


@dataclass(frozen=True, slots=True)
class Sides:
    """Everything that is compared.

    Args:
        owed: What the acquirer owes by the ledger, by payment and currency; sums of zero are left out.
        paid: The bills that are PAID, by order.
    """

    theirs: tuple[Theirs, ...]
    ours: tuple[Ours, ...]
    owed: Mapping[tuple[str, str], int]
    paid: Mapping[str, Bill]


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One difference.

    Args:
        key: At the acquirer; empty: it is between our own sides.
        payment_id: Empty: it is of no payment of ours.
        theirs, ours: What either side has; None: nothing.
    """

    kind: Kind
    action: Action
    key: str
    payment_id: str
    theirs: Amount | None
    ours: Amount | None


def compare(sides: Sides) -> list[Discrepancy]:
    """All differences, theirs first, in the order in which either side lists them."""
    by_key = {payment.key: payment for payment in sides.ours if payment.key}
    by_id = {payment.payment_id: payment for payment in sides.ours}
    held = {charge.key: charge for charge in sides.theirs if charge.state == _CHARGED and charge.amount is not None}
    found: list[Discrepancy] = []
    for charge in held.values():
        payment = by_key.get(charge.key)
        found += _foreign(charge, by_id) if payment is None else _own(charge, payment)
    for payment in sides.ours:
        if payment.state == _SUCCEEDED and payment.key not in held:
            found.append(_found(Kind.ONLY_OURS, Action.ASK_AGAIN, payment.key, payment, None))
        found += _within_our_own(payment, sides)
    return found


def _foreign(charge: Theirs, by_id: Mapping[str, Ours]) -> Iterator[Discrepancy]:
    """They hold money under a key that is none of our payments' own."""
    payment = by_id.get(charge.reference)
    if payment is not None and payment.state not in _WITHOUT_MONEY:
        yield _found(Kind.DUPLICATE, Action.REFUND, charge.key, payment, charge)
    else:
        yield _found(Kind.ONLY_THEIRS, Action.REFUND, charge.key, payment, charge)


def _own(charge: Theirs, payment: Ours) -> Iterator[Discrepancy]:
    """They hold money under a payment's own key."""
    if payment.state in _WITHOUT_MONEY:
        yield _found(Kind.ONLY_THEIRS, Action.REFUND, charge.key, payment, charge)
    elif charge.amount != payment.amount and payment.state in (_SUCCEEDED, _UNKNOWN):
        yield _found(Kind.AMOUNT, Action.REVERSE, charge.key, payment, charge)
    elif payment.state != _SUCCEEDED:
        yield _found(Kind.LATE, Action.ASK_NOW, charge.key, payment, charge)


def _within_our_own(payment: Ours, sides: Sides) -> Iterator[Discrepancy]:
    """Our books and bills against our payment, once it has come to its end."""
    owed = tuple(
        Amount(sum_, currency)
        for (payment_id, currency), sum_ in sides.owed.items()
        if payment_id == payment.payment_id
    )
    expected = (payment.amount,) if payment.state == _SUCCEEDED and payment.amount else ()
    if payment.state in (_SUCCEEDED, *_WITHOUT_MONEY) and owed != expected:
        yield Discrepancy(Kind.AMOUNT, Action.LOOK, "", payment.payment_id, None, owed[0] if owed else None)
    if payment.state != _SUCCEEDED or not payment.order_id:
        return
    bill = sides.paid.get(payment.order_id)
    if bill is None or bill.payment_id != payment.payment_id:
        yield Discrepancy(Kind.LATE, Action.WAIT, "", payment.payment_id, None, payment.amount)
    elif bill.amount != payment.amount:
        yield Discrepancy(Kind.AMOUNT, Action.LOOK, "", payment.payment_id, None, payment.amount)


def _found(kind: Kind, action: Action, key: str, payment: Ours | None, charge: Theirs | None) -> Discrepancy:
    has_money = payment is not None and payment.state not in _WITHOUT_MONEY
    return Discrepancy(
        kind,
        action,
        key,
        payment.payment_id if payment else "",
        charge.amount if charge else None,
        payment.amount if payment and has_money else None,
    )
