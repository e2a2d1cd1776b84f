"""The acquirer's side against ours, item by item, and the control totals over all of them. No I/O.

An **item** is what belongs to one payment: its charge at the acquirer, its journals, and the order that is PAID by it.
A charge under a key that no payment of ours has is an item of its own, together with whatever names the payment that it
was charged for, if our payment service does not know that payment.

| class | what is found | what repairs it |
|---|---|---|
| only theirs | they hold money under the key of a payment that ended without any | `REFUND`; `LOOK` if it is booked |
| only theirs | they hold money under a key that no payment of ours has | `NAME`: never by itself |
| only ours | our payment succeeded, and they hold nothing under its key | `UNDO` |
| amount differs | they hold another amount or currency than our payment has | `LOOK`; `CORRECT` if it waits |
| amount differs | our books or the order have another amount than our payment | `LOOK` |
| duplicate | they hold money for a payment under a key that is not its own | `NAME` |
| late | they hold it, and our payment does not know its outcome yet | `ASK_NOW` |
| late | our payment came to its end, and its order has not been notified | `WAIT` |
| answer differs | the acquirer's answer contradicted what was asked (ACQUIRER_MISMATCH) | `CORRECT` |
| reversal owed | our payment was parked, and its key has not been reversed yet | `ASK_NOW` |
| journal without payment | the ledger has a journal of a payment that our payment service does not know | `LOST` |
| order without payment | an order is PAID by a payment that does not exist, or that has no money | `LOST`, `LOOK` |
| payment without journal | our payment succeeded, and the ledger does not have its journal | `LOOK` |
| control total | an account and its counterpart differ, and nothing above explains it | `LOOK` |

A payment that has no outcome yet (SUBMITTED, UNKNOWN, REVERSING) and of which nothing differs is no discrepancy. It is
open all the same, and listed as undecided (`no outcome yet`): `PENDING`.

Control totals: what the acquirer captured less what it gave back, for each currency, against the account
`acquirer:<currency>`. Their difference is explained by the discrepancies, except for items that changed between the two
readings; the rest is unexplained, and a discrepancy of its own.

Periods: an item lies in one period as a whole, with everything that ever became of it. Its time is the acquirer's
(`decided_at_ms`) where the acquirer has decided on its key, as on its statement. Otherwise it is when our payment was
accepted; without a payment, when the journal was posted or the order was settled. So a charge just before midnight and
its journal just after it, or its refund a week later, are in one total, and the totals of adjacent periods add up to
those of all time. The stored balance of an account is compared only where no period is named.

Everything here takes time in proportion to what there is: each part is looked at a fixed number of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.kernel.currency import format_amount

#: States of a payment that has come to its end without money.
_WITHOUT_MONEY = ("CREATED", "DECLINED", "REVERSED")
_SUCCEEDED, _REVERSED = "SUCCEEDED", "REVERSED"
#: Abandoned without an answer: the acquirer has not reversed its key yet.
_PARKED = "PARKED"
#: States of a payment that has no outcome yet; one that is PARKED is a discrepancy, too.
_NO_OUTCOME = ("SUBMITTED", "UNKNOWN", "REVERSING", _PARKED)
#: Why a payment waits for people: the acquirer's answer contradicts what was asked; no service acts on it.
_MISMATCH = "ACQUIRER_MISMATCH"
_CHARGED, _REFUNDED = "CHARGED", "REFUNDED"


class DiscrepancyKind(StrEnum):
    """How the two sides differ."""

    ONLY_THEIRS = "only theirs"
    ONLY_OURS = "only ours"
    AMOUNT = "amount differs"
    DUPLICATE = "duplicate"
    LATE = "late"
    ANSWER = "answer differs"
    REVERSAL_OWED = "reversal owed"
    JOURNAL_WITHOUT_PAYMENT = "journal without payment"
    ORDER_WITHOUT_PAYMENT = "order without payment"
    PAYMENT_WITHOUT_JOURNAL = "payment without journal"
    CONTROL_TOTAL = "control total"
    NO_OUTCOME = "no outcome yet"


class Action(StrEnum):
    """What repairs it, in a sentence for people."""

    REFUND = "`reconcile --repair` reverses the key at the acquirer"
    NAME = "no payment of ours has this key: people have to look; --refund KEY gives the money back"
    UNDO = "`reconcile --repair` asks the acquirer about the key, and reverses the payment if it holds nothing"
    ASK_NOW = (
        "the payment service asks the acquirer by itself, every few seconds; `reconcile --repair` lets it ask at once"
    )
    WAIT = "wait: the payment service notifies the order service by itself, within seconds"
    LOST = "the payment service does not know the payment: people have to look; was an older database restored?"
    CORRECT = (
        "have the acquirer correct what it has under this key; the payment then goes on by itself, and "
        "`countinghouse payment park` frees its order meanwhile"
    )
    LOOK = "people have to look: `countinghouse check`"
    PENDING = "wait: the payment service asks by itself until it knows the outcome"


@dataclass(frozen=True, slots=True)
class Amount:
    """Money of one side; a sum may be zero or negative."""

    minor_units: int
    currency: str

    def __str__(self) -> str:
        return format_amount(self.minor_units, self.currency)


@dataclass(frozen=True, slots=True)
class Period:
    """From `from_ms` on and before `to_ms`, Unix milliseconds; None: without end on that side."""

    from_ms: int | None = None
    to_ms: int | None = None

    def __contains__(self, at_ms: int) -> bool:
        return (self.from_ms is None or self.from_ms <= at_ms) and (self.to_ms is None or at_ms < self.to_ms)


ALL_TIME = Period()


@dataclass(frozen=True, slots=True)
class Theirs:
    """A key at the acquirer.

    Args:
        state: CHARGED, DECLINED, REFUNDED or TOMBSTONE.
        amount: None: a tombstone.
        reference: The payment that it was charged for, as our request named it.
        decided_at_ms: When the acquirer first decided on it, Unix milliseconds.
    """

    key: str
    state: str
    amount: Amount | None
    reference: str
    decided_at_ms: int

    @property
    def held(self) -> Amount | None:
        """What the acquirer holds under it; None: nothing."""
        return self.amount if self.state == _CHARGED else None


@dataclass(frozen=True, slots=True)
class Ours:
    """A payment, from whatever source.

    Args:
        state: As in the proto, without its prefix.
        by_card: Whether the acquirer is its source.
        key: At the acquirer; empty: it has never been submitted, or is not by card.
        amount: None: as before.
        journal_id: Empty: none.
        created_at_ms: When it was accepted, Unix milliseconds.
    """

    payment_id: str
    order_id: str
    state: str
    by_card: bool
    key: str
    amount: Amount | None
    journal_id: str
    created_at_ms: int
    attention: str = ""


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal of the ledger.

    Args:
        sequence: Its place in the chain.
        amount: The sum of its debits; negative: it undoes another journal.
        owed: Its leg on the acquirer's account, a debit positive; 0: it has none.
    """

    journal_id: str
    payment_id: str
    order_id: str
    sequence: int
    posted_at_ms: int
    amount: Amount
    owed: int


