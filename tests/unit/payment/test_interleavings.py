"""A charge that comes late against a reversal: every order in which their calls can reach the bank, the books and the
store, and in none of them is money kept that the books say was never charged, or the other way round.

The old holder of the lock slept just before it charged. Meanwhile others lost sight of its payment, and an accountant
undoes it. Copies of the charge may also be on their way by themselves. Each actor goes one call at a time, and all
schedules are played, one after another, on the real operations and the bank's own rules; a situation that has been met
before (what is stored, and what each actor knows) is not played on again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from services.kernel.errors import CountinghouseError, OutcomeUnknown, may_come_right
from services.payment.model import Payment, PaymentState, Source, Step
from services.payment.ports import KeyState
from tests.unit.payment.cluster import InMemoryCluster, Instance, payment_in

SILENCE = OutcomeUnknown("ACQUIRER_SILENT", "no answer")
#: The calls at which the order matters: all that reach the bank, the books, or change the payment.
TURNS = {
    *("charge", "query", "reverse_by_key"),
    *("post", "reverse", "void"),
    *("release", "raise_fence", "schedule_retry", *(step.lower() for step in set(Step) - {Step.EXPIRE})),
}


class Turns:
    """Lets one actor after the other go on by one call.

    Args:
        schedule: Which of those who wait goes next, by place; 0 where it ends.
        met: The situations that were met before; grows.
    """

    def __init__(self, schedule: list[int], met: set[str]) -> None:
        self._schedule = schedule
        self._met = met
        self._waiting: dict[str, asyncio.Future[None]] = {}
        #: The choices made, and among how many; those of a situation that was met before count as none.
        self.taken: list[tuple[int, int]] = []

    def gate(self, actor: str) -> Callable[[str], Awaitable[None]]:
        """The gate of an actor's process."""

        async def gate(name: str) -> None:
            if name in TURNS:
                await self.turn(actor)

        return gate

    async def turn(self, actor: str) -> None:
        """Waits for this actor's turn."""
        turn = self._waiting[actor] = asyncio.get_running_loop().create_future()
        await turn

    async def play(self, look: Callable[[], str], *actors: Awaitable[object]) -> None:
        """Until all have come to their end.

        Args:
            look: Tells one situation from another.
        """
        tasks = [asyncio.ensure_future(actor) for actor in actors]
        while True:
            while sum(task.done() for task in tasks) + len(self._waiting) < len(tasks):  # noqa: ASYNC110  not for long
                await asyncio.sleep(0)
            if not self._waiting:
                break
            self._choose(f"{sorted(self._waiting)} {look()}")
            await asyncio.sleep(0)
        for task in tasks:
            task.result()

    def _choose(self, situation: str) -> None:
        """Lets the next one go on."""
        place = len(self.taken)
        new = place < len(self._schedule) or situation not in self._met
        self._met.add(situation)
        choice = self._schedule[place] if place < len(self._schedule) else 0
        self.taken.append((choice, len(self._waiting) if new else 1))
        self._waiting.pop(sorted(self._waiting)[choice]).set_result(None)


def next_schedule(taken: list[tuple[int, int]]) -> list[int] | None:
    """The schedule after the one that was played, depth first; None: it was the last."""
    while taken and taken[-1][0] == taken[-1][1] - 1:
        taken.pop()
    return [choice for choice, _ in taken[:-1]] + [taken[-1][0] + 1] if taken else None


async def every_schedule(play: Callable[[Turns], Awaitable[None]]) -> int:
    """Plays all of them; how many it took."""
    schedule: list[int] | None = []
    met: set[str] = set()
    played = 0
    while schedule is not None:
        turns = Turns(schedule, met)
        await play(turns)
        played += 1
        schedule = next_schedule(turns.taken)
    return played


async def asleep(
    cluster: InMemoryCluster, *, direct: bool, at: str = "submitted"
) -> tuple[Instance, Callable[[], Awaitable[object]], asyncio.Event, str]:
    """The old holder, stopped just before it charges or at another failpoint, and its call; its lock is lost by now."""
    old = cluster.instance()
    stopped, woken = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        stopped.set()
        await woken.wait()

    old.failpoints.at[at] = sleep
    key = await cluster.ticket(old) if direct else "s1"

    async def press() -> object:
        return await (cluster.pay(old, key, source=Source.CARD) if direct else cluster.settle(old, source=Source.CARD))

    pressing = asyncio.ensure_future(press())
    await stopped.wait()
    cluster.lapse(old)
    return old, lambda: pressing, woken, key


