"""The checks: each illegal history is named by the checks it breaks and by no other; lawful oddities are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.checker.checks import Answered, Check, run_checks
from tests.unit.checker.scribe import Row, Scribe, legal

Spoil = Callable[[Scribe], None]

_ILLEGAL: list[tuple[Spoil, str, set[str]]] = []
_LAWFUL: list[Spoil] = []


def illegal(words: str, *broken: str) -> Callable[[Spoil], Spoil]:
    """A history that breaks these checks and no others; the first of them says `words`."""

    def add(spoil: Spoil) -> Spoil:
        _ILLEGAL.append((spoil, words, set(broken)))
        return spoil

    return add


def lawful(change: Spoil) -> Spoil:
    """A history that looks odd and breaks nothing."""
    _LAWFUL.append(change)
    return change


def payment(scribe: Scribe, key: str) -> Row:
    """The payment of a request or ticket."""
    return next(row for row in scribe.payments if row["request_key"] == key)


def checked(scribe: Scribe) -> dict[str, Check]:
    return {check.name: check for check in run_checks(scribe.books(), scribe.answers)}


def test_a_lawful_evening_passes_and_everything_was_examined() -> None:
    """The counts are of what there was to look at, so that a check that looks at nothing is seen."""
    found = checked(legal())
    assert {name for name, check in found.items() if not check.ok} == set()
    assert {name: check.examined for name, check in found.items()} == {
        "postings balance": 10,
        "journals unaltered": 5,
        "settled at most once": 3,
        "reversed at most once": 1,
        "paid means charged": 3,
        "payments match journals": 5,
        "one charge per key": 5,
        "cards agree": 0,
        "answers are true": 6,
        "replays identical": 7,
        "fences never fall": 26,
        "moves are legal": 26,
        "requests are whole": 8,
        "nothing left over": 20,
        "balances true": 4,
    }


def test_empty_books_pass() -> None:
    assert all(check.ok for check in run_checks(Scribe().books()))


# Postings and journals


@illegal("journal jnl_01 is out of balance by -1 CNY", "postings balance")
def an_unbalanced_journal(scribe: Scribe) -> None:
    scribe.legs("jnl_01")[1]["amount"] -= 1
    scribe.seal()


@illegal("journal jnl_01 has 1 legs", "postings balance")
def a_journal_of_one_leg(scribe: Scribe) -> None:
    scribe.postings.remove(scribe.legs("jnl_01")[1])
    scribe.seal()


@illegal("has a leg in USD", "postings balance")
def a_leg_in_another_currency(scribe: Scribe) -> None:
    scribe.account("sales:USD", "REVENUE", currency="USD")
    scribe.legs("jnl_01")[1]["account_id"] = "sales:USD"
    scribe.seal()


@illegal("postings of journal jnl_lost stand without it", "postings balance")
def postings_without_a_journal(scribe: Scribe) -> None:
    for leg in scribe.legs("jnl_01"):
        scribe.postings.append(leg | {"journal_id": "jnl_lost"})


@illegal("has a leg on nowhere, which does not exist", "balances true", "postings balance")
def a_leg_on_no_account(scribe: Scribe) -> None:
    scribe.legs("jnl_01")[1]["account_id"] = "nowhere"
    scribe.seal()


@illegal("journal jnl_02 is not as it was written", "journals unaltered")
def an_altered_note(scribe: Scribe) -> None:
    scribe.journals[1]["memo"] = "table 5"


@illegal("journal jnl_01 is not as it was written", "journals unaltered")
def an_altered_name(scribe: Scribe) -> None:
    scribe.journals[0]["clerk_name"] = "wu"


@illegal(
    "journal jnl_01 is not as it was written",
    *("journals unaltered", "paid means charged", "payments match journals", "balances true"),
)
def an_altered_amount(scribe: Scribe) -> None:
    debit, credit = scribe.legs("jnl_01")
    debit["amount"] += 100
    credit["amount"] -= 100


@illegal("journal jnl_03 does not follow the one before", "journals unaltered")
def a_chain_forged_from_the_middle_on(scribe: Scribe) -> None:
    """Whoever alters a journal and its hash would have to write every later one anew."""
    scribe.journals[1]["memo"] = "table 5"
    scribe.journals[1]["hash"] = scribe.hash_of(scribe.journals[1])


@illegal("journal jnl_05 has sequence 6, and is number 5", "journals unaltered")
def a_gap_in_the_sequence(scribe: Scribe) -> None:
    scribe.journals[4]["sequence"] = 6
    scribe.seal()


# Charged once


@illegal("order plain was settled 2 times: jnl_01, jnl_06", "settled at most once", "paid means charged")
def a_bill_charged_twice(scribe: Scribe) -> None:
    """Two clerks, no guard: two payments, two journals, one bill."""
    second = scribe.accept("plain", "Settle", "settle-again", "wu")
    scribe.charge(second, scribe.fence(), "bank", "settle:plain:1", 1250)
    scribe.answer("wu", "Settle", "settle-again")
    scribe.seal()


@illegal(
    "payment pay_01 names jnl_01; what stands: jnl_01, jnl_06",
    *("payments match journals", "settled at most once", "paid means charged"),
)
def one_payment_posted_twice(scribe: Scribe) -> None:
    """A frozen holder wakes and posts after another has posted the same payment."""
    legs = [(leg["account_id"], leg["amount"]) for leg in scribe.legs("jnl_01")]
    scribe.journal("settle:plain:1", legs, order_id="plain", payment_id="pay_01")
    scribe.seal()


@illegal("Pay ticket-1 of li charged 2 times: pay_05, pay_06", "one charge per key")
def a_ticket_charged_twice(scribe: Scribe) -> None:
    scribe.pay("ticket-1", 1_000, payee="wallet:mei:CNY")
    scribe.seal()


@illegal("journal jnl_05 was reversed 2 times", "reversed at most once")
def a_journal_reversed_twice(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    scribe.reverse(direct)
    scribe.undo(direct)
    scribe.pay("ticket-2", 5_000, payee="wallet:mei:CNY")
    scribe.accounts[3]["overdraft_limit"] = 1_000
    scribe.seal()


@illegal("reverses jnl_00, which does not exist", "reversed at most once")
def a_reversal_of_nothing(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    legs = [("drawer:CNY", -1), ("wallet:mei:CNY", 1)]
    scribe.journal("reverse:jnl_00", legs, payment_id=direct["payment_id"], reversal_of="jnl_00")
    scribe.seal()


@illegal("journal jnl_06 does not undo the whole of jnl_05", "reversed at most once")
def a_reversal_of_a_part(scribe: Scribe) -> None:
    for leg in scribe.legs(scribe.reverse(payment(scribe, "ticket-1"))["journal_id"]):
        leg["amount"] //= 2
    scribe.seal()


# Paid means charged


@illegal("order open is PAID with 0 succeeded payments", "paid means charged")
def a_bill_paid_by_nobody(scribe: Scribe) -> None:
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, "pay_99")
    scribe.move_order("open", "PAID", fence, "pay_99")


@illegal("order plain is UNPAID with 1 succeeded payments", "paid means charged")
def a_bill_charged_and_released(scribe: Scribe) -> None:
    scribe.order_events[2]["to_state"] = "UNPAID"
    scribe.order("plain").update(state="UNPAID", payment_id="")


@illegal("order plain names pay_04; what succeeded: pay_01", "paid means charged")
def a_bill_that_names_another_payment(scribe: Scribe) -> None:
    scribe.order("plain")["payment_id"] = "pay_04"


@illegal("order plain of 1249 CNY was settled by 1250 CNY", "paid means charged")
def a_bill_of_another_amount(scribe: Scribe) -> None:
    scribe.order("plain")["amount_minor_units"] = 1249


@illegal("order plain of 1250 USD was settled by 1250 CNY", "paid means charged")
def a_bill_in_another_currency(scribe: Scribe) -> None:
    scribe.order("plain")["currency_code"] = "USD"


@illegal("journals of order plain stand without it", "paid means charged")
def a_lost_order(scribe: Scribe) -> None:
    scribe.orders.remove(scribe.order("plain"))
    scribe.order_events = [row for row in scribe.order_events if row["order_id"] != "plain"]


# Payments and their journals


@illegal(
    "order plain is PAID with 0 settle journals that stand",
    *("paid means charged", "payments match journals", "answers are true"),
)
def a_lost_journal(scribe: Scribe) -> None:
    """The clerk was told that it is settled; no money moved."""
    scribe.remove_journal("jnl_01")
    scribe.seal()


@illegal("payment pay_01 of 1251 CNY moved 1250 CNY", "payments match journals")
def a_payment_of_another_amount(scribe: Scribe) -> None:
    payment(scribe, "settle-plain-1")["amount_minor"] += 1


@illegal("payment pay_05 of 1000 USD moved 1000 CNY", "payments match journals")
def a_payment_in_another_currency(scribe: Scribe) -> None:
    payment(scribe, "ticket-1")["currency"] = "USD"


@illegal("payment pay_05 names jnl_04; what stands: jnl_05", "payments match journals")
def a_payment_that_names_another_journal(scribe: Scribe) -> None:
    payment(scribe, "ticket-1")["journal_id"] = "jnl_04"


@illegal("payment pay_06 is DECLINED, and journal jnl_06 stands", "payments match journals", "answers are true")
def a_declined_payment_with_a_journal(scribe: Scribe) -> None:
    """Time made UNKNOWN failed, and the money had moved."""
    declined = scribe.accept("", "Pay", "ticket-2", "li")
    scribe.move_payment(declined, "SUBMITTED", 0)
    scribe.journal("pay:2", [("drawer:CNY", 5), ("wallet:mei:CNY", -5)], payment_id=declined["payment_id"])
    scribe.move_payment(declined, "DECLINED", 0)
    scribe.answer("li", "Pay", "ticket-2", ok=False)
    scribe.seal()


@illegal("payment pay_06 is DECLINED, and jnl_06, jnl_07 moved money", "payments match journals", "answers are true")
def a_declined_payment_whose_journal_was_undone(scribe: Scribe) -> None:
    """Moving it back is not the same as never having moved it."""
    a_declined_payment_with_a_journal(scribe)
    declined = payment(scribe, "ticket-2")
    scribe.undo(declined | {"journal_id": "jnl_06"})
    scribe.seal()


@illegal("payment pay_05 is REVERSED, and journal jnl_05 stands", "payments match journals", "answers are true")
def a_reversal_that_never_reached_the_ledger(scribe: Scribe) -> None:
    reversal = scribe.reverse(payment(scribe, "ticket-1"))
    scribe.remove_journal(reversal["journal_id"])
    scribe.seal()


@illegal("payment pay_05 is REVERSED, and no journal undoes jnl_05", "payments match journals", "answers are true")
def a_reversed_payment_without_any_journal(scribe: Scribe) -> None:
    scribe.reverse(payment(scribe, "ticket-1"))
    scribe.remove_journal("jnl_06")
    scribe.remove_journal("jnl_05")
    scribe.seal()


@illegal("journals of payment pay_05 stand without it", "payments match journals", "answers are true")
def a_lost_payment(scribe: Scribe) -> None:
    lost = payment(scribe, "ticket-1")
    scribe.payment_events = [row for row in scribe.payment_events if row["payment_id"] != lost["payment_id"]]
    scribe.payments.remove(lost)


# Answers


@illegal("Pay ticket-1 of li was acknowledged, and no journal moved", "answers are true", "payments match journals")
def an_acknowledged_payment_without_a_journal(scribe: Scribe) -> None:
    scribe.remove_journal("jnl_05")
    scribe.seal()


@illegal("Settle settle-plain-1 of li was refused, and jnl_01 moved money", "answers are true")
def a_refused_payment_with_a_journal(scribe: Scribe) -> None:
    scribe.request_of("li", "Settle", "settle-plain-1")["response_ok"] = False


@illegal("Settle too-late of wu was answered and has no payment", "answers are true")
def an_answer_without_a_payment(scribe: Scribe) -> None:
    lost = payment(scribe, "too-late")
    scribe.payment_events = [row for row in scribe.payment_events if row["payment_id"] != lost["payment_id"]]
    scribe.payments.remove(lost)


@illegal("Reverse reverse-pay_03 of wu was refused, and jnl_03 moved money", "answers are true")
def a_refused_reversal_that_happened(scribe: Scribe) -> None:
    scribe.request_of("wu", "Reverse", "reverse-pay_03")["response_ok"] = False


@illegal("Reverse imagined of wu was answered and has no payment", "answers are true")
def an_acknowledged_reversal_of_no_payment(scribe: Scribe) -> None:
    scribe.request("wu", "Reverse", "imagined")
    scribe.answer("wu", "Reverse", "imagined")


@illegal("ticket-1 was answered with something that is not stored", "replays identical")
def a_replay_that_differs(scribe: Scribe) -> None:
    scribe.answers.append(Answered("ticket-1", True, b"another payment"))


@illegal("ticket-1 got 2 different answers", "replays identical")
def a_success_replayed_as_a_refusal(scribe: Scribe) -> None:
    stored = next(answer for answer in scribe.answers if answer.key == "ticket-1")
    scribe.answers.append(Answered("ticket-1", False, stored.body))


# Fences, versions, moves


@illegal("plain: fence fell from (1, 102) to (1, 101) at version 3", "fences never fall")
def an_order_written_under_a_stale_fence(scribe: Scribe) -> None:
    scribe.order_events[2]["fence_token"] = 101


@illegal("pay_01: fence fell from (1, 102) to (1, 101) at version 3", "fences never fall")
def a_payment_written_under_a_stale_fence(scribe: Scribe) -> None:
    scribe.of(scribe.payment_events, payment(scribe, "settle-plain-1"))[2]["fence_token"] = 101


@illegal("plain: fence fell from (2, 1) to (1, 102) at version 3", "fences never fall")
def a_fence_of_an_ensemble_that_was_lost(scribe: Scribe) -> None:
    """A higher token of an older generation is the smaller fence."""
    scribe.order_events[1].update(fence_generation=2, fence_token=1)


@illegal("order plain is at version 3, and its history has 2 steps", "moves are legal")
def a_gap_in_an_orders_history(scribe: Scribe) -> None:
    del scribe.order_events[1]


@illegal("payment pay_01 is at version 4, and its history has 3 steps", "moves are legal")
def a_payment_changed_without_a_trace(scribe: Scribe) -> None:
    payment(scribe, "settle-plain-1")["version"] += 1


@illegal("order plain went from UNPAID to PAID", "moves are legal")
def an_order_paid_without_a_claim(scribe: Scribe) -> None:
    del scribe.order_events[1]
    scribe.order_events[1]["version"] = 2
    scribe.order("plain")["version"] = 2


@illegal("payment pay_05 went from CREATED to SUCCEEDED", "moves are legal")
def a_payment_that_was_never_submitted(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    submitted, succeeded = scribe.of(scribe.payment_events, direct)[1:]
    scribe.payment_events.remove(submitted)
    succeeded["version"] = direct["version"] = 2


@illegal("payment pay_02 went from DECLINED to SUBMITTED", "moves are legal")
def a_declined_payment_that_rises_again(scribe: Scribe) -> None:
    declined = payment(scribe, "too-late")
    scribe.move_payment(declined, "SUBMITTED", scribe.fence())
    scribe.move_payment(declined, "DECLINED", scribe.fence())


@illegal("order open is CANCELLED, and its history ends UNPAID", "moves are legal")
def a_state_that_its_history_does_not_know(scribe: Scribe) -> None:
    scribe.order("open")["state"] = "CANCELLED"


# Requests, and what is left over


@illegal("IssueTicket ask-1 of li is DONE without a response", "requests are whole")
def a_finished_request_without_a_response(scribe: Scribe) -> None:
    scribe.request_of("li", "IssueTicket", "ask-1")["response"] = None
    scribe.answers = [answer for answer in scribe.answers if answer.key != "ask-1"]


@illegal("Pay ticket-unused of li is ISSUED with a response", "requests are whole")
def an_open_ticket_with_a_response(scribe: Scribe) -> None:
    scribe.request_of("li", "Pay", "ticket-unused")["response"] = b"?"


@illegal("payment pay_06 is SUBMITTED", "nothing left over")
def a_payment_left_submitted(scribe: Scribe) -> None:
    left = scribe.accept("", "Pay", "ticket-2", "li")
    scribe.request_of("li", "Pay", "ticket-2")["state"] = "ISSUED"
    scribe.move_payment(left, "SUBMITTED", 0)


@illegal("payment pay_06 is UNKNOWN", "nothing left over")
def a_payment_left_unknown(scribe: Scribe) -> None:
    a_payment_left_submitted(scribe)
    scribe.move_payment(payment(scribe, "ticket-2"), "UNKNOWN", 0)


@illegal("payment pay_05 is REVERSING", "nothing left over")
def a_payment_left_reversing(scribe: Scribe) -> None:
    scribe.move_payment(payment(scribe, "ticket-1"), "REVERSING", 0)


@illegal("order open is PAYING", "nothing left over")
def a_bill_left_half_settled(scribe: Scribe) -> None:
    scribe.move_order("open", "PAYING", scribe.fence(), "pay_99")


@illegal("Pay ticket-unused of li is IN_PROGRESS", "nothing left over")
def a_request_left_running(scribe: Scribe) -> None:
    scribe.request_of("li", "Pay", "ticket-unused")["state"] = "IN_PROGRESS"


@illegal("the order service has not been told to COMPLETE plain", "nothing left over")
def an_undelivered_word(scribe: Scribe) -> None:
    scribe.outbox[0]["delivered_at_ms"] = None


# Balances


@illegal("drawer:CNY says 2251, and its postings sum to 2250", "balances true")
def a_wrong_balance(scribe: Scribe) -> None:
    scribe.accounts[0]["balance"] += 1


@illegal("wallet:mei:CNY fell to -301 with journal 6", "balances true")
def an_overdraft_by_one(scribe: Scribe) -> None:
    scribe.pay("ticket-2", 1_301, payer="wallet:mei:CNY")
    scribe.seal()


@illegal("wallet:mei:CNY fell to -301 with journal 6", "balances true")
def a_limit_broken_for_a_moment(scribe: Scribe) -> None:
    """In the end there is enough again; after that journal there was not."""
    scribe.pay("ticket-2", 1_301, payer="wallet:mei:CNY")
    scribe.pay("ticket-3", 9_000, payee="wallet:mei:CNY")
    scribe.seal()


@pytest.mark.parametrize(
    ("spoil", "words", "broken"), [pytest.param(*case, id=case[0].__name__.replace("_", " ")) for case in _ILLEGAL]
)
def test_an_illegal_history_is_named(spoil: Spoil, words: str, broken: set[str]) -> None:
    """By the checks it breaks, in words, and by no other."""
    scribe = legal()
    spoil(scribe)
    found = checked(scribe)
    told = [violation for check in found.values() for violation in check.violations]
    assert {name for name, check in found.items() if not check.ok} == broken, told
    assert any(words in violation for violation in told), told


def test_every_check_has_a_history_that_breaks_it() -> None:
    """A check that can never fail proves nothing. Those of cards are in `test_cards.py`."""
    assert {name for _, _, broken in _ILLEGAL for name in broken} == set(checked(legal())) - {"cards agree"}


# Lawful, though it looks odd


@lawful
def three_rounds(scribe: Scribe) -> None:
    """A bill may be reversed and settled as often as one likes."""
    standing = payment(scribe, "settle-reversed-2")
    for clerk in ("li", "wu", "li"):
        scribe.reverse(standing)
        standing = scribe.settle("reversed", clerk=clerk)


@lawful
def two_declined_beside_one_success(scribe: Scribe) -> None:
    scribe.decline("plain", key="too-late-again")
    scribe.decline("plain", key="and-again", clerk="li")


@lawful
def an_overdraft_of_exactly_the_limit(scribe: Scribe) -> None:
    scribe.pay("ticket-2", 1_300, payer="wallet:mei:CNY")


@lawful
def a_payment_finished_by_another_clerk(scribe: Scribe) -> None:
    """Its holder died after the claim: the fence grows in the middle of its history, and so does the order's."""
    left = scribe.accept("open", "Settle", "settle-open-1", "li")
    first, second = scribe.fence(), scribe.fence()
    scribe.move_order("open", "PAYING", first, left["payment_id"])
    left.update(amount_minor=70, currency="CNY")
    scribe.move_payment(left, "SUBMITTED", first)
    scribe.move_payment(left, "UNKNOWN", first)
    legs = [("drawer:CNY", 70), ("sales:CNY", -70)]
    journal = scribe.journal("settle:open:1", legs, order_id="open", payment_id=left["payment_id"])
    left["journal_id"] = journal["journal_id"]
    scribe.move_payment(left, "SUCCEEDED", second)
    scribe.answer("li", "Settle", "settle-open-1")
    scribe.move_order("open", "PAID", second, left["payment_id"])
    scribe.deliver(left, "COMPLETE")