@dataclass(frozen=True, slots=True)
class PaidOrder:
    """An order that is PAID: by which payment, when, and how much it was."""

    order_id: str
    payment_id: str
    amount: Amount
    settled_at_ms: int


@dataclass(frozen=True, slots=True)
class ControlAccount:
    """An account that has a counterpart outside.

    Args:
        balance: Debits less credits, in minor units.
        postings: How many postings the balance is the sum of.
    """

    account_id: str
    currency: str
    balance: int
    postings: int


@dataclass(frozen=True, slots=True)
class Sides:
    """Everything that is compared.

    Args:
        accounts: Read before `journals`, so that these have every posting of theirs.
    """

    theirs: tuple[Theirs, ...] = ()
    ours: tuple[Ours, ...] = ()
    journals: tuple[Journal, ...] = ()
    orders: tuple[PaidOrder, ...] = ()
    accounts: tuple[ControlAccount, ...] = ()


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One difference.

    Args:
        key: At the acquirer; empty: it is between our own sides.
        payment_id: Empty: it is of no payment of ours.
        theirs, ours: What either side has; None: nothing.
        journal_id, order_id, account_id: What it is about, where that is not a payment.
    """

    kind: DiscrepancyKind
    action: Action
    key: str = ""
    payment_id: str = ""
    theirs: Amount | None = None
    ours: Amount | None = None
    journal_id: str = ""
    order_id: str = ""
    account_id: str = ""


@dataclass(frozen=True, slots=True)
class ControlTotal:
    """One currency, in minor units.

    Args:
        captured: What the acquirer ever charged.
        refunded: What it gave back of that.
        booked: What it owes us by the ledger.
        explained: How much more the acquirer holds than is booked, by the listed discrepancies.
        moving: The same, by items that changed between the two readings.
    """

    currency: str
    captured: int
    refunded: int
    booked: int
    explained: int
    moving: int

    @property
    def account_id(self) -> str:
        """The account that has its counterpart at the acquirer."""
        return f"acquirer:{self.currency}"

    @property
    def held(self) -> int:
        """What the acquirer holds."""
        return self.captured - self.refunded

    @property
    def difference(self) -> int:
        """How much more the acquirer holds than is booked."""
        return self.held - self.booked

    @property
    def unexplained(self) -> int:
        """The unexplained part of the difference."""
        return self.difference - self.explained - self.moving


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs, theirs first, in the order in which either side lists it; and the totals, by currency.

    Args:
        undecided: The payments that have no outcome yet and of which nothing differs.
    """

    discrepancies: tuple[Discrepancy, ...]
    totals: tuple[ControlTotal, ...]
    undecided: tuple[Discrepancy, ...] = ()

    @property
    def open(self) -> tuple[Discrepancy, ...]:
        """What differs, and what has no outcome yet."""
        return (*self.discrepancies, *self.undecided)


