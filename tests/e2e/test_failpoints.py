"""kill -9 at every failpoint of every service that passes it: one effect in the end, and a checker that finds nothing.

    the process to be killed stops at the failpoint ─▶ contended: the rival asks the other instance, and waits behind it
    ─▶ SIGKILL ─▶ it serves again ─▶ each caller asks again under its own key, until the answer is definitive
    ─▶ 15 s after its return nothing is open ─▶ databases, acquirer and every call so far are checked

Of two instances the one that a call reaches is stopped, and the other is disarmed; so it does not matter which one the
load balancer picks.

`PASSES` says which failpoints each operation passes, and two tests hold it against the code and against what really
happens: a new failpoint is not forgotten. `make test-all` kills at each failpoint of each service, alone and
contended, and in each kind of operation; `make test-failpoints` runs the whole product, on both databases.
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
from services.devstack.stack import ACQUIRER_INSTANCE, Stack
from services.kernel.clock import SystemClock
from services.runtime.grpc.failpoints import NAMES
from services.runtime.zookeeper_paths import LOCKS_ROOT
from services.testkit.client import CallResult
from services.testkit.harness import Harness
from services.testkit.waiting import NotBroughtAbout
from tests.architecture.code import ACQUIRER, SERVICES, modules, tree
from tests.e2e import operations
from tests.e2e.checked import QUIET_S
from tests.e2e.conftest import SESSION_TIMEOUT_S, SETTINGS, options
from tests.e2e.operations import ELSEWHERE, HERE, MERCHANT, Operation

STOP = failpoint_pb2.FAILPOINT_ACTION_STOP
OPERATIONS: dict[str, Callable[[Harness], Awaitable[Operation]]] = {
    "settle": operations.settle,
    "settle with card": operations.settle_with_card,
    "pay": operations.pay,
    "pay with card": operations.pay_with_card,
    "reverse": operations.reverse,
    "reverse with card": operations.reverse_with_card,
    "park": operations.park,
}
#: Around the commit of each batch.
COMMITS = ("committing", "committed")
#: The failpoints of each service that an operation passes.
PASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "settle": {
        "payment": (
            "accepted",
            "locked",
            "claimed",
            "submitted",
            "posted",
            "recorded",
            "completed",
            "released",
            *COMMITS,
        ),
        "order": ("accepted", "claimed", "completed", *COMMITS),
        "ledger": ("accepted", "posted", *COMMITS),
    },
    "settle with card": {
        "payment": (
            *("accepted", "locked", "claimed", "submitted", "charged"),
            *("posted", "recorded", "completed", "released"),
            *COMMITS,
        ),
        "order": ("accepted", "claimed", "completed", *COMMITS),
        "ledger": ("accepted", "posted", *COMMITS),
        "acquirer": ("accepted", "charged"),
    },
    "pay": {
        "payment": ("accepted", "submitted", "posted", "recorded", *COMMITS),
        "ledger": ("accepted", "posted", *COMMITS),
    },
    "pay with card": {
        "payment": ("accepted", "submitted", "charged", "posted", "recorded", *COMMITS),
        "ledger": ("accepted", "posted", *COMMITS),
        "acquirer": ("accepted", "charged"),
    },
    "reverse": {
        "payment": ("accepted", "locked", "submitted", "posted", "recorded", "completed", "released", *COMMITS),
        "order": ("accepted", *COMMITS),
        "ledger": ("accepted", "posted", *COMMITS),
    },
    "reverse with card": {
        "payment": (
            "accepted",
            "locked",
            "submitted",
            "posted",
            "refunded",
            "recorded",
            "completed",
            "released",
            *COMMITS,
        ),
        "order": ("accepted", *COMMITS),
        "ledger": ("accepted", "posted", *COMMITS),
        "acquirer": ("accepted", "refunded"),
    },
    "park": {
        "payment": (
            *("accepted", "locked", "voided", "parked", "refunded"),
            *("recorded", "completed", "released"),
            *COMMITS,
        ),
        "order": ("accepted", *COMMITS),
        "ledger": ("accepted", "voided"),
        "acquirer": ("accepted", "refunded"),
    },
}
#: What a worker may pass meanwhile, which goes on with the payment until it is parked.
MAY_PASS = {"park": {"payment": {"submitted"}}}
#: What a worker passes after the reply to the operation.
BY_WORKER = {"park": ("refunded", "recorded")}
CONTENTION = ("alone", "contended")
#: From here on the response is stored, if the payment service is killed: the retry must get it, marked.
_STORED = ("recorded", "completed", "released")
_LOOK_S = 0.02


def cells() -> Iterator[Any]:
    """Yield every operation × failpoint × contention.

    Of each failpoint of a service `make test` has one, `make test-all` those of `chosen`, and the rest is marked soak.
    """
    places = dict.fromkeys(
        (service, point) for passed in PASSES.values() for service in passed for point in passed[service]
    )
    for service, point in places:
        there = [operation for operation in OPERATIONS if point in PASSES[operation].get(service, ())]
        turn = NAMES.index(point)
        default = list(chosen(there, turn))
        quick = default[turn % len(default)]
        for cell in itertools.product(there, CONTENTION):
            marks = () if cell == quick else (pytest.mark.long if cell in default else pytest.mark.soak,)
            operation, contention = cell
            yield pytest.param(
                operation, service, point, contention, marks=marks, id=f"{operation}-{service}-{point}-{contention}"
            )


def chosen(there: Sequence[str], turn: int) -> Iterator[tuple[str, str]]:
    """Yield what `make test-all` does at one failpoint of one service: each kind of operation, alone or contended.

    Args:
        there: The operations that pass it, those of a kind together.
        turn: At another failpoint it is the other's turn, drawer or card, alone or contended.
    """
    kinds = [
        list(alike) for _, alike in itertools.groupby(there, key=lambda operation: operation.removesuffix(" with card"))
    ]
    for number, alike in enumerate(kinds if len(kinds) > 1 else kinds * 2):
        yield alike[(turn + number) % len(alike)], CONTENTION[(turn // 2 + number) % 2]


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A running stack, and what looks at it.

    Args:
        locks: For looking at the queues of orders.
        history: Where every call so far is written down.
    """

    harness: Harness
    locks: ResourceLocks
    history: HistoryWriter
    path: Path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(
    tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None
) -> AsyncIterator[RunningStack]:
    """Two instances of every service, the acquirer, and the merchant's wallet."""
    folder = tmp_path_factory.mktemp("failpoints")
    path = folder / "history.jsonl"
    replicas, settings = {"payment": 2, "order": 2, "ledger": 2}, SETTINGS | {"acquirer_timeout_s": 1.0}
    with HistoryWriter(path, SystemClock(), seed=7) as history:
        async with (
            Stack(options(folder / "data", replicas=replicas, settings=settings)) as stack,
            Session(
                stack.zookeeper,
                timeout_s=SESSION_TIMEOUT_S,
                name="onlooker",
                security=stack.zookeeper_security(),
            ) as session,
            Harness(stack, history=history) as harness,
        ):
            assert await harness.open_wallet("merchant") == MERCHANT
            yield RunningStack(harness, ResourceLocks(session, root=LOCKS_ROOT), history, path)


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


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_passes_its_failpoints_only(running: RunningStack, operation: str) -> None:
    """When no process is killed: those failpoints, and no others."""
    harness = running.harness
    await harness.stack.wait_serving()
    one = await OPERATIONS[operation](harness)
    before = {service: await passed(harness, service) for service in PASSES["settle with card"]}
    answer = await one.first.call_until_answered(HERE)
    one.done(await proved(running, within_s=QUIET_S), [answer])
    after = {service: await passed(harness, service) for service in before}
    seen = {
        service: set(after[service] - before[service]) - MAY_PASS.get(operation, {}).get(service, set())
        for service in before
    }
    assert {service: points for service, points in seen.items() if points} == {
        service: set(points) for service, points in PASSES[operation].items()
    }


