"""Run one plan beside a workload, and have an independent checker judge the result.

    plan ─▶ workload and faults, at once ─▶ healed ─▶ come to rest (15 s) ─▶ last reads ─▶ reconcile ─▶ check ─▶ report

The verdict is `ok` only if the checker finds no violation, the acquirer and the ledger agree on every total, and the
plan was carried out: every fault was injected, two clerks settled one order at the same time, and, where a holder was
frozen, a stale fence was refused. A run that proves less is `unknown`.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from countinghouse.order.v1 import order_pb2
from services.chaos import faults
from services.chaos.faults.types import FaultInjection, FaultType, InjectionContext
from services.chaos.injector import Injector
from services.chaos.plan import make_plan
from services.chaos.reconciliation import reconcile
from services.chaos.report import run_page
from services.chaos.targets.target import Target
from services.chaos.workload import SharedState, build_workers
from services.checker.acquirer_log import AcquirerLog
from services.checker.findings import Check, Findings, Verdict, verdict_of
from services.checker.history import History, HistoryWriter, Outcome, Phase, read_history
from services.checker.registry import run_checks
from services.checker.snapshot import UNFINISHED, Reading, read_snapshot, settled_snapshot
from services.devstack.options import GATEWAY
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.kernel.principal import Role
from services.testkit.client import Connections, RecordingClient
from services.testkit.fair_clock import FairClock
from services.testkit.gateway_client import GatewayClient
from services.testkit.identities import Identity

#: Nothing may stay unresolved longer than this after the last fault has healed.
REST_WITHIN_S: Final = 15.0
_READ_AGAIN_S: Final = 2.0
_LAST_READ_TIMEOUT_S: Final = 5.0
_LAST_READS_AT_ONCE: Final = 8
_CALLERS: Final[Mapping[str, tuple[str, Role]]] = {
    "clerk-li": ("li", Role.CASHIER),
    "clerk-bo": ("bo", Role.CASHIER),
    "clerk-wang": ("wang", Role.ACCOUNTANT),
    "clerk-zhou": ("zhou", Role.ACCOUNTANT),
    "customer-mei": ("mei", Role.CUSTOMER),
    "customer-an": ("an", Role.CUSTOMER),
    "batcher-night": ("night", Role.ACCOUNTANT),
    "clerk-web": ("web", Role.CASHIER),
    "operator": ("ops", Role.OPERATOR),
}
#: Calls through the gateway, where there is one.
_WEB: Final = "clerk-web"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run.

    Args:
        faults: Names; each is injected at least once.
        rate_per_s: How many operations the workers begin in a second, all together.
        command: Repeats the run.
    """

    seed: int
    length_s: float
    faults: tuple[str, ...]
    rate_per_s: float
    command: str

    def fault_types(self, target: Target) -> list[FaultType]:
        """Return the types of its faults on a target."""
        return [fault for fault in faults.available(target) if fault.name in self.faults]

    def plan(self, target: Target) -> tuple[FaultInjection, ...]:
        """Return what is injected when.

        Raises:
            InvalidArgument: PLAN_TOO_SHORT.
        """
        chosen = self.fault_types(target)
        return make_plan(chosen, target, self.seed, self.length_s) if chosen else ()


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run.

    Args:
        rested_s: Seconds from the last healing until no work was unfinished.
        injected: How often each fault was injected.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    calls: int
    rested_s: float
    injected: Mapping[str, int]
    coverage: Mapping[tuple[str, str], int]
    proofs: Mapping[str, int]
    history: Path
    report: Path