@dataclass(slots=True)
class _Item:
    """What belongs to one payment, or to one key that no payment has.

    Args:
        payment: None: our payment service knows none.
        doubles: The payment that `charges` were made for under a key that is not its own; None: none of ours.
    """

    payment: Ours | None = None
    doubles: Ours | None = None
    charges: list[Theirs] = field(default_factory=list)
    journals: list[Journal] = field(default_factory=list)
    orders: list[PaidOrder] = field(default_factory=list)

    @property
    def at_ms(self) -> int:
        """The moment that decides on its period."""
        if self.charges:
            return min(charge.decided_at_ms for charge in self.charges)
        if self.payment is not None:
            return self.payment.created_at_ms
        if self.journals:
            return min(journal.posted_at_ms for journal in self.journals)
        return min(order.settled_at_ms for order in self.orders)

    @property
    def held(self) -> Amount | None:
        """What the acquirer holds of it; of an item with a payment, which has one key at most."""
        return next((charge.held for charge in self.charges if charge.held), None)

    def differences(self) -> Counter[str]:
        """Return how much more the acquirer holds than is booked, by currency."""
        more: Counter[str] = Counter()
        for charge in self.charges:
            if charge.held:
                more[charge.held.currency] += charge.held.minor_units
        for journal in self.journals:
            more[journal.amount.currency] -= journal.owed
        return more


def compare(sides: Sides, period: Period = ALL_TIME, before: Sides | None = None) -> Comparison:
    """Return all differences and totals of a period.

    Args:
        before: An earlier reading: only what differed then as well is a discrepancy, only what had no outcome then as
            well is undecided, and an item that has changed since explains a difference of the totals. None: there is
            none.
    """
    items = {name: item for name, item in _items(sides).items() if item.at_ms in period}
    earlier = _items(before) if before is not None else items
    discrepancies: list[Discrepancy] = []
    undecided: list[Discrepancy] = []
    explained: Counter[str] = Counter()
    moving: Counter[str] = Counter()
    for name, item in items.items():
        was = earlier.get(name)
        found = list(_of_item(item))
        if was is not item and found:
            found_before = set(_of_item(was)) if was else set()
            found = [discrepancy for discrepancy in found if discrepancy in found_before]
        if found:
            discrepancies += found
            explained.update(item.differences())
        elif was != item:
            moving.update(item.differences())
        if not found and _has_no_outcome(item) and was is not None and _has_no_outcome(was):
            undecided.append(_found(DiscrepancyKind.NO_OUTCOME, Action.PENDING, item.payment, item.held))
    totals = tuple(_totals(items.values(), sides.accounts, explained, moving))
    unbalanced = _unbalanced_accounts(sides) if period == ALL_TIME else ()
    unexplained = (_unexplained(total) for total in totals if total.unexplained)
    return Comparison((*discrepancies, *unbalanced, *unexplained), totals, tuple(undecided))


