"""The checks of orders, payments and journals together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.checker.evidence import Answered
from tests.unit.checker.cases import Cases, Illegal, Lawful, by_snapshot, payment
from tests.unit.checker.dataset import DatasetBuilder

CASES = Cases(by_snapshot)


# Charged once


@CASES.illegal(
    "order plain was settled 2 times: jnl_01, jnl_06",
    *("settled at most once", "paid means charged", "business keys unique", "outbox delivered once"),
)
@CASES.illegal(
    "order plain has 2 settle journals and 0 reversals",
    *("settled at most once", "paid means charged", "business keys unique", "outbox delivered once"),
)
def a_order_charged_twice(dataset: DatasetBuilder) -> None:
    """Two clerks, no guard: two payments, two journals, one order."""
    second = dataset.accept("plain", "Settle", "settle-again", "wu")
    dataset.charge(second, dataset.fence(), "bank", "settle:plain:1", 1250)
    dataset.answer("wu", "Settle", "settle-again")
    dataset.seal()


@CASES.illegal(
    "payment pay_01 names jnl_01; what stands: jnl_01, jnl_06",
    *("payments match journals", "settled at most once", "paid means charged", "business keys unique"),
)
def one_payment_posted_twice(dataset: DatasetBuilder) -> None:
    """A frozen holder wakes and posts after another has posted the same payment."""
    legs = [(leg["account_id"], leg["amount"]) for leg in dataset.legs("jnl_01")]
    dataset.journal("settle:plain:1", legs, order_id="plain", payment_id="pay_01")
    dataset.seal()


@CASES.illegal("Pay ticket-1 of li (cashier) charged 2 times: pay_05, pay_06", "one charge per key")
def a_ticket_charged_twice(dataset: DatasetBuilder) -> None:
    dataset.pay("ticket-1", 1_000, payee="wallet:mei:CNY")
    dataset.seal()


@CASES.illegal("journal jnl_05 was reversed 2 times", "reversed at most once", "business keys unique")
def a_journal_reversed_twice(dataset: DatasetBuilder) -> None:
    direct = payment(dataset, "ticket-1")
    dataset.reverse(direct)
    dataset.undo(direct)
    dataset.pay("ticket-2", 5_000, payee="wallet:mei:CNY")
    dataset.accounts[3]["overdraft_limit"] = 1_000
    dataset.seal()


@CASES.illegal("reverses jnl_00, which does not exist", "reversed at most once")
def a_reversal_of_nothing(dataset: DatasetBuilder) -> None:
    direct = payment(dataset, "ticket-1")
    legs = [("drawer:CNY", -1), ("wallet:mei:CNY", 1)]
    dataset.journal("reverse:jnl_00", legs, payment_id=direct["payment_id"], reversal_of="jnl_00")
    dataset.seal()


@CASES.illegal("journal jnl_06 does not undo the whole of jnl_05", "reversed at most once")
def a_reversal_of_a_part(dataset: DatasetBuilder) -> None:
    for leg in dataset.legs(dataset.reverse(payment(dataset, "ticket-1"))["journal_id"]):
        leg["amount"] //= 2
    dataset.seal()


# Paid means charged


@CASES.illegal("order open is PAID with 0 succeeded payments", "paid means charged", "outbox delivered once")
def a_order_paid_by_nobody(dataset: DatasetBuilder) -> None:
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, "pay_99")
    dataset.move_order("open", "PAID", fence, "pay_99")


@CASES.illegal(
    "order plain is UNPAID with 1 succeeded payments",
    *("paid means charged", "outbox delivered once"),
)
def a_order_charged_and_released(dataset: DatasetBuilder) -> None:
    dataset.order_events[2]["to_state"] = "UNPAID"
    dataset.order("plain").update(state="UNPAID", payment_id="", settled_by_name="")


@CASES.illegal("order plain names pay_04; what succeeded: pay_01", "paid means charged", "moves are legal")
def a_order_that_names_another_payment(dataset: DatasetBuilder) -> None:
    dataset.order("plain")["payment_id"] = "pay_04"


@CASES.illegal("order plain of 12.49 CNY was settled by 12.50 CNY", "paid means charged")
def a_order_of_another_amount(dataset: DatasetBuilder) -> None:
    dataset.order("plain")["amount_minor_units"] = 1249


@CASES.illegal("order plain of 12.50 USD was settled by 12.50 CNY", "paid means charged")
def a_order_in_another_currency(dataset: DatasetBuilder) -> None:
    dataset.order("plain")["currency_code"] = "USD"


@CASES.illegal("journals of order plain stand without it", "paid means charged", "outbox delivered once")
def a_lost_order(dataset: DatasetBuilder) -> None:
    dataset.orders.remove(dataset.order("plain"))
    dataset.order_events = [row for row in dataset.order_events if row["order_id"] != "plain"]


# Payments and their journals


@CASES.illegal(
    "order plain is PAID with 0 settle journals that stand",
    *("paid means charged", "payments match journals", "answers are true"),
)
def a_lost_journal(dataset: DatasetBuilder) -> None:
    """The clerk was told that it is settled; no money moved."""
    dataset.remove_journal("jnl_01")
    dataset.seal()


@CASES.illegal("payment pay_05 names jnl_05; what stands: none", "payments match journals", "answers are true")
def a_lost_journal_of_a_direct_payment(dataset: DatasetBuilder) -> None:
    dataset.remove_journal("jnl_05")
    dataset.seal()


@CASES.illegal("payment pay_01 of 12.51 CNY moved 12.50 CNY", "payments match journals")
def a_payment_of_another_amount(dataset: DatasetBuilder) -> None:
    payment(dataset, "settle-plain-1")["amount_minor"] += 1


@CASES.illegal("payment pay_05 of 10.00 USD moved 10.00 CNY", "payments match journals")
def a_payment_in_another_currency(dataset: DatasetBuilder) -> None:
    payment(dataset, "ticket-1")["currency"] = "USD"


@CASES.illegal("payment pay_05 names jnl_04; what stands: jnl_05", "payments match journals")
def a_payment_that_names_another_journal(dataset: DatasetBuilder) -> None:
    payment(dataset, "ticket-1")["journal_id"] = "jnl_04"


@CASES.illegal("payment pay_06 is DECLINED, and journal jnl_06 stands", "payments match journals", "answers are true")
def a_declined_payment_with_a_journal(dataset: DatasetBuilder) -> None:
    """Time made UNKNOWN failed, and the money had moved."""
    declined = dataset.accept("", "Pay", "ticket-2", "li")
    dataset.move_payment(declined, "SUBMITTED", 0)
    dataset.journal("pay:2", [("drawer:CNY", 5), ("wallet:mei:CNY", -5)], payment_id=declined["payment_id"])
    dataset.move_payment(declined, "DECLINED", 0)
    dataset.answer("li", "Pay", "ticket-2", ok=False)
    dataset.seal()


@CASES.illegal(
    "payment pay_06 is DECLINED, and jnl_06, jnl_07 moved money", "payments match journals", "answers are true"
)
def a_declined_payment_whose_journal_was_undone(dataset: DatasetBuilder) -> None:
    """Moving it back is not the same as never having moved it."""
    a_declined_payment_with_a_journal(dataset)
    declined = payment(dataset, "ticket-2")
    dataset.undo(declined | {"journal_id": "jnl_06"})
    dataset.seal()


@CASES.illegal("payment pay_05 is REVERSED, and journal jnl_05 stands", "payments match journals", "answers are true")
def a_reversal_that_never_reached_the_ledger(dataset: DatasetBuilder) -> None:
    reversal = dataset.reverse(payment(dataset, "ticket-1"))
    dataset.remove_journal(reversal["journal_id"])
    dataset.seal()


@CASES.illegal(
    "payment pay_05 is REVERSED, and no journal undoes jnl_05", "payments match journals", "answers are true"
)
def a_reversed_payment_without_any_journal(dataset: DatasetBuilder) -> None:
    dataset.reverse(payment(dataset, "ticket-1"))
    dataset.remove_journal("jnl_06")
    dataset.remove_journal("jnl_05")
    dataset.seal()


@CASES.illegal("payment pay_05 is REVERSED, and no journal undoes jnl_05", "payments match journals")
def a_reversed_payment_that_names_its_own_journal_as_the_opposite(dataset: DatasetBuilder) -> None:
    direct = payment(dataset, "ticket-1")
    dataset.reverse(direct)
    direct["reversal_journal_id"] = direct["journal_id"]
    dataset.seal()


@CASES.illegal("journals of payment pay_05 stand without it", "payments match journals", "answers are true")
def a_lost_payment(dataset: DatasetBuilder) -> None:
    dataset.remove_payment(payment(dataset, "ticket-1"))


# Answers


@CASES.illegal(
    "Pay ticket-1 of li (cashier) was acknowledged, and no journal moved", "answers are true", "payments match journals"
)
def an_acknowledged_payment_without_a_journal(dataset: DatasetBuilder) -> None:
    dataset.remove_journal("jnl_05")
    dataset.seal()


@CASES.illegal("Settle settle-plain-1 of li (cashier) was refused, and jnl_01 moved money", "answers are true")
def a_refused_payment_with_a_journal(dataset: DatasetBuilder) -> None:
    dataset.request_of("li", "Settle", "settle-plain-1")["response_ok"] = False


@CASES.illegal("Settle too-late of wu (accountant) was answered and has no payment", "answers are true")
def an_answer_without_a_payment(dataset: DatasetBuilder) -> None:
    dataset.remove_payment(payment(dataset, "too-late"))


@CASES.illegal("Reverse reverse-pay_03 of wu (accountant) was refused, and jnl_03 moved money", "answers are true")
def a_refused_reversal_that_happened(dataset: DatasetBuilder) -> None:
    dataset.request_of("wu", "Reverse", "reverse-pay_03")["response_ok"] = False


@CASES.illegal("Reverse imagined of wu (accountant) was answered and has no payment", "answers are true")
def an_acknowledged_reversal_of_no_payment(dataset: DatasetBuilder) -> None:
    dataset.request("wu", "Reverse", "imagined")
    dataset.answer("wu", "Reverse", "imagined")


@CASES.illegal("ticket-1 was answered with something that is not stored", "replays identical")
def a_replay_that_differs(dataset: DatasetBuilder) -> None:
    dataset.answers.append(Answered("ticket-1", True, b"another payment"))


@CASES.illegal("ticket-1 got 2 different answers", "replays identical")
def a_success_replayed_as_a_refusal(dataset: DatasetBuilder) -> None:
    stored = next(answer for answer in dataset.answers if answer.key == "ticket-1")
    dataset.answers.append(Answered("ticket-1", False, stored.body))


# Lawful


@CASES.lawful("one charge per key")
def a_second_payment_of_a_ticket_that_moved_nothing(dataset: DatasetBuilder) -> None:
    second = dataset.accept("", "Pay", "ticket-1", "li")
    dataset.request_of("li", "Pay", "ticket-1")["state"] = "DONE"
    dataset.move_payment(second, "DECLINED", 0)


@CASES.lawful("one charge per key", "replays identical")
def two_persons_of_one_name_use_one_request_id(dataset: DatasetBuilder) -> None:
    """Cashier li and customer li."""
    dataset.settle("open", key="same")
    second = dataset.pay("ticket-1b", 100, payee="wallet:mei:CNY")
    request = dataset.request_of("li", "Pay", "ticket-1b")
    request.update(caller_role="customer", method="Settle", key="same")
    second.update(request_role="customer", request_method="Settle", request_key="same", clerk_role="customer")
    dataset.calls[-1].kind = "Settle"
    dataset.calls[-1].arguments = replace(dataset.calls[-1].arguments, role="customer", key="same")
    dataset.answers.pop()


@CASES.lawful("settled at most once", "reversed at most once", "business keys unique", "moves are legal")
def three_rounds(dataset: DatasetBuilder) -> None:
    """An order may be reversed and settled as often as one likes."""
    standing = payment(dataset, "settle-reversed-2")
    for clerk in ("li", "wu", "li"):
        dataset.reverse(standing)
        standing = dataset.settle("reversed", clerk=clerk)


@CASES.lawful("settled at most once", "paid means charged")
def two_declined_beside_one_success(dataset: DatasetBuilder) -> None:
    dataset.decline("plain", key="too-late-again")
    dataset.decline("plain", key="and-again", clerk="li")


@CASES.lawful("paid means charged", "payments match journals", "outbox delivered once")
def a_decline_that_releases_its_order(dataset: DatasetBuilder) -> None:
    """The wallet was empty; the next clerk takes cash."""
    poor = dataset.accept("open", "Settle", "settle-open-1", "li")
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, poor["payment_id"])
    dataset.move_payment(poor, "SUBMITTED", fence)
    dataset.move_payment(poor, "DECLINED", fence)
    dataset.answer("li", "Settle", "settle-open-1", ok=False)
    dataset.move_order("open", "UNPAID", fence, poor["payment_id"])
    dataset.deliver(poor, "RELEASE")
    dataset.settle("open", key="settle-open-2")


@CASES.lawful("payments match journals", "answers are true", "moves are legal")
def a_reversal_that_the_ledger_refuses(dataset: DatasetBuilder) -> None:
    """There was too little in the drawer to give back; the payment stands."""
    direct = payment(dataset, "ticket-1")
    dataset.request("wu", "Reverse", "no-cash")
    direct.update(reversal_caller="wu", reversal_role="accountant", reversal_key="no-cash")
    dataset.move_payment(direct, "REVERSING", 0)
    dataset.move_payment(direct, "SUCCEEDED", 0)
    dataset.answer("wu", "Reverse", "no-cash", ok=False)


@CASES.lawful("answers are true")
def a_reversal_refused_because_another_was_first(dataset: DatasetBuilder) -> None:
    """Its payment bears the other's name."""
    dataset.request("wu", "Reverse", "too-late-to-reverse")
    dataset.answer("wu", "Reverse", "too-late-to-reverse", ok=False)


