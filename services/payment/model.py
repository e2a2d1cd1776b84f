"""What a payment is and how it may change. No I/O.

                        ┌────────────── decline ──────────────┐
                        │                                     ▼
    accept ──▶ CREATED ─┴─ submit ─▶ SUBMITTED ── decline ─▶ DECLINED
                                      │  │                    ▲
                               record │  └─ mark_unknown ─▶ UNKNOWN ───┐
                                      ▼                    │  (record, decline)
                                  SUCCEEDED ◀──────────────┘         │
                                      │  ▲                           │
                        begin_reversal│  │refuse_reversal            │ begin_reversal, of a card
                                      ▼  │                           │
                                  REVERSING ◀────────────────────────┘
                                      └──── record_reversal ─▶ REVERSED ◀─ record_parked_reversal ─ PARKED

    park: SUBMITTED, UNKNOWN, or REVERSING without a journal, of a card that is to pay an order ─▶ PARKED

Invariants
1. SUBMITTED is committed before the acquirer and the ledger are asked, so money that moved has a payment that says it
   may have; and with it the key under which the acquirer is asked, which then never changes.
2. At most one payment of an order is SUBMITTED, UNKNOWN, SUCCEEDED or REVERSING (a unique index; `ACTIVE`).
3. DECLINED is definitive: no money moved, and none will. Time alone never leads there from SUBMITTED or UNKNOWN; what
   nobody answers for too long is put before people (`attention`), and stays as it is.
4. A payment that has a request has it IN_PROGRESS until it is SUCCEEDED, DECLINED, PARKED or REVERSED, and DONE in the
   same transaction that makes it so. One that is REVERSING without a journal was UNKNOWN: both its requests are open,
   and parking it ends both.
5. Each change raises `version` by one and writes one event; the fence of a payment never falls. How often the acquirer
   kept silent is no change.
6. REVERSED without a journal: the acquirer holds nothing under its key, and will never charge it.
7. PARKED: it has no journal, and the ledger refuses one for ever; its order is free. The acquirer is owed the reversal
   of its key, and only that leads on. It never becomes SUCCEEDED.

The moves are functions of `store.py`, called by `operations.py`; each is one conditional UPDATE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from services.kernel.clock import rfc3339
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import Execution, RequestKey, fingerprint
from services.kernel.money import Money
from services.kernel.principal import Principal, Role

#: When to ask again for an order that waits for another payment's outcome, in milliseconds.
_HALF_SETTLED_RETRY_MS = 1_000


class PaymentState(StrEnum):
    """Where a payment stands."""

    CREATED = "CREATED"
    SUBMITTED = "SUBMITTED"
    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    UNKNOWN = "UNKNOWN"
    REVERSING = "REVERSING"
    REVERSED = "REVERSED"
    PARKED = "PARKED"


#: The machine as a table: from → to. CREATED → DECLINED: refused before anything was sent, for instance because
#: another clerk had settled the order. REVERSING → SUCCEEDED: the ledger definitively refused to reverse.
#: UNKNOWN → REVERSING: of card payments only; the acquirer can undo what nobody knows of. To PARKED: of an order's card
#: payment only, and from REVERSING only if it was UNKNOWN before.
MOVES: dict[PaymentState, frozenset[PaymentState]] = {
    PaymentState.CREATED: frozenset({PaymentState.SUBMITTED, PaymentState.DECLINED}),
    PaymentState.SUBMITTED: frozenset(
        {PaymentState.SUCCEEDED, PaymentState.DECLINED, PaymentState.UNKNOWN, PaymentState.PARKED}
    ),
    PaymentState.UNKNOWN: frozenset(
        {PaymentState.SUCCEEDED, PaymentState.DECLINED, PaymentState.REVERSING, PaymentState.PARKED}
    ),
    PaymentState.SUCCEEDED: frozenset({PaymentState.REVERSING}),
    PaymentState.REVERSING: frozenset({PaymentState.REVERSED, PaymentState.SUCCEEDED, PaymentState.PARKED}),
    PaymentState.DECLINED: frozenset(),
    PaymentState.REVERSED: frozenset(),
    PaymentState.PARKED: frozenset({PaymentState.REVERSED}),
}

#: The states of which an order has at most one payment.
ACTIVE = (PaymentState.SUBMITTED, PaymentState.UNKNOWN, PaymentState.SUCCEEDED, PaymentState.REVERSING)

#: The states in which somebody waits for the acquirer.
UNANSWERED = (PaymentState.UNKNOWN, PaymentState.REVERSING, PaymentState.PARKED)

#: The states in which an order's card payment can be parked, as long as it has no journal.
PARKABLE = (PaymentState.SUBMITTED, PaymentState.UNKNOWN, PaymentState.REVERSING)


def sources_of(target: PaymentState) -> tuple[PaymentState, ...]:
    """The states from which `target` can be reached in one move."""
    return tuple(state for state, targets in MOVES.items() if target in targets)


class Source(StrEnum):
    """Where the money comes from."""

    WALLET = "WALLET"
    DRAWER = "DRAWER"
    BANK = "BANK"
    CARD = "CARD"


#: Who may use which source. Cash goes through the cashier, transfers through the accountant; a card is anybody's. A
#: wallet is its owner's: a clerk pays from it with a ticket that its owner has fetched, see `commands.ticket_owner`.
MAY_USE: dict[Source, frozenset[Role]] = {
    Source.WALLET: frozenset({Role.CUSTOMER, Role.CASHIER, Role.ACCOUNTANT}),
    Source.DRAWER: frozenset({Role.CASHIER}),
    Source.BANK: frozenset({Role.ACCOUNTANT}),
    Source.CARD: frozenset({Role.CUSTOMER, Role.CASHIER, Role.ACCOUNTANT}),
}


def check_source(source: Source, principal: Principal) -> None:
    """Raises PermissionDenied: SOURCE_NOT_ALLOWED."""
    if principal.role not in MAY_USE[source]:
        roles = ", ".join(sorted(MAY_USE[source]))
        raise PermissionDenied(
            "SOURCE_NOT_ALLOWED", f"role {principal.role} may not use the {source.lower()}; it is for: {roles}"
        )


def payer_account(source: Source, customer_id: str, currency: str) -> str:
    """The ledger account that is debited."""
    match source:
        case Source.WALLET:
            return f"wallet:{customer_id}:{currency}"
        case Source.DRAWER:
            return f"drawer:{currency}"
        case Source.BANK:
            return f"bank:{currency}"
        case Source.CARD:
            return f"acquirer:{currency}"


def sales_account(currency: str) -> str:
    """The ledger account that is credited when an order is settled."""
    return f"sales:{currency}"


def check_payee(payee_account_id: str, payer_account_id: str) -> None:
    """Refuses to credit what is not somebody's to receive.

    Raises:
        InvalidArgument: PAYEE_INVALID.
    """
    if payee_account_id == payer_account_id or payee_account_id.partition(":")[0] in ("drawer", "bank", "acquirer"):
        raise InvalidArgument.of_field(
            "PAYEE_INVALID",
            "payee_account_id",
            f"{payee_account_id} cannot receive this payment; name a wallet, a merchant or sales",
        )


class OutboxAction(StrEnum):
    """What the order service still has to be told; one outbox row each."""

    COMPLETE = "COMPLETE"
    RELEASE = "RELEASE"
    REOPEN = "REOPEN"


@dataclass(frozen=True, slots=True)
class Reversal:
    """Who wants a payment undone, under which request, and why."""

    key: RequestKey
    clerk: Principal
    reason: str

    @property
    def attempt(self) -> str:
        """Under which the ledger remembers a refusal; two callers' equal request ids do not meet there either."""
        return fingerprint(f"{self.key.caller}/{self.key.key}".encode())