def _items(sides: Sides) -> dict[str, _Item]:
    """Return the items by name: a payment's id, or a slash (which no id contains) and a key that no payment has."""
    by_id = {payment.payment_id: payment for payment in sides.ours}
    by_key = {payment.key: payment for payment in sides.ours if payment.key}
    items: dict[str, _Item] = {}
    for charge in sides.theirs:
        if (owner := by_key.get(charge.key)) is not None:
            name = owner.payment_id
        else:
            name = f"/{charge.key}" if charge.reference in by_id or not charge.reference else charge.reference
        item = items.setdefault(name, _Item(payment=by_id.get(name)))
        item.doubles = by_id.get(charge.reference) if owner is None else None
        item.charges.append(charge)
    for payment in sides.ours:
        items.setdefault(payment.payment_id, _Item(payment=payment))
    for journal in sides.journals:
        items.setdefault(journal.payment_id, _Item()).journals.append(journal)
    for order in sides.orders:
        items.setdefault(order.payment_id, _Item()).orders.append(order)
    return items


def _has_no_outcome(item: _Item) -> bool:
    return item.payment is not None and item.payment.state in _NO_OUTCOME


def _of_item(item: _Item) -> Iterator[Discrepancy]:
    if item.payment is None:
        yield from _without_payment(item)
        return
    yield from _at_the_acquirer(item, item.payment)
    yield from _in_the_ledger(item, item.payment)
    yield from _at_the_order(item, item.payment)


def _without_payment(item: _Item) -> Iterator[Discrepancy]:
    """Return what belongs to no payment of ours. None of it is repaired without an operator's request."""
    doubles = item.doubles
    for charge in item.charges:
        if charge.held and doubles and doubles.state not in _WITHOUT_MONEY:
            yield _found(DiscrepancyKind.DUPLICATE, Action.NAME, doubles, charge.held, key=charge.key)
        elif charge.held:
            yield _found(DiscrepancyKind.ONLY_THEIRS, Action.NAME, doubles, charge.held, key=charge.key)
    for journal in item.journals:
        yield Discrepancy(
            DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT,
            Action.LOST,
            payment_id=journal.payment_id,
            ours=journal.amount,
            journal_id=journal.journal_id,
            order_id=journal.order_id,
        )
    for order in item.orders:
        yield _order_without_payment(order, Action.LOST)


def _at_the_acquirer(item: _Item, payment: Ours) -> Iterator[Discrepancy]:
    held = item.held
    if payment.state in _WITHOUT_MONEY:
        if held:
            yield _found(
                DiscrepancyKind.ONLY_THEIRS,
                Action.LOOK if any(_booked(item).values()) else Action.REFUND,
                payment,
                held,
            )
    elif held and held != payment.amount:
        yield _found(
            DiscrepancyKind.AMOUNT, Action.CORRECT if payment.attention == _MISMATCH else Action.LOOK, payment, held
        )
    elif payment.attention == _MISMATCH:
        yield _found(DiscrepancyKind.ANSWER, Action.CORRECT, payment, held)
    elif payment.state == _PARKED:
        yield _found(DiscrepancyKind.REVERSAL_OWED, Action.ASK_NOW, payment, held)
    elif payment.state != _SUCCEEDED:
        if held:
            yield _found(DiscrepancyKind.LATE, Action.ASK_NOW, payment, held)
    elif payment.by_card and not held:
        yield _found(DiscrepancyKind.ONLY_OURS, Action.UNDO, payment, None)


def _in_the_ledger(item: _Item, payment: Ours) -> Iterator[Discrepancy]:
    """Our books against our payment, once it has come to its end."""
    booked = {currency: sum_ for currency, sum_ in _booked(item).items() if sum_}
    succeeded = payment.state == _SUCCEEDED
    if succeeded and all(journal.journal_id != payment.journal_id for journal in item.journals):
        yield Discrepancy(
            DiscrepancyKind.PAYMENT_WITHOUT_JOURNAL,
            Action.LOOK,
            payment_id=payment.payment_id,
            ours=payment.amount,
            journal_id=payment.journal_id,
        )
        return
    expected = {payment.amount.currency: payment.amount.minor_units} if succeeded and payment.amount else {}
    if (succeeded or payment.state in (*_WITHOUT_MONEY, _PARKED)) and booked != expected:
        first = next((Amount(sum_, currency) for currency, sum_ in booked.items()), None)
        yield Discrepancy(DiscrepancyKind.AMOUNT, Action.LOOK, payment_id=payment.payment_id, ours=first)


