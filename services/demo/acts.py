"""The acts: each brings one fault about, looks at what became of it, and says which guard stood against it.

An act is ok if its own check holds, not ok if an order was settled other than once, and unknown (`None`) if its
situation could not be brought about. With guards switched off (`--without`) an act shows what they stop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.checker.snapshot import Snapshot
from services.demo.lanes import Lane, lanes_of
from services.demo.people import Seen
from services.demo.stage import ACCOUNTANTS, CASHIERS, CURRENCY, NotBroughtAbout, Stage, settle_request
from services.devstack.stack import ACQUIRER_INSTANCE
from services.kernel.errors import CountinghouseError

_CLICKS = 10
_ORDERS = 20
_ORDERS_AT_ONCE = 4
#: How long somebody whose reply is dropped waits for it.
_DROPPED_S = 1.0
#: Somebody dead or frozen is waited for by others for a session's length; this is several.
_PATIENCE_S = 8.0


@dataclass(frozen=True, slots=True)
class ActResult:
    """How an act went; `ok` is None where it proves nothing."""

    name: str
    ok: bool | None
    detail: str
    lanes: tuple[Lane, ...] = ()


async def double_click(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """A customer's direct payment: one ticket, ten Pays at once. The ticket is the only guard."""
    payee = await stage.open_wallet(stage.new_id("merchant"))
    ticket = await stage.ticket(stage.cashier, CASHIERS)
    amount = money_pb2.Money(minor_units=stage.rng.randrange(100, 10_000), currency_code=CURRENCY)
    request = payment_pb2.PayRequest(
        ticket_id=ticket, source=payment_pb2.SOURCE_DRAWER, amount=amount, payee_account_id=payee
    )
    instances = (CASHIERS, ACCOUNTANTS)
    seen = await asyncio.gather(
        *(stage.cashier.insist(stage.address(instances[click % 2]), "Pay", request, ticket) for click in range(_CLICKS))
    )
    _all_answered(seen)
    books = await stage.books()
    charges = [row for row in books.journals if row["journal_id"] in _journals_on(books, payee)]
    answers = {(answer.body, answer.error is None) for answer in seen}
    replays = sum(answer.replayed for answer in seen)
    ok = len(charges) == 1 and len(answers) == 1 and all(answer.error is None for answer in seen)
    equal = f"{_CLICKS} equal answers" if len(answers) == 1 else _count(len(answers), "different answer")
    detail = f"{_CLICKS} Pays, one ticket: {_count(len(charges), 'charge')}, {equal}"
    if ok:
        detail += f"; caught by ticket: {replays} got the stored answer"
    lanes = [Lane.of_answer(f"click {number}", "pay", answer) for number, answer in enumerate(seen, start=1)]
    return ok, detail, lanes


