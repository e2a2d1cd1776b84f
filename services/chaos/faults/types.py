"""Define a fault type: what it needs of a target, how it is planned, and how it is injected and healed.

    @fault_type(TYPES, "kill", family="process", targets=instances, duration_s=(1.0, 2.0))
    async def _kill(context, injection):
        await context.target.kill(injection.target)          # inject
        yield {}                                             # what was observed; the fault lasts
        await context.target.wait_serving(injection.target)  # heal

This is all that a fault type needs, in one of the modules of this package. `targets` says where it can be injected on a
deployment: nowhere, if the deployment lacks what the fault needs. The planner, the injector, the report and `--faults`
take the types from `faults.available`.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from services.chaos.calls import Caller, Person
from services.chaos.targets.target import NotBroughtAbout, Target
from services.kernel.clock import Clock

#: What a fault needs has to be there, and the fault to be seen, within this time.
INJECT_WITHIN_S: Final = 15.0
POLL_S: Final = 0.03
CALL_TIMEOUT_S: Final = 2.0

#: What was observed of a fault when it was injected.
Observation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FaultInjection:
    """One fault of a plan. Times are in seconds since the workload began."""

    fault: str
    target: str
    at_s: float
    duration_s: float
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ends_s(self) -> float:
        """Return when the fault has to be healed."""
        return self.at_s + self.duration_s


@dataclass(frozen=True, slots=True)
class InjectionContext:
    """What fault types work with.

    Args:
        in_flight: Counts the payments in each unfinished state at this moment.
        cashier, accountant: Settle trigger orders.
        rng: Of one injection, seeded by the run's seed and the injection's place in the plan.
    """

    target: Target
    caller: Caller
    cashier: Person
    accountant: Person
    operator: Person
    in_flight: Callable[[], Awaitable[Mapping[str, int]]]
    clock: Clock
    rng: random.Random

    async def call_until_ok(self, method: Any, request: object, otherwise: str) -> None:
        """Call as the operator until the answer is OK.

        Raises:
            NotBroughtAbout: There is none within INJECT_WITHIN_S.
        """
        last = "no answer"
        with suppress(TimeoutError):
            async with asyncio.timeout(INJECT_WITHIN_S):
                while True:
                    try:
                        await method(request, timeout=CALL_TIMEOUT_S, metadata=self.credentials, wait_for_ready=True)
                    except grpc.aio.AioRpcError as error:
                        last = error.details() or error.code().name
                        await asyncio.sleep(POLL_S)
                    else:
                        return
        raise NotBroughtAbout(f"{otherwise}: {last}")

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """Return the operator's metadata."""
        return (("authorization", f"Bearer {self.operator.token}"),)


Inject = Callable[[InjectionContext, FaultInjection], AbstractAsyncContextManager[Observation]]
_Function = Callable[[InjectionContext, FaultInjection], AsyncIterator[Observation]]


@dataclass(frozen=True, slots=True)
class FaultType:
    """One type of fault.

    Args:
        name: As `--faults` and the history call it, like `kill`.
        family: Faults of one family never overlap.
        targets: Returns the instances or links of a deployment that it can be injected into.
        duration_s: The shortest and the longest time from injection to healing.
        inject: Injects on entry, and yields what was observed; heals on exit.
        choices: Values the planner draws one of, by name, like the failpoint to kill at.
        exclusive: No other fault may be active at the same time.
    """

    name: str
    family: str
    targets: Callable[[Target], tuple[str, ...]]
    duration_s: tuple[float, float]
    inject: Inject
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclusive: bool = False


def fault_type(
    types: list[FaultType],
    name: str,
    *,
    family: str,
    targets: Callable[[Target], tuple[str, ...]],
    duration_s: tuple[float, float],
    choices: Mapping[str, tuple[str, ...]] | None = None,
    exclusive: bool = False,
) -> Callable[[_Function], _Function]:
    """Append a fault type to `types`; see the module header and `FaultType`."""

    def append(function: _Function) -> _Function:
        inject = asynccontextmanager(function)
        types.append(FaultType(name, family, targets, duration_s, inject, choices or {}, exclusive))
        return function

    return append


def everything(_target: Target) -> tuple[str, ...]:
    """Return the target of a fault that is not injected into one instance or link."""
    return ("",)


def instances(target: Target) -> tuple[str, ...]:
    """Return the services' instances and the acquirer."""
    return target.instances


def instances_of(service: str) -> Callable[[Target], tuple[str, ...]]:
    """Return the instances of one service."""
    return lambda target: tuple(name for name in target.instances if name.startswith(service))


def if_links(targets: Callable[[Target], tuple[str, ...]]) -> Callable[[Target], tuple[str, ...]]:
    """Return no target where no proxy stands in front of instances."""
    return lambda target: targets(target) if target.links else ()


def unless_links(targets: Callable[[Target], tuple[str, ...]]) -> Callable[[Target], tuple[str, ...]]:
    """Return no target where a proxy stands in front of instances."""
    return lambda target: () if target.links else targets(target)