@pytest.mark.parametrize(("operation", "service", "point", "contention"), list(cells()))
async def test_operation_killed_at_a_failpoint_is_done_once(
    running: RunningStack, operation: str, service: str, point: str, contention: str
) -> None:
    """Done once, by any execution; nothing is open 15 s after the killed process is back, and all witnesses agree."""
    harness, clock = running.harness, running.harness.clock
    await harness.stack.wait_serving()
    if "acquirer" in PASSES[operation]:
        await reach_acquirer(harness)
    one = await OPERATIONS[operation](harness)
    by_worker = point in BY_WORKER.get(operation, ())
    calls = await killed(running, one, service, point, contended=contention == "contended", by_worker=by_worker)
    healed_s = clock.monotonic_s()
    first, *_ = await asyncio.gather(*calls)
    requests = {asked.key: asked for asked in (one.first, one.rival)[: len(calls)]}
    answers = await asyncio.gather(*(asked.call_until_answered(ELSEWHERE) for asked in requests.values()))
    if service == "payment":
        assert first.open or by_worker, "its reply died with it"
        assert answers[0].replayed or point not in _STORED
    one.done(await proved(running, within_s=healed_s + QUIET_S - clock.monotonic_s()), answers)


async def reach_acquirer(harness: Harness) -> None:
    """Have every payment instance reach the acquirer.

    One that has met a dead acquirer waits before it tries again, and a worker of the other instance may then be quicker
    than the instance to be killed.
    """
    for instance in (HERE, ELSEWHERE):
        state = pb.PAYMENT_STATE_UNKNOWN
        while state != pb.PAYMENT_STATE_SUCCEEDED:
            one = await operations.pay_with_card(harness)
            state = (await one.first.call(instance)).payment.state
            await one.first.call_until_answered(instance)


