"""The acquirer, an outside system: it is not in the registry, and found by its address."""

from __future__ import annotations

from typing import Any

from services.devstack import dialers
from services.devstack.child import Child
from services.devstack.components.component import Component, Context
from services.devstack.components.databases import Databases
from services.devstack.components.program import program
from services.devstack.ports import HOST
from services.devstack.state import ACQUIRER

#: The acquirer's one process.
ACQUIRER_INSTANCE = f"{ACQUIRER}-1"


class Acquirer(Component):
    """See the module.

    Attributes:
        address: `host:port`; empty before it was started.
    """

    def __init__(self, context: Context, databases: Databases) -> None:
        super().__init__(context)
        self.address = ""
        self._databases = databases

    async def start(self) -> None:
        """Start its process."""
        directory = self._context.data / ACQUIRER
        directory.mkdir(mode=0o700, exist_ok=True)
        port = self._reserve_port(directory).port
        self.address = f"{HOST}:{port}"
        settings = {**self._databases.settings(ACQUIRER), "listen_port": port}
        self._run(program(self._context, ACQUIRER_INSTANCE, ACQUIRER, settings, self._ready))

    def describe(self) -> dict[str, Any]:
        """Return its address and process."""
        return {"acquirer": self.address, "acquirer_pid": sum(process.pid for process in self.processes)}

    async def _ready(self, _child: Child) -> str:
        from services.devstack.readiness import until_serving  # noqa: PLC0415  as in `services.py`

        dialer = dialers.of_stack(self._context.data, plaintext=self._context.options.plaintext, outside=True)
        await until_serving(dialer, self.address, ACQUIRER)
        return self.address
