"""LedgerService at its messages: what is refused for its form, and that nothing is lost in translation."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import status_pb2

from countinghouse.ledger.v1 import ledger_pb2 as pb
from countinghouse.type.v1 import clerk_pb2, fence_pb2, money_pb2
from services.kernel.clock import CallDeadline
from services.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, KeyMismatch, NotFound
from services.kernel.guards import Guards
from services.kernel.principal import Principal, Role
from services.ledger.model import Account, AccountKind, TrialRow
from services.ledger.operations import LedgerOperations
from services.ledger.servicer import LedgerResponses, LedgerServicer, _row_out
from services.runtime.grpc import status
from services.runtime.grpc.context import Call, serving
from services.runtime.grpc.failpoints import FailpointSet
from services.runtime.grpc.interceptors import StoredRefusal
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.ledger_store import FakeLedgerStore

NO_CONTEXT: Any = None


class Door:
    """The servicer, called as somebody."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.may_act = True
        self.operations = LedgerOperations(
            FakeLedgerStore(Guards()), self.clock, SeededIds(1), FailpointSet(enabled=False), LedgerResponses()
        )
        self.servicer = LedgerServicer(self.operations)

    def enter(self, name: str = "payment", role: Role = Role.SERVICE) -> Call:
        call = Call(
            "/test",
            Principal(name, role),
            CallDeadline.after(1, self.clock),
            represented=lambda named, caller: named if self.may_act else caller,
        )
        serving(call)
        return call

    async def ask(self, request: Any) -> Any:
        """Calls the method whose request this is."""
        method = getattr(self.servicer, type(request).__name__.removesuffix("Request"))
        return await method(request, NO_CONTEXT)


@pytest.fixture
async def door() -> Door:
    door = Door()
    await door.operations.open_house_accounts(("CNY",))
    door.enter()
    return door


def post(**changes: Any) -> pb.PostRequest:
    """A good request but for `changes`."""
    fields: dict[str, Any] = {
        "request_id": "p1",
        "business_key": "settle:o1:1",
        "postings": [
            pb.Posting(account_id="drawer:CNY", amount=10),
            pb.Posting(account_id="sales:CNY", amount=-10),
        ],
        "currency_code": "CNY",
        "memo": "tea",
        "order_id": "o1",
        "payment_id": "p1",
        "fence": fence_pb2.Fence(generation=1, token=5),
        "clerk": clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER),
    }
    return pb.PostRequest(**(fields | changes))


def open_account(**changes: Any) -> pb.OpenAccountRequest:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "account_id": "wallet:mei:CNY",
        "kind": pb.ACCOUNT_KIND_LIABILITY,
        "currency_code": "CNY",
        "overdraft_limit": 7,
    }
    return pb.OpenAccountRequest(**(fields | changes))


