"""The books without a database: accounts, drafts, the hash, and the walk along the chain."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from services.kernel.fence import NO_FENCE
from services.kernel.money import MAX_BALANCE, MAX_MINOR_UNITS
from services.kernel.principal import Principal, Role
from services.ledger.chain import ChainCheck, ChainLink
from services.ledger.model import (
    NO_HASH,
    Account,
    AccountKind,
    Entry,
    Head,
    Journal,
    JournalDraft,
    Leg,
    check_account_terms,
)

LI = Principal("li", Role.CASHIER)
DRAFT = JournalDraft(
    business_key="settle:o1:1",
    legs=(Leg("wallet:mei:CNY", 250), Leg("sales:CNY", -250)),
    currency="CNY",
    memo='茶 "green"',
    order_id="o1",
    payment_id="pay_1",
    clerk=LI,
)


def chain(length: int) -> list[Journal]:
    """Journals that hang together."""
    head, journals = Head(), []
    for number in range(1, length + 1):
        draft = replace(DRAFT, business_key=f"settle:o{number}:1")
        journal = Journal.seal(Entry(draft, "a", f"jnl_{number}", number, NO_FENCE), head)
        head = Head(journal.sequence, journal.hash)
        journals.append(journal)
    return journals


def walked(journals: list[Journal]) -> ChainCheck:
    check = ChainCheck(Head())
    for journal in journals:
        if not check.look(ChainLink(journal.sequence, journal)):
            break
    return check


# Accounts


@pytest.mark.parametrize(
    ("kind", "after_debit"),
    [
        (AccountKind.ASSET, 7),
        (AccountKind.EXPENSE, 7),
        (AccountKind.LIABILITY, -7),
        (AccountKind.EQUITY, -7),
        (AccountKind.REVENUE, -7),
    ],
)
def test_account_grows_on_the_side_of_its_kind(kind: AccountKind, after_debit: int) -> None:
    """A debit raises what we have and spend, and lowers what we owe, put in and earn; a credit does the opposite."""
    account = Account("x", kind, "CNY", overdraft_limit=100)
    assert account.posted(7).balance == after_debit
    assert account.posted(-7).balance == -after_debit
    assert account.posted(7).version == account.version + 1


def test_balance_has_an_upper_end() -> None:
    """So that no sum of two ever overflows the int64 it is stored in."""
    full = Account("x", AccountKind.ASSET, "CNY", balance=MAX_BALANCE - 1)
    assert full.posted(1).balance == MAX_BALANCE
    with pytest.raises(FailedPrecondition) as refusal:
        full.posted(2)
    assert refusal.value.reason == "BALANCE_OUT_OF_RANGE"


@pytest.mark.parametrize(
    ("account_id", "kind", "currency", "field"),
    [
        ("wallet:mei:CNY", AccountKind.LIABILITY, "CNY", None),
        ("wallet:mei:CNY", AccountKind.ASSET, "CNY", "kind"),
        ("wallet:mei:CNY", AccountKind.LIABILITY, "USD", "currency_code"),
        ("drawer:CNY", AccountKind.ASSET, "CNY", None),
        ("drawer:CNY", AccountKind.REVENUE, "CNY", "kind"),
        ("bank:EUR", AccountKind.ASSET, "CNY", "currency_code"),
        ("sales:CNY", AccountKind.ASSET, "CNY", "kind"),
        ("merchant:tea", AccountKind.LIABILITY, "CNY", None),
        ("merchant:CNY", AccountKind.EXPENSE, "USD", None),
        ("wallet", AccountKind.ASSET, "CNY", None),
    ],
)
def test_account_name_implies_kind_and_currency(
    account_id: str, kind: AccountKind, currency: str, field: str | None
) -> None:
    """A wallet that grew by debits would give money away."""
    account = Account(account_id, kind, currency)
    if field is None:
        assert check_account_terms(account) is account
        return
    with pytest.raises(InvalidArgument) as refusal:
        check_account_terms(account)
    assert refusal.value.reason == "ACCOUNT_TERMS_MISMATCH"
    assert refusal.value.fields[0][0] == field


@pytest.mark.parametrize("limit", [-1, MAX_MINOR_UNITS + 1])
def test_overdraft_limit_has_two_ends(limit: int) -> None:
    """0 and the largest amount are the last good ones."""
    with pytest.raises(InvalidArgument, match="overdraft_limit"):
        check_account_terms(Account("x", AccountKind.ASSET, "CNY", overdraft_limit=limit))
    for good in (0, MAX_MINOR_UNITS):
        check_account_terms(Account("x", AccountKind.ASSET, "CNY", overdraft_limit=good))


# Drafts


@pytest.mark.parametrize(
    ("amounts", "reason"),
    [
        ([], "LEGS_OUT_OF_RANGE"),
        ([0], "LEGS_OUT_OF_RANGE"),
        ([1] * 100 + [-100], "LEGS_OUT_OF_RANGE"),
        ([5, 0, -5], "AMOUNT_OUT_OF_RANGE"),
        ([MAX_MINOR_UNITS + 1, -MAX_MINOR_UNITS - 1], "AMOUNT_OUT_OF_RANGE"),
        ([5, -4], "UNBALANCED"),
        ([5, 5], "UNBALANCED"),
    ],
)
def test_draft_that_is_no_journal_is_refused(amounts: list[int], reason: str) -> None:
    """Each for its reason."""
    legs = tuple(Leg(f"a{place}", amount) for place, amount in enumerate(amounts))
    with pytest.raises(InvalidArgument) as refusal:
        replace(DRAFT, legs=legs).check()
    assert refusal.value.reason == reason


def test_journal_names_each_account_once() -> None:
    """Also where the legs would sum to zero."""
    with pytest.raises(InvalidArgument) as refusal:
        replace(DRAFT, legs=(Leg("a", 5), Leg("b", -10), Leg("a", 5))).check()
    assert (refusal.value.reason, refusal.value.fields[0][0]) == ("ACCOUNT_REPEATED", "postings[2].account_id")


@given(st.lists(st.integers(1, MAX_MINOR_UNITS // 99), min_size=1, max_size=99))
def test_whatever_is_balanced_is_a_journal(amounts: list[int]) -> None:
    """Two to a hundred legs of any size."""
    legs = (*(Leg(f"a{place}", amount) for place, amount in enumerate(amounts)), Leg("sum", -sum(amounts)))
    draft = replace(DRAFT, legs=legs)
    assert draft.check() is draft


def test_payload_is_all_but_the_clerk() -> None:
    """Every other field makes another journal of it."""
    assert replace(DRAFT, clerk=Principal("wang", Role.ACCOUNTANT)).payload == DRAFT.payload
    others = [
        replace(DRAFT, business_key="settle:o1:2"),
        replace(DRAFT, legs=DRAFT.legs[::-1]),
        replace(DRAFT, currency="USD"),
        replace(DRAFT, memo=""),
        replace(DRAFT, order_id=""),
        replace(DRAFT, payment_id="pay_2"),
        replace(DRAFT, reversal_of="jnl_1"),
    ]
    assert len({DRAFT.payload, *(other.payload for other in others)}) == len(others) + 1


def test_reversal_is_the_opposite() -> None:
    """Of the same order and payment; its reason is not part of its payload; it cannot itself be reversed."""
    [journal] = chain(1)
    undo = journal.reversal(reason="broken cup", clerk=LI)
    assert [leg.amount for leg in undo.legs] == [-250, 250]
    assert (undo.business_key, undo.reversal_of) == ("reverse:jnl_1", "jnl_1")
    assert (undo.order_id, undo.payment_id, undo.memo) == ("o1", "pay_1", "broken cup")
    assert undo.payload == journal.reversal(reason="another", clerk=LI).payload
    undone = Journal.seal(Entry(undo, "a", "jnl_2", 2, NO_FENCE), Head(1, journal.hash))
    with pytest.raises(FailedPrecondition) as refusal:
        undone.reversal(reason="no", clerk=LI)
    assert refusal.value.reason == "NOT_REVERSIBLE"


# The chain


def test_hash_is_over_the_documented_bytes() -> None:
    """To the byte: whoever wants to check the books by other means can."""
    journal = Journal.seal(Entry(DRAFT, "attempt", "jnl_1", 1_700_000_000_000, NO_FENCE), Head(6, "ab" * 32))
    content = (
        '{"business_key":"settle:o1:1","clerk":["li","cashier"],"currency":"CNY","format":1,"journal_id":"jnl_1",'
        '"legs":[["wallet:mei:CNY",250],["sales:CNY",-250]],"memo":"茶 \\"green\\"","order_id":"o1",'
        '"payment_id":"pay_1","posted_at_ms":1700000000000,"reversal_of":"","sequence":7}'
    )
    assert journal.hash == hashlib.sha256(("ab" * 32 + "\n" + content).encode()).hexdigest()
    assert (journal.sequence, journal.previous_hash) == (7, "ab" * 32)


def test_unaltered_chain_is_intact() -> None:
    """And its end is its head."""
    journals = chain(4)
    check = walked(journals)
    check.end(Head(4, journals[-1].hash))
    assert (check.examined, check.broken_at, check.last_hash) == (4, 0, journals[-1].hash)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_journal_that_was_sealed_anew_breaks_the_next(at: int) -> None:
    """Whoever alters one and its hash must alter all after it, and at last the head."""
    journals = chain(4)
    old = journals[at - 1]
    forged = Entry(replace(old.draft, memo="forged"), "a", old.journal_id, old.posted_at_ms, NO_FENCE)
    journals[at - 1] = Journal.seal(forged, Head(at - 1, old.previous_hash))
    check = walked(journals)
    check.end(Head(4, chain(4)[-1].hash))
    assert check.broken_at == min(at + 1, 4)


def test_two_journals_changing_places_are_found() -> None:
    """At the first of the two."""
    journals = chain(4)
    journals[1], journals[2] = replace(journals[2], sequence=2), replace(journals[1], sequence=3)
    assert walked(journals).broken_at == 2


def test_unreadable_journal_breaks_the_chain() -> None:
    """It is looked at, and stops the walk."""
    check = ChainCheck(Head())
    assert not check.look(ChainLink(1, None))
    assert (check.examined, check.broken_at, check.last_hash) == (1, 1, NO_HASH)


def test_account_that_is_open_on_other_terms_is_told_in_major_units() -> None:
    standing = Account("wallet:mei:CNY", AccountKind.LIABILITY, "CNY", overdraft_limit=1250)
    with pytest.raises(AlreadyExists, match=r"overdraft limit of 12\.50 CNY;"):
        standing.check_terms(replace(standing, overdraft_limit=3000))
