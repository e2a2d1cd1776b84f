"""What a payment is and how it may change: the state machine, written once as `TRANSITIONS`. No I/O.

                        ┌───────── DECLINE, EXPIRE ───────────┐
                        │                                     ▼
    accept ──▶ CREATED ─┴─ SUBMIT ─▶ SUBMITTED ── DECLINE ─▶ DECLINED
                                      │  │                    ▲
                               RECORD │  └─ MARK_UNKNOWN ▶ UNKNOWN ───┐
                                      ▼                    │  (RECORD, DECLINE)
                                  SUCCEEDED ◀──────────────┘         │
                                      │  ▲                           │
                       BEGIN_REVERSAL │  │ REFUSE_REVERSAL           │ BEGIN_REVERSAL, of a card
                                      ▼  │                           │
                                  REVERSING ◀────────────────────────┘
                                      └──── RECORD_REVERSAL ─▶ REVERSED ◀─ RECORD_PARKED_REVERSAL ─ PARKED

    PARK: SUBMITTED, UNKNOWN, or REVERSING without a journal, of a card that is to pay an order ─▶ PARKED

Invariants
1. SUBMITTED is committed before the acquirer and the ledger are asked, so money that moved has a payment that says it
   may have; and with it the key under which the acquirer is asked, which then never changes.
2. At most one payment of an order is SUBMITTED, UNKNOWN, SUCCEEDED or REVERSING (a unique index; `ACTIVE`).
3. DECLINED is definitive: no money moved, and none will. Time alone never leads there from SUBMITTED or UNKNOWN; a
   payment without an answer for too long is put before people (`attention`), and stays as it is.
4. A payment that has a request has it IN_PROGRESS until it is SUCCEEDED, DECLINED, PARKED or REVERSED, and DONE in the
   same transaction that makes it so. One that is REVERSING without a journal was UNKNOWN: both its requests are open,
   and parking it ends both.
5. Each change raises `version` by one and writes one event; the fence of a payment never falls. How often the acquirer
   kept silent is no change.
6. REVERSED without a journal: the acquirer holds nothing under its key, and will never charge it.
7. PARKED: it has no journal, and the ledger refuses one for ever; its order is free. The reversal of its key at the
   acquirer is pending, and only that leads on. It never becomes SUCCEEDED.

A function of this module plans a transition (`record`, `park`, …); `saga.py` adds the answers to the requests it ends,
and `PaymentStore.apply` commits it by one conditional UPDATE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from services.kernel.clock import rfc3339
from services.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import Execution, RequestKey, StoredResponse, fingerprint
from services.kernel.money import Money
from services.kernel.principal import Principal, Role


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


#: The states of which an order has at most one payment.
ACTIVE = (PaymentState.SUBMITTED, PaymentState.UNKNOWN, PaymentState.SUCCEEDED, PaymentState.REVERSING)

#: The states in which a payment waits for the acquirer.
UNANSWERED = (PaymentState.UNKNOWN, PaymentState.REVERSING, PaymentState.PARKED)

#: The states in which an order's card payment can be parked, as long as it has no journal.
PARKABLE = (PaymentState.SUBMITTED, PaymentState.UNKNOWN, PaymentState.REVERSING)


class Source(StrEnum):
    """Where the money comes from."""

    WALLET = "WALLET"
    DRAWER = "DRAWER"
    BANK = "BANK"
    CARD = "CARD"


#: Who may use which source. Cash goes through the cashier, transfers through the accountant; a card is for all roles. A
#: wallet is its owner's: a clerk pays from it with a ticket that its owner has fetched, see `operations.ticket_owner`.
MAY_USE: dict[Source, frozenset[Role]] = {
    Source.WALLET: frozenset({Role.CUSTOMER, Role.CASHIER, Role.ACCOUNTANT}),
    Source.DRAWER: frozenset({Role.CASHIER}),
    Source.BANK: frozenset({Role.ACCOUNTANT}),
    Source.CARD: frozenset({Role.CUSTOMER, Role.CASHIER, Role.ACCOUNTANT}),
}


def check_source(source: Source, principal: Principal) -> None:
    """Check that the caller's role may use the source; raise PermissionDenied, SOURCE_NOT_ALLOWED, otherwise."""
    if principal.role not in MAY_USE[source]:
        roles = ", ".join(sorted(MAY_USE[source]))
        raise PermissionDenied(
            "SOURCE_NOT_ALLOWED", f"role {principal.role} may not use the {source.lower()}; it is for: {roles}"
        )