@pytest.mark.parametrize(
    ("request_message", "reason", "field"),
    [
        (post(request_id=""), "FIELD_REQUIRED", "request_id"),
        (post(business_key=""), "FIELD_REQUIRED", "business_key"),
        (post(business_key="x" * 161), "FIELD_MALFORMED", "business_key"),
        (post(business_key="settle o1"), "FIELD_MALFORMED", "business_key"),
        (post(business_key="reverse:jnl_1"), "BUSINESS_KEY_RESERVED", "business_key"),
        (post(postings=[]), "LEGS_OUT_OF_RANGE", "postings"),
        (
            post(postings=[pb.Posting(amount=1), pb.Posting(account_id="b", amount=-1)]),
            "FIELD_REQUIRED",
            "postings[0].account_id",
        ),
        (
            post(postings=[pb.Posting(account_id="a", amount=1), pb.Posting(account_id="b", amount=-2)]),
            "UNBALANCED",
            "postings",
        ),
        (post(currency_code="cny"), "CURRENCY_INVALID", "currency_code"),
        (post(memo="x" * 201), "FIELD_TOO_LONG", "memo"),
        (post(memo="a\x00b"), "FIELD_MALFORMED", "memo"),
        (post(order_id="o/1"), "FIELD_MALFORMED", "order_id"),
        (post(payment_id=""), "FIELD_REQUIRED", "payment_id"),
        (post(fence=None), "FENCE_REQUIRED", "fence"),
        (post(fence=fence_pb2.Fence(generation=0, token=4)), "FENCE_REQUIRED", "fence"),
        (post(clerk=None), "FIELD_REQUIRED", "clerk.name"),
        (post(clerk=clerk_pb2.Clerk(name="li")), "FIELD_REQUIRED", "clerk.role"),
        (open_account(account_id="wallet:4242424242424242:CNY"), "CARD_NUMBER_REFUSED", "account_id"),
        (
            pb.CloseAccountRequest(request_id="r1", account_id="wallet:mei:CNY", reason="card 4242 4242 4242 4242"),
            "CARD_NUMBER_REFUSED",
            "reason",
        ),
        (open_account(request_id=""), "FIELD_REQUIRED", "request_id"),
        (open_account(account_id="x" * 101), "FIELD_MALFORMED", "account_id"),
        (open_account(kind=pb.ACCOUNT_KIND_UNSPECIFIED), "FIELD_REQUIRED", "kind"),
        (open_account(currency_code="YUAN"), "CURRENCY_INVALID", "currency_code"),
        (open_account(overdraft_limit=-1), "OVERDRAFT_OUT_OF_RANGE", "overdraft_limit"),
        (pb.GetAccountRequest(), "FIELD_REQUIRED", "account_id"),
        (pb.ListAccountsRequest(page_size=1_001), "PAGE_SIZE_OUT_OF_RANGE", "page_size"),
        (pb.ListAccountsRequest(page_token="?"), "PAGE_TOKEN_INVALID", "page_token"),
        (pb.ListAccountsRequest(prefix="a%"), "FIELD_MALFORMED", "prefix"),
        (pb.GetJournalRequest(), "FIELD_REQUIRED", "journal_id"),
        (pb.GetJournalRequest(journal_id="a", business_key="b"), "FIELD_REQUIRED", "journal_id"),
        (pb.ListJournalsRequest(page_token="x"), "PAGE_TOKEN_INVALID", "page_token"),
        (pb.ListJournalsRequest(account_id="a b"), "FIELD_MALFORMED", "account_id"),
        (pb.ReverseJournalRequest(request_id="r", journal_id="j", payment_id="p"), "FIELD_REQUIRED", "reason"),
        (pb.TrialBalanceRequest(currency_code="x"), "CURRENCY_INVALID", "currency_code"),
        (pb.VerifyJournalRequest(from_sequence=5, to_sequence=4), "RANGE_INVALID", "from_sequence"),
    ],
)
async def test_bad_input_is_refused_by_its_field(door: Door, request_message: Any, reason: str, field: str) -> None:
    """INVALID_ARGUMENT, with a BadRequest that names the field; nothing is written."""
    with pytest.raises(InvalidArgument) as refusal:
        await door.ask(request_message)
    assert (refusal.value.reason, refusal.value.fields[0][0]) == (reason, field)
    assert (await door.ask(pb.VerifyJournalRequest())).examined == 0


async def test_journal_message_has_every_field(door: Door) -> None:
    """Every field of the message, by Post, GetJournal and ListJournals alike."""
    journal = (await door.ask(post())).journal
    assert journal == pb.Journal(
        journal_id=journal.journal_id,
        business_key="settle:o1:1",
        postings=post().postings,
        currency_code="CNY",
        memo="tea",
        order_id="o1",
        payment_id="p1",
        sequence=1,
        previous_hash="0" * 64,
        hash=journal.hash,
        posted_at_ms=door.clock.now_ms(),
        posted_by=clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER),
    )
    assert (await door.ask(pb.GetJournalRequest(journal_id=journal.journal_id))).journal == journal
    assert (await door.ask(pb.GetJournalRequest(business_key="settle:o1:1"))).journal == journal
    assert list((await door.ask(pb.ListJournalsRequest(order_id="o1"))).journals) == [journal]
    with pytest.raises(NotFound):
        await door.ask(pb.GetJournalRequest(journal_id="jnl_none"))


