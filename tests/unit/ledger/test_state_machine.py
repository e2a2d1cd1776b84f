"""Anything, in any order: whatever is opened, posted, repeated and reversed, the books stay right.

The machine keeps its own account of what must be, and checks the store against it by means of its own: sums, limits and
hashes are computed here anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.kernel.errors import AlreadyExists, FailedPrecondition
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.principal import Principal, Role
from services.ledger.model import Account, AccountKind, Entry, Journal, JournalDraft, Leg, Posted, PostOutcome
from services.ledger.operations import LedgerOperations
from services.ledger.servicer import LedgerResponses
from services.runtime.grpc.failpoints import FailpointSet
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.ledger_store import FakeLedgerStore

LI = Principal("li", Role.CASHIER)
_T = TypeVar("_T")

_NAMES = st.sampled_from([f"a{number}" for number in range(6)])
_ORDERS = st.sampled_from(["", "o1", "o2", "o3"])
_AMOUNTS = st.integers(1, 60)
_TOKENS = st.integers(1, 8)


class Ledger(RuleBasedStateMachine):
    """A ledger in the hands of somebody who does not care."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.store = FakeLedgerStore(Guards())
        self.operations = LedgerOperations(
            self.store, ManualClock(), SeededIds(0), FailpointSet(enabled=False), LedgerResponses()
        )
        self.entries: list[Entry] = []
        self.fences: dict[str, int] = {}
        self.refused: set[tuple[str, str]] = set()
        self.numbers = 0

    def teardown(self) -> None:
        self._runner.close()

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(work)

    @initialize(kinds=st.lists(st.sampled_from(AccountKind), min_size=4, max_size=4), limit=st.integers(0, 100))
    def open(self, kinds: list[AccountKind], limit: int) -> None:
        """Four accounts of any kind; a0 and a1 may be overdrawn."""
        self.do(
            self.store.open_missing(
                [
                    Account(f"a{place}", kind, "CNY", overdraft_limit=limit if place < 2 else 0)
                    for place, kind in enumerate(kinds)
                ]
            )
        )

    @rule(name=_NAMES, kind=st.sampled_from(AccountKind))
    def open_another(self, name: str, kind: AccountKind) -> None:
        """A name that is taken on other terms is refused and stays as it is."""
        standing = self.store.open.get(name)
        wanted = Account(name, kind, "CNY")
        if standing is None or standing.as_opened() == wanted:
            self.do(self.store.open_missing([wanted]))
            return
        with pytest.raises(AlreadyExists, match=name):
            self.do(self.store.open_missing([wanted]))
        assert self.store.open[name] == standing

    @rule(
        amounts=st.dictionaries(_NAMES, _AMOUNTS, min_size=1, max_size=4),
        payee=_NAMES,
        order_id=_ORDERS,
        token=_TOKENS,
        debit=st.booleans(),
    )
    def post(self, amounts: dict[str, int], payee: str, order_id: str, token: int, debit: bool) -> None:
        """Some accounts pay one."""
        amounts.pop(payee, None)
        if not amounts:
            return
        sign = 1 if debit else -1
        legs = (
            *(Leg(name, sign * amount) for name, amount in amounts.items()),
            Leg(payee, -sign * sum(amounts.values())),
        )
        self.numbers += 1
        key = f"key:{self.numbers}"
        draft = JournalDraft(key, legs, "CNY", "", order_id, f"p{self.numbers}", LI)
        self.ask(self.entry(draft, token))

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), token=_TOKENS, fresh=st.booleans())
    def repeat(self, data: st.DataObject, token: int, fresh: bool) -> None:
        """Something that was asked for before, as the same attempt or a new one, by whoever holds the lock now."""
        old = data.draw(st.sampled_from(self.entries))
        self.ask(self.entry(old.draft, token, attempt="" if fresh else old.attempt))

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), token=_TOKENS)
    def steal(self, data: st.DataObject, token: int) -> None:
        """Another payment under a key that was used."""
        old = data.draw(st.sampled_from(self.entries))
        if old.draft.reversal_of:
            return
        legs, order_id = old.draft.legs, old.draft.order_id
        self.ask(self.entry(JournalDraft(old.draft.business_key, legs, "CNY", "", order_id, "thief", LI), token))

    @precondition(lambda self: self.store.chain)
    @rule(data=st.data(), token=_TOKENS)
    def reverse(self, data: st.DataObject, token: int) -> None:
        """A journal, or a reversal, which cannot be."""
        journal = data.draw(st.sampled_from(self.store.chain))
        if journal.draft.reversal_of:
            with pytest.raises(FailedPrecondition, match="is the reversal of"):
                journal.reversal(reason="why not", clerk=LI)
            return
        self.ask(self.entry(journal.reversal(reason="why not", clerk=LI), token))

    def entry(self, draft: JournalDraft, token: int, *, attempt: str = "") -> Entry:
        self.numbers += 1
        fence = Fence(1, token) if draft.order_id else NO_FENCE
        return Entry(draft, attempt or f"t{self.numbers}", f"j{self.numbers}", self.numbers, fence)

    def ask(self, entry: Entry) -> None:
        """Asks the store, and checks the answer against what must be."""
        before = dict(self.store.open)
        length = len(self.store.chain)
        expected = self.expected(entry)
        [outcome] = self.do(self.store.post([entry]))
        assert _said(outcome) == expected
        self.entries.append(entry)
        if expected == "WRITTEN":
            assert len(self.store.chain) == length + 1
        else:
            assert len(self.store.chain) == length
            assert self.store.open == before
        if expected in ("INSUFFICIENT_FUNDS", "ACCOUNT_NOT_FOUND", "BALANCE_OUT_OF_RANGE"):
            self.refused.add((entry.draft.business_key, entry.attempt))

    def expected(self, entry: Entry) -> str:
        """What must come of an entry, by rules of the machine's own."""
        draft = entry.draft
        if draft.order_id:
            if entry.fence.token < self.fences.get(draft.order_id, 0):
                return "STALE_FENCE"
            self.fences[draft.order_id] = entry.fence.token
        if (draft.business_key, entry.attempt) in self.refused:
            return _said(self.store.refusals[draft.business_key, entry.attempt])
        for journal in self.store.chain:
            if journal.draft.business_key == draft.business_key:
                same = journal.draft.payment_id == draft.payment_id
                return "REPLAYED" if same else "IDEMPOTENCY_KEY_MISMATCH"
        for leg in draft.legs:
            account = self.store.open.get(leg.account_id)
            if account is None:
                return "ACCOUNT_NOT_FOUND"
            grown = leg.amount if account.kind in ("ASSET", "EXPENSE") else -leg.amount
            if account.balance + grown < -account.overdraft_limit:
                return "INSUFFICIENT_FUNDS"
        return "WRITTEN"

    @invariant()
    def sums_and_limits_hold_at_every_prefix(self) -> None:
        """Each journal sums to zero, and after each no balance is below its limit; the last sums are the balances."""
        sums = dict.fromkeys(self.store.open, 0)
        for journal in self.store.chain:
            assert sum(leg.amount for leg in journal.draft.legs) == 0
            for leg in journal.draft.legs:
                account = self.store.open[leg.account_id]
                sums[leg.account_id] += leg.amount if account.kind in ("ASSET", "EXPENSE") else -leg.amount
                assert sums[leg.account_id] >= -account.overdraft_limit
        assert sums == {name: account.balance for name, account in self.store.open.items()}

    @invariant()
    def the_chain_holds(self) -> None:
        """Numbers without a gap, each hash over the content and the hash before."""
        previous = "0" * 64
        for place, journal in enumerate(self.store.chain, start=1):
            assert (journal.sequence, journal.previous_hash) == (place, previous)
            previous = _hash(journal)
            assert journal.hash == previous

    @invariant()
    def keys_and_reversals_are_unique(self) -> None:
        """One journal for each key, one reversal for each journal."""
        keys = [journal.draft.business_key for journal in self.store.chain]
        undone = [journal.draft.reversal_of for journal in self.store.chain if journal.draft.reversal_of]
        assert len(keys) == len(set(keys))
        assert len(undone) == len(set(undone))

    @invariant()
    def the_ledger_agrees(self) -> None:
        """Its own trial balance and verification find nothing."""
        assert self.do(self.operations.trial_balance("")).balanced
        assert self.do(self.operations.verify(0, 0)).broken_at == 0


def _said(outcome: PostOutcome) -> str:
    if isinstance(outcome, Posted):
        return "REPLAYED" if outcome.replayed else "WRITTEN"
    return outcome.reason


def _hash(journal: Journal) -> str:
    """The documented bytes, written here once more."""
    draft = journal.draft
    content = {
        "sequence": journal.sequence,
        "reversal_of": draft.reversal_of,
        "posted_at_ms": journal.posted_at_ms,
        "payment_id": draft.payment_id,
        "order_id": draft.order_id,
        "memo": draft.memo,
        "legs": [[leg.account_id, leg.amount] for leg in draft.legs],
        "journal_id": journal.journal_id,
        "format": 1,
        "currency": draft.currency,
        "clerk": [draft.clerk.name, draft.clerk.role.value],
        "business_key": draft.business_key,
    }
    text = json.dumps(dict(sorted(content.items())), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{journal.previous_hash}\n{text}".encode()).hexdigest()


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