@lawful
def a_decline_that_releases_its_bill(scribe: Scribe) -> None:
    """The wallet was empty; the next clerk takes cash."""
    poor = scribe.accept("open", "Settle", "settle-open-1", "li")
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, poor["payment_id"])
    scribe.move_payment(poor, "SUBMITTED", fence)
    scribe.move_payment(poor, "DECLINED", fence)
    scribe.answer("li", "Settle", "settle-open-1", ok=False)
    scribe.move_order("open", "UNPAID", fence)
    scribe.deliver(poor, "RELEASE")
    scribe.settle("open", key="settle-open-2")


@lawful
def a_reversal_that_the_ledger_refuses(scribe: Scribe) -> None:
    """There was too little in the drawer to give back; the payment stands."""
    direct = payment(scribe, "ticket-1")
    scribe.request("wu", "Reverse", "no-cash")
    direct.update(reversal_caller="wu", reversal_key="no-cash")
    scribe.move_payment(direct, "REVERSING", 0)
    scribe.move_payment(direct, "SUCCEEDED", 0)
    scribe.answer("wu", "Reverse", "no-cash", ok=False)


@lawful
def a_reversal_refused_because_another_was_first(scribe: Scribe) -> None:
    """Its payment bears the other's name."""
    scribe.request("wu", "Reverse", "too-late-to-reverse")
    scribe.answer("wu", "Reverse", "too-late-to-reverse", ok=False)