def payer_account(source: Source, customer_id: str, currency: str) -> str:
    """Return the ledger account that is debited."""
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
    """Return the ledger account that is credited when an order is settled."""
    return f"sales:{currency}"


def check_payee(payee_account_id: str, payer_account_id: str) -> None:
    """Refuse to credit an account that receives no payments.

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
    """What the order service still has to be notified of; one outbox row each."""

    COMPLETE = "COMPLETE"
    RELEASE = "RELEASE"
    REOPEN = "REOPEN"


@dataclass(frozen=True, slots=True)
class Reversal:
    """A reversal: the caller who wants it, the request, and the reason."""

    key: RequestKey
    clerk: Principal
    reason: str

    @property
    def attempt(self) -> str:
        """Under which the ledger remembers a refusal; two callers' equal request ids do not collide there either."""
        return fingerprint(f"{self.key.caller}/{self.key.key}".encode())


@dataclass(frozen=True, slots=True)
class Parking:
    """A parking: the clerk who gives up waiting for the acquirer, the request, and the reason."""

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


#: The acquirer has not been silent yet.
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
        """Return a payment that was just accepted: nothing has been sent, and its order has not been read."""
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
        """Return whether a customer may see it: it is for them, made by them, or made with their ticket."""
        return customer.is_customer(self.customer_id) or customer in (self.clerk, self.key.caller)

    @property
    def latest_change(self) -> tuple[Principal, str]:
        """On whose behalf its latest change was made, and why; empty: no reason was given.

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
        """Why people have to look at it; empty: they need not. Only of what is UNANSWERED."""
        return self.retry.attention

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
        """Return whether it was parked under this request."""
        return self.parking is not None and self.parking.key == parking.key

    def is_undone_for(self, reversal: Reversal) -> bool:
        """Return whether its latest reversal, however far it came, is this request's."""
        return self.reversal is not None and self.reversal.key == reversal.key

    @property
    def ticket_id(self) -> str:
        """The ticket it was paid with; empty for Settle."""
        return self.key.key if self.key.method == PAY else ""


class Step(StrEnum):
    """The name of a transition."""

    SUBMIT = "SUBMIT"
    MARK_UNKNOWN = "MARK_UNKNOWN"
    RECORD = "RECORD"
    REFUSE = "REFUSE"
    DECLINE = "DECLINE"
    EXPIRE = "EXPIRE"
    BEGIN_REVERSAL = "BEGIN_REVERSAL"
    RECORD_REVERSAL = "RECORD_REVERSAL"
    RECORD_REVERSAL_FOUND_CHARGED = "RECORD_REVERSAL_FOUND_CHARGED"
    RECORD_REVERSAL_NEVER_CHARGED = "RECORD_REVERSAL_NEVER_CHARGED"
    REFUSE_REVERSAL = "REFUSE_REVERSAL"
    REFUSE_REVERSAL_FOUND_CHARGED = "REFUSE_REVERSAL_FOUND_CHARGED"
    PARK = "PARK"
    RECORD_PARKED_REVERSAL = "RECORD_PARKED_REVERSAL"


