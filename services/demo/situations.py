"""The situations that `countinghouse trigger` brings about on a running stack: the acts with a fault, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from services.demo import acts
from services.demo.acts import Act, ActResult, run_act
from services.devstack import state
from services.devstack.state import StackRefused, StackState
from services.kernel.clock import Clock
from services.testkit.attached_stack import AttachedStack
from services.testkit.harness import AnyHarness, StackHarness


@dataclass(frozen=True, slots=True)
class Situation:
    """One situation.

    Args:
        says: What happens, in a sentence.
        act: Brings it about, and examines the books.
        failpoints: Whether the stack has to serve them.
        clerks: How many payment instances it needs.
    """

    name: str
    says: str
    act: Act
    failpoints: bool = True
    clerks: int = 1

    def check(self, stack: StackState) -> None:
        """Refuse a stack on which it cannot be brought about.

        Raises:
            StackRefused: FAILPOINTS_OFF or TOO_FEW_INSTANCES.
        """
        clerks = sum(instance.service == "payment" for instance in stack.instances)
        options = "--failpoints" if self.failpoints or stack.failpoints else ""
        if self.clerks > 1:
            options += f" --replicas payment={self.clerks}"
        remedy = f"`countinghouse down`, and `countinghouse up {options.strip()}`"
        if self.failpoints and not stack.failpoints:
            raise StackRefused(
                "FAILPOINTS_OFF", f"{self.name} needs failpoints, and this stack was started without them: {remedy}"
            )
        if clerks < self.clerks:
            raise StackRefused(
                "TOO_FEW_INSTANCES",
                f"{self.name} needs {self.clerks} instances of payment, and this stack has {clerks}: {remedy}",
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a situation.

    Args:
        orders: The orders that were made for it.
        left: The failpoints that could not be disarmed, like `posted of payment-1`.
    """

    act: ActResult
    orders: tuple[str, ...]
    left: tuple[str, ...]


_ALL: Final = (
    Situation(
        "double-click",
        "A cashier sends the same Pay ten times at once, with one ticket.",
        acts.double_click,
        failpoints=False,
    ),
    Situation(
        "two-clerks",
        "A cashier and an accountant settle one order at the same moment.",
        partial(acts.two_clerks, count=1),
        failpoints=False,
    ),
    Situation("lost-reply", "The reply is lost after the commit, and the cashier asks again.", acts.lost_reply),
    Situation(
        "killed-mid-payment",
        "A payment instance is killed after the ledger posted and before it records the payment.",
        acts.killed_mid_payment,
    ),
    Situation(
        "frozen-holder",
        "A payment instance that holds an order's lock is frozen past the end of its session, and wakes.",
        acts.frozen_holder,
        clerks=2,
    ),
    Situation(
        "late-charge",
        "A payment is reversed while its charge is on its way to the acquirer, and the charge arrives.",
        acts.late_charge,
    ),
    Situation("silent-acquirer", "The acquirer charges a card and does not answer.", acts.silent_acquirer),
)
#: By name.
SITUATIONS: Final[Mapping[str, Situation]] = {situation.name: situation for situation in _ALL}


async def _take_back(harness: AnyHarness) -> list[str]:
    """Let frozen processes go on and disarm all failpoints; return those that could not be disarmed.

    A call that is on its way may come to its failpoint meanwhile, and freeze its process before that one is disarmed.
    """
    harness.thaw_all()
    left = await harness.failpoints.take_back()
    harness.thaw_all()
    return await harness.failpoints.take_back() if left else []


async def bring_about(
    situation: Situation,
    data: Path,
    clock: Clock,
    tell: Callable[[str], None],
    undisturbed: Callable[[], AbstractContextManager[None]],
) -> Outcome:
    """Bring a situation about on the stack that runs on a data directory, and take its faults back.

    Whatever ends it, an error or a cancellation: frozen processes go on, and no failpoint stays armed.

    Args:
        tell: Called with a sentence for each step.
        undisturbed: Returns a context within which no signal interrupts what is done.

    Raises:
        StackRefused: STACK_NOT_RUNNING, or as `Situation.check`.
    """
    stack = AttachedStack(data, clock)
    found = stack.describe()
    situation.check(found)
    if found.guards_off:
        tell(f"this stack runs without the guards {', '.join(found.guards_off)}")
    async with StackHarness(stack, clock, accountant="wu", tell=tell) as harness:
        left: list[str] = []
        try:
            act = await run_act(situation.name, harness, situation.act)
        finally:
            with undisturbed():
                left += await _take_back(harness)
                if left and state.running(data):
                    tell(f"still armed, for the instance does not answer: {', '.join(left)}")
                else:
                    left.clear()  # with its processes
                    tell("nothing is left frozen or armed")
        return Outcome(act, tuple(harness.orders), tuple(left))