async def told_to_ask_again(call: Awaitable[object]) -> None:
    """Who was overtaken may be told so."""
    try:
        await call
    except CountinghouseError as error:
        if not may_come_right(error):
            raise


def situation_in(cluster: InMemoryCluster, *instances: Instance) -> Callable[[], str]:
    """What is stored anywhere, and what each of these processes knows."""
    return lambda: repr(
        (
            cluster.store.payments,
            cluster.store.requests.rows,
            cluster.store.outbox,
            cluster.ledger.chain,
            cluster.ledger.open,
            cluster.acquirer.charges,
            cluster.orders._orders,
            cluster.orders.fences,
            [one.process.heard for one in instances],
        )
    )


def ended_well(cluster: InMemoryCluster, payment: Payment) -> None:
    """Reversed; nothing is kept, and the books know of a charge exactly if there was one."""
    assert payment.state is PaymentState.REVERSED
    at_bank = KeyState(cluster.acquirer.charges[payment.acquirer_key].state)
    assert at_bank in (KeyState.REFUNDED, KeyState.TOMBSTONE)
    journals = [journal for journal in cluster.ledger.chain if journal.draft.payment_id == payment.payment_id]
    assert len(journals) == (2 if at_bank is KeyState.REFUNDED else 0)
    assert bool(payment.journal_id) is bool(payment.reversal_journal_id) is (at_bank is KeyState.REFUNDED)
    cluster.check()


@pytest.mark.parametrize(
    ("direct", "copies"),
    [
        *(pytest.param(False, copies, id=f"an order, and {copies} copies") for copies in (0, 1, 2)),
        *(pytest.param(True, copies, id=f"without a lock, and {copies} copies") for copies in (0, 1)),
        pytest.param(True, 2, id="without a lock, and 2 copies", marks=pytest.mark.soak),
    ],
)
async def test_late_charge_against_a_reversal(direct: bool, copies: int) -> None:
    """All schedules. Both ends occur, or the test would prove nothing."""
    ends: set[KeyState] = set()

    async def play(turns: Turns) -> None:
        cluster = InMemoryCluster()
        await cluster.new_order()
        old, pressed, woken, key = await asleep(cluster, direct=direct)
        sight_lost = cluster.instance()
        sight_lost.process.fails("charge", SILENCE)
        with suppress(CountinghouseError):
            await sight_lost.operations.recovery.recover()
        payment = cluster.of(key)
        assert payment.state is PaymentState.UNKNOWN
        undoing = cluster.instance()
        old.process.gate, undoing.process.gate = turns.gate("old holder"), turns.gate("undoing")

        async def copy(number: int) -> None:
            await turns.turn(f"copy {number}")
            assert payment.amount is not None
            deadline = cluster.call(payment.clerk).deadline
            await cluster.acquirer.charge(payment.acquirer_key, payment, payment.amount, deadline)

        async def undo() -> None:
            await told_to_ask_again(cluster.reverse(undoing, payment.payment_id))

        woken.set()
        look = situation_in(cluster, old, undoing)
        await turns.play(look, told_to_ask_again(pressed()), undo(), *(copy(number) for number in range(copies)))
        old.process.gate = undoing.process.gate = None
        await cluster.recovered(by=cluster.instance())
        again = payment_in(await cluster.reverse(cluster.instance(), payment.payment_id))
        assert again.payment_id == payment.payment_id
        ended_well(cluster, cluster.of(key))
        ends.add(KeyState(cluster.acquirer.charges[payment.acquirer_key].state))

    played = await every_schedule(play)
    assert played > 20
    assert ends == {KeyState.REFUNDED, KeyState.TOMBSTONE}