@dataclass(frozen=True, slots=True)
class Parking:
    """Who gives up waiting for the acquirer's answer, under which request, and why."""

    key: RequestKey
    clerk: Principal
    reason: str


@dataclass(frozen=True, slots=True)
class ReversalResult:
    """What a reversal left in the books.

    Args:
        journal_id: The journal of the payment; empty: it has none, for nothing was charged.
        reversal_journal_id: Its opposite; empty with it.
    """

    journal_id: str = ""
    reversal_journal_id: str = ""


class KeyState(StrEnum):
    """Where a key stands at the acquirer, as far as it says."""

    #: It has not decided on it; a charge may be on its way.
    UNSEEN = "UNSEEN"
    CHARGED = "CHARGED"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"
    #: Reversed before it was ever charged: it never will be.
    TOMBSTONE = "TOMBSTONE"


@dataclass(frozen=True, slots=True)
class ChargeTerms:
    """What a charge is for: the payload that a key stands for at the acquirer.

    Args:
        minor_units: As stated; an answer may hold any number.
        currency: As stated; an answer may hold any text.
    """

    minor_units: int
    currency: str
    card: str
    reference: str


@dataclass(frozen=True, slots=True)
class ChargeStatus:
    """An answer of the acquirer.

    Args:
        reason: Why it was DECLINED, UPPER_SNAKE; empty otherwise.
        key: Which key the answer is about; empty if UNSEEN.
        terms: What the key stands for there; None: nothing, as for a TOMBSTONE.
    """

    state: KeyState
    reason: str = ""
    key: str = ""
    terms: ChargeTerms | None = None

    @property
    def was_charged(self) -> bool:
        """Whether money came in under the key, though it may have been given back."""
        return self.state in (KeyState.CHARGED, KeyState.REFUNDED)

    def contradictions(self, key: str, terms: ChargeTerms) -> tuple[str, ...]:
        """Name the parts of this answer that are not what was asked for, by field; empty: all of it agrees."""
        if self.state is KeyState.UNSEEN:
            return ()
        wrong = ("key",) if self.key != key else ()
        if self.terms is None:
            return wrong if self.state is KeyState.TOMBSTONE else (*wrong, "amount")
        stated, asked = self.terms, terms
        return wrong + tuple(
            name
            for name, agrees in (
                ("amount", stated.minor_units == asked.minor_units),
                ("currency", stated.currency == asked.currency),
                ("card", stated.card == asked.card),
                ("reference", stated.reference == asked.reference),
            )
            if not agrees
        )


