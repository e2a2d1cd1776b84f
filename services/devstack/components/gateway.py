"""The gateway with its console: a client of the services. In development a browser signs in as the demo's people."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from services.devstack.child import Child, Command
from services.devstack.components.component import Component
from services.devstack.managed_process import ManagedProcess
from services.devstack.options import GATEWAY as NAME
from services.devstack.ports import HOST

#: As in README and the demo.
_PEOPLE: Final = ("cashier:li", "accountant:wang", "customer:mei", "customer:jun", "auditor:zhao", "operator:ops")
_GRACE_S: Final = 14.0
_LOOK_S: Final = 0.1


class Gateway(Component):
    """See the module.

    Attributes:
        address: `host:port`; empty before it was started.
    """

    address = ""

    async def start(self) -> None:
        """Start its process."""
        directory = self._context.data / NAME
        directory.mkdir(mode=0o700, exist_ok=True)
        port = self._context.options.ports.get(NAME) or self._reserve_port(directory).port
        self.address = f"{HOST}:{port}"
        development = self._context.environment.get("COUNTINGHOUSE_PROFILE", "development") == "development"
        trying = [part for each in _PEOPLE for part in ("--sign-in", each)] + ["--break-it"]
        arguments = ["--data", str(self._context.data), "--listen", self.address, "--timeout", "60"]
        command = Command(
            (sys.executable, "-P", "-m", "services.cli.main", NAME, *arguments, *trying * development),
            {**self._context.environment, "MALLOC_ARENA_MAX": "2", "GRPC_VERBOSITY": "NONE"},
            self._context.data / "logs" / f"{NAME}.log",
        )
        self._run(
            ManagedProcess(
                self._supervision,
                NAME,
                service=NAME,
                interface="",
                command=command,
                ready=self._ready,
                grace_s=_GRACE_S,
            )
        )

    def describe(self) -> dict[str, Any]:
        """Return its address."""
        return {NAME: self.address}

    async def _ready(self, child: Child) -> str:
        host, _, port = self.address.rpartition(":")
        while not child.ended:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(_LOOK_S)
                continue
            writer.close()
            return self.address
        return ""
