"""Accounts, journals, and the hash chain over them; the decision of each post. No I/O.

A journal has one state: it stands. What can happen to an entry that is asked for:

                      ┌── its fence is smaller than the order's ─────────▶ STALE_FENCE             (nothing is kept)
                      ├── this attempt was refused before ───────────────▶ the same refusal, for ever
    entry ────────────┼── its key stands with this payload ──────────────▶ replay
                      ├── its key stands with another payload ───────────▶ IDEMPOTENCY_KEY_MISMATCH, for ever
                      ├── what it undoes is undone ──────────────────────▶ ALREADY_REVERSED, for ever
                      ├── an account is missing, foreign or short ───────▶ refused, and the refusal is kept
                      └── otherwise ─────────────────────────────────────▶ JOURNAL, next in the chain

An entry can also be voided before it comes: unless its journal stands, its attempt is refused for ever, POST_VOIDED.

| move | function |
|---|---|
| raise the order's fence, or refuse a stale one | the store, before it reads anything |
| void an entry | `PostingBatch.void` |
| all others | `PostingBatch.write` |

Invariants
1. The legs of a journal sum to zero, are in one currency, name each account once, and are never 0.   JournalDraft.check
2. A balance is what its postings sum to, on the side on which the account grows.                     PostingBatch.write
3. No balance falls below -overdraft_limit or passes MAX_BALANCE, after any journal; a closed account
   has balance 0 and no journal afterwards.                                                           Account.posted
4. Sequences count from 1 without a gap; each journal's hash covers its content and the hash before.  PostingBatch.write
5. A business key stands for one journal, and a journal is undone at most once.                       PostingBatch.write
6. An attempt that was refused is refused for ever: the refusal is kept beside the journals, because a
   copy of the request may still be on its way while its payment is reported as declined. Another
   attempt at the same business key is decided anew.                                                  PostingBatch.write

The hash: SHA-256 over the UTF-8 bytes of

    <previous hash, 64 hexadecimal digits> LF <content>

in lower-case hexadecimal, where <content> is JSON without blanks, keys in alphabetical order, characters outside
ASCII as they are, of the object

    {"business_key": …, "clerk": [name, role], "currency": …, "format": 1, "journal_id": …,
     "legs": [[account, amount], …], "memo": …, "order_id": …, "payment_id": …, "posted_at_ms": …,
     "reversal_of": …, "sequence": …}

with legs in the order in which they were asked for, and "" for what is not there. `Journal.content` writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.kernel import idempotency
from services.kernel.currency import format_amount
from services.kernel.errors import (
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    KeyMismatch,
    NotFound,
)
from services.kernel.fence import Fence
from services.kernel.money import MAX_BALANCE, MAX_MINOR_UNITS
from services.kernel.principal import Principal

MIN_LEGS, MAX_LEGS = 2, 100
#: Hash before the first journal.
NO_HASH = "0" * 64
#: No chain gets this long.
MAX_SEQUENCE = 2**62
#: Business keys that begin with this are made by reversals only.
REVERSAL_PREFIX = "reverse:"


class AccountKind(StrEnum):
    """What an account is."""

    ASSET = "ASSET"
    LIABILITY = "LIABILITY"
    EQUITY = "EQUITY"
    REVENUE = "REVENUE"
    EXPENSE = "EXPENSE"

    @property
    def sign(self) -> int:
        """What a debit of 1 does to the balance: 1 where debits make it grow, -1 where credits do."""
        return 1 if self in (AccountKind.ASSET, AccountKind.EXPENSE) else -1


#: What accounts whose names begin so and end with a currency are.
_NAMED_KINDS = {
    "wallet": AccountKind.LIABILITY,
    "drawer": AccountKind.ASSET,
    "bank": AccountKind.ASSET,
    "acquirer": AccountKind.ASSET,
    "sales": AccountKind.REVENUE,
}
_NAMED = re.compile(rf"(?P<what>{'|'.join(_NAMED_KINDS)}):(?:.+:)?(?P<currency>[A-Z]{{3}})")


@dataclass(frozen=True, slots=True)
class Closing:
    """How an account was closed.

    Args:
        by: The member of staff who closed it.
        reason: Why.
        at_ms: When, in Unix milliseconds.
    """

    by: Principal
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Account:
    """A ledger account. Amounts are minor units.

    Args:
        overdraft_limit: How far the balance may fall below zero, 0 to MAX_MINOR_UNITS.
        balance: On the side on which the account grows.
        version: 1, and one more with every posting.
        created_at_ms: Unix milliseconds.
        closing: None: it is open.
        opened_by: None: the ledger opened it, or it was opened before that was recorded.
    """

    account_id: str
    kind: AccountKind
    currency: str
    overdraft_limit: int = 0
    balance: int = 0
    version: int = 1
    created_at_ms: int = 0
    closing: Closing | None = None
    opened_by: Principal | None = None

    def check_terms(self, wanted: Account) -> Account:
        """Return itself if opening `wanted` is opening this account once more.

        Raises:
            AlreadyExists: ACCOUNT_EXISTS: it is open on other terms.
            FailedPrecondition: ACCOUNT_CLOSED.
        """
        self.check_open()
        if (self.kind, self.currency, self.overdraft_limit) != (wanted.kind, wanted.currency, wanted.overdraft_limit):
            raise AlreadyExists(
                "ACCOUNT_EXISTS",
                f"{self.account_id} is open as {self.kind} in {self.currency} with an overdraft limit of "
                f"{format_amount(self.overdraft_limit, self.currency)}; open another name for other terms",
                metadata={"account_id": self.account_id},
            )
        return self

    def as_opened(self) -> Account:
        """Return the account before its first posting."""
        return replace(self, balance=0, version=1, closing=None)

    def closed(self, closing: Closing) -> Account:
        """Return the account once it is closed.

        Raises:
            FailedPrecondition: ACCOUNT_CLOSED or BALANCE_NOT_ZERO.
        """
        self.check_open()
        if self.balance:
            raise FailedPrecondition(
                "BALANCE_NOT_ZERO",
                f"{self.account_id} holds {format_amount(self.balance, self.currency)}; only an empty one is closed",
                metadata={"account_id": self.account_id, "balance": str(self.balance)},
            )
        return replace(self, closing=closing)

    def check_open(self) -> None:
        """Raise FailedPrecondition, ACCOUNT_CLOSED, if it is closed."""
        if self.closing is not None:
            raise FailedPrecondition(
                "ACCOUNT_CLOSED",
                f"{self.account_id} was closed by {self.closing.by}; use another account",
                metadata={
                    "account_id": self.account_id,
                    "closed_by": self.closing.by.name,
                    "closed_at_ms": str(self.closing.at_ms),
                },
            )

    def posted(self, amount: int) -> Account:
        """Return the account after one leg: a debit of `amount`, or a credit if it is negative.

        Raises:
            FailedPrecondition: ACCOUNT_CLOSED, INSUFFICIENT_FUNDS or BALANCE_OUT_OF_RANGE.
        """
        self.check_open()
        balance = self.balance + amount * self.kind.sign
        if balance < -self.overdraft_limit:
            short_by = -self.overdraft_limit - balance
            raise FailedPrecondition(
                "INSUFFICIENT_FUNDS",
                f"{self.account_id} is short by {format_amount(short_by, self.currency)}; "
                "put money in or pay from elsewhere",
                metadata={
                    "account_id": self.account_id,
                    "balance": str(self.balance),
                    "overdraft_limit": str(self.overdraft_limit),
                    "short_by": str(short_by),
                },
            )
        if balance > MAX_BALANCE:
            raise FailedPrecondition(
                "BALANCE_OUT_OF_RANGE",
                f"{self.account_id} would hold more than {format_amount(MAX_BALANCE, self.currency)}; "
                "use another account",
                metadata={"account_id": self.account_id, "balance": str(self.balance)},
            )
        return replace(self, balance=balance, version=self.version + 1)


def check_account_terms(account: Account) -> Account:
    """Return `account` if it may be opened.

    A name like `wallet:<customer>:<currency>` implies a kind and a currency, by which payments find it: a payment from
    a wallet that grew by debits would add money to it.

    Raises:
        InvalidArgument: OVERDRAFT_OUT_OF_RANGE or ACCOUNT_TERMS_MISMATCH.
    """
    if not 0 <= account.overdraft_limit <= MAX_MINOR_UNITS:
        raise InvalidArgument.of_field(
            "OVERDRAFT_OUT_OF_RANGE",
            "overdraft_limit",
            f"overdraft_limit is 0 to {format_amount(MAX_MINOR_UNITS, account.currency)}, "
            f"not {format_amount(account.overdraft_limit, account.currency)}",
        )
    named = _NAMED.fullmatch(account.account_id)
    if named is None:
        return account
    kind, currency = _NAMED_KINDS[named["what"]], named["currency"]
    if account.kind is not kind:
        raise InvalidArgument.of_field(
            "ACCOUNT_TERMS_MISMATCH",
            "kind",
            f"{account.account_id} must be {kind}, not {account.kind}; or name it otherwise",
        )
    if account.currency != currency:
        raise InvalidArgument.of_field(
            "ACCOUNT_TERMS_MISMATCH",
            "currency_code",
            f"{account.account_id} must be in {currency}, not {account.currency}; or name it otherwise",
        )
    return account


def account_not_found(account_id: str) -> NotFound:
    """Return the error for an account that does not exist, or not for the caller."""
    return NotFound(
        "ACCOUNT_NOT_FOUND", f"there is no account {account_id}; open it first", metadata={"account_id": account_id}
    )


def house_accounts(currencies: Iterable[str], now_ms: int) -> tuple[Account, ...]:
    """Return the house accounts of each currency: the drawer, the bank account, the acquirer's debt, and the sales."""
    return tuple(
        Account(f"{name}:{currency}", _NAMED_KINDS[name], currency, created_at_ms=now_ms)
        for currency in currencies
        for name in ("drawer", "bank", "acquirer", "sales")
    )


