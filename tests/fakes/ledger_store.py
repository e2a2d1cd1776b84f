"""The books in memory: a ledger store for tests that need no database. Passes the suite of the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from services.kernel.errors import CountinghouseError, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.ledger.chain import ChainLink
from services.ledger.model import (
    Account,
    Entry,
    Head,
    Journal,
    PostingBatch,
    PostOutcome,
    RefusalKey,
    TrialRow,
    TrialTotal,
)
from services.ledger.ports import JournalFilter, LedgerStore
from tests.fakes.request_table import FakeAnswers


class FakeLedgerStore(LedgerStore):
    """Keeps everything in plain fields, which a test may look at and tamper with.

    Every method gives way once before it does its step, so that concurrent callers really interleave.
    """

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self.open: dict[str, Account] = {}
        self.chain: list[Journal] = []
        self.fences: dict[str, Fence] = {}
        self.refusals: dict[RefusalKey, CountinghouseError] = {}
        self.requests = FakeAnswers(guards)

    async def post(self, entries: Sequence[Entry]) -> list[PostOutcome]:
        await asyncio.sleep(0)
        for entry in entries:
            order_id = entry.draft.order_id
            if order_id and self._guards.fence:
                self.fences[order_id] = max(self.fences.get(order_id, entry.fence), entry.fence)
        books = PostingBatch(
            self._head(),
            dict(self.open),
            {journal.draft.business_key: journal for journal in self.chain},
            {journal.draft.reversal_of: journal for journal in self.chain if journal.draft.reversal_of},
            dict(self.refusals),
            unique=self._guards.unique,
        )
        outcomes = [self._stale(entry) or books.write(entry) for entry in entries]
        self.open = books.accounts
        self.refusals = books.refusals
        self.chain += books.written
        return outcomes

    async def void(self, entry: Entry) -> Journal | None:
        await asyncio.sleep(0)
        order_id = entry.draft.order_id
        if order_id and self._guards.fence:
            self.fences[order_id] = max(self.fences.get(order_id, entry.fence), entry.fence)
        stale = self._stale(entry)
        if stale is not None:
            raise stale
        standing = {journal.draft.business_key: journal for journal in self.chain}
        books = PostingBatch(self._head(), {}, standing, {}, dict(self.refusals))
        journal = books.void(entry)
        self.refusals = books.refusals
        return journal

    async def open_account(self, request: KeyedRequest, account: Account, response: StoredResponse) -> Answer | None:
        await asyncio.sleep(0)
        return self.requests.once(
            request, response, lambda: self.open.setdefault(account.account_id, account) is account
        )

    async def close_account(self, request: KeyedRequest, closed: Account, response: StoredResponse) -> Answer | None:
        await asyncio.sleep(0)

        def effect() -> bool:
            standing = self.open[closed.account_id]
            if standing.version != closed.version or standing.closing:
                return False
            self.open[closed.account_id] = closed
            return True

        return self.requests.once(request, response, effect)

    async def answer(self, request: KeyedRequest, response: StoredResponse) -> Answer:
        await asyncio.sleep(0)
        return self.requests.answer(request, response)

    async def answered(self, request: KeyedRequest) -> Answer | None:
        return self.requests.answered(request)

    async def open_missing(self, accounts: Sequence[Account]) -> None:
        await asyncio.sleep(0)
        for account in accounts:
            self.open.setdefault(account.account_id, account).check_terms(account)

    async def account(self, account_id: str) -> Account | None:
        return self.open.get(account_id)

    async def accounts(self, *, prefix: str, after: str, limit: int) -> list[Account]:
        found = [self.open[id_] for id_ in sorted(self.open) if id_.startswith(prefix) and id_ > after]
        return found[:limit]

    async def journal(self, *, journal_id: str = "", business_key: str = "") -> Journal | None:
        return next(
            (
                journal
                for journal in self.chain
                if journal_id in ("", journal.journal_id) and business_key in ("", journal.draft.business_key)
            ),
            None,
        )

    async def journals(self, which: JournalFilter, *, before: int | None, limit: int) -> list[Journal]:
        found = [
            journal
            for journal in reversed(self.chain)
            if (before is None or journal.sequence < before)
            and which.order_id in ("", journal.draft.order_id)
            and (not which.account_id or which.account_id in {leg.account_id for leg in journal.draft.legs})
        ]
        return found[:limit]

    async def head(self) -> Head:
        return self._head()

    async def links(self, *, first: int, last: int, limit: int) -> list[ChainLink]:
        found = [journal for journal in self.chain if first <= journal.sequence <= last]
        return [ChainLink(journal.sequence, journal) for journal in found[:limit]]

    async def trial_totals(self, currency: str) -> tuple[int, list[TrialTotal]]:
        last = len(self.chain)
        rows = await self.trial(currency, last=last, after="", limit=len(self.open))
        of: dict[str, list[TrialRow]] = {}
        for row in rows:
            of.setdefault(row.account.currency, []).append(row)
        return last, [
            TrialTotal(
                code,
                len(found),
                sum(row.debits for row in found),
                sum(row.credits for row in found),
                sum(not row.right for row in found),
            )
            for code, found in sorted(of.items())
        ]

    async def trial(self, currency: str, *, last: int, after: str, limit: int) -> list[TrialRow]:
        wanted = [
            account for id_, account in sorted(self.open.items()) if id_ > after and currency in ("", account.currency)
        ]
        return [self._trial_row(account, last) for account in wanted[:limit]]

    def _trial_row(self, account: Account, last: int) -> TrialRow:
        amounts = [
            (journal.sequence, leg.amount)
            for journal in self.chain
            for leg in journal.draft.legs
            if leg.account_id == account.account_id
        ]
        later = sum(amount for sequence, amount in amounts if sequence > last) * account.kind.sign
        return TrialRow(
            replace(account, balance=account.balance - later),
            debits=sum(amount for sequence, amount in amounts if sequence <= last and amount > 0),
            credits=-sum(amount for sequence, amount in amounts if sequence <= last and amount < 0),
        )

    def _head(self) -> Head:
        return Head(self.chain[-1].sequence, self.chain[-1].hash) if self.chain else Head()

    def _stale(self, entry: Entry) -> StaleFence | None:
        seen = self.fences.get(entry.draft.order_id)
        if seen is None or entry.fence >= seen:
            return None
        return StaleFence(entry.draft.order_id, entry.fence, seen)
