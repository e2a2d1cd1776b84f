"""ZooKeeper away, killed or frozen, while clients go on asking: what needs no lock goes on, the rest is told in time.

The clients outside find the services through a ZooKeeper session of their own, which is away as well.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from coordination.registry import Registry
from coordination.session import Session
from services.devstack.stack import ZOOKEEPER, Stack
from services.devstack.state import INTERFACES
from services.kernel.errors import AlreadyExists, CountinghouseError, Unavailable
from services.testkit.harness import Harness
from tests.e2e.checked import checked_books
from tests.e2e.clients import Clients, clients_of
from tests.e2e.conftest import SESSION_TIMEOUT_S, UNDER_LOAD, options
from tests.e2e.counts import pages, samples
from tests.e2e.load import Load, Outcome, told

_RATE_PER_S = 40
#: Deadline of a call that needs a lock; what waits for one in vain is refused half a second before it.
_LOCK_TIMEOUT_S = 2.0
#: Deadline of every other call. A payment that is not done by its deadline is answered as it then is, so there is time.
_TIMEOUT_S = 15.0
#: By so much an answer may come after its deadline.
_LATE_S = 0.1
#: After ZooKeeper's return everything works again in this time, on a busy machine too: it has to be started, and kazoo
#: looks for it about once a second.
_BACK_S = 60.0
_SETTLED_BEFORE = 12
_NO_LOCK = (
    *("CreateOrder", "GetOrder", "ListOrders", "IssueTicket", "GetPayment"),
    *("GetAccount", "Post", "TrialBalance"),
)
#: Short: well past the end of every session. Long: a minute.
_LENGTHS = [
    pytest.param(5 * SESSION_TIMEOUT_S, id="short"),
    pytest.param(60.0, id="a minute", marks=pytest.mark.soak),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harness(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """A stack with two instances of everything."""
    replicas = dict.fromkeys(INTERFACES, 2)
    data = tmp_path_factory.mktemp("outage") / "data"
    async with Stack(options(data, replicas=replicas, settings=UNDER_LOAD)) as stack, Harness(stack) as harness:
        yield harness


@dataclass(slots=True)
class Day:
    """What the clients do, one after the other.

    Args:
        settled: Payments to be reversed.
        refused: Orders and payments of which a call was answered that nothing was done.
        done: Those of which a call succeeded, or may have.
    """

    clients: Clients
    settled: list[str]
    reversing: bool = False
    refused: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    async def work(self, number: int) -> None:
        """Eleven kinds in turn."""
        clients = self.clients
        match number % 11:
            case 0:
                await clients.new_order()
            case 1:
                await clients.look_at_an_order()
            case 2:
                await clients.list_orders()
            case 3:
                await clients.pay_a_merchant()
            case 4:
                await clients.look_at_a_payment()
            case 5:
                await clients.look_at_an_account()
            case 6:
                await clients.post_again()
            case 7:
                await clients.sum_the_books()
            case 8:
                order_id = await clients.new_order()
                await self.noted(order_id, clients.settle(order_id))
            case 9:
                order_id = await clients.new_order()
                await self.noted(order_id, clients.pay_an_order(await clients.ticket(order_id)))
            case 10 if self.reversing:
                payment_id = self.settled[number // 11 % len(self.settled)]
                await self.noted(payment_id, clients.reverse(payment_id))

    async def noted(self, subject: str, call: Awaitable[object]) -> None:
        """Makes a call that needs a lock, and notes whether what it was about was done, or surely was not."""
        try:
            await call
        except CountinghouseError as error:  # OutcomeUnknown, if an earlier attempt of the call may have been sent
            (self.refused if isinstance(error, Unavailable) else self.done).add(subject)
            raise
        self.done.add(subject)


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("length_s", _LENGTHS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_zookeeper_away_under_load(
    harness: Harness, how: signal.Signals, length_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """No call fails that needs no lock. One that needs a lock is answered UNAVAILABLE with the time to try again,
    inside its deadline, and had no effect. When ZooKeeper is back, all is as before without anybody's help.
    """
    stack, load = harness.stack, Load()
    await stack.wait_serving()
    async with clients_of(stack, load, timeout_s=_TIMEOUT_S, lock_timeout_s=_LOCK_TIMEOUT_S) as clients:
        settled = [(await clients.settle(await clients.new_order())).payment_id for _ in range(_SETTLED_BEFORE)]
        day = Day(clients, settled)
        async with load.offered(day.work, rate_per_s=_RATE_PER_S):
            await asyncio.sleep(1.0)
            from_s = await stop_zookeeper(stack, how, load)
            day.reversing = True
            await asyncio.sleep(length_s)
            assert not clients.live(), "the clients' own session was to be away"
            day.reversing = False
            until_s = load.now_s()
            start_zookeeper(stack, how)
            back_s = await until_settling_works(clients)
            clients.lock_timeout_s = _TIMEOUT_S  # from here every call has to succeed, on a busy machine too
            await until_registered(stack)
            await until_live(stack, clients)
            recovered_s = load.now_s()
            await asyncio.sleep(1.0)
        with capsys.disabled():
            print(  # noqa: T201  a measurement, not a check
                f"\nZooKeeper {how.name} for {until_s - from_s:.1f} s; settling again after {back_s - until_s:.1f} s, "
                f"all after {recovered_s - until_s:.1f} s\n{load.summary()}"
            )
        check_calls(load, from_s, until_s, recovered_s)
        await check_nothing_was_done(harness, day)
        await clients.reverse(next(payment_id for payment_id in settled if payment_id not in day.done))
    await checked_books(harness)


async def stop_zookeeper(stack: Stack, how: signal.Signals, load: Load) -> float:
    """Kills or freezes it; the moment from which it surely was away."""
    pid = stack.zookeeper_pid
    stack.restarts = False
    stack.kill(ZOOKEEPER, how)
    if how is signal.SIGKILL:
        await stack.wait_until(lambda: stack.zookeeper_pid != pid, 10)
    return load.now_s()


def start_zookeeper(stack: Stack, how: signal.Signals) -> None:
    """Lets it come back."""
    if how is signal.SIGSTOP:
        stack.kill(ZOOKEEPER, signal.SIGCONT)
    stack.restarts = True


async def until_settling_works(clients: Clients) -> float:
    """Settles an order as soon as that can be done; when that was."""
    order_id, until_s = await clients.new_order(), clients.load.now_s() + _BACK_S
    while True:
        try:
            await clients.settle(order_id)  # one that is refused takes until its deadline is near
        except AlreadyExists:  # an earlier one was not answered in time, and settled it
            return clients.load.now_s()
        except CountinghouseError as error:
            if clients.load.now_s() > until_s:
                pytest.fail(f"settling does not come back: {error.message}")
        else:
            return clients.load.now_s()


async def until_registered(stack: Stack) -> None:
    """Waits until every instance is registered, under the process it has now."""
    wanted = {(instance.name, str(instance.pid)) for instance in stack.instances}
    async with (
        asyncio.timeout(_BACK_S),
        Session(stack.zookeeper, name="test", security=stack.zookeeper_security()) as session,
    ):
        await session.wait_connected(_BACK_S)
        while True:
            listings = await Registry(session).ls()
            found = {
                (url.parameters["instance"], url.parameters["pid"]) for listing in listings for url in listing.providers
            }
            if found == wanted:
                return
            await asyncio.sleep(0.1)


async def until_live(stack: Stack, clients: Clients) -> None:
    """Waits until the lists of clients and services are ZooKeeper's own again, and the services have registered all
    that they want to.
    """
    for directory in clients.directories:
        assert await directory.wait_live(_BACK_S)
    async with asyncio.timeout(_BACK_S):
        for page in (await pages(stack)).values():
            while not settled_in(await samples(page)):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.1)


def settled_in(counted: dict[str, dict[tuple[str, ...], float]]) -> bool:
    """Whether a service says that its lists are live and that it is registered."""
    registrations, live = counted["coordination_registrations"], counted.get("coordination_directory_live", {})
    return registrations[("yes",)] >= 1 and not registrations.get(("no",)) and all(live.values())


def check_calls(load: Load, from_s: float, until_s: float, recovered_s: float) -> None:
    """What each call was answered, and when."""
    assert load.failed(*_NO_LOCK) == [], told(load.failed(*_NO_LOCK))
    late = [outcome for outcome in load.outcomes if outcome.late_s - load.starved_s(outcome) > _LATE_S]
    assert late == [], told(late)
    needing_a_lock = [outcome for outcome in load.among(since_s=from_s, until_s=until_s) if needs_lock(outcome)]
    away = [outcome for outcome in needing_a_lock if outcome.began_s + outcome.took_s < until_s]
    wrong = [outcome for outcome in away if not refused_for_now(outcome)]
    assert [outcome for outcome in wrong if not excused(load, outcome)] == [], told(wrong)
    assert len(wrong) < len(away) / 5, f"this machine is too busy to tell:\n{load.summary()}"
    assert {outcome.kind for outcome in away} == {"Settle", "Pay", "Reverse"}
    later = [outcome for outcome in load.among(since_s=recovered_s) if not outcome.ok]
    assert later == [], told(later)


def excused(load: Load, outcome: Outcome) -> bool:
    """Whether the machine was so busy during a call that even one which waits for nothing took long."""
    from_s, until_s = outcome.began_s, outcome.began_s + outcome.took_s
    beside = [other for other in load.among(*_NO_LOCK, until_s=until_s) if other.began_s + other.took_s > from_s]
    return max(load.starved_s(outcome), *(other.took_s for other in beside)) > _LATE_S


def needs_lock(outcome: Outcome) -> bool:
    """Whether it was about an order. A Pay of a merchant is answered at once and OK, and of an order it cannot be."""
    return outcome.kind in ("Settle", "Reverse") or (outcome.kind == "Pay" and not outcome.ok)


def refused_for_now(outcome: Outcome) -> bool:
    """UNAVAILABLE, and when to try again."""
    return outcome.code == "UNAVAILABLE" and outcome.error is not None and outcome.error.retry_after_ms is not None


async def check_nothing_was_done(harness: Harness, day: Day) -> None:
    """Orders that were refused are unpaid and without a journal, payments that were to be reversed stand."""
    books = (await harness.settled_snapshot(within_s=_BACK_S)).snapshot
    untouched = day.refused - day.done
    assert untouched
    orders = {str(row["order_id"]): str(row["state"]) for row in books.orders}
    payments = {str(row["payment_id"]): str(row["state"]) for row in books.payments}
    moved = {str(row["order_id"]) for row in books.journals} | {
        str(row["payment_id"]) for row in books.journals if row["reversal_of"]
    }
    assert untouched & moved == set()
    assert {orders[subject] for subject in untouched & orders.keys()} == {"UNPAID"}
    assert {payments[subject] for subject in untouched & payments.keys()} == {"SUCCEEDED"}