@CASES.lawful("replays identical")
def one_answer_given_ten_times(dataset: DatasetBuilder) -> None:
    dataset.answers += [answer for answer in dataset.answers if answer.key == "ticket-1"] * 9


@CASES.illegal(
    "payment pay_06 is PARKED, and jnl_06, jnl_07 moved money", "payments match journals", "answers are true"
)
def a_parked_payment_that_had_a_journal(dataset: DatasetBuilder) -> None:
    """A late holder posted it, and somebody undid that: it must never have had one."""
    parked = dataset.park("open", 70)
    legs = [("acquirer:CNY", 70), ("sales:CNY", -70)]
    dataset.account("acquirer:CNY", "ASSET")
    journal = dataset.journal("settle:open:1", legs, order_id="open", payment_id=parked["payment_id"])
    parked["journal_id"] = journal["journal_id"]
    parked["reversal_journal_id"] = dataset.undo(parked, parked["fence_token"])["journal_id"]
    dataset.move_payment(parked, "REVERSED", parked["fence_token"])
    dataset.see_fence("open", parked["fence_token"])
    dataset.seal()


@CASES.illegal("Park park-open of wu (accountant) was refused, and pay_06 was parked", "answers are true")
def a_parking_that_was_refused_and_done(dataset: DatasetBuilder) -> None:
    parked = dataset.park("open", 70)
    dataset.move_payment(parked, "REVERSED", parked["fence_token"])
    dataset.request_of("wu", "Park", "park-open")["response_ok"] = False
    dataset.answers = [answer for answer in dataset.answers if answer.key != "park-open"]


