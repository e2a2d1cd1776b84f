"""What can be done with the books: who may, in which order, and what is told to whom. No I/O of its own.

A customer's world holds only their own wallets: another account is not forbidden but not there, so that nobody learns
which ones exist.

Failpoints passed: `accepted` before the transaction that writes a journal, `posted` after it; `accepted` and `voided`
around the one that voids a post.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, FailedPrecondition, InvalidArgument
from services.kernel.fence import Fence
from services.kernel.idempotency import Answer, RequestKey
from services.kernel.ids import IdSource
from services.kernel.principal import Principal, Role
from services.ledger.model import (
    MAX_SEQUENCE,
    NO_HASH,
    REVERSAL_PREFIX,
    Account,
    AccountKind,
    ChainCheck,
    Closing,
    Entry,
    Head,
    Journal,
    JournalDraft,
    Link,
    Outcome,
    TrialRow,
    TrialTotal,
    account_not_found,
    check_account_terms,
    house_accounts,
    journal_not_found,
)
from services.runtime.grpc.context import Call

#: Journals read at once while the chain is walked: enough to be quick, few enough to stay small.
_VERIFY_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Opening:
    """One caller's request of an account, as its request id remembers it.

    Args:
        fingerprint: Of the payload, `kernel.idempotency.fingerprint`.
        account: As it is to be opened.
    """

    key: RequestKey
    fingerprint: str
    account: Account


@dataclass(frozen=True, slots=True)
class ClosingRequest:
    """One caller's request to close an account; as `Opening`."""

    key: RequestKey
    fingerprint: str
    account_id: str
    closing: Closing


@dataclass(frozen=True, slots=True)
class JournalFilter:
    """Which journals to list; empty: all."""

    account_id: str = ""
    order_id: str = ""


class Encoding(Protocol):
    """How answers are written down, so that a replay is the same to the byte."""

    def opened(self, account: Account) -> bytes:
        """The answer to an opening."""
        ...

    def closed(self, account: Account) -> bytes:
        """The answer to a closing."""
        ...

    def refused(self, error: CountinghouseError) -> bytes:
        """A definitive refusal."""
        ...