#: Business key and attempt of something that was refused.
RefusalKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Leg:
    """One posting: a debit of `amount` minor units, or a credit if it is negative."""

    account_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class JournalDraft:
    """What a journal is to say, before it has a place in the chain.

    Args:
        business_key: What it stands for.
        legs: 2 to 100, which sum to zero.
        currency: Of all legs.
        memo: A note; of a reversal, the reason.
        order_id: The order behind it; empty: none.
        payment_id: The payment behind it.
        clerk: On whose behalf. Not part of the payload: a payment that another clerk finishes is the same one.
        reversal_of: The journal it undoes; empty: none.
    """

    business_key: str
    legs: tuple[Leg, ...]
    currency: str
    memo: str
    order_id: str
    payment_id: str
    clerk: Principal
    reversal_of: str = ""

    def check(self) -> JournalDraft:
        """Check its legs and return itself. Not done on reading, so that an altered journal can be shown.

        Raises:
            InvalidArgument: LEGS_OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, ACCOUNT_REPEATED or UNBALANCED.
        """
        if not MIN_LEGS <= len(self.legs) <= MAX_LEGS:
            raise InvalidArgument.of_field(
                "LEGS_OUT_OF_RANGE",
                "postings",
                f"a journal has {MIN_LEGS} to {MAX_LEGS} postings, not {len(self.legs)}",
            )
        seen: set[str] = set()
        for place, leg in enumerate(self.legs):
            if leg.amount == 0 or abs(leg.amount) > MAX_MINOR_UNITS:
                shown = [format_amount(amount, self.currency) for amount in (1, MAX_MINOR_UNITS, leg.amount)]
                raise InvalidArgument.of_field(
                    "AMOUNT_OUT_OF_RANGE",
                    f"postings[{place}].amount",
                    f"a posting is {shown[0]} to {shown[1]}, debit or credit, not {shown[2]}",
                )
            if leg.account_id in seen:
                raise InvalidArgument.of_field(
                    "ACCOUNT_REPEATED",
                    f"postings[{place}].account_id",
                    f"{leg.account_id} is named twice; send one posting with the sum",
                )
            seen.add(leg.account_id)
        total = sum(leg.amount for leg in self.legs)
        if total != 0:
            raise InvalidArgument.of_field(
                "UNBALANCED",
                "postings",
                f"the postings sum to {format_amount(total, self.currency)}, not 0; "
                "debits are positive, credits negative",
            )
        return self

    @property
    def payload(self) -> str:
        """Fingerprint of what identifies this journal: all but the clerk.

        A reversal's reason does not count either: a journal can be undone only once, for whatever reason.
        """
        memo = "" if self.reversal_of else self.memo
        legs = [[leg.account_id, leg.amount] for leg in self.legs]
        parts = [self.business_key, legs, self.currency, memo, self.order_id, self.payment_id, self.reversal_of]
        return idempotency.fingerprint(json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal that is asked for.

    Args:
        attempt: The caller's id of this attempt; repeats of it carry the same one.
        journal_id: The id it gets if it is written.
        posted_at_ms: Unix milliseconds.
        fence: Of the order's lock; unused without an order.
    """

    draft: JournalDraft
    attempt: str
    journal_id: str
    posted_at_ms: int
    fence: Fence

    @property
    def refusal_key(self) -> RefusalKey:
        """Under which a refusal is kept."""
        return (self.draft.business_key, self.attempt)


@dataclass(frozen=True, slots=True)
class Journal:
    """One entry of the books, as it stands for ever.

    Args:
        sequence: Its place in the chain, from 1.
        previous_hash: Hash of the journal before; NO_HASH for the first.
        hash: See the header of this module.
    """

    draft: JournalDraft
    journal_id: str
    posted_at_ms: int
    sequence: int
    previous_hash: str
    hash: str

    @classmethod
    def seal(cls, entry: Entry, after: Head) -> Journal:
        """Return the journal that `entry` becomes as the next one `after` the head."""
        unsealed = cls(entry.draft.check(), entry.journal_id, entry.posted_at_ms, after.sequence + 1, after.hash, "")
        return replace(unsealed, hash=unsealed.recomputed_hash())

    def content(self) -> bytes:
        """Return what is hashed, but for the hash before; the header of this module shows the format."""
        draft = self.draft
        return json.dumps(
            {
                "business_key": draft.business_key,
                "clerk": [draft.clerk.name, str(draft.clerk.role)],
                "currency": draft.currency,
                "format": 1,
                "journal_id": self.journal_id,
                "legs": [[leg.account_id, leg.amount] for leg in draft.legs],
                "memo": draft.memo,
                "order_id": draft.order_id,
                "payment_id": draft.payment_id,
                "posted_at_ms": self.posted_at_ms,
                "reversal_of": draft.reversal_of,
                "sequence": self.sequence,
            },
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
        ).encode()

    def recomputed_hash(self) -> str:
        """Return what `hash` must be."""
        return hashlib.sha256(self.previous_hash.encode() + b"\n" + self.content()).hexdigest()

    def reversal(self, *, reason: str, clerk: Principal) -> JournalDraft:
        """Return the draft that undoes this journal.

        Raises:
            FailedPrecondition: NOT_REVERSIBLE: it is itself a reversal.
        """
        if self.draft.reversal_of:
            raise FailedPrecondition(
                "NOT_REVERSIBLE",
                f"{self.journal_id} is the reversal of {self.draft.reversal_of}; post a new journal instead",
                metadata={"journal_id": self.journal_id},
            )
        return JournalDraft(
            business_key=REVERSAL_PREFIX + self.journal_id,
            legs=tuple(Leg(leg.account_id, -leg.amount) for leg in self.draft.legs),
            currency=self.draft.currency,
            memo=reason,
            order_id=self.draft.order_id,
            payment_id=self.draft.payment_id,
            clerk=clerk,
            reversal_of=self.journal_id,
        )

    def facts(self) -> dict[str, str]:
        """Return the facts about this journal for the refusal of a later caller."""
        return {
            "journal_id": self.journal_id,
            "payment_id": self.draft.payment_id,
            "clerk": self.draft.clerk.name,
            "role": str(self.draft.clerk.role),
            "posted_at_ms": str(self.posted_at_ms),
            "guard": "unique",
        }


def journal_not_found(name: str) -> NotFound:
    """Return the error for a journal that does not exist."""
    return NotFound("JOURNAL_NOT_FOUND", f"there is no journal {name}; see ListJournals", metadata={"journal": name})


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: the last journal's sequence and hash."""

    sequence: int = 0
    hash: str = NO_HASH


@dataclass(frozen=True, slots=True)
class Posted:
    """A journal that stands.

    Args:
        replayed: It stood already.
    """

    journal: Journal
    replayed: bool


#: The outcome of an entry: the journal, or why there is none.
PostOutcome = Posted | CountinghouseError


@dataclass(slots=True)
class PostingBatch:
    """As much of the ledger as some entries concern, while it is locked; and what they change in it.

    Args:
        head: The end of the chain.
        accounts: Those the entries name, by id; a missing one is not open.
        standing: Journals with the entries' business keys, by key.
        undone: Journals that undo what the entries are to undo, by `reversal_of`.
        refusals: Kept refusals of the entries' keys.
        unique: Whether the guard `unique` is on; without it every entry is written.
    """

    head: Head
    accounts: dict[str, Account]
    standing: dict[str, Journal]
    undone: dict[str, Journal]
    refusals: dict[RefusalKey, CountinghouseError]
    unique: bool = True
    #: What is new, in order.
    written: list[Journal] = field(default_factory=list)
    refused: dict[RefusalKey, Entry] = field(default_factory=dict)

    def write(self, entry: Entry) -> PostOutcome:
        """Decide on one entry as the header shows, and remember the outcome for the entries after it."""
        try:
            standing = self._standing(entry)
            if standing is not None:
                return Posted(standing, replayed=True)
        except CountinghouseError as error:
            return error
        try:
            changed = self._post(entry.draft)
        except CountinghouseError as error:
            if self.unique:
                self.refusals[entry.refusal_key] = error
                self.refused[entry.refusal_key] = entry
            return error
        self.accounts.update(changed)
        journal = Journal.seal(entry, self.head)
        self.head = Head(journal.sequence, journal.hash)
        self.standing[entry.draft.business_key] = journal
        if entry.draft.reversal_of:
            self.undone[entry.draft.reversal_of] = journal
        self.written.append(journal)
        return Posted(journal, replayed=False)

    def void(self, entry: Entry) -> Journal | None:
        """Refuse `entry` for ever, whenever it comes; return the journal of its payment if that stands already.

        Args:
            entry: Its legs are not looked at; the key and the attempt are.
        """
        standing = self.standing.get(entry.draft.business_key)
        if standing is not None and standing.draft.payment_id == entry.draft.payment_id:
            return standing
        if entry.refusal_key not in self.refusals:
            self.refusals[entry.refusal_key] = FailedPrecondition(
                "POST_VOIDED",
                f"{entry.draft.business_key} of payment {entry.draft.payment_id} was voided before it was posted",
                metadata={"business_key": entry.draft.business_key, "payment_id": entry.draft.payment_id},
            )
            self.refused[entry.refusal_key] = entry
        return None

    def _standing(self, entry: Entry) -> Journal | None:
        """Return the journal that `entry` repeats, if it does.

        Raises:
            KeyMismatch: Its key stands for another.
            FailedPrecondition: ALREADY_REVERSED: what it is to undo is undone by another.
            CountinghouseError: What this attempt was refused with.
        """
        if not self.unique:
            return None
        draft = entry.draft
        refusal = self.refusals.get(entry.refusal_key)
        if refusal is not None:
            raise refusal
        standing = self.standing.get(draft.business_key)
        if standing is not None and standing.draft.payload == draft.payload:
            return standing
        undone = self.undone.get(draft.reversal_of) if draft.reversal_of else None
        if undone is not None:
            raise FailedPrecondition(
                "ALREADY_REVERSED",
                f"{draft.reversal_of} was reversed by {undone.draft.clerk.name} with {undone.journal_id}; "
                "nothing is left to undo",
                metadata=undone.facts(),
            )
        if standing is not None:
            mismatch = KeyMismatch(draft.business_key)
            mismatch.metadata.update(standing.facts())
            raise mismatch
        return None

    def _post(self, draft: JournalDraft) -> Mapping[str, Account]:
        """Return the accounts of `draft` after it, all or none.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            InvalidArgument: CURRENCY_MISMATCH.
            FailedPrecondition: As `Account.posted`.
        """
        changed: dict[str, Account] = {}
        for leg in draft.legs:
            account = self.accounts.get(leg.account_id)
            if account is None:
                raise account_not_found(leg.account_id)
            if account.currency != draft.currency:
                raise InvalidArgument(
                    "CURRENCY_MISMATCH",
                    f"{account.account_id} is kept in {account.currency}; use an account in {draft.currency}",
                    metadata={"account_id": account.account_id, "currency": account.currency},
                    fields=(("currency_code", f"not the currency of {account.account_id}"),),
                )
            changed[leg.account_id] = account.posted(leg.amount)
        return changed


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One account in the trial balance; minor units.

    Args:
        debits: Sum of its debits.
        credits: Sum of its credits, as a positive number.
    """

    account: Account
    debits: int
    credits: int

    @property
    def right(self) -> bool:
        """Whether the stored balance equals the sums."""
        return self.account.balance == (self.debits - self.credits) * self.account.kind.sign


@dataclass(frozen=True, slots=True)
class TrialTotal:
    """All accounts of one currency in the trial balance; minor units, of any size.

    Args:
        accounts: How many there are.
        unexplained: How many have a stored balance that differs from their sums.
    """

    currency: str
    accounts: int
    debits: int
    credits: int
    unexplained: int

    @property
    def difference(self) -> int:
        """Debits less credits: zero unless the books are broken."""
        return self.debits - self.credits


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """The sums of the books.

    Args:
        last: The newest journal's sequence that they contain.
        totals: By currency code.
    """

    last: int
    totals: tuple[TrialTotal, ...]

    @property
    def differences(self) -> tuple[tuple[str, int], ...]:
        """Debits less credits for each currency, by code."""
        return tuple((total.currency, total.difference) for total in self.totals)

    @property
    def balanced(self) -> bool:
        """Whether debits equal credits and every stored balance equals the sum of its postings."""
        return not any(total.difference or total.unexplained for total in self.totals)