class Ends(StrEnum):
    """A request that a transition ends."""

    OWN = "OWN"
    REVERSAL = "REVERSAL"
    PARKING = "PARKING"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the state machine: one commit.

    Attributes:
        only_from: The states in which it is made.
        to: The state it leads to.
        sets: The fields of `Payment` that it changes; besides them the state, the version, the time, the fence and, in
            a state that does not wait for the acquirer, the attention.
        only_if: What the payment must be besides its state.
        ends: The requests that are answered in the same commit.
        outbox: What the order service has to be notified of, if the payment is for an order.
    """

    only_from: tuple[PaymentState, ...]
    to: PaymentState
    sets: tuple[str, ...] = ()
    only_if: Callable[[Payment], bool] = lambda _payment: True
    ends: tuple[Ends, ...] = ()
    outbox: tuple[OutboxAction, ...] = ()


_S = PaymentState
#: Where the money and the accounts of an order's payment, and of a card's its key at the acquirer, become known.
_CHARGED = ("round", "customer_id", "amount", "payer_account_id", "payee_account_id", "attempt", "acquirer_key")
#: The state machine. A REVERSING payment without a journal was UNKNOWN: the acquirer can undo an unanswered charge.
TRANSITIONS: dict[Step, Transition] = {
    Step.SUBMIT: Transition((_S.CREATED,), _S.SUBMITTED, _CHARGED),
    Step.MARK_UNKNOWN: Transition((_S.SUBMITTED,), _S.UNKNOWN, ("retry",)),
    Step.RECORD: Transition(
        (_S.SUBMITTED, _S.UNKNOWN),
        _S.SUCCEEDED,
        ("journal_id", "settled_at_ms"),
        ends=(Ends.OWN,),
        outbox=(OutboxAction.COMPLETE,),
    ),
    # Refused before the order was claimed, so that it need not be released.
    Step.REFUSE: Transition((_S.CREATED,), _S.DECLINED, ("decline_reason",), ends=(Ends.OWN,)),
    Step.DECLINE: Transition(
        (_S.CREATED, _S.SUBMITTED, _S.UNKNOWN),
        _S.DECLINED,
        ("decline_reason",),
        ends=(Ends.OWN,),
        outbox=(OutboxAction.RELEASE,),
    ),
    # Its request has expired and is never answered. To release an order that was not claimed is harmless.
    Step.EXPIRE: Transition((_S.CREATED,), _S.DECLINED, ("decline_reason",), outbox=(OutboxAction.RELEASE,)),
    Step.BEGIN_REVERSAL: Transition(
        (_S.SUCCEEDED, _S.UNKNOWN),
        _S.REVERSING,
        ("reversal", "retry"),
        lambda payment: payment.state is _S.SUCCEEDED or payment.source is Source.CARD,
    ),
    Step.RECORD_REVERSAL: Transition(
        (_S.REVERSING,),
        _S.REVERSED,
        ("reversal_journal_id",),
        lambda payment: bool(payment.journal_id),
        ends=(Ends.REVERSAL,),
        outbox=(OutboxAction.REOPEN,),
    ),
    Step.RECORD_REVERSAL_FOUND_CHARGED: Transition(
        (_S.REVERSING,),
        _S.REVERSED,
        ("journal_id", "reversal_journal_id", "settled_at_ms"),
        lambda payment: not payment.journal_id,
        ends=(Ends.OWN, Ends.REVERSAL),
        outbox=(OutboxAction.COMPLETE, OutboxAction.REOPEN),
    ),
    Step.RECORD_REVERSAL_NEVER_CHARGED: Transition(
        (_S.REVERSING,),
        _S.REVERSED,
        (),
        lambda payment: not payment.journal_id,
        ends=(Ends.OWN, Ends.REVERSAL),
        outbox=(OutboxAction.RELEASE,),
    ),
    # The ledger definitively refused to reverse; the next reversal is another request's.
    Step.REFUSE_REVERSAL: Transition(
        (_S.REVERSING,), _S.SUCCEEDED, (), lambda payment: bool(payment.journal_id), ends=(Ends.REVERSAL,)
    ),
    Step.REFUSE_REVERSAL_FOUND_CHARGED: Transition(
        (_S.REVERSING,),
        _S.SUCCEEDED,
        ("journal_id", "settled_at_ms"),
        lambda payment: not payment.journal_id,
        ends=(Ends.OWN, Ends.REVERSAL),
        outbox=(OutboxAction.COMPLETE,),
    ),
    Step.PARK: Transition(
        PARKABLE,
        _S.PARKED,
        ("parking", "retry"),
        lambda payment: payment.can_be_parked,
        ends=(Ends.OWN, Ends.REVERSAL, Ends.PARKING),
        outbox=(OutboxAction.RELEASE,),
    ),
    # The acquirer holds nothing under its key and never will; no caller waits for that.
    Step.RECORD_PARKED_REVERSAL: Transition((_S.PARKED,), _S.REVERSED),
}

#: From each state, the states that one transition leads to.
MOVES: dict[PaymentState, frozenset[PaymentState]] = {
    state: frozenset(row.to for row in TRANSITIONS.values() if state in row.only_from) for state in PaymentState
}


@dataclass(frozen=True, slots=True)
class Change:
    """A transition of one payment, planned on what was read, and to be committed if that still stands.

    Attributes:
        before: The payment as it was read.
        after: The payment as it will be, but for its fence.
        answers: What the requests that it ends are answered with.
    """

    step: Step
    before: Payment
    after: Payment
    answers: tuple[tuple[RequestKey, StoredResponse], ...] = ()

    @property
    def transition(self) -> Transition:
        return TRANSITIONS[self.step]

    @property
    def ended(self) -> tuple[RequestKey, ...]:
        """The requests that it ends."""
        keys = {
            Ends.OWN: self.after.key,
            Ends.REVERSAL: self.after.reversal.key if self.after.reversal else None,
            Ends.PARKING: self.after.parking.key if self.after.parking else None,
        }
        return tuple(key for which in self.transition.ends if (key := keys[which]) is not None)

    @property
    def outbox(self) -> tuple[OutboxAction, ...]:
        """What the order service has to be notified of."""
        return self.transition.outbox if self.after.order_id else ()


def plan(step: Step, payment: Payment, now_ms: int, **fields: object) -> Change | None:
    """Return a transition of a payment; None: the payment cannot make it as it stands.

    Args:
        fields: The values of those that the transition `sets`.
    """
    row = TRANSITIONS[step]
    if payment.state not in row.only_from or not row.only_if(payment):
        return None
    if row.to not in UNANSWERED:
        fields["retry"] = replace(payment.retry, attention="")
    after = replace(payment, state=row.to, version=payment.version + 1, updated_at_ms=now_ms, **fields)  # type: ignore[arg-type]  # of Payment
    return Change(step, payment, after)


def submit(payment: Payment, charge: Charge, now_ms: int) -> Change | None:
    """Plan to write down that the acquirer and the ledger may have been asked. The store adds a card's attempt."""
    return plan(
        Step.SUBMIT,
        payment,
        now_ms,
        round=charge.round,
        customer_id=charge.customer_id,
        amount=charge.amount,
        payer_account_id=charge.payer_account_id,
        payee_account_id=charge.payee_account_id,
    )


