"""What the operations need from outside. Adapters: `store.py`, `servicer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.kernel.errors import CountinghouseError
from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.ledger.chain import ChainLink
from services.ledger.model import Account, Entry, Head, Journal, PostOutcome, TrialRow, TrialTotal
from services.runtime.ports import AnswerStore


@dataclass(frozen=True, slots=True)
class JournalFilter:
    """Which journals to list; empty: all."""

    account_id: str = ""
    order_id: str = ""


class Responses(Protocol):
    """How answers are encoded, so that a replay is the same to the byte."""

    def opened(self, account: Account) -> StoredResponse:
        """Return the answer to an opening."""
        ...

    def closed(self, account: Account) -> StoredResponse:
        """Return the answer to a closing."""
        ...

    def refusal(self, error: CountinghouseError) -> StoredResponse:
        """Return the answer that is a definitive refusal."""
        ...


class LedgerStore(AnswerStore, Protocol):
    """Where the books are kept. Every method is one whole step: all of it happens, or none.

    Narrow on purpose: another engine can stand behind it.
    """

    async def post(self, entries: Sequence[Entry]) -> list[PostOutcome]:
        """Write entries as if one after the other, as `model.PostingBatch.write`; the result has one outcome for each.

        The fence of each entry's order is raised first, before anything is read, and stays raised whatever becomes of
        the entry; a smaller one than the order has seen is refused with StaleFence. One refused entry does not hinder
        the others. When the step returns, all of it is durable, the refusals too.
        """
        ...

    async def void(self, entry: Entry) -> Journal | None:
        """Refuse an entry before it comes, as `PostingBatch.void`; return the journal of its payment, if that stands.

        The fence of its order is raised first, as by `post`. When the step returns, the refusal is durable.

        Raises:
            StaleFence: Another holder has locked the order since.
        """
        ...

    async def open_account(self, request: KeyedRequest, account: Account, response: StoredResponse) -> Answer | None:
        """Open an account, and store the response to it; None: its id is taken, and nothing was done.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def close_account(self, request: KeyedRequest, closed: Account, response: StoredResponse) -> Answer | None:
        """Close an account, and store the response to it; None: a journal or a closing came first, nothing was done.

        No journal is written to the account from then on.

        Args:
            closed: As `Account.closed` makes it of the account as it stands.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def open_missing(self, accounts: Sequence[Account]) -> None:
        """Open those that are not open yet.

        Raises:
            AlreadyExists: ACCOUNT_EXISTS: one is open on other terms.
            FailedPrecondition: ACCOUNT_CLOSED: one was closed.
        """
        ...

    async def account(self, account_id: str) -> Account | None:
        """Return one account; None: it is not open."""
        ...

    async def accounts(self, *, prefix: str, after: str, limit: int) -> list[Account]:
        """Return at most `limit` accounts whose id begins with `prefix` and comes after `after`, by id."""
        ...

    async def journal(self, *, journal_id: str = "", business_key: str = "") -> Journal | None:
        """Return the journal with this id, or with this business key; None: there is none."""
        ...

    async def journals(self, which: JournalFilter, *, before: int | None, limit: int) -> list[Journal]:
        """Return at most `limit` journals, newest first, from before the sequence `before`."""
        ...

    async def head(self) -> Head:
        """Return the end of the chain."""
        ...

    async def links(self, *, first: int, last: int, limit: int) -> list[ChainLink]:
        """Return what is found in the chain from sequence `first` to `last`, in order, at most `limit`."""
        ...

    async def trial_totals(self, currency: str) -> tuple[int, list[TrialTotal]]:
        """Return the newest sequence, and the sums of a currency (empty: of each), by code, on one snapshot."""
        ...

    async def trial(self, currency: str, *, last: int, after: str, limit: int) -> list[TrialRow]:
        """Return at most `limit` accounts of a currency (empty: of all) with their sums, by id.

        Args:
            last: The sequence with which sums and balances are shown.
            after: The id after which to begin.
        """
        ...
