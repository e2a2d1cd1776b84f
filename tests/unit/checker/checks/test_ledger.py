"""The checks of the ledger by itself."""

from __future__ import annotations

import pytest

from tests.unit.checker.cases import Cases, Illegal, Lawful, by_snapshot, payment
from tests.unit.checker.dataset import DatasetBuilder
from tests.unit.checker.rows import hash_of

CASES = Cases(by_snapshot)


# Postings and journals


@CASES.illegal("journal jnl_01 is out of balance by -0.01 CNY", "postings balance")
def an_unbalanced_journal(dataset: DatasetBuilder) -> None:
    dataset.legs("jnl_01")[1]["amount"] -= 1
    dataset.seal()


@CASES.illegal("journal jnl_01 has 1 legs", "postings balance")
def a_journal_of_one_leg(dataset: DatasetBuilder) -> None:
    dataset.postings.remove(dataset.legs("jnl_01")[1])
    dataset.seal()


@CASES.illegal("has a leg in USD", "postings balance")
@CASES.illegal("all postings in USD sum to -12.50 USD", "postings balance")
def a_leg_in_another_currency(dataset: DatasetBuilder) -> None:
    dataset.account("sales:USD", "REVENUE", currency="USD")
    dataset.legs("jnl_01")[1]["account_id"] = "sales:USD"
    dataset.seal()


@CASES.illegal("postings of journal jnl_lost stand without it", "postings balance")
def postings_without_a_journal(dataset: DatasetBuilder) -> None:
    for leg in dataset.legs("jnl_01"):
        dataset.postings.append(leg | {"journal_id": "jnl_lost"})


@CASES.illegal("has a leg on nowhere, which does not exist", "balances true", "postings balance")
@CASES.illegal("journal jnl_01 in CNY has a leg in nothing", "balances true", "postings balance")
def a_leg_on_no_account(dataset: DatasetBuilder) -> None:
    dataset.legs("jnl_01")[1]["account_id"] = "nowhere"
    dataset.seal()


@CASES.illegal("journal jnl_02 is not as it was written", "journals unaltered")
def an_altered_note(dataset: DatasetBuilder) -> None:
    dataset.journals[1]["memo"] = "table 5"


@CASES.illegal("journal jnl_01 is not as it was written", "journals unaltered")
def an_altered_name(dataset: DatasetBuilder) -> None:
    dataset.journals[0]["clerk_name"] = "wu"


@CASES.illegal(
    "journal jnl_01 is not as it was written",
    *("journals unaltered", "paid means charged", "payments match journals", "balances true"),
)
def an_altered_amount(dataset: DatasetBuilder) -> None:
    debit, credit = dataset.legs("jnl_01")
    debit["amount"] += 100
    credit["amount"] -= 100


@CASES.illegal("journal jnl_03 does not follow the one before", "journals unaltered")
def a_chain_forged_from_the_middle_on(dataset: DatasetBuilder) -> None:
    """Whoever alters a journal and its hash would have to write every later one anew."""
    dataset.journals[1]["memo"] = "table 5"
    dataset.journals[1]["hash"] = hash_of(dataset.journals[1], dataset.legs(dataset.journals[1]["journal_id"]))


@CASES.illegal("journal jnl_05 has sequence 6, and is number 5", "journals unaltered")
def a_gap_in_the_sequence(dataset: DatasetBuilder) -> None:
    dataset.journals[4]["sequence"] = 6
    dataset.seal()


@CASES.illegal("the chain ends with journal 5, and its head is 6", "journals unaltered")
def a_chain_that_lost_its_end(dataset: DatasetBuilder) -> None:
    """Who takes the last journal away breaks no link; the head knows of it."""
    dataset.chain_head[0]["sequence"] = 6


@CASES.illegal("the chain ends with journal 5, and its head is 5", "journals unaltered")
def a_chain_whose_end_was_replaced(dataset: DatasetBuilder) -> None:
    dataset.chain_head[0]["hash"] = "f" * 64


@CASES.illegal("settle:plain:1 stands for 2 journals", "business keys unique")
def a_key_that_stands_for_two(dataset: DatasetBuilder) -> None:
    dataset.journals[4]["business_key"] = "settle:plain:1"
    dataset.seal()


