"""The use cases of the ledger: the rights of each role, the order of the steps, and the answers. No I/O of its own.

Customers get NOT_FOUND, not PERMISSION_DENIED, for accounts that are not their own wallets, so that ids cannot be
probed.

Failpoints passed: `accepted` before the transaction that writes a journal, `posted` after it; `accepted` and `voided`
around the one that voids a post.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.kernel.clock import Clock
from services.kernel.errors import AlreadyExists, CountinghouseError, FailedPrecondition, InvalidArgument
from services.kernel.fence import Fence
from services.kernel.idempotency import Answer, KeyedRequest, RequestKey
from services.kernel.ids import IdSource
from services.kernel.principal import Principal, Role
from services.ledger.chain import ChainCheck, ChainReport
from services.ledger.model import (
    MAX_SEQUENCE,
    NO_HASH,
    REVERSAL_PREFIX,
    Account,
    AccountKind,
    Closing,
    Entry,
    Head,
    Journal,
    JournalDraft,
    TrialBalance,
    TrialRow,
    account_not_found,
    check_account_terms,
    house_accounts,
    journal_not_found,
)
from services.ledger.ports import JournalFilter, LedgerStore, Responses
from services.runtime.grpc.context import Call
from services.runtime.ports import Failpoints

#: Journals read at once while the chain is walked: enough to be quick, few enough to stay small.
_VERIFY_CHUNK = 500


class LedgerOperations:
    """The use cases."""

    def __init__(
        self, store: LedgerStore, clock: Clock, ids: IdSource, failpoints: Failpoints, responses: Responses
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._failpoints = failpoints
        self._responses = responses
        self._house: frozenset[str] = frozenset()

    async def open_house_accounts(self, currencies: Sequence[str]) -> None:
        """Open the house accounts of each currency, unless they are open.

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
        """Open an account.

        Raises:
            InvalidArgument: As `model.check_account_terms`.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        request = self._request(call, "OpenAccount", request_id, fingerprint)
        wanted = check_account_terms(
            Account(
                account_id,
                kind,
                currency,
                overdraft_limit,
                created_at_ms=request.at_ms,
                opened_by=request.key.caller,
            )
        )
        answer = await self._store.open_account(request, wanted, self._responses.opened(wanted))
        if answer is not None:
            return answer
        try:
            standing = (await self._found(account_id)).check_terms(wanted)
        except (AlreadyExists, FailedPrecondition) as refusal:
            return await self._store.answer(request, self._responses.refusal(refusal))
        return await self._store.answer(request, self._responses.opened(standing.as_opened()))

    async def close_account(
        self, call: Call, request_id: str, fingerprint: str, *, account_id: str, reason: str
    ) -> Answer:
        """Close an account.

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
        request = self._request(call, "CloseAccount", request_id, fingerprint)
        while True:
            answer = await self._store.answered(request) or await self._close(request, account_id, reason)
            if answer is not None:
                return answer

    async def _close(self, request: KeyedRequest, account_id: str, reason: str) -> Answer | None:
        """Close an account as it is read; None: it has changed since."""
        account = await self._found(account_id)
        try:
            closed = account.closed(Closing(request.key.caller, reason, request.at_ms))
        except FailedPrecondition as refusal:
            return await self._store.answer(request, self._responses.refusal(refusal))
        return await self._store.close_account(request, closed, self._responses.closed(closed))

    async def account(self, call: Call, account_id: str) -> Account:
        """Read one account.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND: there is none, or none the caller may see.
        """
        kind, _, owner = account_id.rpartition(":")[0].partition(":")
        of_caller = kind == "wallet" and call.principal.is_customer(owner)
        if call.principal.role is Role.CUSTOMER and not of_caller:
            raise account_not_found(account_id)
        return await self._found(account_id)

    async def accounts(self, *, prefix: str, after: str, limit: int) -> list[Account]:
        """List accounts by id."""
        return await self._store.accounts(prefix=prefix, after=after, limit=limit)

    async def post(self, call: Call, attempt: str, draft: JournalDraft, fence: Fence) -> Journal:
        """Write a journal, or return the one that stands under its business key.

        Args:
            attempt: The caller's id of this attempt. One that was refused for its accounts is refused for ever.

        Raises:
            InvalidArgument: BUSINESS_KEY_RESERVED; as `JournalDraft.check`; CURRENCY_MISMATCH.
            KeyMismatch: Another payload stands under the key; the metadata name its payment.
            NotFound: ACCOUNT_NOT_FOUND.
            FailedPrecondition: ACCOUNT_CLOSED, INSUFFICIENT_FUNDS or BALANCE_OUT_OF_RANGE.
            StaleFence: Another holder has locked the order since.
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
            StaleFence: Another holder has locked the order since.
        """
        _check_not_reserved(draft)
        call.concerns(order_id=draft.order_id, payment_id=draft.payment_id)
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
        """Write the opposite of a journal, or return the one that stands.

        Args:
            attempt: As in `post`.

        Raises:
            NotFound: JOURNAL_NOT_FOUND.
            InvalidArgument: PAYMENT_MISMATCH, or FENCE_REQUIRED where the journal has an order.
            FailedPrecondition: NOT_REVERSIBLE, ALREADY_REVERSED, ACCOUNT_CLOSED, INSUFFICIENT_FUNDS or
                BALANCE_OUT_OF_RANGE.
            StaleFence: Another holder has locked the order since.
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
        """Read one journal, by id or by business key.

        Raises:
            NotFound: JOURNAL_NOT_FOUND.
        """
        journal = await self._store.journal(journal_id=journal_id, business_key=business_key)
        if journal is None:
            raise journal_not_found(journal_id or business_key)
        return journal

    async def journals(self, which: JournalFilter, *, before: int | None, limit: int) -> list[Journal]:
        """List journals, newest first."""
        return await self._store.journals(which, before=before, limit=limit)

    async def trial_balance(self, currency: str) -> TrialBalance:
        """Sum the books of a currency; an empty one means every currency."""
        last, totals = await self._store.trial_totals(currency)
        return TrialBalance(last, tuple(totals))

    async def trial_rows(self, currency: str, *, last: int, after: str, limit: int) -> list[TrialRow]:
        """List the accounts of a trial balance, as they stood with the journal `last`."""
        return await self._store.trial(currency, last=last, after=after, limit=limit)

    async def verify(self, first: int, last: int) -> ChainReport:
        """Check the chain from link to link.

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
            return ChainReport(0, 0, "", NO_HASH)
        check = ChainCheck(Head())
        if first > 1:
            before = await self._store.links(first=first - 1, last=first - 1, limit=1)
            if not before or before[0].journal is None:
                return ChainReport(0, first, "the journal before it is missing or altered", NO_HASH)
            check = ChainCheck(Head(first - 1, before[0].journal.hash))
        await self._walk(check, last)
        if whole:
            check.end(head)
            await self._look_beyond(check, head)
        return ChainReport(check.examined, check.broken_at, check.problem, check.last_hash)

    async def _found(self, account_id: str) -> Account:
        account = await self._store.account(account_id)
        if account is None:
            raise account_not_found(account_id)
        return account

    async def _walk(self, check: ChainCheck, last: int) -> None:
        """Look at every link from where the check stands to `last`, a chunk at a time."""
        while check.expected.sequence < last:
            links = await self._store.links(first=check.expected.sequence + 1, last=last, limit=_VERIFY_CHUNK)
            if not links:
                check.fail(check.expected.sequence + 1, f"journal {check.expected.sequence + 1} is missing")
                return
            for link in links:
                if not check.look(link):
                    return

    async def _look_beyond(self, check: ChainCheck, head: Head) -> None:
        """Look for journals that the head of the chain does not know of: a new one moves the head as it is written."""
        beyond = await self._store.links(first=head.sequence + 1, last=MAX_SEQUENCE, limit=1)
        if not check.broken_at and beyond and (await self._store.head()).sequence < beyond[0].sequence:
            check.fail(beyond[0].sequence, "it lies beyond the head of the chain")

    def _request(self, call: Call, method: str, request_id: str, fingerprint: str) -> KeyedRequest:
        return KeyedRequest(RequestKey(call.principal, method, request_id), fingerprint, self._clock.now_ms())

    async def _write(self, call: Call, attempt: str, draft: JournalDraft, fence: Fence) -> Journal:
        call.concerns(order_id=draft.order_id, payment_id=draft.payment_id)
        entry = Entry(draft, attempt, self._ids.new("jnl"), self._clock.now_ms(), fence)
        await self._failpoints.hit("accepted", call, draft.order_id, draft.payment_id)
        [outcome] = await self._store.post([entry])
        if isinstance(outcome, CountinghouseError):
            raise outcome
        await self._failpoints.hit("posted", call, draft.order_id, draft.payment_id)
        call.replayed = outcome.replayed
        return outcome.journal


def _check_not_reserved(draft: JournalDraft) -> None:
    """Raise InvalidArgument, BUSINESS_KEY_RESERVED, if the key belongs to reversals."""
    if draft.business_key.startswith(REVERSAL_PREFIX):
        raise InvalidArgument.of_field(
            "BUSINESS_KEY_RESERVED",
            "business_key",
            f"business keys that begin with {REVERSAL_PREFIX} are made by ReverseJournal; call that",
        )