@CASES.illegal(
    "Park park-open of wu (accountant) was acknowledged, and there is pay_06 REVERSED, pay_07 REVERSED",
    "answers are true",
)
def a_parking_that_parked_two_payments(dataset: DatasetBuilder) -> None:
    dataset.new_order("other")
    for order_id in ("open", "other"):
        parked = dataset.park(order_id, 70)
        parked["parking_key"] = "park-open"
        dataset.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.illegal("Park park-x of wu (accountant) was acknowledged, and there is no payment", "answers are true")
def a_parking_that_was_acknowledged_and_not_done(dataset: DatasetBuilder) -> None:
    dataset.request("wu", "Park", "park-x")
    dataset.answer("wu", "Park", "park-x")


@CASES.lawful("replays identical")
def an_answer_that_nobody_heard(dataset: DatasetBuilder) -> None:
    """The reply was lost, and the caller never asked again."""
    dataset.answers = []


@CASES.lawful("one charge per key", "replays identical")
def the_same_key_of_two_clerks(dataset: DatasetBuilder) -> None:
    """Keys belong to their caller."""
    dataset.new_order("second")
    dataset.settle("second", clerk="wu", key="settle-plain-1", source="bank")


@CASES.lawful("payments match journals", "answers are true")
def a_card_payment_reversed_unseen(dataset: DatasetBuilder) -> None:
    """Nobody knew whether it was charged, so it was reversed before it was ever in the books."""
    unseen = dataset.accept("open", "Settle", "settle-open-1", "li")
    fence = dataset.fence()
    dataset.move_order("open", "PAYING", fence, unseen["payment_id"])
    dataset.submit(unseen, fence, "bank", 70)
    dataset.move_payment(unseen, "UNKNOWN", fence)
    dataset.request("wu", "Reverse", "undo")
    unseen.update(reversal_caller="wu", reversal_role="accountant", reversal_key="undo")
    dataset.move_payment(unseen, "REVERSING", fence)
    dataset.move_payment(unseen, "REVERSED", fence)
    dataset.answer("wu", "Reverse", "undo")
    dataset.answer("li", "Settle", "settle-open-1", ok=False)
    dataset.move_order("open", "UNPAID", fence, unseen["payment_id"])
    dataset.deliver(unseen, "RELEASE")


@CASES.lawful("payments match journals", "answers are true", "moves are legal")
def a_reversal_that_was_parked(dataset: DatasetBuilder) -> None:
    """It was being reversed unseen when somebody parked it; both its requests were refused."""
    parked = dataset.park("open", 70, reversing=True)
    dataset.move_payment(parked, "REVERSED", parked["fence_token"])


@CASES.lawful("answers are true")
def a_ticket_given_back(dataset: DatasetBuilder) -> None:
    """The order was locked for too long; nothing was done, and the ticket can be used again."""
    dataset.accept("", "Pay", "ticket-unused", "li")


@CASES.lawful("paid means charged", "payments match journals")
def a_order_of_the_smallest_amount(dataset: DatasetBuilder) -> None:
    dataset.new_order("cent", 1)
    dataset.settle("cent")


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)