@dataclass(frozen=True, slots=True)
class AcquirerRetry:
    """The acquirer was asked and did not answer.

    Args:
        asks: How often that has happened to this payment so far.
        ask_at_ms: When the worker asks again, Unix milliseconds.
        attention: Why people have to look, UPPER_SNAKE; empty: not yet. ACQUIRER_MISMATCH: its answer contradicts
            what was asked.
    """

    asks: int
    ask_at_ms: int
    attention: str = ""


#: Nobody kept silent yet.
NO_RETRY = AcquirerRetry(0, 0)


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as stored. Times are Unix milliseconds.

    The amount, customer and accounts of an order's payment are set when it is submitted; with them, of a card's, which
    attempt at its round it is, and its key at the acquirer.
    """

    payment_id: str
    key: RequestKey
    order_id: str
    round: int
    state: PaymentState
    source: Source
    customer_id: str
    amount: Money | None
    payer_account_id: str
    payee_account_id: str
    clerk: Principal
    memo: str
    journal_id: str
    reversal: Reversal | None
    reversal_journal_id: str
    decline_reason: str
    fence: Fence
    version: int
    created_at_ms: int
    updated_at_ms: int
    settled_at_ms: int
    card: str = ""
    attempt: int = 0
    acquirer_key: str = ""
    retry: AcquirerRetry = NO_RETRY
    parking: Parking | None = None

    @classmethod
    def created(
        cls,
        payment_id: str,
        key: RequestKey,
        order_id: str,
        source: Source,
        clerk: Principal,
        memo: str,
        at_ms: int,
        card: str = "",
    ) -> Payment:
        """One that was accepted a moment ago: nothing has been sent, and of an order nothing is known yet."""
        return cls(
            payment_id=payment_id,
            key=key,
            order_id=order_id,
            round=0,
            state=PaymentState.CREATED,
            source=source,
            customer_id="",
            amount=None,
            payer_account_id="",
            payee_account_id="",
            clerk=clerk,
            memo=memo,
            journal_id="",
            reversal=None,
            reversal_journal_id="",
            decline_reason="",
            fence=NO_FENCE,
            version=1,
            created_at_ms=at_ms,
            updated_at_ms=at_ms,
            settled_at_ms=0,
            card=card,
        )

    @property
    def business_key(self) -> str:
        """What its journal stands for: one round of an order, or this one direct payment."""
        return f"settle:{self.order_id}:{self.round}" if self.order_id else f"pay:{self.payment_id}"

    def is_seen_by(self, customer: Principal) -> bool:
        """Whether a customer may see it: it is for them, made by them, or made with their ticket."""
        return customer.is_customer(self.customer_id) or customer in (self.clerk, self.key.caller)

    @property
    def latest_change(self) -> tuple[Principal, str]:
        """On whose behalf its latest change was made, and why; empty: nobody said.

        A payment that is SUCCEEDED with a reversal is so again, for the ledger refused to undo it.
        """
        if self.parking is not None:  # only PARKED and REVERSED come after it
            return self.parking.clerk, self.parking.reason
        undoing = (PaymentState.REVERSING, PaymentState.REVERSED)
        if self.reversal is not None and self.state in (*undoing, PaymentState.SUCCEEDED):
            return self.reversal.clerk, self.reversal.reason if self.state in undoing else "REVERSAL_REFUSED"
        return self.clerk, self.decline_reason if self.state is PaymentState.DECLINED else ""

    @property
    def attention(self) -> str:
        """Why people have to look at it; empty: nobody has to. Only of what is UNANSWERED."""
        return self.retry.attention

    @property
    def charge_terms(self) -> ChargeTerms:
        """What its key stands for at the acquirer. Only of a card payment that was submitted."""
        if self.amount is None:
            raise AssertionError(f"{self.payment_id} was submitted without an amount")
        return ChargeTerms(self.amount.minor_units, self.amount.currency, self.card, self.payment_id)

    @property
    def is_orders_card(self) -> bool:
        """Whether it pays an order by card."""
        return bool(self.order_id) and self.source is Source.CARD

    @property
    def can_be_parked(self) -> bool:
        """Whether it is an order's card payment that waits for the acquirer and has no journal recorded.

        The ledger may have one that is not recorded yet, and then Park is refused.
        """
        return self.is_orders_card and self.state in PARKABLE and not self.journal_id

    def is_parked_for(self, parking: Parking) -> bool:
        """Whether it was parked under this request."""
        return self.parking is not None and self.parking.key == parking.key

    def is_undone_for(self, reversal: Reversal) -> bool:
        """Whether its latest reversal, however far it came, is this request's."""
        return self.reversal is not None and self.reversal.key == reversal.key

    @property
    def ticket_id(self) -> str:
        """The ticket it was paid with; empty for Settle."""
        return self.key.key if self.key.method == PAY else ""


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """One change in the history of a payment. Times are Unix milliseconds.

    Args:
        version: The payment's version since this change, from 1.
        actor: Who asked for it; None: the release of that time did not record it.
        reason: Why; empty: none was given, or it was not recorded.
    """

    payment_id: str
    version: int
    state: PaymentState
    fence: Fence
    at_ms: int
    actor: Principal | None
    reason: str


