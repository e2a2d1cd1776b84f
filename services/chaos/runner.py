"""One chaos run: a plan, its people, its faults, and what an independent checker says of the result.

    plan ─▶ people and faults, at once ─▶ healed ─▶ come to rest (15 s) ─▶ last looks ─▶ reconcile ─▶ check ─▶ report

The verdict is `ok` only if the checker finds nothing, the acquirer and the ledger agree on every total, and the run
was what was planned: every fault struck, two clerks met at an order, and, where a holder was frozen, a stale fence was
refused. A run that proves less is `unknown`.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from countinghouse.order.v1 import order_pb2
from services.chaos.calls import Caller, Person
from services.chaos.injector import Nemesis, Stage
from services.chaos.plan import Kind, Strike, make_plan
from services.chaos.reconciliation import reconcile
from services.chaos.report.run_page import Examined, Report, contended, render
from services.chaos.targets.target import World
from services.chaos.workload import Counter as Till
from services.chaos.workload import hire
from services.checker.acquirer_log import AcquirerLog
from services.checker.findings import Check, Findings, Verdict, verdict_of
from services.checker.history import Arguments, History, HistoryWriter, Outcome, Phase, read_history
from services.checker.registry import run_checks
from services.checker.snapshot import UNFINISHED, Reading, read_snapshot, settled_snapshot
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.kernel.principal import Role

#: Nothing may stay unresolved longer than this after the last fault has healed.
REST_WITHIN_S: Final = 15.0
_READ_AGAIN_S: Final = 2.0
_LAST_LOOK_TIMEOUT_S: Final = 5.0
_LAST_LOOKS_AT_ONCE: Final = 8
_PEOPLE: Final[Mapping[str, tuple[str, Role]]] = {
    "clerk-li": ("li", Role.CASHIER),
    "clerk-bo": ("bo", Role.CASHIER),
    "clerk-wang": ("wang", Role.ACCOUNTANT),
    "clerk-zhou": ("zhou", Role.ACCOUNTANT),
    "customer-mei": ("mei", Role.CUSTOMER),
    "customer-an": ("an", Role.CUSTOMER),
    "batcher-night": ("night", Role.ACCOUNTANT),
}


@dataclass(frozen=True, slots=True)
class Course:
    """What is to be run.

    Args:
        faults: Names; each strikes at least once.
        rate_per_s: How many things people begin in a second, all together.
        command: What repeats it.
    """

    seed: int
    length_s: float
    faults: tuple[str, ...]
    rate_per_s: float
    session_timeout_s: float
    command: str

    def plan(self, kinds: Sequence[Kind]) -> tuple[Strike, ...]:
        """What strikes when, in a world of these kinds.

        Raises:
            InvalidArgument: PLAN_TOO_SHORT.
        """
        chosen = [kind for kind in kinds if kind.name in self.faults]
        return make_plan(chosen, self.seed, self.length_s) if chosen else ()


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run.

    Args:
        rested_s: Seconds from the last healing until nothing was under way any more.
        fired: How often each fault struck.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    calls: int
    rested_s: float
    fired: Mapping[str, int]
    coverage: Mapping[tuple[str, str], int]
    proofs: Mapping[str, int]
    history: Path
    report: Path


async def run(world: World, course: Course, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Result:
    """Runs it.

    Args:
        folder: Where the history and the report go; it is there, and holds none yet.

    Raises:
        InvalidArgument: PLAN_TOO_SHORT.
    """
    plan = course.plan(world.kinds())
    path = folder / "history.jsonl"
    facts = {"world": world.name, "faults": ", ".join(course.faults), "length_s": course.length_s}
    with HistoryWriter(path, clock, seed=course.seed, facts=facts) as history:
        rng = random.Random(f"{course.seed}/calls")  # noqa: S311
        async with Caller(world.zookeeper, history, rng) as caller:
            till = Till()
            nemesis = await _act(world, course, plan, caller, history, till, clock, tell)
            tell("every fault is healed; waiting for rest")
            healed_s = clock.monotonic_s()
            reading = await settled_snapshot(world.databases, REST_WITHIN_S, clock)
            rested_s = clock.monotonic_s() - healed_s
            resting = _at_rest(reading)
            tell(f"at rest after {rested_s:.1f} s" if resting.ok else f"no rest after {rested_s:.1f} s")
            await _last_looks(caller, _person(world, "clerk-wang"), till.made)
            reading = await settled_snapshot(world.databases, _READ_AGAIN_S, clock)
            log = await world.acquirer_log()
            reconciled = await reconcile(world, _person(world, "clerk-wang"))
    tell("checking")
    recorded = read_history(path)
    checks = (resting, reconciled, *await asyncio.to_thread(_check, reading, recorded, log))
    return _judge(world, course, plan, nemesis, reading, rested_s, recorded, checks, folder)


async def _act(
    world: World,
    course: Course,
    plan: Sequence[Strike],
    caller: Caller,
    history: HistoryWriter,
    till: Till,
    clock: Clock,
    tell: Callable[[str], None],
) -> Nemesis:
    """People and faults, until the time is up and everything is healed."""

    async def in_flight() -> Mapping[str, int]:
        try:
            books = await read_snapshot(world.databases)
        except CountinghouseError:
            return {}
        found = Counter(str(row["state"]) for row in books.payments if row["state"] in (*UNFINISHED, "CREATED"))
        found["outbox"] = sum(row["delivered_at_ms"] is None for row in books.outbox)
        return +found

    stage = Stage(
        world=world,
        caller=caller,
        cashier=_person(world, "clerk-li"),
        accountant=_person(world, "clerk-zhou"),
        operator=Person("ops", Role.OPERATOR, world.token("ops", Role.OPERATOR)),
        in_flight=in_flight,
        session_timeout_s=course.session_timeout_s,
        clock=clock,
    )
    nemesis = Nemesis(stage, plan, history, clock, seed=course.seed, tell=tell)
    people = {process: _person(world, process) for process in _PEOPLE}
    hired = hire(people, caller, till, seed=course.seed, rate_per_s=course.rate_per_s)
    async with asyncio.TaskGroup() as work:
        for worker, deeds in hired:
            work.create_task(worker.run(deeds))
        began_s = clock.monotonic_s()
        try:
            await nemesis.run()
            await asyncio.sleep(max(0.0, began_s + course.length_s - clock.monotonic_s()))
        finally:
            till.over.set()
    return nemesis


def _person(world: World, process: str) -> Person:
    name, role = _PEOPLE[process]
    return Person(name, role, world.token(name, role))


def _at_rest(reading: Reading) -> Check:
    """That nothing was left under way once the time for coming to rest was up."""
    left = reading.snapshot.unfinished()
    if not left and not reading.at_rest:
        left = ["the books still changed"]
    return Findings(len(reading.snapshot.payments), left).check(f"at rest {REST_WITHIN_S:g} s after the last fault")


async def _last_looks(caller: Caller, auditor: Person, order_ids: Sequence[str]) -> None:
    """Reads every order that was made: what callers are told now has to agree with all they were told before."""
    limit = asyncio.Semaphore(_LAST_LOOKS_AT_ONCE)

    async def look(order_id: str) -> None:
        async with limit:
            await caller.ask(
                "auditor",
                auditor,
                "GetOrder",
                order_pb2.GetOrderRequest(order_id=order_id),
                Arguments(order_id=order_id, clerk=auditor.name, role=auditor.role.value),
                timeout_s=_LAST_LOOK_TIMEOUT_S,
            )

    await asyncio.gather(*(look(order_id) for order_id in order_ids))


def _check(reading: Reading, history: History, log: AcquirerLog | None) -> list[Check]:
    return run_checks(reading.snapshot, history=history, acquirer=log, now_ms=reading.at_ms)


# The verdict


def _judge(
    world: World,
    course: Course,
    plan: Sequence[Strike],
    nemesis: Nemesis,
    reading: Reading,
    rested_s: float,
    history: History,
    checks: tuple[Check, ...],
    folder: Path,
) -> Result:
    proofs = _proofs(history, course.faults)
    reasons = [f"{check.name}: {violation}" for check in checks for violation in check.violations]
    doubts = [f"{check.name}: {words}" for check in checks for words in check.undecided]
    doubts += [f"planned, and did not strike: {missed}" for missed in nemesis.missed]
    doubts += [f"not brought about: {name}" for name, count in proofs.items() if not count]
    if not reading.at_rest:
        doubts.append("the books were still moving when they were read")
    if not history.whole:
        doubts.append("the history is not whole")
    verdict = verdict_of(checks)
    if verdict is Verdict.OK and doubts:
        verdict = Verdict.UNKNOWN
    coverage = _coverage(history)
    report = folder / "report.html"
    result = Result(
        verdict=verdict,
        reasons=tuple(reasons + doubts),
        checks=checks,
        calls=len(history.calls),
        rested_s=rested_s,
        fired=dict(nemesis.fired),
        coverage=coverage,
        proofs=proofs,
        history=folder / "history.jsonl",
        report=report,
    )
    report.write_text(render(_page(world, course, plan, result, history)), encoding="utf-8")
    return result


def _proofs(history: History, faults: Sequence[str]) -> dict[str, int]:
    """What a run has to bring about, and how often it did."""
    by_order = defaultdict(list)
    for operation in history.calls:
        by_order[operation.arguments.order_id].append(operation)
    outcomes = Counter(operation.outcome for operation in history.calls)
    reasons = Counter(operation.answer.reason for operation in history.calls)
    proofs = {
        "calls that were done": outcomes[Outcome.OK],
        "orders at which two clerks met": sum(
            bool(order_id) and contended(operations) for order_id, operations in by_order.items()
        ),
        "answers given again": sum(operation.answer.replayed for operation in history.calls),
    }
    if "freeze-at" in faults:
        proofs["stale fences refused"] = reasons["STALE_FENCE"]
    for fault in faults:
        proofs[f"struck by {fault}"] = sum(
            moment.fault == fault and moment.phase is Phase.BEGUN for moment in history.nemesis
        )
    return proofs


def _coverage(history: History) -> dict[tuple[str, str], int]:
    """Which fault struck at which step: at a failpoint, or while payments stood in a state."""
    found: Counter[tuple[str, str]] = Counter()
    for moment in history.nemesis:
        if moment.phase is not Phase.BEGUN:
            continue
        if point := moment.facts.get("point"):
            company = moment.facts.get("company", "alone")
            service = moment.target.rpartition("-")[0]
            found[f"{moment.fault} {service}", f"{company} {point}"] += 1
        for state, count in moment.facts.get("in_flight", {}).items():
            found[moment.fault, str(state)] += int(count)
    return dict(found)


def _page(world: World, course: Course, plan: Sequence[Strike], result: Result, history: History) -> Report:
    return Report(
        title=f"Chaos on the {world.name} stack",
        verdict=result.verdict,
        reasons=result.reasons,
        command=course.command,
        facts={
            "seed": str(course.seed),
            "length": f"{course.length_s:g} s",
            "faults": f"{len(plan)} planned, {sum(result.fired.values())} struck",
            "calls": f"{result.calls:,}",
            "at rest after": f"{result.rested_s:.1f} s",
        },
        checks=[
            Examined(check.name, check.ok, check.examined, (*check.violations, *check.undecided), check.skipped)
            for check in result.checks
        ],
        coverage=result.coverage,
        proofs=result.proofs,
        history=history,
    )
