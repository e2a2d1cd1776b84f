"""Define a fault type: what it needs of a target, how it is planned, and how it is injected and healed.

    @TYPES.define("kill", targets=instances(), duration_s=(1.0, 2.0))
    async def _kill(context, injection):
        await context.target.kill(injection.target)          # inject
        yield {}                                             # what was observed; the fault lasts
        await context.target.wait_serving(injection.target)  # heal; what undoes something belongs in `finally`

This is all that a fault type needs, in one of the modules of this package. `targets` says where it can be injected on a
deployment: nowhere, if the deployment lacks what the fault needs. The planner, the injector, the report and `--faults`
take the types from `faults.available`.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from services.chaos.targets.target import Target
from services.kernel.clock import Clock
from services.testkit.client import Connections, RecordingClient

#: What a fault needs has to be there, and the fault to be seen, within this time.
INJECT_WITHIN_S: Final = 15.0
POLL_S: Final = 0.03

#: A fault type's function yields once, what was observed when the fault was injected.
Observations = AsyncIterator[dict[str, Any]]
#: Returns the instances or links of a deployment that a fault can be injected into; `""`: it is not one of them.
Targets = Callable[[Target], tuple[str, ...]]


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
    connections: Connections
    cashier: RecordingClient
    accountant: RecordingClient
    operator: RecordingClient
    in_flight: Callable[[], Awaitable[Mapping[str, int]]]
    clock: Clock
    rng: random.Random


Inject = Callable[[InjectionContext, FaultInjection], AbstractAsyncContextManager[dict[str, Any]]]
_Function = Callable[[InjectionContext, FaultInjection], Observations]


@dataclass(frozen=True, slots=True)
class FaultType:
    """One type of fault.

    Args:
        name: As `--faults` and the history call it, like `kill`.
        family: Faults of one family never overlap.
        targets: Where it can be injected on a deployment.
        duration_s: The shortest and the longest time from injection to healing.
        inject: Injects on entry, and yields what was observed; heals on exit.
        choices: Values the planner draws one of, by name, like the failpoint to kill at.
        exclusive: No other fault may be active at the same time.
    """

    name: str
    family: str
    targets: Targets
    duration_s: tuple[float, float]
    inject: Inject
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclusive: bool = False


class FaultTypes(list[FaultType]):
    """The fault types of one module.

    Args:
        family: Of its fault types, unless one names another.
    """

    def __init__(self, family: str) -> None:
        super().__init__()
        self._family = family

    def define(
        self,
        name: str,
        *,
        duration_s: tuple[float, float],
        targets: Targets = lambda _: ("",),
        links: bool | None = None,
        family: str = "",
        choices: Mapping[str, tuple[str, ...]] | None = None,
        exclusive: bool = False,
    ) -> Callable[[_Function], _Function]:
        """Append a fault type whose function is decorated; see the module header and `FaultType`.

        Args:
            links: Whether it needs a target with links, or one without; None: it is available on both.
        """

        def available(target: Target) -> tuple[str, ...]:
            return targets(target) if links is None or links is bool(target.links) else ()

        def append(function: _Function) -> _Function:
            inject = asynccontextmanager(function)
            self.append(
                FaultType(name, family or self._family, available, duration_s, inject, choices or {}, exclusive)
            )
            return function

        return append


def instances(service: str = "") -> Targets:
    """Return the instances of one service, or of all and the acquirer, as a fault type's targets."""
    return lambda target: tuple(name for name in target.instances if name.startswith(service))