def filled_in(event: PaymentEvent, payment: Payment) -> PaymentEvent:
    """Return the event with what is certain from its payment, if the release of that time recorded too little."""
    if event.actor is not None:
        return event
    reversal = payment.reversal
    if reversal is not None and payment.state is event.state and event.version == payment.version:
        undoing = event.state in (PaymentState.REVERSING, PaymentState.REVERSED)
        return replace(event, actor=reversal.clerk, reason=reversal.reason) if undoing else event
    if event.state is PaymentState.DECLINED:
        return replace(event, actor=payment.clerk, reason=payment.decline_reason)
    return replace(event, actor=payment.clerk) if event.state is PaymentState.CREATED else event


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that now runs, and its payment."""

    execution: Execution
    payment: Payment


@dataclass(frozen=True, slots=True)
class ConflictingPayment:
    """Another payment of the same order is active: the unique index refused."""

    payment: Payment


#: Methods as they stand in the request table.
ISSUE_TICKET, PAY, SETTLE, REVERSE, PARK = "IssueTicket", "Pay", "Settle", "Reverse", "Park"


class OrderState(StrEnum):
    """Where an order stands, as the order service says."""

    UNPAID = "UNPAID"
    PAYING = "PAYING"
    PAID = "PAID"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Order:
    """An order as this service sees it."""

    order_id: str
    customer_id: str
    state: OrderState
    amount: Money
    round: int
    payment_id: str
    settled_by: Principal | None
    settled_at_ms: int

    def is_being_paid_by(self, payment: Payment) -> bool:
        """Whether this payment owns the claim."""
        return self.state is OrderState.PAYING and self.payment_id == payment.payment_id


@dataclass(frozen=True, slots=True)
class AccountTerms:
    """A ledger account as a payment needs to know it before a card is charged.

    Args:
        closed: Whether nothing can be posted to it any more.
    """

    account_id: str
    currency: str
    closed: bool = False


def check_accounts(charge: Charge, payer: AccountTerms | None, payee: AccountTerms | None) -> None:
    """Check that the ledger could post this charge, as far as its accounts say. Balances are the ledger's to decide.

    Raises:
        FailedPrecondition: ACCOUNT_NOT_FOUND, ACCOUNT_CLOSED or CURRENCY_MISMATCH.
    """
    for account_id, account in ((charge.payer_account_id, payer), (charge.payee_account_id, payee)):
        about = {"account_id": account_id, "currency": charge.amount.currency}
        if account is None:
            problem = ("ACCOUNT_NOT_FOUND", f"there is no account {account_id}; open it first")
        elif account.closed:
            problem = ("ACCOUNT_CLOSED", f"account {account_id} is closed; name another")
        elif account.currency != charge.amount.currency:
            problem = (
                "CURRENCY_MISMATCH",
                f"account {account_id} is kept in {account.currency}; use an account in {charge.amount.currency}",
            )
        else:
            continue
        reason, what = problem
        raise FailedPrecondition(reason, f"declined: {what}; the card was not charged", metadata=about)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a payment that is about to be submitted will move.

    Args:
        by_card: The acquirer is to be asked, so the payment gets its attempt and its key.
    """

    round: int
    customer_id: str
    amount: Money
    payer_account_id: str
    payee_account_id: str
    by_card: bool = False