def _at_the_order(item: _Item, payment: Ours) -> Iterator[Discrepancy]:
    """Return the order against our payment, once it has come to its end."""
    if payment.state == _SUCCEEDED and payment.order_id:
        paid = next((order for order in item.orders if order.order_id == payment.order_id), None)
        if paid is None:
            yield Discrepancy(DiscrepancyKind.LATE, Action.WAIT, payment_id=payment.payment_id, ours=payment.amount)
        elif paid.amount != payment.amount:
            yield Discrepancy(DiscrepancyKind.AMOUNT, Action.LOOK, payment_id=payment.payment_id, ours=payment.amount)
    elif payment.state == _REVERSED and item.orders:
        yield Discrepancy(DiscrepancyKind.LATE, Action.WAIT, payment_id=payment.payment_id)
    elif payment.state in (*_WITHOUT_MONEY, _PARKED):
        for order in item.orders:
            yield _order_without_payment(order, Action.LOOK)


def _booked(item: _Item) -> Counter[str]:
    """Return what the ledger has of an item, by currency: of a card, what the acquirer owes."""
    booked: Counter[str] = Counter()
    by_card = item.payment is not None and item.payment.by_card
    for journal in item.journals:
        booked[journal.amount.currency] += journal.owed if by_card else journal.amount.minor_units
    return booked


def _order_without_payment(order: PaidOrder, action: Action) -> Discrepancy:
    return Discrepancy(
        DiscrepancyKind.ORDER_WITHOUT_PAYMENT,
        action,
        payment_id=order.payment_id,
        ours=order.amount,
        order_id=order.order_id,
    )


def _found(
    kind: DiscrepancyKind, action: Action, payment: Ours | None, held: Amount | None, *, key: str = ""
) -> Discrepancy:
    """Return a difference between a payment and the acquirer.

    Args:
        key: Empty: the payment's own.
    """
    has_money = payment is not None and payment.state not in (*_WITHOUT_MONEY, _PARKED)
    return Discrepancy(
        kind,
        action,
        key=key or (payment.key if payment else ""),
        payment_id=payment.payment_id if payment else "",
        theirs=held,
        ours=payment.amount if payment and has_money else None,
    )


def _totals(
    items: Iterable[_Item], accounts: Iterable[ControlAccount], explained: Mapping[str, int], moving: Mapping[str, int]
) -> Iterator[ControlTotal]:
    captured: Counter[str] = Counter({account.currency: 0 for account in accounts})
    refunded: Counter[str] = Counter()
    booked: Counter[str] = Counter()
    for item in items:
        for charge in item.charges:
            if charge.amount and charge.state in (_CHARGED, _REFUNDED):
                captured[charge.amount.currency] += charge.amount.minor_units
                refunded[charge.amount.currency] += 0 if charge.held else charge.amount.minor_units
        for journal in item.journals:
            if journal.owed:
                booked[journal.amount.currency] += journal.owed
    for currency in sorted({*captured, *booked}):
        yield ControlTotal(
            currency,
            captured[currency],
            refunded[currency],
            booked[currency],
            explained.get(currency, 0),
            moving.get(currency, 0),
        )


def _unbalanced_accounts(sides: Sides) -> Iterator[Discrepancy]:
    """Stored balances that are not the sum of the postings they were stored after."""
    owed: dict[str, list[tuple[int, int]]] = {account.currency: [] for account in sides.accounts}
    for journal in sides.journals:
        if journal.owed and journal.amount.currency in owed:
            owed[journal.amount.currency].append((journal.sequence, journal.owed))
    for account in sides.accounts:
        first = sorted(owed[account.currency])[: account.postings]
        booked = sum(amount for _, amount in first)
        if booked != account.balance or len(first) != account.postings:
            yield Discrepancy(
                DiscrepancyKind.CONTROL_TOTAL,
                Action.LOOK,
                ours=Amount(account.balance, account.currency),
                account_id=account.account_id,
            )


def _unexplained(total: ControlTotal) -> Discrepancy:
    return Discrepancy(
        DiscrepancyKind.CONTROL_TOTAL,
        Action.LOOK,
        theirs=Amount(total.held, total.currency),
        ours=Amount(total.booked, total.currency),
        account_id=total.account_id,
    )
