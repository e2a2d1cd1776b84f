"""What every ledger store does. Each adapter, the fake included, runs this suite as a subclass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from services.kernel.clock import CallDeadline
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    KeyMismatch,
    NotFound,
    StaleFence,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer
from services.kernel.money import MAX_MINOR_UNITS
from services.kernel.principal import Principal, Role
from services.ledger.model import (
    MAX_SEQUENCE,
    NO_HASH,
    Account,
    AccountKind,
    Closing,
    Entry,
    Head,
    Journal,
    JournalDraft,
    Leg,
    Posted,
    PostOutcome,
    TrialTotal,
    house_accounts,
)
from services.ledger.operations import LedgerOperations
from services.ledger.ports import JournalFilter, LedgerStore
from services.ledger.servicer import LedgerResponses
from services.runtime.grpc.context import Call
from services.runtime.grpc.failpoints import FailpointSet
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
OPERATOR = Principal("ops", Role.OPERATOR)
WALLET = "wallet:mei:CNY"
FENCE = Fence(1, 100)
NOW_MS = 1_700_000_000_000

Make = Callable[[Guards], Awaitable[LedgerStore]]


def draft(
    number: int = 1,
    amount: int = 10,
    *,
    payer: str = "drawer:CNY",
    payee: str = "sales:CNY",
    order_id: str | None = None,
    key: str | None = None,
    payment_id: str | None = None,
) -> JournalDraft:
    """An order of `amount` that is settled by debiting `payer`."""
    order_id = f"o{number}" if order_id is None else order_id
    return JournalDraft(
        business_key=key or f"settle:{order_id}:1",
        legs=(Leg(payer, amount), Leg(payee, -amount)),
        currency="CNY",
        memo="tea 茶",
        order_id=order_id,
        payment_id=payment_id or f"p{number}",
        clerk=LI,
    )


def entry(what: JournalDraft, *, attempt: str | None = None, fence: Fence = FENCE) -> Entry:
    """The entry that writes `what`; ids are made of its payment."""
    attempt = attempt or what.payment_id
    name = f"jnl_{what.business_key}_{attempt}".replace(":", "_")[:64]
    return Entry(what, attempt, name, NOW_MS, fence if what.order_id else NO_FENCE)


async def post(store: LedgerStore, what: JournalDraft, *, attempt: str | None = None, fence: int = 100) -> PostOutcome:
    """Asks for one journal."""
    [outcome] = await store.post([entry(what, attempt=attempt, fence=Fence(1, fence))])
    return outcome


async def posted(store: LedgerStore, what: JournalDraft, *, attempt: str | None = None, fence: int = 100) -> Journal:
    """Writes one journal."""
    outcome = await post(store, what, attempt=attempt, fence=fence)
    assert isinstance(outcome, Posted), outcome
    return outcome.journal


async def top_up(store: LedgerStore, amount: int, *, number: int = 0) -> Journal:
    """Puts money into the wallet."""
    what = draft(amount=amount, payee=WALLET, order_id="", key=f"pay:top{number}", payment_id=f"top{number}")
    return await posted(store, what)


async def balance(store: LedgerStore, account_id: str) -> int:
    account = await store.account(account_id)
    assert account is not None
    return account.balance


def refused(outcome: PostOutcome, reason: str) -> CountinghouseError:
    """The refusal that `outcome` must be."""
    assert isinstance(outcome, CountinghouseError), outcome
    assert outcome.reason == reason
    return outcome


def operations(store: LedgerStore, now_ms: int = NOW_MS) -> LedgerOperations:
    return LedgerOperations(store, ManualClock(now_ms), SeededIds(1), FailpointSet(enabled=False), LedgerResponses())


async def open_account(store: LedgerStore, account: Account, request_id: str = "r1", fingerprint: str = "f1") -> Answer:
    """Open an account through the operations, which decide and encode what the store writes."""
    return await operations(store, account.created_at_ms).open_account(
        call(account.opened_by or WANG),
        request_id,
        fingerprint,
        account_id=account.account_id,
        kind=account.kind,
        currency=account.currency,
        overdraft_limit=account.overdraft_limit,
    )


async def close_account(store: LedgerStore, request_id: str, account_id: str, fingerprint: str = "f1") -> Answer:
    """Close an account through the operations."""
    return await operations(store).close_account(
        call(OPERATOR), request_id, fingerprint, account_id=account_id, reason="a mistake"
    )


def call(principal: Principal) -> Call:
    return Call("/x/y", principal, CallDeadline.after(60, ManualClock()))


class LedgerContract:
    """A part of the suite. A subclass brings the fixture `make`."""

    @pytest.fixture
    async def store(self, make: Make) -> LedgerStore:
        """A store with the house accounts and an empty wallet, all guards on."""
        return await self.equipped(make, Guards())

    async def equipped(self, make: Make, guards: Guards) -> LedgerStore:
        store = await make(guards)
        wallet = Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=NOW_MS)
        await store.open_missing((*house_accounts(("CNY", "USD"), NOW_MS), wallet))
        return store


class VoidContract(LedgerContract):
    """An entry is refused before it comes."""

    async def test_voided_post_is_refused_for_ever(self, store: LedgerStore) -> None:
        """Under whatever fence it comes; asked again, it is voided still."""
        what = draft(1, 70)
        for _ in range(2):
            assert await store.void(entry(what, fence=Fence(1, 101))) is None
        for fence in (101, 102):
            refused(await post(store, what, fence=fence), "POST_VOIDED")
        assert (await store.head()).sequence == 0

    async def test_void_raises_the_fence_of_the_order(self, store: LedgerStore) -> None:
        """What an older holder posts for that order is refused, whichever payment it is of."""
        assert await store.void(entry(draft(1), fence=Fence(1, 101))) is None
        stale = refused(await post(store, draft(1, payment_id="p9"), fence=100), "STALE_FENCE")
        assert isinstance(stale, StaleFence)

    async def test_void_under_a_stale_fence_voids_nothing(self, store: LedgerStore) -> None:
        await posted(store, draft(1, payment_id="p9", key="settle:o1:9"), fence=200)
        with pytest.raises(StaleFence):
            await store.void(entry(draft(1), fence=Fence(1, 101)))
        await posted(store, draft(1), fence=200)

    async def test_void_of_a_post_that_stands_answers_with_its_journal(self, store: LedgerStore) -> None:
        """And refuses nothing: the same Post again is answered as before."""
        journal = await posted(store, draft(1, 70))
        assert await store.void(entry(draft(1, 70), fence=Fence(1, 101))) == journal
        assert await posted(store, draft(1, 70), fence=101) == journal

    async def test_void_spares_other_payments_of_the_order(self, store: LedgerStore) -> None:
        """Another payment settles the order under the same business key, before or after."""
        assert await store.void(entry(draft(1), fence=Fence(1, 101))) is None
        await posted(store, draft(1, payment_id="p2"), fence=102)
        assert await store.void(entry(draft(1, payment_id="p3"), fence=Fence(1, 103))) is None
        refused(await post(store, draft(1), fence=103), "POST_VOIDED")

    async def test_void_finds_a_journal_with_the_guard_unique_off(self, make: Make) -> None:
        """Posts look up no keys then; a void must know nevertheless."""
        store = await self.equipped(make, Guards.without(["unique"]))
        journal = await posted(store, draft(1, 70))
        assert await store.void(entry(draft(1, 70), fence=Fence(1, 101))) == journal
        assert await store.void(entry(draft(2, 70), fence=Fence(1, 101))) is None
        assert await store.void(entry(draft(2, 70), fence=Fence(1, 101))) is None

    async def test_void_against_a_post_has_one_winner(self, store: LedgerStore) -> None:
        """At once, many times: either the journal stands and the void tells of it, or the post is refused for ever."""
        for number in range(10):
            what = draft(number, 1)
            outcome, standing = await asyncio.gather(post(store, what), store.void(entry(what)))
            if standing is None:
                refused(outcome, "POST_VOIDED")
            else:
                assert isinstance(outcome, Posted)
                assert outcome.journal == standing


class PostContract(LedgerContract):
    """Journals are written, repeated and refused."""

    async def test_journal_moves_balances_and_the_chain(self, store: LedgerStore) -> None:
        """Debits raise the drawer, credits the sales; versions grow by one; journals hang together by their hashes."""
        first = await posted(store, draft(1, 70))
        second = await posted(store, draft(2, 5))
        assert (first.sequence, first.previous_hash) == (1, NO_HASH)
        assert (second.sequence, second.previous_hash) == (2, first.hash)
        assert second.hash == second.recomputed_hash()
        drawer, sales = await store.account("drawer:CNY"), await store.account("sales:CNY")
        assert drawer is not None
        assert sales is not None
        assert (drawer.balance, drawer.version) == (75, 3)
        assert (sales.balance, sales.version) == (75, 3)
        assert await store.head() == Head(2, second.hash)
        assert await store.journal(journal_id=first.journal_id) == first
        assert await store.journal(business_key="settle:o2:1") == second
        assert await store.journal(journal_id="jnl_none") is None

    async def test_same_payload_is_a_replay(self, store: LedgerStore) -> None:
        """Whoever finishes it, under whichever fence and attempt: the journal that stands, and nothing moves."""
        first = await posted(store, draft())
        again = await post(store, replace(draft(), clerk=WANG), attempt="other", fence=101)
        assert again == Posted(first, replayed=True)
        assert await balance(store, "drawer:CNY") == 10
        assert (await store.head()).sequence == 1

    @pytest.mark.parametrize(
        "other",
        [
            draft(payment_id="p2"),
            draft(amount=11),
            draft(payer="bank:CNY"),
            replace(draft(), memo="coffee"),
            draft(order_id="", key="settle:o1:1"),
        ],
    )
    async def test_another_payload_under_a_key_is_refused(self, store: LedgerStore, other: JournalDraft) -> None:
        """For ever, naming the journal that stands and whose it is."""
        first = await posted(store, draft())
        for _ in range(2):
            error = refused(await post(store, other, attempt="p9"), "IDEMPOTENCY_KEY_MISMATCH")
            assert isinstance(error, KeyMismatch)
            assert error.metadata == {
                "key": "settle:o1:1",
                "guard": "unique",
                "journal_id": first.journal_id,
                "payment_id": "p1",
                "clerk": "li",
                "role": "cashier",
                "posted_at_ms": str(NOW_MS),
            }
        assert (await store.head()).sequence == 1

    async def test_reader_gets_what_was_written(self, store: LedgerStore) -> None:
        """All fields, to the letter, and the legs in the order in which they were asked for."""
        legs = (Leg("sales:CNY", -30), Leg("drawer:CNY", 10), Leg("bank:CNY", 20))
        written = await posted(store, replace(draft(), legs=legs))
        read = await store.journal(journal_id=written.journal_id)
        assert read == written
        assert read is not None
        assert read.draft == replace(draft(), legs=legs)

    # Fences

    async def test_stale_fence_is_refused_before_anything_is_read(self, store: LedgerStore) -> None:
        """Even where a journal stands that would be a replay; an equal fence is the same holder asking again."""
        await posted(store, draft(), fence=100)
        assert isinstance(await post(store, draft(), fence=100), Posted)
        error = refused(await post(store, draft(), fence=99), "STALE_FENCE")
        assert isinstance(error, StaleFence)
        assert isinstance(error, Aborted)
        assert error.metadata["guard"] == "fence"
        assert (error.metadata["carried"], error.metadata["seen"]) == (str(Fence(1, 99)), str(Fence(1, 100)))

    async def test_newer_generation_outranks_any_token(self, store: LedgerStore) -> None:
        """Fences are compared as pairs."""
        await posted(store, draft(), fence=500)
        [newer] = await store.post([entry(draft(), fence=Fence(2, 1))])
        [older] = await store.post([entry(draft(), fence=Fence(1, 600))])
        assert isinstance(newer, Posted)
        refused(older, "STALE_FENCE")

    async def test_fence_stays_raised_though_its_entry_was_refused(self, store: LedgerStore) -> None:
        """The late post of a declined payment cannot land once another holder has been here."""
        poor = draft(payer=WALLET)
        refused(await post(store, poor, attempt="a1", fence=100), "INSUFFICIENT_FUNDS")
        await top_up(store, 50)
        refused(await post(store, draft(payer=WALLET), attempt="a2", fence=99), "STALE_FENCE")
        assert isinstance(await post(store, draft(payer=WALLET), attempt="a2", fence=101), Posted)

    async def test_orders_do_not_share_fences(self, store: LedgerStore) -> None:
        """And an entry without an order has none."""
        await posted(store, draft(1), fence=500)
        await posted(store, draft(2), fence=3)
        await top_up(store, 5)

    async def test_in_one_list_the_newest_fence_of_an_order_counts(self, store: LedgerStore) -> None:
        """Whatever the order of the list."""
        old, new = entry(draft(), fence=Fence(1, 5)), entry(draft(), fence=Fence(1, 6))
        other = entry(draft(2), fence=Fence(1, 1))
        outcomes = await store.post([old, new, other])
        refused(outcomes[0], "STALE_FENCE")
        assert isinstance(outcomes[1], Posted)
        assert isinstance(outcomes[2], Posted)

    async def test_post_without_fence_guard_accepts_a_stale_fence(self, make: Make) -> None:
        """`fence` off: the demonstration that the guard is what stops it."""
        store = await self.equipped(make, Guards.without(["fence"]))
        await posted(store, draft(), fence=100)
        assert isinstance(await post(store, draft(key="settle:o1:2"), fence=99), Posted)

    # Limits

    async def test_balance_may_fall_to_its_limit_and_no_further(self, store: LedgerStore) -> None:
        """The refusal says which account is short, and by how much."""
        await top_up(store, 30)
        await posted(store, draft(1, 30, payer=WALLET))
        error = refused(await post(store, draft(2, 4, payer=WALLET)), "INSUFFICIENT_FUNDS")
        assert isinstance(error, FailedPrecondition)
        assert error.metadata == {
            "account_id": WALLET,
            "balance": "0",
            "overdraft_limit": "0",
            "short_by": "4",
        }
        assert await balance(store, WALLET) == 0

    async def test_overdraft_reaches_as_far_as_allowed(self, store: LedgerStore) -> None:
        """-100, not -101."""
        merchant = Account("merchant:tea", AccountKind.LIABILITY, "CNY", overdraft_limit=100)
        await store.open_missing([merchant])
        await posted(store, draft(1, 100, payer="merchant:tea"))
        refused(await post(store, draft(2, 1, payer="merchant:tea")), "INSUFFICIENT_FUNDS")
        assert await balance(store, "merchant:tea") == -100

    async def test_list_is_written_as_if_one_by_one(self, store: LedgerStore) -> None:
        """No limit is broken between two entries, though the sum would have done; one refusal hinders no other."""
        spend, earn = draft(1, 30, payer=WALLET), draft(2, 30, payee=WALLET)
        missing = draft(3, payer="wallet:nobody:CNY")
        outcomes = await store.post([entry(spend), entry(earn), entry(missing), entry(draft(4, 30, payer=WALLET))])
        refused(outcomes[0], "INSUFFICIENT_FUNDS")
        refused(outcomes[2], "ACCOUNT_NOT_FOUND")
        written = [outcome.journal.sequence for outcome in outcomes if isinstance(outcome, Posted)]
        assert written == [1, 2]
        assert await balance(store, WALLET) == 0
        [replay] = await store.post([entry(earn)])
        assert isinstance(replay, Posted)
        assert replay.replayed

    async def test_key_twice_in_a_list_is_written_once(self, store: LedgerStore) -> None:
        """The second is a replay of the first, or a mismatch."""
        outcomes = await store.post([entry(draft()), entry(draft()), entry(draft(amount=11))])
        assert [isinstance(outcome, Posted) and outcome.replayed for outcome in outcomes] == [False, True, False]
        refused(outcomes[2], "IDEMPOTENCY_KEY_MISMATCH")

    async def test_refused_entry_leaves_no_leg(self, store: LedgerStore) -> None:
        """Its first leg was good, its last was not: nothing moved."""
        what = replace(draft(), legs=(Leg("drawer:CNY", 10), Leg(WALLET, 5), Leg("sales:CNY", -15)))
        refused(await post(store, what), "INSUFFICIENT_FUNDS")
        assert await balance(store, "drawer:CNY") == 0
        assert await store.head() == Head()

    async def test_unknown_and_foreign_accounts_are_refused(self, store: LedgerStore) -> None:
        """Each by its name."""
        missing = refused(await post(store, draft(1, payer="wallet:nobody:CNY")), "ACCOUNT_NOT_FOUND")
        foreign = refused(await post(store, draft(2, payer="drawer:USD")), "CURRENCY_MISMATCH")
        assert isinstance(missing, NotFound)
        assert missing.metadata["account_id"] == "wallet:nobody:CNY"
        assert isinstance(foreign, InvalidArgument)
        assert foreign.metadata["account_id"] == "drawer:USD"

    async def test_refused_attempt_is_refused_for_ever(self, store: LedgerStore) -> None:
        """A late duplicate moves no money after the payment was reported as declined; another attempt may."""
        what = draft(payer=WALLET)
        first = refused(await post(store, what, attempt="a1"), "INSUFFICIENT_FUNDS")
        await top_up(store, 50)
        again = refused(await post(store, what, attempt="a1"), "INSUFFICIENT_FUNDS")
        assert type(again) is type(first)
        assert (again.message, again.metadata, again.fields) == (first.message, first.metadata, first.fields)
        journal = await posted(store, what, attempt="a2")
        refused(await post(store, what, attempt="a1"), "INSUFFICIENT_FUNDS")
        assert await post(store, what, attempt="a2") == Posted(journal, replayed=True)
        assert await balance(store, WALLET) == 40

    async def test_every_kind_of_refusal_is_kept_as_it_was(self, store: LedgerStore) -> None:
        """Type, words and fields, so that a repeat is answered alike."""
        for number, payer in enumerate(("wallet:late:CNY", "drawer:USD", WALLET)):
            what = draft(number, payer=payer)
            first = await post(store, what)
            if payer == "wallet:late:CNY":
                await store.open_missing([Account(payer, AccountKind.LIABILITY, "CNY", overdraft_limit=1_000)])
            second = await post(store, what)
            assert isinstance(first, CountinghouseError)
            assert isinstance(second, CountinghouseError)
            assert type(second) is type(first)
            assert (second.reason, second.message, second.metadata, second.fields) == (
                first.reason,
                first.message,
                first.metadata,
                first.fields,
            )

    # At once

    async def test_concurrent_posts_succeed_until_the_balance_is_used_up(self, store: LedgerStore) -> None:
        """Twenty orders of 10 against 70: seven are paid, thirteen refused, and the wallet ends empty."""
        await top_up(store, 70)
        outcomes = await asyncio.gather(*(post(store, draft(number, 10, payer=WALLET)) for number in range(20)))
        assert sum(isinstance(outcome, Posted) for outcome in outcomes) == 7
        for outcome in outcomes:
            if not isinstance(outcome, Posted):
                refused(outcome, "INSUFFICIENT_FUNDS")
        assert await balance(store, WALLET) == 0
        links = await store.links(first=1, last=MAX_SEQUENCE, limit=100)
        assert [link.sequence for link in links] == list(range(1, 9))

    async def test_concurrent_posts_of_one_key_write_one_journal(self, store: LedgerStore) -> None:
        """Ten at once: one journal, ten equal answers, one of them first."""
        outcomes = await asyncio.gather(*(post(store, draft()) for _ in range(10)))
        found = [outcome for outcome in outcomes if isinstance(outcome, Posted)]
        assert len(found) == 10
        assert len({outcome.journal.hash for outcome in found}) == 1
        assert sum(not outcome.replayed for outcome in found) == 1
        assert await balance(store, "drawer:CNY") == 10

    async def test_concurrent_posts_of_one_round_settle_it_once(self, store: LedgerStore) -> None:
        """Ten payments of one round: one wins, nine are told by whom."""
        rivals = [draft(payment_id=f"p{number}") for number in range(10)]
        outcomes = await asyncio.gather(*(post(store, rival) for rival in rivals))
        [winner] = [outcome.journal for outcome in outcomes if isinstance(outcome, Posted)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, KeyMismatch)]
        assert len(losers) == 9
        assert {loser.metadata["payment_id"] for loser in losers} == {winner.draft.payment_id}

    async def test_post_without_unique_guard_settles_a_round_twice(self, make: Make) -> None:
        """`unique` off: every post writes."""
        store = await self.equipped(make, Guards.without(["unique"]))
        first = await posted(store, draft())
        second = await posted(store, draft(payment_id="p2"))
        assert (first.sequence, second.sequence) == (1, 2)
        assert await balance(store, "drawer:CNY") == 20
        undo = first.reversal(reason="oops", clerk=WANG)
        assert isinstance(await post(store, undo, attempt="r1"), Posted)
        assert isinstance(await post(store, undo, attempt="r2"), Posted)


class ReversalContract(LedgerContract):
    """Journals are undone."""

    async def test_reversal_undoes_a_journal(self, store: LedgerStore) -> None:
        """By an opposite journal; the first stays as it is."""
        journal = await posted(store, draft(1, 70))
        undo = await posted(store, journal.reversal(reason="broken cup", clerk=WANG), attempt="r1")
        assert undo.draft.business_key == f"reverse:{journal.journal_id}"
        assert undo.draft.reversal_of == journal.journal_id
        assert undo.draft.legs == (Leg("drawer:CNY", -70), Leg("sales:CNY", 70))
        assert await balance(store, "drawer:CNY") == 0
        assert await store.journal(journal_id=journal.journal_id) == journal

    async def test_reversal_is_written_once(self, store: LedgerStore) -> None:
        """Ten at once, for whatever reason and by whomever: one opposite journal, ten equal answers."""
        journal = await posted(store, draft(1, 70))
        undos = [journal.reversal(reason=f"reason {n}", clerk=(LI, WANG)[n % 2]) for n in range(10)]
        outcomes = await asyncio.gather(*(post(store, undo, attempt=f"r{n}") for n, undo in enumerate(undos)))
        found = [outcome for outcome in outcomes if isinstance(outcome, Posted)]
        assert len(found) == 10
        assert len({outcome.journal.hash for outcome in found}) == 1
        assert sum(not outcome.replayed for outcome in found) == 1
        assert await balance(store, "drawer:CNY") == 0

    async def test_reversed_journal_is_not_reversed_under_another_key(self, store: LedgerStore) -> None:
        """ALREADY_REVERSED, with what did it, however often it is asked."""
        journal = await posted(store, draft(1, 70))
        undo = journal.reversal(reason="broken cup", clerk=WANG)
        standing = await posted(store, undo, attempt="r1")
        for _ in range(2):
            other = replace(undo, business_key="undo:again")
            error = refused(await post(store, other, attempt="r2"), "ALREADY_REVERSED")
            assert isinstance(error, FailedPrecondition)
            assert error.metadata["journal_id"] == standing.journal_id
            assert (error.metadata["guard"], error.metadata["clerk"]) == ("unique", "wang")
        assert await balance(store, "drawer:CNY") == 0

    async def test_reversal_may_be_refused_and_tried_again(self, store: LedgerStore) -> None:
        """The money was spent: this attempt is refused for ever, a later one is decided anew."""
        journal = await top_up(store, 50)
        await posted(store, draft(1, 20, payer=WALLET))
        undo = journal.reversal(reason="wrong wallet", clerk=WANG)
        refused(await post(store, undo, attempt="r1"), "INSUFFICIENT_FUNDS")
        await top_up(store, 20, number=1)
        refused(await post(store, undo, attempt="r1"), "INSUFFICIENT_FUNDS")
        await posted(store, undo, attempt="r2")
        assert await balance(store, WALLET) == 0


class OpeningContract(LedgerContract):
    """Accounts are opened."""

    async def test_opening_is_answered_once_and_replayed(self, make: Make) -> None:
        """The same bytes, also after money has moved."""
        store = await make(Guards())
        await store.open_missing(house_accounts(("CNY",), NOW_MS))
        wallet = Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=NOW_MS)
        first = await open_account(store, wallet)
        await top_up(store, 5)
        again = await open_account(store, replace(wallet, created_at_ms=NOW_MS + 9))
        assert (first.replayed, again.replayed) == (False, True)
        assert first.response == again.response
        assert first.response.ok
        assert await store.account(WALLET) == replace(wallet, balance=5, version=2, opened_by=WANG)

    async def test_opening_on_the_same_terms_answers_as_before(self, make: Make) -> None:
        """Under another request id: the account as it was first opened."""
        store = await make(Guards())
        wallet = Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=NOW_MS)
        first = await open_account(store, wallet)
        await store.open_missing(house_accounts(("CNY",), NOW_MS))
        await top_up(store, 5)
        second = await open_account(store, replace(wallet, created_at_ms=NOW_MS + 9), "r2")
        assert second.response == first.response
        assert not second.replayed

    async def test_opening_on_other_terms_is_refused(self, make: Make) -> None:
        """And the refusal is the stored answer of that request."""
        store = await make(Guards())
        wallet = Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=NOW_MS)
        await open_account(store, wallet)
        other = replace(wallet, overdraft_limit=7)
        refusal = await open_account(store, other, "r2", "f2")
        again = await open_account(store, other, "r2", "f2")
        assert not refusal.response.ok
        assert b"ACCOUNT_EXISTS" in refusal.response.body
        assert (again.response, again.replayed) == (refusal.response, True)
        assert await store.account(WALLET) == replace(wallet, opened_by=WANG)

    async def test_account_shows_who_opened_it_first(self, make: Make) -> None:
        """Whoever asks for the same terms later opens nothing; nobody opened a house account."""
        store = await make(Guards())
        await store.open_missing(house_accounts(("CNY",), NOW_MS))
        wallet = Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=NOW_MS, opened_by=OPERATOR)
        first = await open_account(store, wallet)
        later = await open_account(store, replace(wallet, opened_by=WANG), "r2")
        assert later.response == first.response
        assert await store.account(WALLET) == wallet
        [bank] = await store.accounts(prefix="bank:", after="", limit=2)
        assert bank.opened_by is None

    async def test_request_id_is_good_for_one_opening(self, make: Make) -> None:
        """Another payload under it is refused, and opens nothing."""
        store = await make(Guards())
        await open_account(store, Account("merchant:a", AccountKind.LIABILITY, "CNY"))
        other = Account("merchant:b", AccountKind.LIABILITY, "CNY")
        with pytest.raises(KeyMismatch):
            await open_account(store, other, fingerprint="f2")
        assert await store.account("merchant:b") is None

    async def test_openings_at_once_open_one_account(self, make: Make) -> None:
        """Ten of one account, each by a request of its own: ten equal answers."""
        store = await make(Guards())
        accounts = [Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=n) for n in range(10)]
        answers = await asyncio.gather(*(open_account(store, account, f"r{n}") for n, account in enumerate(accounts)))
        assert len({answer.response.body for answer in answers}) == 1

    async def test_house_accounts_are_opened_once(self, make: Make) -> None:
        """A restart changes nothing; a new currency adds its four; other terms are refused."""
        store = await make(Guards())
        await store.open_missing(house_accounts(("CNY",), NOW_MS))
        await store.open_missing(house_accounts(("CNY", "EUR"), NOW_MS + 1))
        page = await store.accounts(prefix="", after="", limit=100)
        assert [(account.account_id, account.created_at_ms - NOW_MS) for account in page] == [
            ("acquirer:CNY", 0),
            ("acquirer:EUR", 1),
            ("bank:CNY", 0),
            ("bank:EUR", 1),
            ("drawer:CNY", 0),
            ("drawer:EUR", 1),
            ("sales:CNY", 0),
            ("sales:EUR", 1),
        ]
        with pytest.raises(AlreadyExists, match="drawer:CNY"):
            await store.open_missing([Account("drawer:CNY", AccountKind.LIABILITY, "CNY")])


class ReadContract(LedgerContract):
    """Accounts, journals, links and sums are read."""

    async def test_accounts_are_listed_by_id_in_pages(self, make: Make) -> None:
        """In byte order, whatever the locale; a prefix is taken literally."""
        store = await make(Guards())
        names = ["a_b", "a_c", "aXb", "A_b", "a-b", "a.b", "a:b", "b", "a_b2", "a"]
        await store.open_missing([Account(name, AccountKind.EQUITY, "CNY") for name in names])
        seen: list[str] = []
        after = ""
        while True:
            page = await store.accounts(prefix="", after=after, limit=3)
            if not page:
                break
            seen += [account.account_id for account in page]
            after = seen[-1]
        assert seen == sorted(names)
        underscored = await store.accounts(prefix="a_", after="", limit=10)
        assert [account.account_id for account in underscored] == ["a_b", "a_b2", "a_c"]
        assert (await store.accounts(prefix="a_", after="a_b2", limit=10))[0].account_id == "a_c"

    async def test_journals_are_listed_newest_first_in_pages(self, store: LedgerStore) -> None:
        """Without gap or repeat, though new ones are written in between."""
        for number in range(1, 8):
            await posted(store, draft(number))
        first = await store.journals(JournalFilter(), before=None, limit=3)
        await posted(store, draft(8))
        second = await store.journals(JournalFilter(), before=first[-1].sequence, limit=3)
        third = await store.journals(JournalFilter(), before=second[-1].sequence, limit=3)
        sequences = [[journal.sequence for journal in page] for page in (first, second, third)]
        assert sequences == [[7, 6, 5], [4, 3, 2], [1]]
        assert await store.journals(JournalFilter(), before=1, limit=3) == []

    async def test_journals_are_filtered_by_account_and_order(self, store: LedgerStore) -> None:
        """Each alone, and both together."""
        await top_up(store, 50)
        await posted(store, draft(1, payer=WALLET))
        await posted(store, draft(2))
        wallet, order = JournalFilter(account_id=WALLET), JournalFilter(order_id="o2")
        both = JournalFilter(account_id=WALLET, order_id="o2")
        pages = [await store.journals(which, before=None, limit=10) for which in (wallet, order, both)]
        assert [[journal.sequence for journal in page] for page in pages] == [[2, 1], [3], []]

    async def test_links_are_read_in_order_and_in_part(self, store: LedgerStore) -> None:
        """First and last included, no more than the limit."""
        for number in range(1, 6):
            await posted(store, draft(number))
        links = await store.links(first=2, last=4, limit=2)
        assert [link.sequence for link in links] == [2, 3]
        assert all(link.journal is not None and link.journal.sequence == link.sequence for link in links)

    async def test_trial_balance_sums_the_postings(self, store: LedgerStore) -> None:
        """Of every account, the idle ones too; of one currency if asked."""
        await top_up(store, 50)
        await posted(store, draft(1, 20, payer=WALLET))
        last, totals = await store.trial_totals("CNY")
        found = await store.trial("CNY", last=last, after="", limit=99)
        rows = {row.account.account_id: row for row in found}
        assert set(rows) == {"acquirer:CNY", "bank:CNY", "drawer:CNY", "sales:CNY", WALLET}
        assert [(rows[name].debits, rows[name].credits) for name in (WALLET, "drawer:CNY", "bank:CNY")] == [
            (20, 50),
            (50, 0),
            (0, 0),
        ]
        assert all(row.right for row in rows.values())
        assert len(await store.trial("", last=last, after="", limit=99)) == 9
        assert (last, totals) == (2, [TrialTotal("CNY", 5, 70, 70, 0)])
        assert (await store.trial_totals(""))[1] == [*totals, TrialTotal("USD", 4, 0, 0, 0)]

    async def test_trial_balance_without_accounts_is_empty(self, make: Make) -> None:
        """No currency, no row."""
        store = await make(Guards())
        assert await store.trial_totals("") == (0, [])
        assert await store.trial("", last=0, after="", limit=9) == []

    async def test_trial_balance_pages_show_the_books_of_one_moment(self, store: LedgerStore) -> None:
        """Journals written between two pages are in neither sums nor balances."""
        await top_up(store, 50)
        await posted(store, draft(1, 20, payer=WALLET))
        last, totals = await store.trial_totals("CNY")
        first = await store.trial("CNY", last=last, after="", limit=2)
        await posted(store, draft(2, 7, payer=WALLET))
        await top_up(store, 5, number=2)
        second = await store.trial("CNY", last=last, after=first[-1].account.account_id, limit=9)
        rows = [*first, *second]
        assert [row.account.account_id for row in rows] == sorted(row.account.account_id for row in rows)
        assert (sum(row.debits for row in rows), sum(row.credits for row in rows)) == (70, 70)
        assert (totals[0].debits, totals[0].credits) == (70, 70)
        assert all(row.right for row in rows)
        wallet = next(row for row in rows if row.account.account_id == WALLET)
        assert (wallet.account.balance, wallet.debits, wallet.credits) == (30, 20, 50)

    async def test_trial_balance_beyond_64_bits_is_a_number(self, make: Make) -> None:
        """185 journals of 50 million million in each of 50 debits: more than an int64 holds."""
        store = await make(Guards())
        names = [f"a{number:02}" for number in range(100)]
        await store.open_missing(
            [Account(name, AccountKind.ASSET, "CNY", overdraft_limit=MAX_MINOR_UNITS) for name in names]
        )
        legs = tuple(
            Leg(name, MAX_MINOR_UNITS if number % 2 else -MAX_MINOR_UNITS) for number, name in enumerate(names)
        )
        back = tuple(Leg(leg.account_id, -leg.amount) for leg in legs)
        count = 186
        entries = [
            entry(replace(draft(number), business_key=f"k{number}", legs=back if number % 2 else legs))
            for number in range(count)
        ]
        assert all(isinstance(outcome, Posted) for outcome in await store.post(entries))
        _, totals = await store.trial_totals("CNY")
        assert totals == [TrialTotal("CNY", 100, count * 50 * MAX_MINOR_UNITS, count * 50 * MAX_MINOR_UNITS, 0)]
        assert totals[0].debits > 2**63


class ClosingContract(LedgerContract):
    """Accounts are closed."""

    async def test_empty_account_is_closed_for_good(self, store: LedgerStore) -> None:
        """With who, why and when; it stays listed, takes no posting, and is not opened again."""
        answer = await close_account(store, "r1", "drawer:USD")
        assert (answer.response.ok, answer.replayed) == (True, False)
        account = await store.account("drawer:USD")
        assert account is not None
        assert account.closing == Closing(OPERATOR, "a mistake", NOW_MS)
        assert account in await store.accounts(prefix="", after="", limit=99)
        legs = (Leg("drawer:USD", 1), Leg("sales:USD", -1))
        refused = await post(store, replace(draft(), legs=legs, currency="USD"))
        assert isinstance(refused, FailedPrecondition)
        assert (refused.reason, refused.metadata["closed_by"]) == ("ACCOUNT_CLOSED", OPERATOR.name)
        reopened = await open_account(store, Account("drawer:USD", AccountKind.ASSET, "USD"), "r9")
        assert not reopened.response.ok
        assert b"ACCOUNT_CLOSED" in reopened.response.body
        with pytest.raises(FailedPrecondition, match="was closed"):
            await store.open_missing(house_accounts(("USD",), NOW_MS))

    async def test_closing_is_repeated_with_the_same_answer(self, store: LedgerStore) -> None:
        """Byte for byte under the same id; another id is told that it is closed."""
        first = await close_account(store, "r1", "drawer:USD")
        again = await close_account(store, "r1", "drawer:USD")
        assert (again.replayed, again.response) == (True, first.response)
        other = await close_account(store, "r2", "drawer:USD")
        assert not other.response.ok
        assert b"ACCOUNT_CLOSED" in other.response.body
        with pytest.raises(KeyMismatch):
            await close_account(store, "r1", "drawer:USD", fingerprint="other")

    async def test_closing_repeated_at_once_is_done_once(self, store: LedgerStore) -> None:
        """No repeat is refused because the account is closed by now."""
        answers = await asyncio.gather(*(close_account(store, "r1", "drawer:USD") for _ in range(10)))
        assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
        assert {answer.response for answer in answers} == {answers[0].response}
        assert answers[0].response.ok

    async def test_account_with_money_is_not_closed(self, store: LedgerStore) -> None:
        """The refusal is kept under its id, and the account goes on."""
        await top_up(store, 50)
        for _ in range(2):
            answer = await close_account(store, "r1", WALLET)
            assert not answer.response.ok
            assert b"BALANCE_NOT_ZERO" in answer.response.body
        await posted(store, draft(1, 50, payer=WALLET))
        assert (await close_account(store, "r2", WALLET)).response.ok
        assert [journal.sequence for journal in await store.journals(JournalFilter(WALLET), before=None, limit=9)]

    async def test_missing_account_is_not_closed(self, store: LedgerStore) -> None:
        """NOT_FOUND, which is not kept: the account may be opened and closed later."""
        with pytest.raises(NotFound):
            await close_account(store, "r1", "nothing")
        await store.open_missing([Account("nothing", AccountKind.EQUITY, "CNY")])
        assert (await close_account(store, "r1", "nothing")).response.ok


class LedgerStoreContract(VoidContract, PostContract, ReversalContract, OpeningContract, ReadContract, ClosingContract):
    """The whole suite."""
