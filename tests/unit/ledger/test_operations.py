"""The use cases on the fake store: who sees what, what is refused before the store, and the walk along the chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.kernel.clock import CallDeadline
from services.kernel.errors import AlreadyExists, CountinghouseError, InvalidArgument, NotFound
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.principal import Principal, Role
from services.ledger.chain import ChainReport
from services.ledger.model import NO_HASH, Account, AccountKind, Entry, Journal, JournalDraft, Leg, Posted
from services.ledger.operations import LedgerOperations
from services.ledger.servicer import LedgerResponses
from services.runtime.grpc.context import Call
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.ledger_store import FakeLedgerStore

LI = Principal("li", Role.CASHIER)
FENCE = Fence(1, 100)


class Passed:
    """Failpoints that note what passed."""

    def __init__(self) -> None:
        self.names: list[tuple[str, ...]] = []

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        self.names.append((name, *subjects))


class InMemoryService:
    """A ledger with its house accounts open."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = FakeLedgerStore(Guards())
        self.failpoints = Passed()
        self.operations = LedgerOperations(self.store, self.clock, SeededIds(1), self.failpoints, LedgerResponses())

    def call(self, name: str = "payment", role: Role = Role.SERVICE) -> Call:
        return Call("/test", Principal(name, role), CallDeadline.after(1, self.clock))

    async def post(self, draft: JournalDraft, fence: Fence = FENCE) -> Journal:
        return await self.operations.post(self.call(), draft.payment_id, draft, fence)

    async def reverse(
        self, journal: Journal, *, attempt: str = "r1", payment_id: str = "", fence: Fence = FENCE
    ) -> Journal:
        return await self.operations.reverse(
            self.call(),
            attempt,
            journal_id=journal.journal_id,
            reason="broken cup",
            payment_id=payment_id or journal.draft.payment_id,
            fence=fence,
            clerk=LI,
        )


@pytest.fixture
async def service() -> InMemoryService:
    service = InMemoryService()
    await service.operations.open_house_accounts(("CNY", "USD"))
    return service


def new_order(number: int = 1, *, order_id: str | None = None, key: str | None = None) -> JournalDraft:
    order_id = f"o{number}" if order_id is None else order_id
    legs = (Leg("drawer:CNY", 10), Leg("sales:CNY", -10))
    return JournalDraft(key or f"settle:{order_id}:1", legs, "CNY", "", order_id, f"p{number}", LI)


async def refusal(awaitable: object) -> CountinghouseError:
    """What `awaitable` is refused with."""
    with pytest.raises(CountinghouseError) as refused:
        await awaitable  # type: ignore[misc]
    return refused.value


# Accounts


@pytest.mark.parametrize(
    ("name", "account_id", "visible"),
    [
        ("mei", "wallet:mei:CNY", True),
        ("mei", "wallet:bo:CNY", False),
        ("mei", "wallet:mei:x:CNY", False),
        ("mei:x", "wallet:mei:x:CNY", True),
        ("mei", "drawer:CNY", False),
        ("mei", "wallet:none:CNY", False),
    ],
)
async def test_customer_sees_only_their_own_wallets(
    service: InMemoryService, name: str, account_id: str, visible: bool
) -> None:
    """Another's is not there for them, in the same words as one that is nowhere."""
    wallets = ("wallet:mei:CNY", "wallet:bo:CNY", "wallet:mei:x:CNY")
    await service.store.open_missing([Account(wallet, AccountKind.LIABILITY, "CNY") for wallet in wallets])
    call = service.call(name, Role.CUSTOMER)
    if visible:
        assert (await service.operations.account(call, account_id)).account_id == account_id
        return
    error = await refusal(service.operations.account(call, account_id))
    assert isinstance(error, NotFound)
    assert error.reason == "ACCOUNT_NOT_FOUND"
    nowhere = await refusal(service.operations.account(call, "wallet:mei:EUR"))
    assert error.message == nowhere.message.replace("wallet:mei:EUR", account_id)