def mark_unknown(payment: Payment, now_ms: int, retry: AcquirerRetry = NO_RETRY) -> Change | None:
    """Plan to write down that the ledger or the acquirer was asked and did not answer."""
    return plan(Step.MARK_UNKNOWN, payment, now_ms, retry=retry)


def record(payment: Payment, journal_id: str, now_ms: int) -> Change | None:
    """Plan to write down that the ledger has posted the payment."""
    return plan(Step.RECORD, payment, now_ms, journal_id=journal_id, settled_at_ms=now_ms)


def decline(payment: Payment, reason: str, now_ms: int, *, release: bool = True) -> Change | None:
    """Plan the definitive end of a payment that moves no money.

    Args:
        release: Whether it may have claimed its order.
    """
    return plan(Step.DECLINE if release else Step.REFUSE, payment, now_ms, decline_reason=reason)


def begin_reversal(payment: Payment, reversal: Reversal, now_ms: int) -> Change | None:
    """Plan to begin a reversal. A request whose reversal the ledger refused has been answered: it begins no other."""
    if payment.is_undone_for(reversal):
        return None
    return plan(Step.BEGIN_REVERSAL, payment, now_ms, reversal=reversal, retry=NO_RETRY)


def record_reversal(payment: Payment, result: ReversalResult, now_ms: int) -> Change | None:
    """Plan the end of a reversal.

    One that was UNKNOWN before ends its own request here, too. If it had been charged, the order service hears that it
    was paid, and that it is not any more; otherwise that the order is free again.
    """
    if not result.journal_id:
        return plan(Step.RECORD_REVERSAL_NEVER_CHARGED, payment, now_ms)
    reversed_by = result.reversal_journal_id
    if payment.journal_id:
        return plan(Step.RECORD_REVERSAL, payment, now_ms, reversal_journal_id=reversed_by)
    return plan(
        Step.RECORD_REVERSAL_FOUND_CHARGED,
        payment,
        now_ms,
        journal_id=result.journal_id,
        reversal_journal_id=reversed_by,
        settled_at_ms=now_ms,
    )


