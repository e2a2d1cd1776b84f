"""The checks of orders, payments and journals together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.checker.evidence import Answered
from tests.unit.checker.cases import Cases, Illegal, Lawful, by_books, payment
from tests.unit.checker.scribe import Scribe

CASES = Cases(by_books)


# Charged once


@CASES.illegal(
    "order plain was settled 2 times: jnl_01, jnl_06",
    *("settled at most once", "paid means charged", "business keys unique", "outbox delivered once"),
)
@CASES.illegal(
    "order plain has 2 settle journals and 0 reversals",
    *("settled at most once", "paid means charged", "business keys unique", "outbox delivered once"),
)
def a_order_charged_twice(scribe: Scribe) -> None:
    """Two clerks, no guard: two payments, two journals, one order."""
    second = scribe.accept("plain", "Settle", "settle-again", "wu")
    scribe.charge(second, scribe.fence(), "bank", "settle:plain:1", 1250)
    scribe.answer("wu", "Settle", "settle-again")
    scribe.seal()


@CASES.illegal(
    "payment pay_01 names jnl_01; what stands: jnl_01, jnl_06",
    *("payments match journals", "settled at most once", "paid means charged", "business keys unique"),
)
def one_payment_posted_twice(scribe: Scribe) -> None:
    """A frozen holder wakes and posts after another has posted the same payment."""
    legs = [(leg["account_id"], leg["amount"]) for leg in scribe.legs("jnl_01")]
    scribe.journal("settle:plain:1", legs, order_id="plain", payment_id="pay_01")
    scribe.seal()


@CASES.illegal("Pay ticket-1 of li (cashier) charged 2 times: pay_05, pay_06", "one charge per key")
def a_ticket_charged_twice(scribe: Scribe) -> None:
    scribe.pay("ticket-1", 1_000, payee="wallet:mei:CNY")
    scribe.seal()


@CASES.illegal("journal jnl_05 was reversed 2 times", "reversed at most once", "business keys unique")
def a_journal_reversed_twice(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    scribe.reverse(direct)
    scribe.undo(direct)
    scribe.pay("ticket-2", 5_000, payee="wallet:mei:CNY")
    scribe.accounts[3]["overdraft_limit"] = 1_000
    scribe.seal()


@CASES.illegal("reverses jnl_00, which does not exist", "reversed at most once")
def a_reversal_of_nothing(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    legs = [("drawer:CNY", -1), ("wallet:mei:CNY", 1)]
    scribe.journal("reverse:jnl_00", legs, payment_id=direct["payment_id"], reversal_of="jnl_00")
    scribe.seal()


@CASES.illegal("journal jnl_06 does not undo the whole of jnl_05", "reversed at most once")
def a_reversal_of_a_part(scribe: Scribe) -> None:
    for leg in scribe.legs(scribe.reverse(payment(scribe, "ticket-1"))["journal_id"]):
        leg["amount"] //= 2
    scribe.seal()


# Paid means charged


@CASES.illegal("order open is PAID with 0 succeeded payments", "paid means charged", "outbox delivered once")
def a_order_paid_by_nobody(scribe: Scribe) -> None:
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, "pay_99")
    scribe.move_order("open", "PAID", fence, "pay_99")


@CASES.illegal(
    "order plain is UNPAID with 1 succeeded payments",
    *("paid means charged", "outbox delivered once"),
)
def a_order_charged_and_released(scribe: Scribe) -> None:
    scribe.order_events[2]["to_state"] = "UNPAID"
    scribe.order("plain").update(state="UNPAID", payment_id="", settled_by_name="")


@CASES.illegal("order plain names pay_04; what succeeded: pay_01", "paid means charged", "moves are legal")
def a_order_that_names_another_payment(scribe: Scribe) -> None:
    scribe.order("plain")["payment_id"] = "pay_04"


@CASES.illegal("order plain of 12.49 CNY was settled by 12.50 CNY", "paid means charged")
def a_order_of_another_amount(scribe: Scribe) -> None:
    scribe.order("plain")["amount_minor_units"] = 1249


@CASES.illegal("order plain of 12.50 USD was settled by 12.50 CNY", "paid means charged")
def a_order_in_another_currency(scribe: Scribe) -> None:
    scribe.order("plain")["currency_code"] = "USD"


@CASES.illegal("journals of order plain stand without it", "paid means charged", "outbox delivered once")
def a_lost_order(scribe: Scribe) -> None:
    scribe.orders.remove(scribe.order("plain"))
    scribe.order_events = [row for row in scribe.order_events if row["order_id"] != "plain"]


# Payments and their journals


@CASES.illegal(
    "order plain is PAID with 0 settle journals that stand",
    *("paid means charged", "payments match journals", "answers are true"),
)
def a_lost_journal(scribe: Scribe) -> None:
    """The clerk was told that it is settled; no money moved."""
    scribe.remove_journal("jnl_01")
    scribe.seal()


@CASES.illegal("payment pay_05 names jnl_05; what stands: none", "payments match journals", "answers are true")
def a_lost_journal_of_a_direct_payment(scribe: Scribe) -> None:
    scribe.remove_journal("jnl_05")
    scribe.seal()


@CASES.illegal("payment pay_01 of 12.51 CNY moved 12.50 CNY", "payments match journals")
def a_payment_of_another_amount(scribe: Scribe) -> None:
    payment(scribe, "settle-plain-1")["amount_minor"] += 1


@CASES.illegal("payment pay_05 of 10.00 USD moved 10.00 CNY", "payments match journals")
def a_payment_in_another_currency(scribe: Scribe) -> None:
    payment(scribe, "ticket-1")["currency"] = "USD"


@CASES.illegal("payment pay_05 names jnl_04; what stands: jnl_05", "payments match journals")
def a_payment_that_names_another_journal(scribe: Scribe) -> None:
    payment(scribe, "ticket-1")["journal_id"] = "jnl_04"


@CASES.illegal("payment pay_06 is DECLINED, and journal jnl_06 stands", "payments match journals", "answers are true")
def a_declined_payment_with_a_journal(scribe: Scribe) -> None:
    """Time made UNKNOWN failed, and the money had moved."""
    declined = scribe.accept("", "Pay", "ticket-2", "li")
    scribe.move_payment(declined, "SUBMITTED", 0)
    scribe.journal("pay:2", [("drawer:CNY", 5), ("wallet:mei:CNY", -5)], payment_id=declined["payment_id"])
    scribe.move_payment(declined, "DECLINED", 0)
    scribe.answer("li", "Pay", "ticket-2", ok=False)
    scribe.seal()


@CASES.illegal(
    "payment pay_06 is DECLINED, and jnl_06, jnl_07 moved money", "payments match journals", "answers are true"
)
def a_declined_payment_whose_journal_was_undone(scribe: Scribe) -> None:
    """Moving it back is not the same as never having moved it."""
    a_declined_payment_with_a_journal(scribe)
    declined = payment(scribe, "ticket-2")
    scribe.undo(declined | {"journal_id": "jnl_06"})
    scribe.seal()


@CASES.illegal("payment pay_05 is REVERSED, and journal jnl_05 stands", "payments match journals", "answers are true")
def a_reversal_that_never_reached_the_ledger(scribe: Scribe) -> None:
    reversal = scribe.reverse(payment(scribe, "ticket-1"))
    scribe.remove_journal(reversal["journal_id"])
    scribe.seal()


@CASES.illegal(
    "payment pay_05 is REVERSED, and no journal undoes jnl_05", "payments match journals", "answers are true"
)
def a_reversed_payment_without_any_journal(scribe: Scribe) -> None:
    scribe.reverse(payment(scribe, "ticket-1"))
    scribe.remove_journal("jnl_06")
    scribe.remove_journal("jnl_05")
    scribe.seal()


@CASES.illegal("payment pay_05 is REVERSED, and no journal undoes jnl_05", "payments match journals")
def a_reversed_payment_that_names_its_own_journal_as_the_opposite(scribe: Scribe) -> None:
    direct = payment(scribe, "ticket-1")
    scribe.reverse(direct)
    direct["reversal_journal_id"] = direct["journal_id"]
    scribe.seal()


@CASES.illegal("journals of payment pay_05 stand without it", "payments match journals", "answers are true")
def a_lost_payment(scribe: Scribe) -> None:
    scribe.remove_payment(payment(scribe, "ticket-1"))


# Answers


@CASES.illegal(
    "Pay ticket-1 of li (cashier) was acknowledged, and no journal moved", "answers are true", "payments match journals"
)
def an_acknowledged_payment_without_a_journal(scribe: Scribe) -> None:
    scribe.remove_journal("jnl_05")
    scribe.seal()


@CASES.illegal("Settle settle-plain-1 of li (cashier) was refused, and jnl_01 moved money", "answers are true")
def a_refused_payment_with_a_journal(scribe: Scribe) -> None:
    scribe.request_of("li", "Settle", "settle-plain-1")["response_ok"] = False


@CASES.illegal("Settle too-late of wu (accountant) was answered and has no payment", "answers are true")
def an_answer_without_a_payment(scribe: Scribe) -> None:
    scribe.remove_payment(payment(scribe, "too-late"))


@CASES.illegal("Reverse reverse-pay_03 of wu (accountant) was refused, and jnl_03 moved money", "answers are true")
def a_refused_reversal_that_happened(scribe: Scribe) -> None:
    scribe.request_of("wu", "Reverse", "reverse-pay_03")["response_ok"] = False


@CASES.illegal("Reverse imagined of wu (accountant) was answered and has no payment", "answers are true")
def an_acknowledged_reversal_of_no_payment(scribe: Scribe) -> None:
    scribe.request("wu", "Reverse", "imagined")
    scribe.answer("wu", "Reverse", "imagined")


@CASES.illegal("ticket-1 was answered with something that is not stored", "replays identical")
def a_replay_that_differs(scribe: Scribe) -> None:
    scribe.answers.append(Answered("ticket-1", True, b"another payment"))


@CASES.illegal("ticket-1 got 2 different answers", "replays identical")
def a_success_replayed_as_a_refusal(scribe: Scribe) -> None:
    stored = next(answer for answer in scribe.answers if answer.key == "ticket-1")
    scribe.answers.append(Answered("ticket-1", False, stored.body))


# Lawful


@CASES.lawful("one charge per key")
def a_second_payment_of_a_ticket_that_moved_nothing(scribe: Scribe) -> None:
    second = scribe.accept("", "Pay", "ticket-1", "li")
    scribe.request_of("li", "Pay", "ticket-1")["state"] = "DONE"
    scribe.move_payment(second, "DECLINED", 0)


@CASES.lawful("one charge per key", "replays identical")
def two_persons_of_one_name_use_one_request_id(scribe: Scribe) -> None:
    """Cashier li and customer li."""
    scribe.settle("open", key="same")
    second = scribe.pay("ticket-1b", 100, payee="wallet:mei:CNY")
    request = scribe.request_of("li", "Pay", "ticket-1b")
    request.update(caller_role="customer", method="Settle", key="same")
    second.update(request_role="customer", request_method="Settle", request_key="same", clerk_role="customer")
    scribe.calls[-1].kind = "Settle"
    scribe.calls[-1].arguments = replace(scribe.calls[-1].arguments, role="customer", key="same")
    scribe.answers.pop()


@CASES.lawful("settled at most once", "reversed at most once", "business keys unique", "moves are legal")
def three_rounds(scribe: Scribe) -> None:
    """An order may be reversed and settled as often as one likes."""
    standing = payment(scribe, "settle-reversed-2")
    for clerk in ("li", "wu", "li"):
        scribe.reverse(standing)
        standing = scribe.settle("reversed", clerk=clerk)


@CASES.lawful("settled at most once", "paid means charged")
def two_declined_beside_one_success(scribe: Scribe) -> None:
    scribe.decline("plain", key="too-late-again")
    scribe.decline("plain", key="and-again", clerk="li")


@CASES.lawful("paid means charged", "payments match journals", "outbox delivered once")
def a_decline_that_releases_its_order(scribe: Scribe) -> None:
    """The wallet was empty; the next clerk takes cash."""
    poor = scribe.accept("open", "Settle", "settle-open-1", "li")
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, poor["payment_id"])
    scribe.move_payment(poor, "SUBMITTED", fence)
    scribe.move_payment(poor, "DECLINED", fence)
    scribe.answer("li", "Settle", "settle-open-1", ok=False)
    scribe.move_order("open", "UNPAID", fence, poor["payment_id"])
    scribe.deliver(poor, "RELEASE")
    scribe.settle("open", key="settle-open-2")


@CASES.lawful("payments match journals", "answers are true", "moves are legal")
def a_reversal_that_the_ledger_refuses(scribe: Scribe) -> None:
    """There was too little in the drawer to give back; the payment stands."""
    direct = payment(scribe, "ticket-1")
    scribe.request("wu", "Reverse", "no-cash")
    direct.update(reversal_caller="wu", reversal_role="accountant", reversal_key="no-cash")
    scribe.move_payment(direct, "REVERSING", 0)
    scribe.move_payment(direct, "SUCCEEDED", 0)
    scribe.answer("wu", "Reverse", "no-cash", ok=False)


@CASES.lawful("answers are true")
def a_reversal_refused_because_another_was_first(scribe: Scribe) -> None:
    """Its payment bears the other's name."""
    scribe.request("wu", "Reverse", "too-late-to-reverse")
    scribe.answer("wu", "Reverse", "too-late-to-reverse", ok=False)


