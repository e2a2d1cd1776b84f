"""The instances of the services. Each is ready when it is registered in ZooKeeper and SERVING.

They need not wait for ZooKeeper and are started beside it: they tolerate its absence.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from services.devstack import dialers
from services.devstack.child import Child
from services.devstack.components.acquirer import Acquirer
from services.devstack.components.component import Component, Context
from services.devstack.components.databases import Databases
from services.devstack.components.program import command, program
from services.devstack.components.zookeeper import ZooKeeper
from services.devstack.pruning import prune_daily
from services.devstack.state import INTERFACES

if TYPE_CHECKING:
    from services.devstack.readiness import Readiness


class Services(Component):
    """See the module.

    Args:
        acquirer: None: no service takes cards.
    """

    def __init__(self, context: Context, zookeeper: ZooKeeper, databases: Databases, acquirer: Acquirer | None) -> None:
        super().__init__(context)
        self._zookeeper = zookeeper
        self._databases = databases
        self._acquirer = acquirer
        self._readiness: asyncio.Future[Readiness] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Start every instance, and begin to look for them in ZooKeeper."""
        options = self._context.options
        for service in options.services:
            for number in range(1, options.replicas.get(service, 1) + 1):
                self._start_instance(service, number)
        prunes = [
            command(self._context, f"{service}-prune", service, self._databases.owner_settings(service), "prune")
            for service in options.services
        ]
        self._supervision.run(prune_daily(prunes))
        await asyncio.sleep(0)  # every process has been spawned: import what follows while they import theirs
        from services.devstack.readiness import Readiness  # noqa: PLC0415  gRPC and kazoo take 0.2 s

        dialer = dialers.of_stack(self._context.data, plaintext=options.plaintext)
        plaintext = options.plaintext or options.zookeeper_plaintext
        security = dialers.zookeeper_of_stack(self._context.data, plaintext=plaintext)
        readiness = Readiness(dialer, self._zookeeper.address, options.session_timeout_s, security)
        self._resources.push_async_callback(readiness.close)
        self._supervision.run(self._look(readiness))

    async def stop(self) -> None:
        """Stop the payment service first: a payment being finished still needs the others."""
        if self._supervision.ready:  # what has never served has no payment to finish
            await asyncio.gather(*(process.stop() for process in self.processes if process.service == "payment"))
        await super().stop()

    def describe(self) -> dict[str, Any]:
        """Return the instances as they are now."""
        return {"instances": tuple(process.instance() for process in self.processes)}

    def explain(self) -> str:
        """Return which instances are not SERVING; or that ZooKeeper, which lists them, does not answer."""
        if self.processes and not (self._readiness.done() and self._readiness.result().connected):
            return f"ZooKeeper at {self._zookeeper.address} does not answer; see whether it runs there"
        return super().explain()

    def _start_instance(self, service: str, number: int) -> None:
        name, options = f"{service}-{number}", self._context.options
        first_port = options.ports.get(service, 0)
        settings = {
            **self._databases.settings(service),
            "listen_port": first_port + number - 1 if first_port else 0,
            "zookeeper": self._zookeeper.address,
            "session_timeout_s": options.session_timeout_s,
            "discovery_cache": self._context.data / "cache" / name,
            "guards_off": ",".join(options.guards_off),
            "acquirer_address": self._acquirer.address if self._acquirer else "",
        }
        self._run(program(self._context, name, service, settings, partial(self._ready, INTERFACES[service])))

    async def _look(self, readiness: Readiness) -> None:
        await self._zookeeper.wait_ready()
        await readiness.start()
        self._readiness.set_result(readiness)

    async def _ready(self, interface: str, child: Child) -> str:
        readiness = await asyncio.shield(self._readiness)
        return await readiness.wait_serving(interface, child.pid)