def refuse_reversal(payment: Payment, reversal: Reversal, journal_id: str, now_ms: int) -> Change | None:
    """Plan the end of a reversal that the ledger refused; a later one is not touched.

    Args:
        journal_id: Its journal, which stands. One that was UNKNOWN before has succeeded hereby.
    """
    if not payment.is_undone_for(reversal):
        return None
    if payment.journal_id:
        return plan(Step.REFUSE_REVERSAL, payment, now_ms)
    return plan(Step.REFUSE_REVERSAL_FOUND_CHARGED, payment, now_ms, journal_id=journal_id, settled_at_ms=now_ms)


def park(payment: Payment, parking: Parking, now_ms: int) -> Change | None:
    """Plan to free the order of a payment; the worker reverses its key at the acquirer, from now on."""
    return plan(Step.PARK, payment, now_ms, parking=parking, retry=NO_RETRY)


def refusal_of(payment: Payment, key: RequestKey) -> FailedPrecondition | None:
    """Return why a request about this payment, which has ended, is refused; None: it is answered with the payment."""
    if payment.state is PaymentState.REVERSED and not payment.journal_id and key.method != REVERSE:
        return FailedPrecondition(
            "PAYMENT_REVERSED",
            f"{payment.payment_id} was reversed before it was posted: it settles nothing, and whatever was charged "
            "is given back",
        )
    if payment.state is PaymentState.PARKED and payment.parking is not None and key.method != PARK:
        clerk, at = payment.parking.clerk, payment.updated_at_ms
        return FailedPrecondition(
            "PAYMENT_PARKED",
            f"{payment.payment_id} was parked by {clerk.name} ({clerk.role}) at {rfc3339(at)}: it settles nothing, "
            "and whatever was charged is given back",
            metadata={
                "payment_id": payment.payment_id,
                "order_id": payment.order_id,
                "parked_by": clerk.name,
                "role": str(clerk.role),
                "parked_at_ms": str(at),
            },
        )
    return None


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


@dataclass(frozen=True, slots=True)
class Charge:
    """What a payment that is about to be submitted will move."""

    round: int
    customer_id: str
    amount: Money
    payer_account_id: str
    payee_account_id: str


def acquirer_key(payment_id: str, attempt: int) -> str:
    """Return the key under which the acquirer is asked for an attempt, however often and by whichever instance."""
    return f"{payment_id}:{attempt}"


def check_quota(unused: int, quota: int) -> None:
    """Raise ResourceExhausted, TICKET_QUOTA, if the caller has that many unused tickets."""
    if unused >= quota:
        raise ResourceExhausted(
            "TICKET_QUOTA",
            f"you have {unused} tickets that are not used; pay with them, or wait until they are a day old",
            metadata={"unused": str(unused), "quota": str(quota)},
            retry_after_ms=None,
        )


def card_not_yours(customer_id: str) -> FailedPrecondition:
    """Return the refusal of another customer's card.

    Args:
        customer_id: Whom the payment names; empty: no customer.
    """
    if not customer_id:
        return FailedPrecondition(
            "CARD_NOT_YOURS",
            "declined: the card belongs to a customer, and the payment names none; name whose card it is",
        )
    return FailedPrecondition(
        "CARD_NOT_YOURS", f"declined: the card belongs to another customer than {customer_id}; pay otherwise"
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
    parts = [f"{order_id} was already settled by {f'{clerk.name} ({clerk.role})' if clerk else 'another clerk'}"]
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
