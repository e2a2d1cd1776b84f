"""Where the parts are run: one stack with a real ZooKeeper, started when the first part needs it, and programs of
other languages beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from services.devstack.components.zookeeper import ZooKeeperMissing
from services.devstack.stack import Stack, StackOptions
from services.kernel.principal import Role
from services.testkit.client import RecordingClient
from services.testkit.harness import open_client
from tests.interop.program import Program
from tests.interop.tally import Skip
from tests.interop.toolchain import Toolchain, Workshop

#: Whose token the programs call with; what they do is in the books under this name.
CLERK = "li"


class Harness:
    """The stack and the workshop of one run.

    Args:
        data: Where the stack keeps its data.
        workshop: Where programs are built.
        say: Told what is going on.
    """

    def __init__(self, data: Path, workshop: Workshop, say: Callable[[str], None]) -> None:
        self._data = data
        self._workshop = workshop
        self._say = say
        self._stack: Stack | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def ready(self, toolchain: Toolchain) -> Stack:
        """Sees to it that a toolchain's programs can be run and that the stack is up, in this order.

        Raises:
            Skip: The programs cannot be built here, or there is no ZooKeeper to start.
        """
        await self._workshop.ready(toolchain)
        if self._stack is None:
            self._say("starting ZooKeeper, order, ledger and two payment instances …")
            options = StackOptions(self._data, replicas={"payment": 2}, plaintext=True)  # as Dubbo's own default is
            try:
                self._stack = await self._open.enter_async_context(Stack(options))
            except ZooKeeperMissing as missing:
                raise Skip(f"because {missing.message}") from missing
            async with self.clerk(self._stack) as client:
                await client.new_order()  # the first call of each service connects it to the others
        return self._stack

    async def program(self, toolchain: Toolchain, name: str, *arguments: str) -> Program:
        """A program of a toolchain, to be started; raises as `ready`."""
        stack = await self.ready(toolchain)
        folder = self._workshop.folder(toolchain)
        environment = {
            **toolchain.environment(folder),
            "INTEROP_ZOOKEEPER": stack.zookeeper,
            "INTEROP_TOKEN": stack.token(CLERK, Role.CASHIER),
        }
        log = folder / f"{name}.log"
        return Program(name, (*toolchain.command(folder, name), *arguments), environment, log)

    def clerk(self, stack: Stack) -> AbstractAsyncContextManager[RecordingClient]:
        """The clerk in whose name the consumers call."""
        return open_client(stack, CLERK, Role.CASHIER)

    def client(self, stack: Stack) -> AbstractAsyncContextManager[RecordingClient]:
        """Somebody who looks into the books."""
        return open_client(stack, "zhao", Role.AUDITOR)