def charge_for(order: Order, payment: Payment) -> Charge:
    """What settles this order from the payment's source."""
    currency = order.amount.currency
    payer = payer_account(payment.source, order.customer_id, currency)
    by_card = payment.source is Source.CARD
    return Charge(order.round, order.customer_id, order.amount, payer, sales_account(currency), by_card)


def acquirer_key(payment_id: str, attempt: int) -> str:
    """The key under which the acquirer is asked for an attempt, however often and by whomever."""
    return f"{payment_id}:{attempt}"


def check_quota(unused: int, quota: int) -> None:
    """Raises ResourceExhausted, TICKET_QUOTA, for a caller who has that many tickets that are not used."""
    if unused >= quota:
        raise ResourceExhausted(
            "TICKET_QUOTA",
            f"you have {unused} tickets that are not used; pay with them, or wait until they are a day old",
            metadata={"unused": str(unused), "quota": str(quota)},
            retry_after_ms=None,
        )


def already_paid(
    order_id: str, *, payment_id: str, source: Source | None, clerk: Principal | None, settled_at_ms: int, guard: str
) -> AlreadyExists:
    """Return the refusal for an order that another payment has settled. It holds no time relative to now: it is stored.

    Args:
        source: Where the money came from; None: not known.
        clerk: Who settled it; None: not known.
        settled_at_ms: Unix milliseconds; 0: not known.
        guard: The guard that found it out.
    """
    parts = [f"{order_id} was already settled by {f'{clerk.name} ({clerk.role})' if clerk else 'somebody else'}"]
    if source is not None:
        parts.append(f"from the {source.lower()}")
    if settled_at_ms:
        parts.append(f"at {rfc3339(settled_at_ms)}")
    if payment_id:
        parts.append(f"with payment {payment_id}")
    return AlreadyExists(
        "ORDER_ALREADY_PAID",
        " ".join(parts),
        metadata={
            "order_id": order_id,
            "payment_id": payment_id,
            "source": str(source or ""),
            "clerk": clerk.name if clerk else "",
            "role": str(clerk.role) if clerk else "",
            "settled_at_ms": str(settled_at_ms),
            "guard": guard,
        },
    )