@CASES.lawful("replays identical")
def one_answer_given_ten_times(scribe: Scribe) -> None:
    scribe.answers += [answer for answer in scribe.answers if answer.key == "ticket-1"] * 9


@CASES.illegal(
    "payment pay_06 is PARKED, and jnl_06, jnl_07 moved money", "payments match journals", "answers are true"
)
def a_parked_payment_that_had_a_journal(scribe: Scribe) -> None:
    """A late holder posted it, and somebody undid that: it must never have had one."""
    parked = scribe.park("open", 70)
    legs = [("acquirer:CNY", 70), ("sales:CNY", -70)]
    scribe.account("acquirer:CNY", "ASSET")
    journal = scribe.journal("settle:open:1", legs, order_id="open", payment_id=parked["payment_id"])
    parked["journal_id"] = journal["journal_id"]
    parked["reversal_journal_id"] = scribe.undo(parked, parked["fence_token"])["journal_id"]
    scribe.move_payment(parked, "REVERSED", parked["fence_token"])
    scribe.see_fence("open", parked["fence_token"])
    scribe.seal()


@CASES.illegal("Park park-open of wu (accountant) was refused, and pay_06 was parked", "answers are true")
def a_parking_that_was_refused_and_done(scribe: Scribe) -> None:
    parked = scribe.park("open", 70)
    scribe.move_payment(parked, "REVERSED", parked["fence_token"])
    scribe.request_of("wu", "Park", "park-open")["response_ok"] = False
    scribe.answers = [answer for answer in scribe.answers if answer.key != "park-open"]