async def test_reversal_message_has_every_field(door: Door) -> None:
    """Its reason is its memo; the journal it undoes is named."""
    journal = (await door.ask(post())).journal
    request = pb.ReverseJournalRequest(
        request_id="r1",
        journal_id=journal.journal_id,
        reason="broken cup",
        payment_id="p1",
        fence=fence_pb2.Fence(generation=1, token=6),
        clerk=clerk_pb2.Clerk(name="wang", role=clerk_pb2.ROLE_ACCOUNTANT),
    )
    undo = (await door.ask(request)).journal
    assert (undo.business_key, undo.reversal_of) == (f"reverse:{journal.journal_id}", journal.journal_id)
    assert (undo.memo, undo.posted_by.name, undo.previous_hash) == ("broken cup", "wang", journal.hash)
    call = door.enter()
    assert (await door.ask(request)).journal == undo
    assert call.replayed


async def test_journals_record_for_whom_the_service_may_act(door: Door) -> None:
    """A journal and its reversal, whichever person the requests name."""
    door.may_act = False
    service = clerk_pb2.Clerk(name="payment", role=clerk_pb2.ROLE_SERVICE)
    journal = (await door.ask(post())).journal
    request = pb.ReverseJournalRequest(
        request_id="r1",
        journal_id=journal.journal_id,
        reason="broken cup",
        payment_id="p1",
        fence=fence_pb2.Fence(generation=1, token=6),
        clerk=clerk_pb2.Clerk(name="wang", role=clerk_pb2.ROLE_ACCOUNTANT),
    )
    undo = (await door.ask(request)).journal
    assert (journal.posted_by, undo.posted_by) == (service, service)


async def test_replay_is_marked_and_mismatch_names_the_payment(door: Door) -> None:
    """The trailer comes from the call; the refusal carries what the caller needs to answer its own caller."""
    journal = (await door.ask(post())).journal
    call = door.enter()
    assert (await door.ask(post())).journal == journal
    assert call.replayed
    with pytest.raises(KeyMismatch) as refusal:
        await door.ask(post(payment_id="p2", request_id="p2"))
    back = status.from_status(status.to_status(refusal.value))
    assert back.reason == "IDEMPOTENCY_KEY_MISMATCH"
    assert back.metadata["payment_id"] == "p1"
    assert back.metadata["posted_at_ms"] == str(journal.posted_at_ms)


async def test_opening_is_replayed_byte_for_byte(door: Door) -> None:
    """And the refusal of other terms is a stored one, replayed too."""
    first = await door.ask(open_account())
    assert pb.OpenAccountResponse.FromString(first).account == pb.Account(
        account_id="wallet:mei:CNY",
        kind=pb.ACCOUNT_KIND_LIABILITY,
        currency_code="CNY",
        overdraft_limit=7,
        version=1,
        created_at_ms=door.clock.now_ms(),
        opened_by=clerk_pb2.Clerk(name="payment", role=clerk_pb2.ROLE_SERVICE),
    )
    door.clock.advance(1_000)
    call = door.enter()
    assert await door.ask(open_account()) == first
    assert call.replayed
    with pytest.raises(KeyMismatch):
        await door.ask(open_account(overdraft_limit=8))
    stored = []
    for replayed in (False, True):
        call = door.enter()
        with pytest.raises(StoredRefusal) as refusal:
            await door.ask(open_account(request_id="r2", overdraft_limit=8))
        assert call.replayed is replayed
        stored.append(refusal.value.status)
    assert stored[0] == stored[1]
    assert isinstance(stored[0], status_pb2.Status)
    assert isinstance(status.from_status(stored[0]), AlreadyExists)


