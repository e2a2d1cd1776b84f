"""kill -9 at every failpoint of every service that passes it: one effect in the end, and a checker that finds nothing.

    who is to die is stopped at the failpoint ─▶ in company: the rival asks elsewhere, and has come to stand behind it
    ─▶ SIGKILL ─▶ it serves again ─▶ everybody asks on under their own key, until there is an answer for good
    ─▶ within 15 s of its return nothing is under way ─▶ books, bank and every call so far are checked

Of two instances the one that a call meets is stopped, and the other let off; so it does not matter whom the balancer
picks.

`PASSES` says which failpoints each deed passes, and two tests hold it against the code and against what really happens:
a new failpoint is not forgotten. The default suite kills at each failpoint of each service, alone and in company, and
in each kind of deed; `make test-failpoints` runs the whole product, on both databases.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from coordination.locks import ResourceLocks
from coordination.session import Session
from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.chaos.acquirer_log import read_acquirer_log
from services.checker.findings import Verdict
from services.checker.history import HistoryWriter, read_history
from services.checker.registry import run_checks
from services.checker.snapshot import Snapshot
from services.demo.people import Seen
from services.demo.stage import NotBroughtAbout
from services.devstack.stack import ACQUIRER_INSTANCE, Stack
from services.kernel.clock import SystemClock
from services.runtime.grpc.failpoints import NAMES
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.architecture.code import ACQUIRER, SERVICES, modules, tree
from tests.e2e import deeds
from tests.e2e.conftest import SESSION_TIMEOUT_S, SETTINGS, options
from tests.e2e.deeds import ELSEWHERE, HERE, MERCHANT, Deed
from tests.e2e.teller import QUIET_S, Teller, payment_in, teller_at

STOP = failpoint_pb2.FAILPOINT_ACTION_STOP
DEEDS: dict[str, Callable[[Teller], Awaitable[Deed]]] = {
    "settle": deeds.settle,
    "settle with card": deeds.settle_with_card,
    "pay": deeds.pay,
    "pay with card": deeds.pay_with_card,
    "reverse": deeds.reverse,
    "reverse with card": deeds.reverse_with_card,
    "park": deeds.park,
}
#: Which failpoints of which service a deed passes.
PASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "settle": {
        "payment": ("accepted", "locked", "claimed", "submitted", "posted", "recorded", "completed", "released"),
        "order": ("accepted", "claimed", "completed"),
        "ledger": ("accepted", "posted"),
    },
    "settle with card": {
        "payment": (
            *("accepted", "locked", "claimed", "submitted", "charged"),
            *("posted", "recorded", "completed", "released"),
        ),
        "order": ("accepted", "claimed", "completed"),
        "ledger": ("accepted", "posted"),
        "acquirer": ("accepted", "charged"),
    },
    "pay": {
        "payment": ("accepted", "submitted", "posted", "recorded"),
        "ledger": ("accepted", "posted"),
    },
    "pay with card": {
        "payment": ("accepted", "submitted", "charged", "posted", "recorded"),
        "ledger": ("accepted", "posted"),
        "acquirer": ("accepted", "charged"),
    },
    "reverse": {
        "payment": ("accepted", "locked", "submitted", "posted", "recorded", "completed", "released"),
        "order": ("accepted",),
        "ledger": ("accepted", "posted"),
    },
    "reverse with card": {
        "payment": ("accepted", "locked", "submitted", "posted", "refunded", "recorded", "completed", "released"),
        "order": ("accepted",),
        "ledger": ("accepted", "posted"),
        "acquirer": ("accepted", "refunded"),
    },
    "park": {
        "payment": (
            *("accepted", "locked", "voided", "parked", "refunded"),
            *("recorded", "completed", "released"),
        ),
        "order": ("accepted",),
        "ledger": ("accepted", "voided"),
        "acquirer": ("accepted", "refunded"),
    },
}
#: What a worker may pass meanwhile, which goes on with the payment until it is parked.
MAY_PASS = {"park": {"payment": {"submitted"}}}
#: What a worker passes after the reply to the deed.
BY_WORKER = {"park": ("refunded", "recorded")}
COMPANY = ("alone", "contended")
#: From here on the response is stored, if it is the payment service that dies: the retry must be given it, marked.
_STORED = ("recorded", "completed", "released")
_LOOK_S = 0.02


def cells() -> Iterator[Any]:
    """Every deed × failpoint × company; what the default suite can do without is marked as soak."""
    places = dict.fromkeys(
        (service, point) for passed in PASSES.values() for service in passed for point in passed[service]
    )
    for service, point in places:
        there = [deed for deed in DEEDS if point in PASSES[deed].get(service, ())]
        default = set(chosen(there, NAMES.index(point)))
        for cell in itertools.product(there, COMPANY):
            marks = () if cell in default else (pytest.mark.soak,)
            deed, company = cell
            yield pytest.param(deed, service, point, company, marks=marks, id=f"{deed}-{service}-{point}-{company}")


def chosen(there: Sequence[str], turn: int) -> Iterator[tuple[str, str]]:
    """What the default suite does at one failpoint of one service: each kind of deed, and each company.

    Args:
        there: The deeds that pass it, those of a kind together.
        turn: At another failpoint it is the other's turn, drawer or card, alone or in company.
    """
    kinds = [list(alike) for _, alike in itertools.groupby(there, key=lambda deed: deed.removesuffix(" with card"))]
    for number, alike in enumerate(kinds if len(kinds) > 1 else kinds * 2):
        yield alike[(turn + number) % len(alike)], COMPANY[(turn // 2 + number) % 2]


@dataclass(frozen=True, slots=True)
class House:
    """A running stack, and who looks at it.

    Args:
        locks: For looking at the queues of orders.
        history: Where every call so far is written down.
    """

    teller: Teller
    locks: ResourceLocks
    history: HistoryWriter
    path: Path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[House]:
    """Two instances of every service, the bank, and the merchant's wallet."""
    folder = tmp_path_factory.mktemp("failpoints")
    path = folder / "history.jsonl"
    replicas, settings = {"payment": 2, "order": 2, "ledger": 2}, SETTINGS | {"acquirer_timeout_s": 1.0}
    with HistoryWriter(path, SystemClock(), seed=7) as history:
        async with (
            Stack(options(folder / "data", replicas=replicas, settings=settings)) as stack,
            Session(stack.zookeeper, timeout_s=SESSION_TIMEOUT_S, name="onlooker") as session,
            teller_at(stack, history) as teller,
        ):
            assert await teller.open_wallet("merchant") == MERCHANT
            yield House(teller, ResourceLocks(session, root=LOCKS_ROOT), history, path)


