"""The acts: each injects one fault, checks the outcome, and names the guard that stopped the fault.

An act is ok if its own check holds, not ok if an order was settled other than once, and unknown (`None`) if its
situation could not be brought about. With guards switched off (`--guards-off`) an act shows what they stop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.payment.v1 import payment_pb2
from services.checker.snapshot import Snapshot
from services.demo.lanes import Lane, lanes_of
from services.devstack.stack import ACQUIRER_INSTANCE
from services.kernel.errors import CountinghouseError
from services.testkit.client import CallResult, money
from services.testkit.failpoints import DELAY, DROP_REPLY, KILL, STOP
from services.testkit.harness import ONE, AnyHarness
from services.testkit.waiting import NotBroughtAbout, wait_until

_CLICKS = 10
_ORDERS = 20
_ORDERS_AT_ONCE = 4
#: How long a caller whose reply is dropped waits for it.
_DROPPED_S = 1.0
#: Others wait for a dead or frozen process for a session's length; this is several, on a busy machine too.
_PATIENCE_S = 20.0
#: How long a frozen holder's caller waits: longer than the others.
_FROZEN_S = 30.0
#: By how much a charge is late: longer than a payment waits for it, and than its reversal takes.
_LATE_S = 8.0
#: How often a call that was refused is sent again, and how long after each the fault may yet strike.
_TRIES = 5
_STRIKES_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class ActResult:
    """How an act went; `ok` is None where it proves nothing."""

    name: str
    ok: bool | None
    detail: str
    lanes: tuple[Lane, ...] = ()


#: Whether the orders were settled once, what came of it in words, and the lanes.
Act = Callable[[AnyHarness], Awaitable[tuple[bool, str, list[Lane]]]]


async def double_click(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Pay directly as a customer, ten times at once with one ticket. The ticket is the only guard."""
    payee = await harness.open_wallet(harness.new_id("merchant"))
    ticket = await harness.cashier.ticket(at=ONE)
    harness.tell(f"{harness.cashier.name} fetches ticket {ticket}, which pays once")
    request = payment_pb2.PayRequest(
        ticket_id=ticket,
        source=payment_pb2.SOURCE_DRAWER,
        amount=money(harness.rng.randrange(100, 10_000)),
        payee_account_id=payee,
    )
    harness.tell(f"{harness.cashier.name} sends the same Pay with it {_CLICKS} times at once")
    seen = await asyncio.gather(
        *(harness.cashier.call_until_answered(request, at=(ONE, harness.second)[click % 2]) for click in range(_CLICKS))
    )
    _all_answered(seen)
    harness.tell(f"all {_CLICKS} calls are answered")
    books = await harness.snapshot()
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


async def two_clerks(harness: AnyHarness, *, count: int = _ORDERS) -> tuple[bool, str, list[Lane]]:
    """Settle each of some orders twice at the same moment, as cashier and accountant at different instances."""
    orders = [await harness.new_order() for _ in range(count)]
    limit = asyncio.Semaphore(_ORDERS_AT_ONCE)

    async def contest(order_id: str) -> tuple[CallResult, CallResult]:
        async with limit:
            return await asyncio.gather(
                harness.cashier.settle(order_id, at=ONE), harness.accountant.settle(order_id, at=harness.second)
            )

    harness.tell(f"{harness.cashier.name} and {harness.accountant.name} settle at the same moment")
    contests = await asyncio.gather(*(contest(order_id) for order_id in orders))
    _all_answered([seen for pair in contests for seen in pair])
    met = sum(one.began_ms <= other.ended_ms and other.began_ms <= one.ended_ms for one, other in contests)
    if met < count:
        raise NotBroughtAbout(f"only at {met} of {count} orders did the two clerks meet")
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
    detail = (
        f"{_count(count, 'order')}, two clerks each: cashier settled {wins['cashier']}, accountant {wins['accountant']}"
    )
    if ok:
        detail += f"; the other {told} were told by whom and when; caught by {_guards(caught)}"
    lanes = await lanes_of(harness, orders[0], contests[0])
    return ok, detail, lanes