async def test_pages_lead_to_each_other(door: Door) -> None:
    """Tokens are opaque, and the last page has none."""
    names = []
    token = ""
    for _ in range(4):
        page = await door.ask(pb.ListAccountsRequest(page_size=1, page_token=token))
        names += [account.account_id for account in page.accounts]
        token = page.next_page_token
    assert (names, token) == (["acquirer:CNY", "bank:CNY", "drawer:CNY", "sales:CNY"], "")
    for number in range(3):
        await door.ask(post(business_key=f"settle:o1:{number}", payment_id=f"p{number}"))
    first = await door.ask(pb.ListJournalsRequest(page_size=2))
    second = await door.ask(pb.ListJournalsRequest(page_size=2, page_token=first.next_page_token))
    assert [[journal.sequence for journal in page.journals] for page in (first, second)] == [[3, 2], [1]]
    assert not second.next_page_token


async def test_trial_balance_and_chain_are_answered(door: Door) -> None:
    """The trial balance and the verdict on the chain."""
    journal = (await door.ask(post())).journal
    trial = await door.ask(pb.TrialBalanceRequest(currency_code="CNY"))
    assert [(row.account_id, row.debits, row.credits, row.balance) for row in trial.rows] == [
        ("acquirer:CNY", 0, 0, 0),
        ("bank:CNY", 0, 0, 0),
        ("drawer:CNY", 10, 0, 10),
        ("sales:CNY", 0, 10, 10),
    ]
    assert trial.balanced
    assert list(trial.differences) == [money_pb2.Money(minor_units=0, currency_code="CNY")]
    verdict = await door.ask(pb.VerifyJournalRequest())
    assert verdict == pb.VerifyJournalResponse(examined=1, intact=True, head_hash=journal.hash)


async def test_customer_may_look_into_their_own_wallet_only(door: Door) -> None:
    """The drawer is not there for them."""
    await door.ask(open_account())
    door.enter("mei", Role.CUSTOMER)
    account = (await door.ask(pb.GetAccountRequest(account_id="wallet:mei:CNY"))).account
    assert account.overdraft_limit == 7
    with pytest.raises(NotFound):
        await door.ask(pb.GetAccountRequest(account_id="drawer:CNY"))


async def open_many(door: Door, count: int, length: int = 0, currency: str = "CNY") -> None:
    accounts = [
        Account(f"merchant:{number:05}".ljust(length, "x"), AccountKind.LIABILITY, currency) for number in range(count)
    ]
    await door.operations._store.open_missing(accounts)


async def test_trial_balance_of_many_accounts_comes_in_pages(door: Door) -> None:
    """Without a page_size as many rows as fit; the sums over all accounts come with the first page."""
    await open_many(door, 13_000, length=100)
    await door.ask(post())
    first = await door.ask(pb.TrialBalanceRequest(currency_code="CNY"))
    assert 1_000 < len(first.rows) < 13_004
    assert first.ByteSize() < 1 << 20
    assert first.balanced
    assert list(first.totals) == [
        pb.TrialBalanceTotal(currency_code="CNY", accounts=13_004, debits="10", credits="10", difference="0")
    ]
    names, page = [row.account_id for row in first.rows], first
    while page.next_page_token:
        page = await door.ask(pb.TrialBalanceRequest(currency_code="CNY", page_token=page.next_page_token))
        names += [row.account_id for row in page.rows]
        assert page.balanced
        assert not page.totals
        assert not page.differences
    assert len(names) == 13_004
    assert names == sorted(names)


async def test_trial_balance_page_is_as_long_as_asked(door: Door) -> None:
    """And its token is good for the same currency only."""
    page = await door.ask(pb.TrialBalanceRequest(page_size=3, currency_code="CNY"))
    assert [row.account_id for row in page.rows] == ["acquirer:CNY", "bank:CNY", "drawer:CNY"]
    with pytest.raises(InvalidArgument) as refusal:
        await door.ask(pb.TrialBalanceRequest(page_size=3, page_token=page.next_page_token))
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"
    last = await door.ask(pb.TrialBalanceRequest(currency_code="CNY", page_token=page.next_page_token))
    assert [row.account_id for row in last.rows] == ["sales:CNY"]
    assert not last.next_page_token