@CASES.illegal(
    "Park park-open of wu (accountant) was acknowledged, and there is pay_06 REVERSED, pay_07 REVERSED",
    "answers are true",
)
def a_parking_that_parked_two_payments(scribe: Scribe) -> None:
    scribe.new_order("other")
    for order_id in ("open", "other"):
        parked = scribe.park(order_id, 70)
        parked["parking_key"] = "park-open"
        scribe.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.illegal("Park park-x of wu (accountant) was acknowledged, and there is no payment", "answers are true")
def a_parking_that_was_acknowledged_and_not_done(scribe: Scribe) -> None:
    scribe.request("wu", "Park", "park-x")
    scribe.answer("wu", "Park", "park-x")


@CASES.lawful("replays identical")
def an_answer_that_nobody_heard(scribe: Scribe) -> None:
    """The reply was lost, and the caller never asked again."""
    scribe.answers = []


@CASES.lawful("one charge per key", "replays identical")
def the_same_key_of_two_clerks(scribe: Scribe) -> None:
    """Keys belong to their caller."""
    scribe.new_order("second")
    scribe.settle("second", clerk="wu", key="settle-plain-1", source="bank")


@CASES.lawful("payments match journals", "answers are true")
def a_card_payment_reversed_unseen(scribe: Scribe) -> None:
    """Nobody knew whether it was charged, so it was reversed before it was ever in the books."""
    unseen = scribe.accept("open", "Settle", "settle-open-1", "li")
    fence = scribe.fence()
    scribe.move_order("open", "PAYING", fence, unseen["payment_id"])
    scribe.submit(unseen, fence, "bank", 70)
    scribe.move_payment(unseen, "UNKNOWN", fence)
    scribe.request("wu", "Reverse", "undo")
    unseen.update(reversal_caller="wu", reversal_role="accountant", reversal_key="undo")
    scribe.move_payment(unseen, "REVERSING", fence)
    scribe.move_payment(unseen, "REVERSED", fence)
    scribe.answer("wu", "Reverse", "undo")
    scribe.answer("li", "Settle", "settle-open-1", ok=False)
    scribe.move_order("open", "UNPAID", fence, unseen["payment_id"])
    scribe.deliver(unseen, "RELEASE")


@CASES.lawful("payments match journals", "answers are true", "moves are legal")
def a_reversal_that_was_parked(scribe: Scribe) -> None:
    """It was being reversed unseen when somebody parked it; both its requests were refused."""
    parked = scribe.park("open", 70, reversing=True)
    scribe.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.lawful("answers are true")
def a_ticket_given_back(scribe: Scribe) -> None:
    """The order was locked for too long; nothing was done, and the ticket can be used again."""
    scribe.accept("", "Pay", "ticket-unused", "li")


@CASES.lawful("paid means charged", "payments match journals")
def a_order_of_the_smallest_amount(scribe: Scribe) -> None:
    scribe.new_order("cent", 1)
    scribe.settle("cent")


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_an_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_a_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)