def parked_well(cluster: InMemoryCluster, payment: Payment) -> None:
    """The card payment or the drawer's has paid the order, never both; nothing is kept of what paid nothing."""
    drawer = cluster.of("cash")
    paid = [each for each in (payment, drawer) if each.state is PaymentState.SUCCEEDED]
    assert len(paid) == 1
    assert [journal.draft.payment_id for journal in cluster.journals()] == [paid[0].payment_id]
    states = [event.state for event in cluster.store.events if event.payment_id == payment.payment_id]
    if PaymentState.PARKED in states:
        assert states[-2:] == [PaymentState.PARKED, PaymentState.REVERSED]
        at_bank = KeyState(cluster.acquirer.charges[payment.acquirer_key].state)
        assert at_bank in (KeyState.REFUNDED, KeyState.TOMBSTONE)
    cluster.check()


@pytest.mark.parametrize("wakes_at", ["submitted", "charged"])
@pytest.mark.parametrize("copies", [0, pytest.param(1, marks=pytest.mark.long)])
async def test_parking_and_cash_against_a_late_charge_and_a_late_post(wakes_at: str, copies: int) -> None:
    """All schedules of the old holder, about to charge or to post, a clerk who parks it and takes cash, the worker, and
    copies of the charge. Paid once, whichever comes first. Every end occurs, or the test would prove nothing.
    """
    ends: set[tuple[PaymentState, KeyState]] = set()

    async def play(turns: Turns) -> None:
        cluster = InMemoryCluster()
        await cluster.new_order()
        old, pressed, woken, key = await asleep(cluster, direct=False, at=wakes_at)
        payment = cluster.of(key)
        parking, worker = cluster.instance(), cluster.instance()
        for name, one in (("old holder", old), ("parking", parking), ("worker", worker)):
            one.process.gate = turns.gate(name)

        async def copy(number: int) -> None:
            await turns.turn(f"copy {number}")
            assert payment.amount is not None
            deadline = cluster.call(payment.clerk).deadline
            await cluster.acquirer.charge(payment.acquirer_key, payment, payment.amount, deadline)

        async def park_and_take_cash() -> None:
            parking.process.fails("query", SILENCE)
            await told_to_ask_again(cluster.park(parking, payment.payment_id))
            await told_to_ask_again(cluster.settle(parking, "cash"))

        async def reverse_the_parked() -> None:
            await turns.turn("worker")
            await told_to_ask_again(worker.operations.recovery.recover())

        woken.set()
        look = situation_in(cluster, old, parking, worker)
        actors = (told_to_ask_again(pressed()), park_and_take_cash(), reverse_the_parked())
        await turns.play(look, *actors, *(copy(number) for number in range(copies)))
        for one in (old, parking, worker):
            one.process.gate = None
        await cluster.recovered(by=cluster.instance())
        await cluster.settle(cluster.instance(), "cash")
        await cluster.recovered(by=cluster.instance())
        payment = cluster.of(key)
        parked_well(cluster, payment)
        ends.add((payment.state, KeyState(cluster.acquirer.charges[payment.acquirer_key].state)))

    played = await every_schedule(play)
    assert played > 20
    assert (PaymentState.REVERSED, KeyState.REFUNDED) in ends
    if wakes_at == "submitted":
        assert (PaymentState.REVERSED, KeyState.TOMBSTONE) in ends
    assert (PaymentState.SUCCEEDED, KeyState.CHARGED) in ends, "or the journal stood before it could be voided"


def parked_or_reversed_well(cluster: InMemoryCluster, payment: Payment) -> None:
    """Cash has paid the order, and the card payment is REVERSED, by way of PARKED or by its reversal."""
    if payment.parking is not None:
        parked_well(cluster, payment)
    else:
        ended_well(cluster, payment)
    assert (payment.state, cluster.of("cash").state) == (PaymentState.REVERSED, PaymentState.SUCCEEDED)


async def reversing(cluster: InMemoryCluster, key: str) -> tuple[Payment, Instance, Awaitable[object], asyncio.Event]:
    """A payment that others lost sight of and somebody began to reverse; the reversal, overtaken before it asks the
    acquirer, goes on once its event is set.
    """
    sight_lost = cluster.instance()
    for name in ("charge", "query"):
        sight_lost.process.fails(name, SILENCE)
    with suppress(CountinghouseError):
        await sight_lost.operations.recovery.recover()
    undoing = cluster.instance()
    begun, woken = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        begun.set()
        await woken.wait()

    undoing.failpoints.at["submitted"] = sleep
    reversal = asyncio.ensure_future(cluster.reverse(undoing, cluster.of(key).payment_id))
    await begun.wait()
    cluster.lapse(undoing)
    payment = cluster.of(key)
    assert (payment.state, payment.journal_id) == (PaymentState.REVERSING, "")
    return payment, undoing, reversal, woken