async def run(target: Target, config: RunConfig, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Result:
    """Run it.

    Args:
        folder: For the history and the report; it exists, and holds none yet.

    Raises:
        InvalidArgument: PLAN_TOO_SHORT.
    """
    plan = config.plan(target)
    path = folder / "history.jsonl"
    facts = {"target": target.name, "faults": ", ".join(config.faults), "length_s": config.length_s}
    with HistoryWriter(path, clock, seed=config.seed, facts=facts) as history:
        rng = random.Random(f"{config.seed}/calls")  # noqa: S311
        async with Connections(
            target.address,
            clock,
            dialer=target.dialer,
            history=history,
            zookeeper=target.zookeeper,
            security=target.zookeeper_security,
            rng=rng,
        ) as connections:
            shared = SharedState()
            injector = await _work(target, config, plan, connections, history, shared, tell)
            tell("all faults have ended; waiting until no payment is open")
            fair = FairClock(clock)  # or a run on a busy machine would be violated
            healed_s = clock.monotonic_s()
            reading = await settled_snapshot(target.databases, REST_WITHIN_S, fair)
            rested_s = clock.monotonic_s() - healed_s
            resting = _at_rest(reading)
            tell(f"{'nothing' if resting.ok else 'something still'} open after {rested_s:.1f} s")
            auditor = _client(target, connections, "clerk-wang", "auditor")
            await _read_orders(auditor, shared.made)
            reading = await settled_snapshot(target.databases, _READ_AGAIN_S, fair)
            log = await target.acquirer_log()
            reconciled = await reconcile(auditor)
    tell("checking")
    recorded = read_history(path)
    checks = (resting, reconciled, *await asyncio.to_thread(_check, reading, recorded, log))
    return _judge(target, config, plan, injector, reading, rested_s, recorded, checks, folder)


async def _work(
    target: Target,
    config: RunConfig,
    plan: Sequence[FaultInjection],
    connections: Connections,
    history: HistoryWriter,
    shared: SharedState,
    tell: Callable[[str], None],
) -> Injector:
    """Run the workload and inject the faults until the time is up and every fault is healed."""

    clock = connections.clock

    async def in_flight() -> Mapping[str, int]:
        try:
            books = await read_snapshot(target.databases)
        except CountinghouseError:
            return {}
        found = Counter(str(row["state"]) for row in books.payments if row["state"] in (*UNFINISHED, "CREATED"))
        found["outbox"] = sum(row["delivered_at_ms"] is None for row in books.outbox)
        return +found

    context = InjectionContext(
        target=target,
        connections=connections,
        cashier=_client(target, connections, "clerk-li", "trigger-holder"),
        accountant=_client(target, connections, "clerk-zhou", "trigger-rival"),
        operator=_client(target, connections, "operator"),
        in_flight=in_flight,
        clock=clock,
        rng=random.Random(),  # noqa: S311  each injection gets one of its own
    )
    injector = Injector(context, config.fault_types(target), plan, history, seed=config.seed, tell=tell)
    callers = [each for each in _CALLERS if each != "operator" and (target.has_gateway or each != _WEB)]
    clients = [_client(target, connections, process) for process in callers]
    workers = build_workers(clients, shared, seed=config.seed, rate_per_s=config.rate_per_s)
    async with asyncio.TaskGroup() as work:
        for worker, operations in workers:
            work.create_task(worker.run(operations))
        began_s = clock.monotonic_s()
        try:
            await injector.run()
            await asyncio.sleep(max(0.0, began_s + config.length_s - clock.monotonic_s()))
        finally:
            shared.over.set()
    return injector


def _client(target: Target, connections: Connections, caller: str, process: str = "") -> RecordingClient:
    name, role = _CALLERS[caller]
    identity = Identity(name, role, target.token(name, role), target.token(name, role, outside=True))
    if caller == _WEB:
        return GatewayClient(connections, identity, process or caller, address=partial(target.address, GATEWAY))
    return RecordingClient(connections, identity, process or caller)


def _at_rest(reading: Reading) -> Check:
    """Check that no work was left when the time for coming to rest was up."""
    left = reading.snapshot.unfinished()
    if not left and not reading.at_rest:
        left = ["the books still changed"]
    return Findings(len(reading.snapshot.payments), left).check(f"at rest {REST_WITHIN_S:g} s after the last fault")


async def _read_orders(auditor: RecordingClient, order_ids: Sequence[str]) -> None:
    """Read every order that was made: the answers have to agree with all answers before."""
    limit = asyncio.Semaphore(_LAST_READS_AT_ONCE)

    async def read(order_id: str) -> None:
        async with limit:
            await auditor.call(order_pb2.GetOrderRequest(order_id=order_id), timeout_s=_LAST_READ_TIMEOUT_S)

    await asyncio.gather(*(read(order_id) for order_id in order_ids))


def _check(reading: Reading, history: History, log: AcquirerLog | None) -> list[Check]:
    return run_checks(reading.snapshot, history=history, acquirer=log, now_ms=reading.at_ms)


# The verdict


def _judge(
    target: Target,
    config: RunConfig,
    plan: Sequence[FaultInjection],
    injector: Injector,
    reading: Reading,
    rested_s: float,
    history: History,
    checks: tuple[Check, ...],
    folder: Path,
) -> Result:
    proofs = _proofs(history, config.faults)
    reasons = [f"{check.name}: {violation}" for check in checks for violation in check.violations]
    doubts = [f"{check.name}: {words}" for check in checks for words in check.undecided]
    doubts += [f"planned, and not injected: {missed}" for missed in injector.missed]
    doubts += [f"not brought about: {name}" for name, count in proofs.items() if not count]
    if not reading.at_rest:
        doubts.append("the books were still moving when they were read")
    if not history.whole:
        doubts.append("the history is not whole")
    verdict = verdict_of(checks)
    if verdict is Verdict.OK and doubts:
        verdict = Verdict.UNKNOWN
    report = folder / "report.html"
    result = Result(
        verdict=verdict,
        reasons=tuple(reasons + doubts),
        checks=checks,
        calls=len(history.calls),
        rested_s=rested_s,
        injected=dict(injector.injected),
        coverage=_coverage(history),
        proofs=proofs,
        history=folder / "history.jsonl",
        report=report,
    )
    page = run_page.render(
        f"Chaos on the {target.name} stack",
        verdict,
        reasons=result.reasons,
        facts={
            "seed": str(config.seed),
            "length": f"{config.length_s:g} s",
            "faults": f"{len(plan)} planned, {injector.injected.total()} injected",
            "calls": f"{result.calls:,}",
            "at rest after": f"{rested_s:.1f} s",
        },
        command=config.command,
        checks=checks,
        coverage=result.coverage,
        proofs=proofs,
        history=history,
    )
    report.write_text(page, encoding="utf-8")
    return result


def _proofs(history: History, faults: Sequence[str]) -> dict[str, int]:
    """Return what a run has to bring about, and how often it did."""
    by_order = defaultdict(list)
    for operation in history.calls:
        by_order[operation.arguments.order_id].append(operation)
    outcomes = Counter(operation.outcome for operation in history.calls)
    reasons = Counter(operation.answer.reason for operation in history.calls)
    proofs = {
        "calls that were done": outcomes[Outcome.OK],
        "orders settled by two clerks at once": sum(
            bool(order_id) and run_page.contended(operations) for order_id, operations in by_order.items()
        ),
        "answers given again": sum(operation.answer.replayed for operation in history.calls),
    }
    if "freeze-at" in faults:
        proofs["stale fences refused"] = reasons["STALE_FENCE"]
    for fault in faults:
        proofs[f"injected: {fault}"] = sum(
            moment.fault == fault and moment.phase is Phase.BEGUN for moment in history.nemesis
        )
    return proofs


def _coverage(history: History) -> dict[tuple[str, str], int]:
    """Return which fault was injected at which step: at a failpoint, or while payments stood in a state."""
    found: Counter[tuple[str, str]] = Counter()
    for moment in history.nemesis:
        if moment.phase is not Phase.BEGUN:
            continue
        if point := moment.facts.get("point"):
            contention = moment.facts.get("contention", "alone")
            service = moment.target.rpartition("-")[0]
            found[f"{moment.fault} {service}", f"{contention} {point}"] += 1
        for state, count in moment.facts.get("in_flight", {}).items():
            found[moment.fault, str(state)] += int(count)
    return dict(found)