def not_reversible(payment: Payment) -> FailedPrecondition:
    """The refusal to undo a payment in its state."""
    return FailedPrecondition(
        "ILLEGAL_STATE",
        f"{payment.payment_id} is {payment.state}; only a SUCCEEDED payment can be reversed, or an UNKNOWN one by card",
        metadata={"payment_id": payment.payment_id, "state": payment.state, "guard": "state"},
    )


def not_parkable(payment: Payment) -> FailedPrecondition:
    """Return the refusal to park a payment in its state.

    A REVERSING card payment of an order is refused only if the ledger has a journal of it, recorded or not.
    """
    why = "only an order's card payment that is SUBMITTED, UNKNOWN, or REVERSING without a journal can be parked"
    if payment.is_orders_card and payment.state is PaymentState.REVERSING:
        why = (
            "it cannot be parked, because the ledger has a journal of it; "
            "its order is free when the acquirer confirms the refund"
        )
    return FailedPrecondition(
        "ILLEGAL_STATE",
        f"{payment.payment_id} is {payment.state}, from the {payment.source.lower()}; {why}",
        metadata={"payment_id": payment.payment_id, "state": payment.state, "guard": "state"},
    )


def half_settled(payment: Payment) -> Aborted:
    """Return the passing refusal for an order that waits for the outcome of another payment, and the way out."""
    wait = "the refund" if payment.state is PaymentState.REVERSING else "its outcome"
    park = f"Park payment {payment.payment_id} to free the order, or wait for {wait}."
    return Aborted(
        "ORDER_HALF_SETTLED",
        f"{payment.order_id} was not settled. {payment.clerk.name} ({payment.clerk.role}) is paying it from the "
        f"{payment.source.lower()} with payment {payment.payment_id}. That payment is {payment.state} since "
        f"{rfc3339(payment.updated_at_ms)}. {park if payment.can_be_parked else 'Try again.'}",
        metadata={
            "order_id": payment.order_id,
            "payment_id": payment.payment_id,
            "source": str(payment.source),
            "clerk": payment.clerk.name,
            "role": str(payment.clerk.role),
            "state": str(payment.state),
            "since_ms": str(payment.updated_at_ms),
        },
        retry_after_ms=_HALF_SETTLED_RETRY_MS,
    )