class LedgerStore(Protocol):
    """Where the books are kept. Every method is one whole step: all of it happens, or none.

    Narrow on purpose: another engine can stand behind it.
    """

    async def post(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Writes entries as if one after the other, as `model.Books.write`; the result has one outcome for each.

        The fence of each entry's order is raised first, before anything is read, and stays raised whatever becomes of
        the entry; a smaller one than the order has seen is refused with StaleFence. One refused entry does not hinder
        the others. When the step returns, all of it is durable, the refusals too.
        """
        ...

    async def void(self, entry: Entry) -> Journal | None:
        """Refuses an entry before it comes, as `model.Books.void`; the journal of its payment, if that stands.

        The fence of its order is raised first, as by `post`. When the step returns, the refusal is durable.

        Raises:
            StaleFence: Somebody else has locked the order since.
        """
        ...

    async def open_account(self, opening: Opening, encoding: Encoding) -> Answer:
        """Opens an account, or finds it open on the same terms, and stores the answer with it; stores the refusals
        ACCOUNT_EXISTS of other terms and ACCOUNT_CLOSED.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def close_account(self, request: ClosingRequest, encoding: Encoding) -> Answer:
        """Closes an account, as `Account.closed`, and stores the answer with it, be it a refusal. No journal is written
        to the account from then on.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def open_missing(self, accounts: Sequence[Account]) -> None:
        """Opens those that are not open yet.

        Raises:
            AlreadyExists: ACCOUNT_EXISTS: one is open on other terms.
            FailedPrecondition: ACCOUNT_CLOSED: one was closed.
        """
        ...

    async def account(self, account_id: str) -> Account | None:
        """One account; None: it is not open."""
        ...

    async def accounts(self, *, prefix: str, after: str, limit: int) -> list[Account]:
        """At most `limit` accounts whose id begins with `prefix` and comes after `after`, by id."""
        ...

    async def journal(self, *, journal_id: str = "", business_key: str = "") -> Journal | None:
        """The journal with this id, or with this business key; None: there is none."""
        ...

    async def journals(self, which: JournalFilter, *, before: int | None, limit: int) -> list[Journal]:
        """At most `limit` journals, newest first, from before the sequence `before`."""
        ...

    async def head(self) -> Head:
        """The end of the chain."""
        ...

    async def links(self, *, first: int, last: int, limit: int) -> list[Link]:
        """What is found in the chain from sequence `first` to `last`, in order, at most `limit`."""
        ...

    async def trial_totals(self, currency: str) -> tuple[int, list[TrialTotal]]:
        """The sums of a currency (empty: of each), by code, and the newest sequence they contain, on one snapshot."""
        ...

    async def trial(self, currency: str, *, last: int, after: str, limit: int) -> list[TrialRow]:
        """At most `limit` accounts of a currency (empty: of all) whose id comes after `after`, by id, with the sums of
        their postings and their balance as they stood with the journal `last`."""
        ...


class Failpoints(Protocol):
    """Named moments at which a test may interfere."""

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Passes the failpoint `name`, about `subjects`."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
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
        """Whether debits equal credits and every stored balance is what the postings say."""
        return not any(total.difference or total.unexplained for total in self.totals)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a walk along the chain found.

    Args:
        examined: How many journals were looked at.
        broken_at: The first sequence that is not as it was written; 0: none.
        head_hash: Of the last journal looked at; NO_HASH: there was none.
    """

    examined: int
    broken_at: int
    problem: str
    head_hash: str


class LedgerOperations:
    """The use cases."""

    def __init__(
        self, store: LedgerStore, clock: Clock, ids: IdSource, failpoints: Failpoints, encoding: Encoding
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._failpoints = failpoints
        self._encoding = encoding
        self._house: frozenset[str] = frozenset()

    async def open_house_accounts(self, currencies: Sequence[str]) -> None:
        """Opens the house accounts of each currency, unless they are open.

        Raises:
            AlreadyExists: ACCOUNT_EXISTS: one is open on other terms.
            FailedPrecondition: ACCOUNT_CLOSED: one was closed.
        """
        wanted = house_accounts(currencies, self._clock.now_ms())
        await self._store.open_missing(wanted)
        self._house = frozenset(account.account_id for account in wanted)

    async def open_account(
        self,
        call: Call,
        request_id: str,
        fingerprint: str,
        *,
        account_id: str,
        kind: AccountKind,
        currency: str,
        overdraft_limit: int,
    ) -> Answer:
        """Opens an account.

        Raises:
            InvalidArgument: As `model.check_account_terms`.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        account = check_account_terms(
            Account(account_id, kind, currency, overdraft_limit, created_at_ms=self._clock.now_ms())
        )
        key = RequestKey(call.principal, "OpenAccount", request_id)
        return await self._store.open_account(Opening(key, fingerprint, account), self._encoding)

    async def close_account(
        self, call: Call, request_id: str, fingerprint: str, *, account_id: str, reason: str
    ) -> Answer:
        """Closes an account.

        Raises:
            FailedPrecondition: HOUSE_ACCOUNT_IN_USE: it belongs to a currency of the settings.
            NotFound: ACCOUNT_NOT_FOUND.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        if account_id in self._house:
            raise FailedPrecondition(
                "HOUSE_ACCOUNT_IN_USE",
                f"{account_id} is a house account; take its currency out of COUNTINGHOUSE_CURRENCIES first",
                metadata={"account_id": account_id},
            )
        key = RequestKey(call.principal, "CloseAccount", request_id)
        closing = Closing(call.principal, reason, self._clock.now_ms())
        return await self._store.close_account(ClosingRequest(key, fingerprint, account_id, closing), self._encoding)

    async def account(self, call: Call, account_id: str) -> Account:
        """Reads one account.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND: there is none, or none the caller may see.
        """
        kind, _, owner = account_id.rpartition(":")[0].partition(":")
        of_caller = kind == "wallet" and call.principal.is_customer(owner)
        if call.principal.role is Role.CUSTOMER and not of_caller:
            raise account_not_found(account_id)
        account = await self._store.account(account_id)
        if account is None:
            raise account_not_found(account_id)
        return account

    async def accounts(self, *, prefix: str, after: str, limit: int) -> list[Account]:
        """Lists accounts by id."""
        return await self._store.accounts(prefix=prefix, after=after, limit=limit)

    async def post(self, call: Call, attempt: str, draft: JournalDraft, fence: Fence) -> Journal:
        """Writes a journal, or answers with the one that stands under its business key.

        Args:
            attempt: The caller's id of this attempt. One that was refused for its accounts is refused for ever.

        Raises:
            InvalidArgument: BUSINESS_KEY_RESERVED; as `JournalDraft.check`; CURRENCY_MISMATCH.
            KeyMismatch: Another payload stands under the key; the metadata say whose.
            NotFound: ACCOUNT_NOT_FOUND.
            FailedPrecondition: ACCOUNT_CLOSED, INSUFFICIENT_FUNDS or BALANCE_OUT_OF_RANGE.
            StaleFence: Somebody else has locked the order since.
        """
        _check_not_reserved(draft)
        return await self._write(call, attempt, draft.check(), fence)

    async def void(self, call: Call, attempt: str, draft: JournalDraft, fence: Fence) -> Journal | None:
        """Refuse a Post for ever, before it comes; return the journal of the payment if that stands already.

        Args:
            attempt: The request id of the Post.
            draft: Its business key, order and payment; no legs.

        Raises:
            InvalidArgument: BUSINESS_KEY_RESERVED.
            StaleFence: Somebody else has locked the order since.
        """
        _check_not_reserved(draft)
        entry = Entry(draft, attempt, "", self._clock.now_ms(), fence)
        await self._failpoints.hit("accepted", call, draft.order_id, draft.payment_id)
        journal = await self._store.void(entry)
        await self._failpoints.hit("voided", call, draft.order_id, draft.payment_id)
        return journal

    async def reverse(
        self,
        call: Call,
        attempt: str,
        *,
        journal_id: str,
        reason: str,
        payment_id: str,
        fence: Fence,
        clerk: Principal,
    ) -> Journal:
        """Writes the opposite of a journal, or answers with the one that stands.

        Args:
            attempt: As in `post`.

        Raises:
            NotFound: JOURNAL_NOT_FOUND.
            InvalidArgument: PAYMENT_MISMATCH, or FENCE_REQUIRED where the journal has an order.
            FailedPrecondition: NOT_REVERSIBLE, ALREADY_REVERSED, ACCOUNT_CLOSED, INSUFFICIENT_FUNDS or
                BALANCE_OUT_OF_RANGE.
            StaleFence: Somebody else has locked the order since.
        """
        journal = await self.journal(journal_id=journal_id)
        if journal.draft.payment_id != payment_id:
            raise InvalidArgument.of_field(
                "PAYMENT_MISMATCH",
                "payment_id",
                f"{journal_id} is not of payment {payment_id}; name the payment it is of",
            )
        if journal.draft.order_id and not fence:
            raise InvalidArgument.of_field(
                "FENCE_REQUIRED", "fence", f"{journal_id} has an order; send the fence of that order's lock"
            )
        return await self._write(call, attempt, journal.reversal(reason=reason, clerk=clerk), fence)

    async def journal(self, *, journal_id: str = "", business_key: str = "") -> Journal:
        """Reads one journal, by id or by business key.

        Raises:
            NotFound: JOURNAL_NOT_FOUND.
        """
        journal = await self._store.journal(journal_id=journal_id, business_key=business_key)
        if journal is None:
            raise journal_not_found(journal_id or business_key)
        return journal

    async def journals(self, which: JournalFilter, *, before: int | None, limit: int) -> list[Journal]:
        """Lists journals, newest first."""
        return await self._store.journals(which, before=before, limit=limit)

    async def trial_balance(self, currency: str) -> Trial:
        """Sums the books of a currency; of each if it is empty."""
        last, totals = await self._store.trial_totals(currency)
        return Trial(last, tuple(totals))

    async def trial_rows(self, currency: str, *, last: int, after: str, limit: int) -> list[TrialRow]:
        """Lists the accounts of a trial balance, as they stood with the journal `last`."""
        return await self._store.trial(currency, last=last, after=after, limit=limit)

    async def verify(self, first: int, last: int) -> Verdict:
        """Walks the chain.

        Args:
            first: First sequence to look at; 0: from the beginning.
            last: Last sequence to look at; 0, or beyond the end: to the end.

        Raises:
            InvalidArgument: RANGE_INVALID.
        """
        if first < 0 or last < 0 or (last and last < first):
            raise InvalidArgument.of_field(
                "RANGE_INVALID", "from_sequence", "a range is two sequences of 0 or more, the first not after the last"
            )
        first = max(first, 1)
        head = await self._store.head()
        whole = last == 0 or last >= head.sequence
        last = head.sequence if whole else last
        if first > last and first > 1:
            return Verdict(0, 0, "", NO_HASH)
        check = ChainCheck(Head())
        if first > 1:
            before = await self._store.links(first=first - 1, last=first - 1, limit=1)
            if not before or before[0].journal is None:
                return Verdict(0, first, "the journal before it is missing or altered", NO_HASH)
            check = ChainCheck(Head(first - 1, before[0].journal.hash))
        await self._walk(check, last)
        if whole:
            check.end(head)
            await self._look_beyond(check, head)
        return Verdict(check.examined, check.broken_at, check.problem, check.last_hash)

    async def _walk(self, check: ChainCheck, last: int) -> None:
        """Looks at every link from where the check stands to `last`, a chunk at a time."""
        while check.expected.sequence < last:
            links = await self._store.links(first=check.expected.sequence + 1, last=last, limit=_VERIFY_CHUNK)
            if not links:
                check.fail(check.expected.sequence + 1, f"journal {check.expected.sequence + 1} is missing")
                return
            for link in links:
                if not check.look(link):
                    return

    async def _look_beyond(self, check: ChainCheck, head: Head) -> None:
        """Looks for journals that the head of the chain does not know of: a new one moves the head as it is written."""
        beyond = await self._store.links(first=head.sequence + 1, last=MAX_SEQUENCE, limit=1)
        if not check.broken_at and beyond and (await self._store.head()).sequence < beyond[0].sequence:
            check.fail(beyond[0].sequence, "it lies beyond the head of the chain")

    async def _write(self, call: Call, attempt: str, draft: JournalDraft, fence: Fence) -> Journal:
        entry = Entry(draft, attempt, self._ids.new("jnl"), self._clock.now_ms(), fence)
        await self._failpoints.hit("accepted", call, draft.order_id, draft.payment_id)
        [outcome] = await self._store.post([entry])
        if isinstance(outcome, CountinghouseError):
            raise outcome
        await self._failpoints.hit("posted", call, draft.order_id, draft.payment_id)
        call.replayed = outcome.replayed
        return outcome.journal


def _check_not_reserved(draft: JournalDraft) -> None:
    """Raises InvalidArgument: BUSINESS_KEY_RESERVED."""
    if draft.business_key.startswith(REVERSAL_PREFIX):
        raise InvalidArgument.of_field(
            "BUSINESS_KEY_RESERVED",
            "business_key",
            f"business keys that begin with {REVERSAL_PREFIX} are made by ReverseJournal; call that",
        )
