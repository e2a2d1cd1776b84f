"""The faults, and who brings a plan of them about.

    PLANNED ──at its time, and when there is room──▶ BEGUN (seen to have struck) ──for its time──▶ ENDED (healed)

Each fault is a context: entering strikes and returns what was seen of it, leaving heals. Whatever ends a run, every
fault that has begun is healed. One that could not be brought about stays PLANNED, and makes the run's verdict unknown.

A fault that strikes at a certain step of a payment brings its own bait: a fresh order, settled at the victim by one
clerk and, in company, by another clerk elsewhere. So it strikes at that step and no other, and a frozen holder is
really overtaken before it wakes. It stands at that step, and the blow comes from outside.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import grpc

from coordination.grpc_channel import open_channel
from countinghouse.acquirer.v1 import acquirer_pb2, acquirer_pb2_grpc
from countinghouse.debug.v1 import failpoint_pb2, failpoint_pb2_grpc
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.chaos.calls import Caller, Heard, Person
from services.chaos.plan import Kind, Strike, may_overlap
from services.chaos.targets.target import NotBroughtAbout, World
from services.chaos.workload import CURRENCY
from services.checker.history import Arguments, HistoryWriter, Outcome, Phase
from services.kernel.clock import Clock

_LOOK_S: Final = 0.03
_STRIKE_WITHIN_S: Final = 15.0
_ARM_TIMEOUT_S: Final = 2.0
_BAIT_TIMEOUT_S: Final = 12.0
_ASK_AGAIN_S: Final = 0.2
#: By so much more the rival is late at each further bait: a victim that is the slower one would never have the lock.
_HEAD_START_S: Final = 0.2
#: Long enough to strike a process that is held; one that was frozen meanwhile goes on as soon as it wakes.
_HELD_MS: Final = 5_000
_AMOUNT: Final = 777

#: What a fault that has struck was seen to do.
Seen = dict[str, Any]
InFlight = Callable[[], Awaitable[Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class Stage:
    """What faults have at hand.

    Args:
        in_flight: How many payments stand in each unfinished state at this moment.
        cashier, accountant: Who settle the bait.
        session_timeout_s: After so long a frozen holder's lock is somebody else's.
    """

    world: World
    caller: Caller
    cashier: Person
    accountant: Person
    operator: Person
    in_flight: InFlight
    session_timeout_s: float
    clock: Clock


Fault = Callable[[Stage, Strike, random.Random], AbstractAsyncContextManager[Seen]]


class Nemesis:
    """Brings a plan about.

    Args:
        tell: Told in a sentence when a fault begins or ends.
    """

    def __init__(
        self,
        stage: Stage,
        plan: Sequence[Strike],
        history: HistoryWriter,
        clock: Clock,
        *,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._plan = plan
        self._history = history
        self._clock = clock
        self._seed = seed
        self._tell = tell
        self.fired: Counter[str] = Counter()
        self.missed: list[str] = []

    async def run(self) -> None:
        """Brings every strike about; returns when all of them are healed."""
        for strike in self._plan:
            self._history.nemesis(strike.fault, Phase.PLANNED, strike.target, at_s=strike.at_s, **strike.facts)
        began_s = self._clock.monotonic_s()
        kinds = {kind.name: kind for kind in self._stage.world.kinds()}
        there: dict[asyncio.Task[None], Kind] = {}
        try:
            for number, strike in enumerate(self._plan):
                await asyncio.sleep(max(0.0, began_s + strike.at_s - self._clock.monotonic_s()))
                while not may_overlap(kinds[strike.fault], list(there.values())):
                    over, _ = await asyncio.wait(there, return_when=asyncio.FIRST_COMPLETED)
                    for task in over:
                        del there[task]
                        await task
                there[asyncio.create_task(self._strike(number))] = kinds[strike.fault]
            await asyncio.gather(*there)
        finally:
            for task in there:
                task.cancel()
            await asyncio.gather(*there, return_exceptions=True)

    async def _strike(self, number: int) -> None:
        strike = self._plan[number]
        rng = random.Random(f"{self._seed}/strike/{number}")  # noqa: S311
        named = f"{strike.fault} {strike.target}".strip()
        try:
            async with FAULTS[strike.fault](self._stage, strike, rng) as seen:
                self.fired[strike.fault] += 1
                self._history.nemesis(strike.fault, Phase.BEGUN, strike.target, **strike.facts, **seen)
                self._tell(f"{named} {_in_words({**strike.facts, **seen})}".strip())
                await asyncio.sleep(strike.for_s)
            self._history.nemesis(strike.fault, Phase.ENDED, strike.target)
        except NotBroughtAbout as error:
            self.missed.append(f"{named}: {error}")
            self._tell(f"{named} did not strike: {error}")


def _in_words(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in ("", {}, None))


# Processes


@asynccontextmanager
async def _kill(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    in_flight = dict(await stage.in_flight())
    await stage.world.kill(strike.target)
    yield {"in_flight": in_flight}
    await stage.world.wait_serving(strike.target)


@asynccontextmanager
async def _pause(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    in_flight = dict(await stage.in_flight())
    try:
        await stage.world.pause(strike.target)
        yield {"in_flight": in_flight}
    finally:
        await stage.world.resume(strike.target)


@asynccontextmanager
async def _rolling_restart(stage: Stage, _strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    in_flight = dict(await stage.in_flight())
    first, *others = stage.world.instances
    await stage.world.terminate(first)
    yield {"in_flight": in_flight}
    await stage.world.wait_serving(first)
    for instance in others:
        await stage.world.terminate(instance)
        await stage.world.wait_serving(instance)


# Processes, at a certain step


@asynccontextmanager
async def _kill_at(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    async with _met(stage, strike) as (bait, victim):
        await stage.world.kill(victim)
        yield {"order_id": bait.order_id, "victim": victim}
        await bait.end()
    await stage.world.wait_serving(victim)


@asynccontextmanager
async def _freeze_at(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    async with _met(stage, strike) as (bait, victim):
        if stage.world.holds_at_failpoints:
            await stage.world.pause(victim)
        yield {"order_id": bait.order_id}
        await bait.overtaken()
        await stage.world.resume(victim)
        await bait.end()


@asynccontextmanager
async def _met(stage: Stage, strike: Strike) -> AsyncIterator[tuple[_Bait, str]]:
    """Lays baits until somebody stands at the failpoint, held or frozen; gives the bait, and who it is.

    A payment instance is asked itself. Whom it asks in turn is up to the balancer: of the others whoever is met stands
    there, and the rest are let off.
    """
    point, likely = strike.facts["point"], _likely(stage, strike)
    stands = {name: await _watch(stage, name, point) for name in likely}
    until_s = stage.clock.monotonic_s() + _STRIKE_WITHIN_S
    met: list[str] = []

    async def anybody() -> bool:
        met.extend([name for name in likely if await stands[name]()])
        return bool(met)

    try:
        async with AsyncExitStack() as baits:
            for number in count():
                bait = await _Bait.laid(stage, strike, number)
                baits.push_async_callback(bait.close)
                await bait.settle_at_victim(likely, head_start_s=number * _HEAD_START_S)
                if await bait.taken(anybody):
                    for name in likely:
                        if name != met[0]:
                            await _arm(stage, name, point, failpoint_pb2.FAILPOINT_ACTION_UNSPECIFIED, "")
                    yield bait, met[0]
                    return
                if stage.clock.monotonic_s() >= until_s:
                    break
                await asyncio.sleep(_ASK_AGAIN_S)
        raise NotBroughtAbout(f"{' or '.join(likely)} was never met at {point}")
    finally:
        for name in likely:
            await stage.world.resume(name)


def _likely(stage: Stage, strike: Strike) -> tuple[str, ...]:
    """Who may be met when the bait is settled."""
    service = strike.target.rpartition("-")[0]
    if service == "payment":
        return (strike.target,)
    return tuple(name for name in stage.world.instances if name.rpartition("-")[0] == service)


async def _watch(stage: Stage, instance: str, point: str) -> Callable[[], Awaitable[bool]]:
    """Tells whether an instance has come to stand at the failpoint since now."""
    if not stage.world.holds_at_failpoints:
        return lambda: stage.world.is_paused(instance)
    fired = await _fired(stage, instance, point)

    async def held() -> bool:
        return await _fired(stage, instance, point) > fired

    return held


class _Bait:
    """An order that is settled at the victim, and in company by another clerk elsewhere."""

    def __init__(self, stage: Stage, strike: Strike, order_id: str) -> None:
        self.order_id = order_id
        self._card = f"tok-{order_id}"
        self._stage = stage
        self._strike = strike
        self._calls: list[asyncio.Task[Heard]] = []

    @classmethod
    async def laid(cls, stage: Stage, strike: Strike, number: int) -> _Bait:
        """Makes the order."""
        order_id = f"bait-{strike.fault}-{round(strike.at_s * 1000)}-{number}"
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{order_id}",
            order_id=order_id,
            customer_id="mei",
            amount=money_pb2.Money(minor_units=_AMOUNT, currency_code=CURRENCY),
        )
        clerk = stage.cashier
        arguments = Arguments(order_id, "", request.request_id, clerk.name, clerk.role, "", _AMOUNT, CURRENCY)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STRIKE_WITHIN_S):
                while True:
                    heard = await stage.caller.ask("bait", clerk, "CreateOrder", request, arguments, timeout_s=2.0)
                    if heard.outcome is Outcome.OK:
                        return cls(stage, strike, order_id)
                    await asyncio.sleep(_ASK_AGAIN_S)
        raise NotBroughtAbout("no bait could be laid: CreateOrder is not answered")

    async def settle_at_victim(self, likely: Sequence[str], head_start_s: float) -> None:
        """Arms those who may be met, for this order only, and the cashier settles it; a rival comes so much later."""
        stage, strike = self._stage, self._strike
        subject = self._card if strike.target.startswith("acquirer") else self.order_id  # the bank knows no orders
        stop, hold = failpoint_pb2.FAILPOINT_ACTION_STOP, failpoint_pb2.FAILPOINT_ACTION_DELAY
        for name in likely:
            await _arm(stage, name, strike.facts["point"], hold if stage.world.holds_at_failpoints else stop, subject)
        payments = [name for name in stage.world.instances if name.startswith("payment")]
        asked = likely[0] if likely[0] in payments else ""
        at = stage.world.address(asked) if asked else ""
        self._calls.append(asyncio.create_task(self._settle("bait-holder", stage.cashier, at)))
        if strike.facts.get("company") == "contended":
            at = stage.world.address(next(name for name in payments if name != asked))
            self._calls.append(asyncio.create_task(self._settle("bait-rival", stage.accountant, at, head_start_s)))

    def settle_anywhere(self) -> None:
        """Has the cashier settle it, wherever that is done."""
        self._calls.append(asyncio.create_task(self._settle("bait-holder", self._stage.cashier, "")))

    async def taken(self, struck: Callable[[], Awaitable[bool]]) -> bool:
        """Waits until the fault has struck, or the order was settled without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STRIKE_WITHIN_S):
                while not await struck():
                    if all(call.done() for call in self._calls):
                        break
                    await asyncio.sleep(_LOOK_S)
        return await struck()

    async def overtaken(self) -> None:
        """Waits until the frozen holder's lock has passed to the rival, who then has had time to settle."""
        if len(self._calls) > 1:
            await asyncio.wait(self._calls[1:], timeout=self._stage.session_timeout_s + _BAIT_TIMEOUT_S)
        else:
            await asyncio.sleep(self._stage.session_timeout_s * 1.5)

    async def end(self) -> None:
        """Lets the calls be answered, in the time they have."""
        await asyncio.wait(self._calls, timeout=_BAIT_TIMEOUT_S)

    async def close(self) -> None:
        """Gives up what is still under way."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _settle(self, process: str, clerk: Person, address: str, after_s: float = 0.0) -> Heard:
        await asyncio.sleep(after_s)
        source = self._strike.facts.get("source", "CARD")
        request = payment_pb2.SettleRequest(
            request_id=f"{process}-{self.order_id}"[:64],
            order_id=self.order_id,
            source=payment_pb2.Source.Value(f"SOURCE_{source}"),
        )
        if source == "CARD":
            request.card = self._card
        arguments = Arguments(self.order_id, "", request.request_id, clerk.name, clerk.role, source)
        while True:
            heard = await self._stage.caller.ask(
                process, clerk, "Settle", request, arguments, timeout_s=_BAIT_TIMEOUT_S, address=address
            )
            if heard.answer.code not in ("ABORTED", "UNAVAILABLE") or heard.answer.reason == "STALE_FENCE":
                return heard
            await asyncio.sleep(_ASK_AGAIN_S)


async def _fired(stage: Stage, instance: str, point: str) -> int:
    """How often a failpoint of an instance has fired; 0 while it does not answer."""
    async with open_channel(stage.world.address(instance)) as channel:
        stub: Any = failpoint_pb2_grpc.FailpointServiceStub(channel)
        metadata = (("authorization", f"Bearer {stage.operator.token}"),)
        with suppress(grpc.aio.AioRpcError):
            request = failpoint_pb2.ListFailpointsRequest()
            answer = await stub.ListFailpoints(request, timeout=_ARM_TIMEOUT_S, metadata=metadata)
            return sum(one.fired for one in answer.failpoints if one.name == point)
    return 0


async def _arm(
    stage: Stage, instance: str, point: str, action: failpoint_pb2.FailpointAction.ValueType, subject: str
) -> None:
    held_ms = _HELD_MS if action == failpoint_pb2.FAILPOINT_ACTION_DELAY else 0
    request = failpoint_pb2.ArmFailpointRequest(name=point, action=action, subject=subject, delay_ms=held_ms)
    async with open_channel(stage.world.address(instance)) as channel:
        stub: Any = failpoint_pb2_grpc.FailpointServiceStub(channel)
        await _said(stub.ArmFailpoint, request, stage.operator, f"{instance} cannot be armed")


# ZooKeeper


@asynccontextmanager
async def _leader_kill(stage: Stage, _strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    leader = await _leader(stage)
    try:
        await stage.world.kill_server(leader)
        yield {"leader": leader}
    finally:
        await stage.world.start_server(leader)


@asynccontextmanager
async def _quorum_loss(stage: Stage, _strike: Strike, rng: random.Random) -> AsyncIterator[Seen]:
    victims = rng.sample(sorted(await stage.world.zookeeper_servers()), 2)
    try:
        for server in victims:
            await stage.world.kill_server(server)
        yield {"servers": "+".join(victims)}
    finally:
        await asyncio.gather(*(stage.world.start_server(server) for server in victims))


@asynccontextmanager
async def _zookeeper_freeze(stage: Stage, _strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    servers = sorted(await stage.world.zookeeper_servers())
    try:
        for server in servers:
            await stage.world.pause_server(server)
        yield {"servers": "+".join(servers)}
    finally:
        for server in servers:
            await stage.world.resume_server(server)


@asynccontextmanager
async def _session_expiry(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    """Cuts one instance off from ZooKeeper until its session has expired: its registration goes with it."""
    line = f"zookeeper/{strike.target}"
    try:
        await stage.world.cut(line)
        try:
            await stage.caller.wait_unregistered(strike.target, _STRIKE_WITHIN_S)
        except TimeoutError:
            raise NotBroughtAbout(f"the session of {strike.target} does not expire") from None
        yield {}
    finally:
        await stage.world.mend(line)


async def _leader(stage: Stage) -> str:
    leaders: list[str] = []

    async def there() -> bool:
        leaders[:] = [server for server, mode in (await stage.world.zookeeper_servers()).items() if mode == "leader"]
        return bool(leaders)

    await _until(there, "no ZooKeeper leader")
    return leaders[0]


# PostgreSQL


def _postgresql(*, politely: bool) -> Fault:
    @asynccontextmanager
    async def fault(stage: Stage, _strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
        in_flight = dict(await stage.in_flight())
        try:
            await stage.world.stop_postgresql(politely=politely)
            yield {"in_flight": in_flight}
        finally:
            await stage.world.start_postgresql()

    return fault


# Lines


def _spoiled(kind: str, stream: str, **attributes: int) -> Fault:
    """A line spoiled by a toxic. It strikes when the line is in use."""

    @asynccontextmanager
    async def fault(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
        in_flight = dict(await stage.in_flight())
        await stage.world.mend(strike.target)
        try:
            await stage.world.spoil(strike.target, kind, stream, attributes)
            await _until_used(stage, strike)
            yield {"in_flight": in_flight}
        finally:
            await stage.world.mend(strike.target)

    return fault


async def _until_used(stage: Stage, strike: Strike) -> None:
    """Waits until a connection was concerned; if nobody uses the line, orders are settled until somebody does."""

    async def used() -> bool:
        return await stage.world.concerned(strike.target) > 0

    try:
        async with AsyncExitStack() as baits, asyncio.timeout(_STRIKE_WITHIN_S):
            for number in count():
                if await used():
                    return
                bait = await _Bait.laid(stage, strike, number)
                baits.push_async_callback(bait.close)
                bait.settle_anywhere()
                await bait.taken(used)
    except TimeoutError:
        raise NotBroughtAbout(f"nobody was using the line {strike.target}") from None


@asynccontextmanager
async def _cut(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
    in_flight = dict(await stage.in_flight())
    try:
        await stage.world.cut(strike.target)
        yield {"in_flight": in_flight}
    finally:
        await stage.world.mend(strike.target)


# The wall clock


@asynccontextmanager
async def _clock_jump(stage: Stage, strike: Strike, rng: random.Random) -> AsyncIterator[Seen]:
    by_s = round(rng.choice((-1, 1)) * rng.uniform(5, 3600), 1)
    try:
        await stage.world.shift_clock(strike.target, by_s)
        yield {"by_s": by_s}
    finally:
        await stage.world.shift_clock(strike.target, 0.0)


# The bank


def _bank(*faults: acquirer_pb2.Fault) -> Fault:
    @asynccontextmanager
    async def fault(stage: Stage, strike: Strike, _rng: random.Random) -> AsyncIterator[Seen]:
        try:
            await _set_bank(stage, strike.target, faults)
            yield {}
        finally:
            await _set_bank(stage, strike.target, ())

    return fault


async def _set_bank(stage: Stage, bank: str, faults: Sequence[acquirer_pb2.Fault]) -> None:
    async with open_channel(stage.world.address(bank)) as channel:
        stub: Any = acquirer_pb2_grpc.FaultServiceStub(channel)
        request = acquirer_pb2.SetFaultsRequest(faults=faults)
        await _said(stub.SetFaults, request, stage.operator, f"{bank} takes no faults")


# What they share


async def _said(method: Any, request: object, operator: Person, otherwise: str) -> None:
    """Calls until it is answered, within the time a fault has to strike."""
    last = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(_STRIKE_WITHIN_S):
            while True:
                try:
                    await method(
                        request,
                        timeout=_ARM_TIMEOUT_S,
                        metadata=(("authorization", f"Bearer {operator.token}"),),
                        wait_for_ready=True,
                    )
                except grpc.aio.AioRpcError as error:
                    last = error.details() or error.code().name
                    await asyncio.sleep(_LOOK_S)
                else:
                    return
    raise NotBroughtAbout(f"{otherwise}: {last or 'no answer'}")


async def _until(condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Waits for something of which no event tells.

    Raises:
        NotBroughtAbout: It did not come in time.
    """
    try:
        async with asyncio.timeout(_STRIKE_WITHIN_S):
            while not await condition():  # noqa: ASYNC110  another process
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise NotBroughtAbout(otherwise) from None