async def test_staff_see_every_account(service: InMemoryService) -> None:
    """And are told of one that is not there."""
    assert (await service.operations.account(service.call("ann", Role.AUDITOR), "drawer:CNY")).balance == 0
    error = await refusal(service.operations.account(service.call("ann", Role.AUDITOR), "drawer:JPY"))
    assert isinstance(error, NotFound)


async def test_account_that_breaks_its_name_is_not_opened(service: InMemoryService) -> None:
    """Refused before the store; the request id is not used up."""
    opening = service.operations.open_account(
        service.call("wang", Role.ACCOUNTANT),
        "r1",
        "f",
        account_id="wallet:mei:CNY",
        kind=AccountKind.ASSET,
        currency="CNY",
        overdraft_limit=0,
    )
    assert (await refusal(opening)).reason == "ACCOUNT_TERMS_MISMATCH"
    assert not service.store.requests.used


async def test_house_account_on_other_terms_stops_the_start() -> None:
    """Rather than taking money into an account of the wrong kind."""
    service = InMemoryService()
    await service.store.open_missing([Account("drawer:CNY", AccountKind.LIABILITY, "CNY")])
    assert isinstance(await refusal(service.operations.open_house_accounts(("CNY",))), AlreadyExists)


# Posting and reversing


async def test_post_passes_its_failpoints(service: InMemoryService) -> None:
    """`accepted` before the transaction, `posted` after it, each with the order and the payment."""
    await service.post(new_order())
    assert service.failpoints.names == [("accepted", "o1", "p1"), ("posted", "o1", "p1")]


async def test_refused_post_is_not_posted(service: InMemoryService) -> None:
    """It passes `accepted` only."""
    await refusal(service.post(replace(new_order(), legs=(Leg("drawer:CNY", 1), Leg("wallet:none:CNY", -1)))))
    assert service.failpoints.names == [("accepted", "o1", "p1")]


async def test_replay_is_marked(service: InMemoryService) -> None:
    """In the call, whence the trailer comes."""
    first, second = service.call(), service.call()
    journal = await service.operations.post(first, "a", new_order(), FENCE)
    assert await service.operations.post(second, "a", new_order(), FENCE) == journal
    assert (first.replayed, second.replayed) == (False, True)


async def test_reversal_keys_are_made_by_reversals_only(service: InMemoryService) -> None:
    """Else a post could stand in the way of a reversal for ever."""
    error = await refusal(service.post(new_order(key="reverse:jnl_1")))
    assert (error.reason, error.fields[0][0]) == ("BUSINESS_KEY_RESERVED", "business_key")


async def test_unbalanced_draft_never_reaches_the_store(service: InMemoryService) -> None:
    """Nor does it raise the order's fence."""
    draft = replace(new_order(), legs=(Leg("drawer:CNY", 10), Leg("sales:CNY", -9)))
    assert (await refusal(service.post(draft))).reason == "UNBALANCED"
    assert not service.store.fences


async def test_reversal_is_of_the_journals_own_payment(service: InMemoryService) -> None:
    """And under the fence of its order, which is raised."""
    journal = await service.post(new_order())
    other = await refusal(service.reverse(journal, payment_id="p9"))
    assert (other.reason, isinstance(other, InvalidArgument)) == ("PAYMENT_MISMATCH", True)
    assert (await refusal(service.reverse(journal, fence=NO_FENCE))).reason == "FENCE_REQUIRED"
    assert (await refusal(service.reverse(journal, fence=Fence(1, 99)))).reason == "STALE_FENCE"
    undo = await service.reverse(journal, fence=Fence(1, 101))
    assert undo.draft.reversal_of == journal.journal_id
    assert service.store.fences["o1"] == Fence(1, 101)
    assert (await refusal(service.reverse(undo))).reason == "NOT_REVERSIBLE"
    assert (await refusal(service.reverse(replace(journal, journal_id="jnl_none")))).reason == "JOURNAL_NOT_FOUND"