@lawful
def a_cancelled_bill(scribe: Scribe) -> None:
    scribe.move_order("open", "CANCELLED", 0)


@lawful
def an_expired_ticket(scribe: Scribe) -> None:
    scribe.request_of("li", "Pay", "ticket-unused")["state"] = "EXPIRED"


@lawful
def one_answer_given_ten_times(scribe: Scribe) -> None:
    scribe.answers += [answer for answer in scribe.answers if answer.key == "ticket-1"] * 9


@lawful
def an_answer_that_nobody_heard(scribe: Scribe) -> None:
    """The reply was lost, and the caller never asked again."""
    scribe.answers = []


@lawful
def the_same_key_of_two_clerks(scribe: Scribe) -> None:
    """Keys belong to their caller."""
    scribe.bill("second")
    scribe.settle("second", clerk="wu", key="settle-plain-1", source="bank")


@pytest.mark.parametrize("change", _LAWFUL, ids=lambda change: change.__name__.replace("_", " "))
def test_a_lawful_oddity_passes(change: Spoil) -> None:
    scribe = legal()
    change(scribe)
    scribe.seal()
    assert [violation for check in checked(scribe).values() for violation in check.violations] == []


def test_many_violations_are_counted_and_not_all_told() -> None:
    """Nobody reads a thousand lines that say the same."""
    scribe = legal()
    for number in range(25):
        scribe.request("li", "Pay", f"left-{number}")
    violations = checked(scribe)["nothing left over"].violations
    assert len(violations) == 20
    assert violations[-1] == "and 6 more"