async def lost_reply(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Drop the reply after the commit; the retry at another instance gets the stored answer."""
    order_id, key = await harness.new_order(), harness.new_id("settle")
    struck = await _arm(harness, ONE, "recorded", DROP_REPLY, order_id)
    lost = await _call_until(lambda: harness.cashier.settle_once(order_id, key, at=ONE, timeout_s=_DROPPED_S), struck)
    if not lost.open:
        raise NotBroughtAbout("the reply was not lost")
    harness.tell(f"{harness.cashier.name} settles, and is not answered; the payment is committed")
    again = await harness.cashier.settle(order_id, key, at=harness.second)
    _all_answered([again])
    harness.tell(f"{harness.cashier.name} asks again under the same request id, and is answered")
    charges = _charges(await harness.snapshot(), order_id)
    ok = charges == 1 and again.error is None and (again.replayed or "ticket" in harness.stack.describe().guards_off)
    detail = f"lost after the commit; then asked again: {_count(charges, 'charge')}, replayed: {_yes(again.replayed)}"
    if again.error is not None:
        detail += f", {again.error}"
    return ok, detail, await lanes_of(harness, order_id, (lost, again))


async def killed_mid_payment(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Kill the instance (SIGKILL) after the ledger posted and before its own commit; the other one finishes it."""
    order_id, key = await harness.new_order(), harness.new_id("settle")
    pid = await harness.failpoints.arm(ONE, "posted", KILL, order_id)

    async def killed() -> bool:
        return harness.pid(ONE) != pid

    died = await _call_until(lambda: harness.cashier.settle_once(order_id, key, at=ONE), killed)
    await harness.wait_died(ONE, pid)
    books = await harness.snapshot()
    left = [row["state"] for row in books.payments if row["order_id"] == order_id]
    if left != ["SUBMITTED"] or _charges(books, order_id) != 1:
        raise NotBroughtAbout(f"the ledger was to have posted and the payment not; found {left or 'no payment'}")
    harness.tell(f"{ONE} is dead: the ledger has the journal, and the payment is still SUBMITTED")
    other_clerk = harness.accountant.name
    harness.tell(
        f"{harness.cashier.name} asks again under the same request id, and {other_clerk} settles the order, too"
    )
    again, other = await asyncio.gather(
        harness.cashier.settle(order_id, key, at=harness.second, within_s=_PATIENCE_S),
        harness.accountant.settle(order_id, at=harness.second, within_s=_PATIENCE_S),
    )
    books = (await harness.settled_snapshot(within_s=2.0)).snapshot
    left = [row["state"] for row in books.payments if row["order_id"] == order_id and row["state"] != "DECLINED"]
    charges = _charges(books, order_id)
    ok = left == ["SUCCEEDED"] and charges == 1 and again.error is None
    took_ms = again.ended_ms - died.began_ms
    if ok:
        where = "by the next process" if harness.second == ONE else "elsewhere"
        detail = f"killed before recording it; caught by recovery: finished {where} {took_ms} ms later"
    else:
        detail = f"killed before recording it: {_count(charges, 'charge')}, payment {'/'.join(left)}"
    await harness.stack.wait_serving(ONE)
    harness.tell(f"{ONE} serves again")
    lanes = await lanes_of(harness, order_id, (died, other))
    return ok, detail, [Lane.of_answer(ONE, "work", died, "kill -9"), *lanes]


async def frozen_holder(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Freeze a holder before it posts, past its session's end; the other clerk settles; it wakes with a stale fence."""
    order_id, key = await harness.new_order(), harness.new_id("settle")
    struck = await _arm(harness, ONE, "submitted", STOP, order_id)
    frozen = asyncio.create_task(
        _call_until(lambda: harness.cashier.settle_once(order_id, key, at=ONE, timeout_s=_FROZEN_S), struck)
    )
    try:
        await harness.wait_frozen(ONE)
        harness.tell(f"{ONE} is frozen: it holds the lock of the order, and its payment is SUBMITTED")
        other = await harness.accountant.settle(order_id, at=harness.second, within_s=_PATIENCE_S)
        if frozen.done():
            raise NotBroughtAbout("the holder did not stay frozen")
        clerk = harness.accountant.name
        harness.tell(f"{clerk} settles at {harness.second}, and is answered once the session of {ONE} has ended")
    except asyncio.CancelledError:
        frozen.cancel()  # it may not have come to the fault yet
        raise
    finally:
        harness.thaw(ONE)
        await asyncio.gather(frozen, return_exceptions=True)
    woken = frozen.result()
    harness.tell(f"{ONE} is woken, and {_what_it_met(woken)}")
    again = await harness.cashier.settle(order_id, key, at=harness.second)
    _all_answered([other, again])
    books = (await harness.settled_snapshot(within_s=3.0)).snapshot
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
    lanes = await lanes_of(harness, order_id, (woken, other))
    return ok, detail, [Lane.of_answer(ONE, "frozen", woken, f"woken, and {_what_it_met(woken)}"), *lanes]


async def reversal(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Reverse a settled order twice, which writes one opposite journal, and settle it again."""
    order_id = await harness.new_order()
    first = await harness.cashier.settle(order_id, at=ONE)
    _all_answered([first])
    payment_id, key = first.payment.payment_id, harness.new_id("reverse")
    undone = await asyncio.gather(
        *(harness.accountant.reverse(payment_id, key, at=instance) for instance in (ONE, harness.second))
    )
    again = await harness.accountant.settle(order_id, at=harness.second)
    _all_answered([*undone, again])
    books = await harness.snapshot()
    journals = [row for row in books.journals if row["order_id"] == order_id]
    undoing = sum(bool(row["reversal_of"]) for row in journals)
    order = next(row for row in books.orders if row["order_id"] == order_id)
    ok = (len(journals), undoing, order["state"], order["round"]) == (3, 1, "PAID", 2)
    detail = f"settled, reversed by {_count(undoing, 'opposite journal')}, settled again in round {order['round']}"
    return ok, detail, await lanes_of(harness, order_id, (first, again))


async def silent_acquirer(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Let the acquirer charge a card and not answer; asked again under the same key, it has charged once."""
    order_id, key = await harness.new_order(), harness.new_id("settle")
    card = f"tok-{order_id}"
    struck = await _arm(harness, ACQUIRER_INSTANCE, "charged", DROP_REPLY, card)
    first = await _settle_by_silent_acquirer(harness, order_id, key, card, struck)
    harness.tell("the payment service asks the acquirer again by itself, under the same key")
    books = (await harness.settled_snapshot(within_s=_PATIENCE_S)).snapshot
    again = await harness.cashier.settle(order_id, key, card=card, at=harness.second, within_s=_PATIENCE_S)
    _all_answered([again])
    harness.tell(f"{harness.cashier.name} asks again under the same request id, and is answered")
    payment_id = first.answer.payment_id
    charged = sum(row["reference"] == payment_id and row["state"] == "CHARGED" for row in books.charges or ())
    charges = _charges(books, order_id)
    ok = charged == charges == 1 and again.error is None
    detail = f"charged, and no reply: UNKNOWN; asked again: {_count(charged, 'charge')} there, {charges} in the books"
    if ok:
        detail += "; caught by acquirer-key"
    return ok, detail, await lanes_of(harness, order_id, (first, again))


async def late_charge(harness: AnyHarness) -> tuple[bool, str, list[Lane]]:
    """Reverse a card payment whose charge is still on its way; the acquirer refuses the charge when it arrives."""
    order_id, key = await harness.new_order(), harness.new_id("settle")
    card = f"tok-{order_id}"
    struck = await _arm(harness, ACQUIRER_INSTANCE, "accepted", DELAY, card, delay_s=_LATE_S)
    first = await _settle_by_silent_acquirer(harness, order_id, key, card, struck)
    payment = first.payment
    undone = await harness.accountant.reverse(payment.payment_id, at=harness.second)
    _all_answered([undone])
    harness.tell(
        f"{harness.accountant.name} reverses the payment: the acquirer is told that its key is not to be charged"
    )
    decided = await _late_decision(harness, payment.acquirer_key)
    harness.tell(f"the charge arrives at the acquirer {_LATE_S:g} s late")
    again = await harness.accountant.settle(order_id, at=harness.second)
    _all_answered([again])
    harness.tell(f"{harness.accountant.name} settles the order from the bank")
    books = await harness.snapshot()
    state = next((str(row["state"]) for row in books.charges or () if row["key"] == payment.acquirer_key), "none")
    left = [str(row["state"]) for row in books.payments if row["payment_id"] == payment.payment_id]
    charges = _charges(books, order_id)
    ok = (state, left, charges, again.error) == ("TOMBSTONE", ["REVERSED"], 1, None)
    detail = f"reversed before it was charged; the late charge was answered {decided}: the card's key is {state}"
    detail += f", the payment {'/'.join(left)}, {_count(charges, 'charge')} in the books, from the bank"
    if ok:
        detail += "; caught by acquirer-key"
    return ok, detail, await lanes_of(harness, order_id, (first, again))


#: Those of the demonstration, in the order in which they are run.
ACTS: dict[str, Act] = {
    "double click": double_click,
    "two clerks, one order": two_clerks,
    "lost reply": lost_reply,
    "killed mid-payment": killed_mid_payment,
    "frozen holder": frozen_holder,
    "reversal": reversal,
    "the acquirer did not answer": silent_acquirer,
}


async def run_act(name: str, harness: AnyHarness, act: Act | None = None) -> ActResult:
    """Run one act.

    Args:
        act: None: the one of the demonstration that has this name.
    """
    try:
        ok, detail, lanes = await (act or ACTS[name])(harness)
    except NotBroughtAbout as why:
        return ActResult(name, None, f"could not be brought about: {why}")
    except (CountinghouseError, TimeoutError) as error:
        return ActResult(name, None, f"broke off: {str(error) or type(error).__name__}")
    return ActResult(name, ok, detail, tuple(lanes))


async def _call_until(send: Callable[[], Awaitable[CallResult]], struck: Callable[[], Awaitable[bool]]) -> CallResult:
    """Send a request until the fault has struck, and return how that call ended.

    A call may be refused before it comes to the fault, while its service has no session with ZooKeeper.

    Raises:
        NotBroughtAbout: It has a final answer without the fault, or is refused again and again.
    """
    for _ in range(_TRIES):
        seen = await send()
        if await struck():
            return seen
        if not seen.open:
            break
        # A caller that stopped waiting may have been served nevertheless.
        with suppress(NotBroughtAbout):
            await wait_until(struck, "", _STRIKES_WITHIN_S)
            return seen
    raise NotBroughtAbout(f"the call did not come to the fault: {seen.error or seen.answer.state}")


async def _arm(
    harness: AnyHarness,
    instance: str,
    point: str,
    action: failpoint_pb2.FailpointAction.ValueType,
    subject: str,
    *,
    delay_s: float = 0.0,
) -> Callable[[], Awaitable[bool]]:
    """Arm a failpoint; return what says whether it has fired since, and so is armed no more.

    Raises:
        NotBroughtAbout: It cannot be armed.
    """
    before = await harness.failpoints.fired(instance, point)
    await harness.failpoints.arm(instance, point, action, subject, delay_s=delay_s)

    async def has_fired() -> bool:
        return await harness.failpoints.fired(instance, point) > before

    return has_fired


async def _settle_by_silent_acquirer(
    harness: AnyHarness, order_id: str, key: str, card: str, struck: Callable[[], Awaitable[bool]]
) -> CallResult:
    """Settle by a card of which the acquirer does not answer in time; return the answer, which is UNKNOWN.

    Raises:
        NotBroughtAbout: It is another one.
    """
    first = await _call_until(lambda: harness.cashier.settle_once(order_id, key, card=card, at=ONE), struck)
    if first.answer.state != "UNKNOWN":
        raise NotBroughtAbout(f"the acquirer's silence was not noticed: {first.error or first.answer.state}")
    harness.tell(f"{harness.cashier.name} settles by card {card}, and is told that the outcome is UNKNOWN")
    return first


async def _late_decision(harness: AnyHarness, key: str) -> str:
    """Wait until the acquirer has decided on a charge of a key; return its word for it.

    Raises:
        NotBroughtAbout: It does not, or the charge came before the reversal.
    """
    decided: list[str] = []

    async def arrived() -> bool:
        entries = (await harness.operator.ask(acquirer_pb2.ListLogRequest(key=key))).entries
        decided[:] = [entry.word for entry in entries if entry.method == "Charge" and entry.word != "RECEIVED"]
        return bool(decided)

    await wait_until(arrived, "the delayed charge never arrived at the acquirer")
    if decided[0] == "CHARGED":
        raise NotBroughtAbout("the charge arrived before the reversal")
    return decided[0]


def _all_answered(seen: list[CallResult]) -> None:
    """Raise NotBroughtAbout if a caller has no definitive answer yet."""
    waiting = [answer for answer in seen if answer.open]
    if waiting:
        raise NotBroughtAbout(f"{len(waiting)} of {len(seen)} calls were never answered: {waiting[0].error}")


def _journals_on(books: Snapshot, account_id: str) -> set[str]:
    return {str(row["journal_id"]) for row in books.postings if row["account_id"] == account_id}


def _charges(books: Snapshot, order_id: str) -> int:
    return sum(row["order_id"] == order_id and not row["reversal_of"] for row in books.journals)


def _what_it_met(woken: CallResult) -> str:
    if woken.error is None:
        return "was given the payment as it stands"
    return f"was refused with {woken.error.reason}"


def _guard_of(seen: CallResult) -> str:
    """Return the guard that stopped a caller: `unique` for a holder that woke and found its journal written."""
    return "unique" if seen.error is None else seen.error.metadata.get("guard", "?")


def _guards(caught: Counter[str]) -> str:
    return ", ".join(f"{guard} {count}×" if count > 1 else guard for guard, count in caught.most_common())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