_KIND = acquirer_pb2.FaultKind

#: Every fault by its name.
FAULTS: Final[Mapping[str, Fault]] = {
    "kill": _kill,
    "pause": _pause,
    "rolling-restart": _rolling_restart,
    "kill-at": _kill_at,
    "kill-order-at": _kill_at,
    "kill-ledger-at": _kill_at,
    "kill-acquirer-at": _kill_at,
    "freeze-at": _freeze_at,
    "leader-kill": _leader_kill,
    "quorum-loss": _quorum_loss,
    "zookeeper-freeze": _zookeeper_freeze,
    "session-expiry": _session_expiry,
    "postgresql-restart": _postgresql(politely=True),
    "postgresql-kill": _postgresql(politely=False),
    "latency": _spoiled("latency", "downstream", latency=150, jitter=100),
    "reset": _spoiled("reset_peer", "downstream", timeout=30),
    "replies-lost": _spoiled("timeout", "downstream"),
    "requests-lost": _spoiled("timeout", "upstream"),
    "down": _cut,
    "disconnect": _cut,
    "clock-jump": _clock_jump,
    "bank-silent": _bank(acquirer_pb2.Fault(kind=_KIND.FAULT_KIND_DROP_REPLY, times=2)),
    "bank-slow": _bank(
        acquirer_pb2.Fault(kind=_KIND.FAULT_KIND_DELAY_BEFORE, times=1, delay_ms=800),
        acquirer_pb2.Fault(kind=_KIND.FAULT_KIND_DELAY_AFTER, times=1, delay_ms=800),
    ),
    "bank-down": _bank(acquirer_pb2.Fault(kind=_KIND.FAULT_KIND_DOWN)),
    "bank-tells-twice": _bank(acquirer_pb2.Fault(kind=_KIND.FAULT_KIND_NOTICE_TWICE)),
}