@CASES.illegal("journal jnl_06 does not undo the whole of jnl_05", "reversed at most once")
def a_reversal_into_another_account(dataset: DatasetBuilder) -> None:
    """All of the amount goes back, and not to where it came from."""
    dataset.accounts[1]["overdraft_limit"] = 1_000
    dataset.legs(dataset.reverse(payment(dataset, "ticket-1"))["journal_id"])[0]["account_id"] = "bank:CNY"
    dataset.seal()


@CASES.illegal("settle:plain:1 was refused to payment pay_01, and jnl_01 moved money", "refusals kept")
def a_refused_attempt_that_was_posted(dataset: DatasetBuilder) -> None:
    """Its payment may have been reported as declined."""
    dataset.refusals.append({"business_key": "settle:plain:1", "attempt": "pay_01"})


# Balances


@CASES.illegal("drawer:CNY says 22.51 CNY, and its postings sum to 22.50 CNY", "balances true")
def a_wrong_balance(dataset: DatasetBuilder) -> None:
    dataset.accounts[0]["balance"] += 1


@CASES.illegal("drawer:CNY is at version 6, and has 4 postings", "balances true")
def a_balance_that_was_written_past_the_ledger(dataset: DatasetBuilder) -> None:
    dataset.accounts[0]["version"] += 1


@CASES.illegal("wallet:mei:CNY rose to 23058430092136939.53 CNY with journal 6", "balances true")
def more_than_an_account_can_hold(dataset: DatasetBuilder) -> None:
    dataset.pay("ticket-2", 2**61 - 999, payee="wallet:mei:CNY", payer="bank")
    dataset.seal()


@CASES.illegal("wallet:mei:CNY fell to -3.01 CNY with journal 6", "balances true")
def an_overdraft_by_one(dataset: DatasetBuilder) -> None:
    dataset.pay("ticket-2", 1_301, payer="wallet:mei:CNY")
    dataset.seal()


@CASES.illegal("wallet:mei:CNY fell to -3.01 CNY with journal 6", "balances true")
def a_limit_broken_for_a_moment(dataset: DatasetBuilder) -> None:
    """In the end there is enough again; after that journal there was not."""
    dataset.pay("ticket-2", 1_301, payer="wallet:mei:CNY")
    dataset.pay("ticket-3", 9_000, payee="wallet:mei:CNY")
    dataset.seal()


# Lawful


@CASES.lawful("balances true")
def an_overdraft_of_exactly_the_limit(dataset: DatasetBuilder) -> None:
    dataset.pay("ticket-2", 1_300, payer="wallet:mei:CNY")


@CASES.lawful("balances true")
def an_expense(dataset: DatasetBuilder) -> None:
    """Its account grows by debits, as what one owns does."""
    dataset.account("fees:CNY", "EXPENSE")
    dataset.pay("ticket-2", 300, payer="fees:CNY", payee="bank:CNY")


@CASES.lawful("journals unaltered")
def a_note_in_many_scripts(dataset: DatasetBuilder) -> None:
    """What is hashed is written as it is, whatever it is written in."""
    dataset.journals[1]["memo"] = 'naïve "茶" \\ 🍵 \n\t'


@CASES.lawful("postings balance")
def a_journal_of_three_legs(dataset: DatasetBuilder) -> None:
    """An order that is paid half in cash and half by transfer."""
    credit = dataset.legs("jnl_05")[1]
    dataset.account("wallet:wu:CNY", "LIABILITY")
    credit["amount"] += 400
    dataset.postings.append(credit | {"leg": 2, "account_id": "wallet:wu:CNY", "amount": -400})


@CASES.lawful("reversed at most once", "business keys unique")
def two_journals_reversed_once_each(dataset: DatasetBuilder) -> None:
    dataset.pay("ticket-2", 500, payee="wallet:mei:CNY")
    for ticket in ("ticket-1", "ticket-2"):
        dataset.reverse(payment(dataset, ticket))


@CASES.lawful("balances true")
def as_much_as_an_account_can_hold(dataset: DatasetBuilder) -> None:
    dataset.pay("ticket-2", 2**61 - 1_000, payee="wallet:mei:CNY", payer="bank")


@CASES.lawful("refusals kept")
def a_refused_attempt_beside_one_that_was_not(dataset: DatasetBuilder) -> None:
    """Another payment may be posted under a key that was refused to the first; and the first under another key."""
    dataset.refusals += [
        {"business_key": "settle:plain:1", "attempt": "pay_99"},
        {"business_key": "settle:plain:2", "attempt": "pay_01"},
    ]


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)