def test_every_failpoint_in_the_code_is_there() -> None:
    """Every name, and every service that has one."""
    written = {
        (module.parts[1], call.args[0].value)
        for module in modules(*(f"services/{service}" for service in (*SERVICES, ACQUIRER)))
        for call in ast.walk(tree(module))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("hit", "_pass")
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    there = {(service, point) for passed in PASSES.values() for service in passed for point in passed[service]}
    assert there == written
    assert {point for _, point in there} == set(NAMES)


@pytest.mark.parametrize("deed", DEEDS)
async def test_what_a_deed_passes(house: House, deed: str) -> None:
    """When nobody dies: those failpoints, and no others."""
    teller = house.teller
    await teller.stack.wait_serving(timeout_s=30)
    one = await DEEDS[deed](teller)
    before = {service: await passed(teller, service) for service in PASSES["settle with card"]}
    answer = await one.wish.insist(teller, HERE)
    one.done(await proved(house, within_s=QUIET_S), [answer])
    after = {service: await passed(teller, service) for service in before}
    seen = {
        service: set(after[service] - before[service]) - MAY_PASS.get(deed, {}).get(service, set())
        for service in before
    }
    assert {service: points for service, points in seen.items() if points} == {
        service: set(points) for service, points in PASSES[deed].items()
    }


@pytest.mark.parametrize(("deed", "service", "point", "company"), list(cells()))
async def test_killed(house: House, deed: str, service: str, point: str, company: str) -> None:
    """Done once, whoever did it; nothing is unresolved 15 s after the dead one is back, and everything agrees."""
    teller, clock = house.teller, house.teller.telephone.clock
    await teller.stack.wait_serving(timeout_s=30)
    if "acquirer" in PASSES[deed]:
        await the_bank_is_reached(teller)
    one = await DEEDS[deed](teller)
    by_worker = point in BY_WORKER.get(deed, ())
    calls = await killed(house, one, service, point, contended=company == "contended", by_worker=by_worker)
    healed_s = clock.monotonic_s()
    first, *_ = await asyncio.gather(*calls)
    wishes = {wish.key: wish for wish in (one.wish, one.rival)[: len(calls)]}
    answers = await asyncio.gather(*(wish.insist(teller, ELSEWHERE) for wish in wishes.values()))
    if service == "payment":
        assert first.open or by_worker, "its reply died with it"
        assert answers[0].replayed or point not in _STORED
    one.done(await proved(house, within_s=healed_s + QUIET_S - clock.monotonic_s()), answers)


async def the_bank_is_reached(teller: Teller) -> None:
    """By every payment instance: one that has met a dead bank waits before it tries again, and a worker of any instance
    may then be quicker than the one that is to die.
    """
    for instance in (HERE, ELSEWHERE):
        state = pb.PAYMENT_STATE_UNKNOWN
        while state != pb.PAYMENT_STATE_SUCCEEDED:
            one = await deeds.pay_with_card(teller)
            state = payment_in(await one.wish.ask(teller, instance)).state
            await one.wish.insist(teller, instance)


async def killed(
    house: House, one: Deed, service: str, point: str, *, contended: bool, by_worker: bool
) -> tuple[asyncio.Task[Seen], ...]:
    """Lets an instance of `service` die at `point`, and serve again; the first call of each who asked.

    Args:
        by_worker: The point is passed by a worker, that of any instance.
    """
    teller, stack = house.teller, house.teller.stack
    likely = [HERE] if service == "payment" and not by_worker else instances(teller, service)
    subject = "" if service == "acquirer" else one.subject  # which knows no orders
    for instance in likely:
        await teller.arm(instance, point, STOP, subject)
    calls = [asyncio.create_task(one.wish.ask(teller, HERE))]
    victim = await first_frozen(teller, likely, point)
    try:
        if contended:
            alive = HERE if victim == ELSEWHERE else ELSEWHERE
            calls.append(asyncio.create_task(one.rival.ask(teller, alive)))
            await in_the_way(house, one, calls[1])
        pid = stack.instance(victim).pid
    finally:
        stack.kill(victim, signal.SIGKILL)
    await teller.wait_died(victim, pid, within_s=10)
    await stack.wait_serving(victim, timeout_s=30)
    return tuple(calls)


async def first_frozen(teller: Teller, likely: Sequence[str], point: str) -> str:
    """Waits until one of several instances has stopped itself; its name. The others are let off."""
    processes = {name: psutil.Process(teller.stack.instance(name).pid) for name in likely}
    frozen: list[str] = []
    try:
        async with asyncio.timeout(QUIET_S):
            while not frozen:
                await asyncio.sleep(_LOOK_S)
                frozen = [name for name, each in processes.items() if each.status() == psutil.STATUS_STOPPED]
    except TimeoutError:
        raise NotBroughtAbout(f"none of {', '.join(likely)} has come to {point}") from None
    finally:
        for name in likely:
            if name not in frozen[:1]:
                await let_off(teller, name, point)
    return frozen[0]


async def let_off(teller: Teller, name: str, point: str) -> None:
    """Disarms an instance that may have stopped itself, or stops itself while it is being told: two workers may come to
    one point.
    """
    disarming = asyncio.create_task(teller.disarm(name, point))
    while not disarming.done():
        teller.stack.kill(name, signal.SIGCONT)
        await asyncio.wait({disarming}, timeout=_LOOK_S)
    await disarming


async def in_the_way(house: House, one: Deed, rival: asyncio.Task[Seen]) -> None:
    """Waits until the rival stands behind somebody at the order, or needs nobody's leave and was answered."""
    async with asyncio.timeout(QUIET_S):
        while not rival.done():
            queue = await house.locks.queue(one.order_id) if one.order_id else []
            if any(place.position and place.holder.owner == one.rival.person.name for place in queue):
                return
            await asyncio.sleep(_LOOK_S)


async def proved(house: House, *, within_s: float) -> Snapshot:
    """The books, at rest within this time, and approved by every check there is."""
    reading = await house.teller.reading(max(within_s, 0.0))
    assert reading.snapshot.unfinished() == []
    assert reading.at_rest
    operator = house.teller.operator
    log = await read_acquirer_log(house.teller.address(ACQUIRER_INSTANCE), operator.token)
    house.history.flush()
    history = replace(read_history(house.path), whole=True)  # so far: nobody calls at the moment
    checks = run_checks(reading.snapshot, history=history, acquirer=log, now_ms=reading.at_ms)
    said = [(check.name, check.violations, check.undecided) for check in checks if check.verdict is not Verdict.OK]
    assert said == []
    assert [check.name for check in checks if check.skipped] == []
    return reading.snapshot


def instances(teller: Teller, service: str) -> list[str]:
    """The instances of a service; of the bank there is one."""
    return [each.name for each in teller.stack.instances if each.service == service] or [ACQUIRER_INSTANCE]


async def passed(teller: Teller, service: str) -> Counter[str]:
    """How often a service's instances have passed each failpoint, all together."""
    found: Counter[str] = Counter()
    for instance in instances(teller, service):
        found.update({name: each.passed for name, each in (await teller.failpoints(instance)).items()})
    return found