async def two_clerks(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """Twenty orders; cashier and accountant press Settle on each at the same moment, at different instances."""
    orders = [await stage.new_order() for _ in range(_ORDERS)]
    counter = asyncio.Semaphore(_ORDERS_AT_ONCE)

    async def contest(order_id: str) -> tuple[Seen, Seen]:
        async with counter:
            return await _both_settle(stage, order_id)

    contests = await asyncio.gather(*(contest(order_id) for order_id in orders))
    _all_answered([seen for pair in contests for seen in pair])
    met = sum(one.began_ms <= other.ended_ms and other.began_ms <= one.ended_ms for one, other in contests)
    if met < _ORDERS:
        raise NotBroughtAbout(f"only at {met} of {_ORDERS} orders did the two clerks meet")
    wins: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    told = 0
    for cashier, accountant in contests:
        wins["cashier"] += cashier.error is None
        wins["accountant"] += accountant.error is None
        for loser in (cashier, accountant):
            if loser.error is not None:
                caught[loser.error.metadata.get("guard", "?")] += 1
                told += bool(loser.error.metadata.get("clerk") and loser.error.metadata.get("settled_at_ms"))
            if loser.first_error is not None and loser.first_error is not loser.error:
                caught[loser.first_error.metadata.get("guard", "?")] += 1
    ok = all((cashier.error is None) != (accountant.error is None) for cashier, accountant in contests)
    detail = f"{_ORDERS} orders, two clerks each: cashier settled {wins['cashier']}, accountant {wins['accountant']}"
    if ok:
        detail += f"; the other {told} were told by whom and when; caught by {_guards(caught)}"
    lanes = await lanes_of(stage, orders[0], contests[0])
    return ok, detail, lanes


async def lost_reply(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """The reply is dropped after the commit; the retry gets the stored answer, at another instance."""
    order_id, key = await stage.new_order(), stage.new_id("settle")
    await stage.arm(CASHIERS, "recorded", failpoint_pb2.FAILPOINT_ACTION_DROP_REPLY, order_id)
    lost = await stage.settle(stage.cashier, CASHIERS, order_id, key, timeout_s=_DROPPED_S, patience_s=_DROPPED_S)
    if not lost.open:
        raise NotBroughtAbout("the reply was not lost")
    again = await stage.settle(stage.cashier, ACCOUNTANTS, order_id, key)
    _all_answered([again])
    charges = _charges(await stage.books(), order_id)
    ok = charges == 1 and again.error is None and (again.replayed or not stage.guards.ticket)
    detail = f"lost after the commit; then asked again: {_count(charges, 'charge')}, replayed: {_yes(again.replayed)}"
    if again.error is not None:
        detail += f", {again.error}"
    return ok, detail, await lanes_of(stage, order_id, (lost, again))


async def killed_mid_payment(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """kill -9 of the instance after the ledger posted and before its own commit; the other instance finishes it."""
    order_id, key = await stage.new_order(), stage.new_id("settle")
    pid = stage.stack.instance(CASHIERS).pid
    await stage.arm(CASHIERS, "posted", failpoint_pb2.FAILPOINT_ACTION_KILL, order_id)
    died = await stage.cashier.ask(stage.address(CASHIERS), "Settle", settle_request(stage.cashier, order_id, key))
    await stage.wait_died(CASHIERS, pid)
    books = await stage.books()
    left = [row["state"] for row in books.payments if row["order_id"] == order_id]
    if left != ["SUBMITTED"] or _charges(books, order_id) != 1:
        raise NotBroughtAbout(f"the ledger was to have posted and the payment not; found {left or 'no payment'}")
    presses = await asyncio.gather(
        stage.settle(stage.cashier, ACCOUNTANTS, order_id, key, patience_s=_PATIENCE_S),
        stage.settle(stage.accountant, ACCOUNTANTS, order_id, stage.new_id("settle"), patience_s=_PATIENCE_S),
    )
    again, other = presses
    books = await stage.quiet_books(within_s=2.0)
    left = [row["state"] for row in books.payments if row["order_id"] == order_id and row["state"] != "DECLINED"]
    charges = _charges(books, order_id)
    ok = left == ["SUCCEEDED"] and charges == 1 and again.error is None
    took_ms = again.ended_ms - died.began_ms
    if ok:
        detail = f"killed before recording it; caught by recovery: finished elsewhere {took_ms} ms later"
    else:
        detail = f"killed before recording it: {_count(charges, 'charge')}, payment {'/'.join(left)}"
    await stage.stack.wait_serving(CASHIERS)
    lanes = await lanes_of(stage, order_id, (died, other))
    return ok, detail, [Lane.of_answer(CASHIERS, "work", died, "kill -9"), *lanes]


async def frozen_holder(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """SIGSTOP past the session's end, about to move money; the other clerk settles; SIGCONT: the fence is stale."""
    order_id, key = await stage.new_order(), stage.new_id("settle")
    await stage.arm(CASHIERS, "submitted", failpoint_pb2.FAILPOINT_ACTION_STOP, order_id)
    frozen = asyncio.create_task(
        stage.cashier.ask(stage.address(CASHIERS), "Settle", settle_request(stage.cashier, order_id, key), timeout_s=15)
    )
    try:
        await stage.wait_frozen(CASHIERS)
        other = await stage.settle(
            stage.accountant, ACCOUNTANTS, order_id, stage.new_id("settle"), patience_s=_PATIENCE_S
        )
        if frozen.done():
            raise NotBroughtAbout("the holder did not stay frozen")
    finally:
        stage.thaw(CASHIERS)
    woken = await frozen
    again = await stage.settle(stage.cashier, ACCOUNTANTS, order_id, key)
    _all_answered([other, again])
    books = await stage.quiet_books(within_s=3.0)
    charges = _charges(books, order_id)
    winners = sum(seen.error is None for seen in (other, again))
    ok = charges == 1 and winners == 1
    detail = f"woken after its session had ended, the holder {_what_it_met(woken)}"
    detail += f"; {_count(charges, 'charge')}, {_count(winners, 'winner')}"
    if ok:
        caught = Counter({_guard_of(woken): 1})
        if other.error is not None:
            caught[_guard_of(other)] += 1
        detail += f"; caught by {_guards(caught)}"
    lanes = await lanes_of(stage, order_id, (woken, other))
    return ok, detail, [Lane.of_answer(CASHIERS, "frozen", woken, f"woken, and {_what_it_met(woken)}"), *lanes]


async def reversal(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """A settled order is reversed by an opposite journal, asked twice and done once, and settled again."""
    order_id = await stage.new_order()
    first = await stage.settle(stage.cashier, CASHIERS, order_id, stage.new_id("settle"))
    _all_answered([first])
    payment_id = payment_pb2.SettleResponse.FromString(first.body).payment.payment_id
    key = stage.new_id("reverse")
    request = payment_pb2.ReverseRequest(request_id=key, payment_id=payment_id, reason="wrong order")
    undone = await asyncio.gather(
        *(
            stage.accountant.insist(stage.address(instance), "Reverse", request, key)
            for instance in (CASHIERS, ACCOUNTANTS)
        )
    )
    again = await stage.settle(stage.accountant, ACCOUNTANTS, order_id, stage.new_id("settle"))
    _all_answered([*undone, again])
    books = await stage.books()
    journals = [row for row in books.journals if row["order_id"] == order_id]
    undoing = sum(bool(row["reversal_of"]) for row in journals)
    order = next(row for row in books.orders if row["order_id"] == order_id)
    ok = (len(journals), undoing, order["state"], order["round"]) == (3, 1, "PAID", 2)
    detail = f"settled, reversed by {_count(undoing, 'opposite journal')}, settled again in round {order['round']}"
    return ok, detail, await lanes_of(stage, order_id, (first, again))


async def silent_bank(stage: Stage) -> tuple[bool, str, list[Lane]]:
    """The outside bank charges a card and does not answer; asked again under the same key, it has charged once."""
    order_id, key = await stage.new_order(), stage.new_id("settle")
    card = f"tok-{order_id}"
    await stage.arm(ACQUIRER_INSTANCE, "charged", failpoint_pb2.FAILPOINT_ACTION_DROP_REPLY, card)
    request = payment_pb2.SettleRequest(request_id=key, order_id=order_id, source=payment_pb2.SOURCE_CARD, card=card)
    unheard = await stage.cashier.ask(stage.address(CASHIERS), "Settle", request)
    told = payment_pb2.SettleResponse.FromString(b"" if unheard.error else unheard.body).payment
    if told.state != payment_pb2.PAYMENT_STATE_UNKNOWN:
        raise NotBroughtAbout(f"the bank's silence was not noticed: {unheard.error or told.state}")
    books = await stage.quiet_books(within_s=_PATIENCE_S)
    again = await stage.cashier.insist(stage.address(ACCOUNTANTS), "Settle", request, key, patience_s=_PATIENCE_S)
    _all_answered([again])
    at_bank = sum(row["reference"] == told.payment_id and row["state"] == "CHARGED" for row in books.charges or ())
    charges = _charges(books, order_id)
    ok = at_bank == charges == 1 and again.error is None
    detail = f"charged, and no reply: UNKNOWN; asked again: {_count(at_bank, 'charge')} there, {charges} in the books"
    if ok:
        detail += "; caught by acquirer-key"
    return ok, detail, await lanes_of(stage, order_id, (unheard, again))


#: In the order in which they are played.
ACTS: dict[str, Callable[[Stage], Awaitable[tuple[bool, str, list[Lane]]]]] = {
    "double click": double_click,
    "two clerks, one order": two_clerks,
    "lost reply": lost_reply,
    "killed mid-payment": killed_mid_payment,
    "frozen holder": frozen_holder,
    "reversal": reversal,
    "the bank did not answer": silent_bank,
}


async def play(name: str, stage: Stage) -> ActResult:
    """Plays one act."""
    try:
        ok, detail, lanes = await ACTS[name](stage)
    except NotBroughtAbout as why:
        return ActResult(name, None, f"could not be brought about: {why}")
    except (CountinghouseError, TimeoutError) as error:
        return ActResult(name, None, f"broke off: {str(error) or type(error).__name__}")
    return ActResult(name, ok, detail, tuple(lanes))


async def _both_settle(stage: Stage, order_id: str) -> tuple[Seen, Seen]:
    """Both press at once; who is first is left to chance."""
    return await asyncio.gather(
        stage.settle(stage.cashier, CASHIERS, order_id, stage.new_id("settle")),
        stage.settle(stage.accountant, ACCOUNTANTS, order_id, stage.new_id("settle")),
    )


def _all_answered(seen: list[Seen]) -> None:
    """Raises NotBroughtAbout if somebody has no definitive answer yet."""
    waiting = [answer for answer in seen if answer.open]
    if waiting:
        raise NotBroughtAbout(f"{len(waiting)} of {len(seen)} calls were never answered: {waiting[0].error}")


def _journals_on(books: Snapshot, account_id: str) -> set[str]:
    return {str(row["journal_id"]) for row in books.postings if row["account_id"] == account_id}


def _charges(books: Snapshot, order_id: str) -> int:
    return sum(row["order_id"] == order_id and not row["reversal_of"] for row in books.journals)


def _what_it_met(woken: Seen) -> str:
    if woken.error is None:
        return "was given the payment as it stands"
    return f"was refused with {woken.error.reason}"


def _guard_of(seen: Seen) -> str:
    """Which guard stopped somebody. A holder that woke and found its journal written was stopped by its unique key."""
    return "unique" if seen.error is None else seen.error.metadata.get("guard", "?")


def _guards(caught: Counter[str]) -> str:
    return ", ".join(f"{guard} {count}×" if count > 1 else guard for guard, count in caught.most_common())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