async def test_trial_balance_shows_exact_sums_and_limits_the_others(door: Door) -> None:
    """Sums that no int64 holds are no error."""
    account = Account("a", AccountKind.ASSET, "CNY")
    row = _row_out(TrialRow(account, 2**63 + 5, 2**63 + 5))
    assert (row.debits, row.credits) == (2**63 - 1, 2**63 - 1)
    assert (row.exact_debits, row.exact_credits) == (str(2**63 + 5), str(2**63 + 5))


def close(**changes: Any) -> pb.CloseAccountRequest:
    fields: dict[str, Any] = {"request_id": "c1", "account_id": "merchant:00000", "reason": "no such currency"}
    return pb.CloseAccountRequest(**(fields | changes))


async def test_closed_account_shows_closer_time_and_reason(door: Door) -> None:
    """In the answer, when it is read, and in the list; a repeat is answered with the same bytes."""
    await open_many(door, 1)
    call = door.enter("ops", Role.OPERATOR)
    first = await door.ask(close())
    account = pb.CloseAccountResponse.FromString(first).account
    assert (account.closed_at_ms, account.close_reason) == (door.clock.now_ms(), "no such currency")
    assert account.closed_by == clerk_pb2.Clerk(name="ops", role=clerk_pb2.ROLE_OPERATOR)
    assert (await door.ask(pb.GetAccountRequest(account_id=account.account_id))).account == account
    assert account in (await door.ask(pb.ListAccountsRequest())).accounts
    assert await door.ask(close()) == first
    assert call.replayed


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (close(request_id=""), "FIELD_REQUIRED", "request_id"),
        (close(account_id="a b"), "FIELD_MALFORMED", "account_id"),
        (close(reason=""), "FIELD_REQUIRED", "reason"),
        (close(reason="x" * 201), "FIELD_TOO_LONG", "reason"),
    ],
)
async def test_malformed_closing_is_refused(door: Door, request_: Any, reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await door.ask(request_)
    assert (refusal.value.reason, refusal.value.fields[0][0]) == (reason, field)


async def test_house_account_in_use_is_not_closed(door: Door) -> None:
    """Its currency is taken out of the settings first."""
    with pytest.raises(FailedPrecondition) as refusal:
        await door.ask(close(account_id="drawer:CNY"))
    assert refusal.value.reason == "HOUSE_ACCOUNT_IN_USE"


@pytest.mark.parametrize("code", ["RMB", "eur", "XXX"])
async def test_account_in_a_currency_outside_iso_4217_is_not_opened(door: Door, code: str) -> None:
    """What was opened in it before is listed, summed, undone and closed."""
    request = pb.OpenAccountRequest(request_id="o1", account_id="a", kind=pb.ACCOUNT_KIND_ASSET, currency_code=code)
    with pytest.raises(InvalidArgument) as refusal:
        await door.ask(request)
    assert refusal.value.reason == "CURRENCY_INVALID"


async def test_money_in_a_currency_of_before_is_undone_and_its_account_closed(door: Door) -> None:
    """Earlier releases took any three letters."""
    await open_many(door, 2, currency="RMB")
    names = ["merchant:00000", "merchant:00001"]
    await door.operations._store.open_missing([Account("float", AccountKind.ASSET, "RMB")])
    legs = [pb.Posting(account_id="float", amount=5), pb.Posting(account_id=names[0], amount=-5)]
    journal = (await door.ask(post(currency_code="RMB", postings=legs))).journal
    assert (await door.ask(pb.TrialBalanceRequest(currency_code="RMB"))).totals[0].debits == "5"
    await door.ask(
        pb.ReverseJournalRequest(
            request_id="u1",
            journal_id=journal.journal_id,
            reason="no such currency",
            payment_id=journal.payment_id,
            fence=post().fence,
            clerk=post().clerk,
        )
    )
    closed = pb.CloseAccountResponse.FromString(await door.ask(close(account_id=names[0]))).account
    assert (closed.balance, closed.currency_code, closed.close_reason) == (0, "RMB", "no such currency")