async def killed(
    running: RunningStack, one: Operation, service: str, point: str, *, contended: bool, by_worker: bool
) -> tuple[asyncio.Task[CallResult], ...]:
    """Kill an instance of `service` at `point`, and wait until it serves again; return the first call of each caller.

    Args:
        by_worker: The point is passed by a worker, that of any instance.
    """
    harness, stack = running.harness, running.harness.stack
    likely = [HERE] if service == "payment" and not by_worker else instances(harness, service)
    subject = "" if service == "acquirer" else one.subject  # which knows no orders
    for instance in likely:
        await harness.failpoints.arm(instance, point, STOP, subject)
    calls = [asyncio.create_task(one.first.call(HERE))]
    victim = await first_frozen(harness, likely, point)
    try:
        if contended:
            alive = HERE if victim == ELSEWHERE else ELSEWHERE
            calls.append(asyncio.create_task(one.rival.call(alive)))
            await wait_until_behind(running, one, calls[1])
        pid = stack.instance(victim).pid
    finally:
        stack.kill(victim, signal.SIGKILL)
    await harness.wait_died(victim, pid)
    await stack.wait_serving(victim)
    return tuple(calls)


async def first_frozen(harness: Harness, likely: Sequence[str], point: str) -> str:
    """Wait until one of several instances has stopped itself, and disarm the others; return its name."""
    processes = {name: psutil.Process(harness.stack.instance(name).pid) for name in likely}
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
                await disarm(harness, name, point)
    return frozen[0]


async def disarm(harness: Harness, name: str, point: str) -> None:
    """Disarm an instance that may have stopped itself, or stops itself meanwhile: two workers may come to one point."""
    disarming = asyncio.create_task(harness.failpoints.disarm(name, point))
    while not disarming.done():
        harness.stack.kill(name, signal.SIGCONT)
        await asyncio.wait({disarming}, timeout=_LOOK_S)
    await disarming


async def wait_until_behind(running: RunningStack, one: Operation, rival: asyncio.Task[CallResult]) -> None:
    """Wait until the rival waits behind a holder of the order's lock, or was answered without waiting."""
    async with asyncio.timeout(QUIET_S):
        while not rival.done():
            queue = await running.locks.queue(one.order_id) if one.order_id else []
            if any(place.position and place.holder.owner == one.rival.client.name for place in queue):
                return
            await asyncio.sleep(_LOOK_S)


async def proved(running: RunningStack, *, within_s: float) -> Snapshot:
    """Return the databases once nothing is open; fail if that takes longer, or a check finds anything."""
    reading = await running.harness.settled_snapshot(max(within_s, 0.0))
    assert reading.snapshot.unfinished() == []
    assert reading.at_rest
    operator = running.harness.operator
    dialer, address = running.harness.stack.dialer(outside=True), running.harness.address(ACQUIRER_INSTANCE)
    log = await read_acquirer_log(dialer, address, operator.identity.outside)
    running.history.flush()
    history = replace(read_history(running.path), whole=True)  # so far: no call is under way at the moment
    checks = run_checks(reading.snapshot, history=history, acquirer=log, now_ms=reading.at_ms)
    said = [(check.name, check.violations, check.undecided) for check in checks if check.verdict is not Verdict.OK]
    assert said == []
    assert [check.name for check in checks if check.skipped] == []
    return reading.snapshot


def instances(harness: Harness, service: str) -> list[str]:
    """Return the instances of a service; of the acquirer there is one."""
    return [each.name for each in harness.stack.instances if each.service == service] or [ACQUIRER_INSTANCE]


async def passed(harness: Harness, service: str) -> Counter[str]:
    """Return how often a service's instances have passed each failpoint, all together."""
    found: Counter[str] = Counter()
    for instance in instances(harness, service):
        found.update({name: each.passed for name, each in (await harness.failpoints.list(instance)).items()})
    return found