@pytest.mark.parametrize("late", ["a holder before its charge", "a holder before its post", "a reversal, and a charge"])
async def test_parking_a_reversal_and_cash_against_what_comes_late(late: str) -> None:
    """All schedules of a clerk who parks a payment that is being reversed and takes cash, the worker, and whoever was
    overtaken: the old holder, about to charge or to post, or the reversal, with a charge on its way. Both requests get
    one answer, the order is paid once, nothing is kept of the card. Every end occurs, or the test would prove nothing.
    """
    ends: set[tuple[bool, KeyState]] = set()
    by_holder = late != "a reversal, and a charge"

    async def play(turns: Turns) -> None:
        cluster = InMemoryCluster()
        await cluster.new_order()
        at = "charged" if late == "a holder before its post" else "submitted"
        old, pressed, woken, key = await asleep(cluster, direct=False, at=at)
        payment, undoing, reversal, reversal_woken = await reversing(cluster, key)
        parking, worker = cluster.instance(), cluster.instance()
        comes_late = old if by_holder else undoing
        for name, one in (("late", comes_late), ("parking", parking), ("worker", worker)):
            one.process.gate = turns.gate(name)

        async def park_and_take_cash() -> None:
            await told_to_ask_again(cluster.park(parking, payment.payment_id))
            await told_to_ask_again(cluster.settle(parking, "cash"))

        async def reverse_the_parked() -> None:
            await turns.turn("worker")
            await told_to_ask_again(worker.operations.recovery.recover())

        async def charge() -> None:
            await turns.turn("charge")
            assert payment.amount is not None
            deadline = cluster.call(payment.clerk).deadline
            await cluster.acquirer.charge(payment.acquirer_key, payment, payment.amount, deadline)

        (woken if by_holder else reversal_woken).set()
        look = situation_in(cluster, comes_late, parking, worker)
        if by_holder:
            await turns.play(look, told_to_ask_again(pressed()), park_and_take_cash(), reverse_the_parked())
        else:
            await turns.play(look, told_to_ask_again(reversal), park_and_take_cash(), charge())
        for one in (comes_late, parking, worker):
            one.process.gate = None
        for event, call in ((woken, pressed()), (reversal_woken, reversal)):
            event.set()
            await told_to_ask_again(call)
        await cluster.recovered(by=cluster.instance())
        await cluster.settle(cluster.instance(), "cash")
        await cluster.recovered(by=cluster.instance())
        payment = cluster.of(key)
        parked = payment.parking is not None
        parked_or_reversed_well(cluster, payment)
        assert (await cluster.reverse(cluster.instance(), payment.payment_id)).response.ok is not parked
        ends.add((parked, KeyState(cluster.acquirer.charges[payment.acquirer_key].state)))

    played = await every_schedule(play)
    assert played > 20
    assert (True, KeyState.REFUNDED) in ends
    if late != "a holder before its post":
        assert (True, KeyState.TOMBSTONE) in ends
    if not by_holder:
        assert (False, KeyState.REFUNDED) in ends


def test_no_schedule_is_left_out() -> None:
    """Two actors with two and three calls: ten orders, each once."""

    def orders() -> Iterator[str]:
        schedule: list[int] | None = []
        while schedule is not None:
            left, order = {"a": 2, "b": 3}, ""
            taken: list[tuple[int, int]] = []
            while any(left.values()):
                options = [actor for actor in sorted(left) if left[actor]]
                choice = schedule[len(taken)] if len(taken) < len(schedule) else 0
                taken.append((choice, len(options)))
                left[options[choice]] -= 1
                order += options[choice]
            yield order
            schedule = next_schedule(taken)

    found = list(orders())
    assert len(found) == len(set(found)) == 10