async def test_journal_without_an_order_needs_no_fence(service: InMemoryService) -> None:
    """Neither to be posted nor to be reversed."""
    journal = await service.post(new_order(order_id="", key="pay:p1"), NO_FENCE)
    assert (await service.reverse(journal, fence=NO_FENCE)).sequence == 2


# The trial balance


async def test_trial_balance_adds_up_each_currency(service: InMemoryService) -> None:
    """By code; a stored balance that its postings do not explain unbalances it."""
    await service.post(new_order())
    trial = await service.operations.trial_balance("")
    assert (trial.balanced, trial.differences) == (True, (("CNY", 0), ("USD", 0)))
    service.store.open["bank:USD"] = replace(service.store.open["bank:USD"], balance=1)
    assert not (await service.operations.trial_balance("")).balanced
    assert (await service.operations.trial_balance("CNY")).balanced


# The walk along the chain


@pytest.fixture
async def long(service: InMemoryService) -> InMemoryService:
    """A chain of 1,200 journals: more than two chunks of the walk."""
    outcomes = await service.store.post([Entry(new_order(n), "a", f"jnl_{n}", n, FENCE) for n in range(1, 1_201)])
    assert all(isinstance(outcome, Posted) for outcome in outcomes)
    return service


def hash_at(service: InMemoryService, sequence: int) -> str:
    return service.store.chain[sequence - 1].hash


@pytest.mark.parametrize(
    ("first", "last", "examined", "end"),
    [
        (0, 0, 1_200, 1_200),
        (1, 1_200, 1_200, 1_200),
        (0, 9_999, 1_200, 1_200),
        (501, 1_000, 500, 1_000),
        (7, 7, 1, 7),
        (1_200, 0, 1, 1_200),
    ],
)
async def test_range_of_the_chain_is_walked(
    long: InMemoryService, first: int, last: int, examined: int, end: int
) -> None:
    """First and last included, 0 and what lies beyond meaning the ends."""
    assert await long.operations.verify(first, last) == ChainReport(examined, 0, "", hash_at(long, end))


async def test_range_beyond_the_end_of_the_chain_is_intact(long: InMemoryService) -> None:
    """Nor in an empty chain."""
    nothing = ChainReport(0, 0, "", NO_HASH)
    assert await long.operations.verify(1_201, 0) == nothing
    assert await InMemoryService().operations.verify(0, 0) == nothing


@pytest.mark.parametrize(("first", "last"), [(-1, 0), (0, -1), (5, 4)])
async def test_range_that_is_none_is_refused(service: InMemoryService, first: int, last: int) -> None:
    """Negative, or the wrong way round."""
    assert (await refusal(service.operations.verify(first, last))).reason == "RANGE_INVALID"


@pytest.mark.parametrize("at", [1, 500, 501, 1_000, 1_001, 1_200])
async def test_altered_journal_is_found_wherever_it_is(long: InMemoryService, at: int) -> None:
    """Also at the edges of the chunks; ranges that leave it out are intact."""
    old = long.store.chain[at - 1]
    long.store.chain[at - 1] = replace(old, draft=replace(old.draft, memo="forged"))
    verdict = await long.operations.verify(0, 0)
    assert (verdict.broken_at, verdict.examined, verdict.head_hash) == (at, at, old.hash)
    if at > 1:
        assert not (await long.operations.verify(0, at - 1)).broken_at
    if at < 1_200:
        assert not (await long.operations.verify(at + 1, 0)).broken_at


@pytest.mark.parametrize(("first", "broken_at"), [(0, 600), (600, 600), (601, 601), (602, 0)])
async def test_gap_is_found(long: InMemoryService, first: int, broken_at: int) -> None:
    """Also when the walk begins right behind it, with nothing to hang on to."""
    del long.store.chain[599]
    assert (await long.operations.verify(first, 0)).broken_at == broken_at
