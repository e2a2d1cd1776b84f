"""One part of a stack.

    start ──▶ wait_ready ──▶ stop          `describe` and `state` at any time

The stack starts its components in order and stops them in the opposite one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.devstack.keys import Keys
from services.devstack.managed_process import ManagedProcess
from services.devstack.options import StackOptions
from services.devstack.ports import PortReservation
from services.devstack.state import InstanceState
from services.devstack.supervision import Supervision


@dataclass(frozen=True, slots=True)
class Context:
    """What every component knows of its stack.

    Args:
        data: The stack's directory, absolute.
        environment: Of the processes, besides their settings.
    """

    options: StackOptions
    data: Path
    environment: Mapping[str, str]
    keys: Keys
    supervision: Supervision


class Component(ABC):
    """See the module.

    Attributes:
        processes: Those it runs, in the order in which they were started.
    """

    def __init__(self, context: Context) -> None:
        self.processes: list[ManagedProcess] = []
        self._context = context
        self._supervision = context.supervision
        self._resources = AsyncExitStack()  # given up when the processes have ended

    @abstractmethod
    async def start(self) -> None:
        """Start its processes. Return when the components after it can be started."""

    async def wait_ready(self) -> None:
        """Wait until it is SERVING; raises as `Supervision.wait_until`."""
        await self._supervision.wait_until(lambda: self.state is InstanceState.SERVING, None)

    async def stop(self) -> None:
        """Stop its processes; return when none is left."""
        await asyncio.gather(*(process.stop() for process in self.processes))
        await self._resources.aclose()

    def describe(self) -> dict[str, Any]:
        """Return its fields of `StackState`."""
        return {}

    @property
    def state(self) -> InstanceState:
        """SERVING if each of its processes is; else the state of the first that is not."""
        return next((process.state for process in self._late()), InstanceState.SERVING)

    def explain(self) -> str:
        """Return which of its processes are not SERVING, and where to look; empty: all are."""
        return "; ".join(f"{late.name} is {late.state}, see {late.command.log}" for late in self._late())

    def _late(self) -> list[ManagedProcess]:
        return [process for process in self.processes if process.state is not InstanceState.SERVING]

    def _run(self, process: ManagedProcess) -> None:
        self.processes.append(process)
        self._supervision.run(process.run())

    def _reserve_port(self, directory: Path) -> PortReservation:
        reservation = PortReservation.remembered(directory)
        self._resources.callback(reservation.close)
        return reservation
