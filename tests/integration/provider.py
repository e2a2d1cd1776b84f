"""A provider in a process of its own, to be killed, frozen or stopped politely.

``python -m tests.integration.provider <ZooKeeper's hosts, or -> <interface>``; it says its port on standard output.
On SIGTERM it stops as the services do: unregister, let consumers hear of it, finish running calls, stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import grpc

from coordination.registry import ProviderURL, Registry
from coordination.session import Session

SERVER_OPTIONS = [("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]
"""As the services have them: consumers may ping every second."""

UNREGISTER_PAUSE_S = 0.3
DRAIN_S = 5.0


def provider_url(port: int, interface: str, *, host: str = "127.0.0.1", **parameters: str) -> ProviderURL:
    """Return the URL of a provider that need not exist."""
    url = ProviderURL.provider(
        interface, host, port, application="tests", methods=("A", "B"), release="1", timestamp_ms=1
    )
    return ProviderURL(url.protocol, url.host, url.port, url.path, {**url.parameters, **parameters})


class Provider:
    """A running one, as seen from the test's process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdout is not None
        self.port = int(process.stdout.readline())

    def freeze(self) -> None:
        """Stop every thread of it; connections stay open, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    async def stop(self) -> None:
        """Have it stop politely; returns when it has."""
        self._process.terminate()
        assert await asyncio.to_thread(self._process.wait, 15.0) == 0


@contextmanager
def started(hosts: str, interface: str) -> Iterator[Provider]:
    """A provider that serves, and is registered unless `hosts` is ``-``; killed at the end."""
    command = [sys.executable, "-m", "tests.integration.provider", hosts, interface]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield Provider(process)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def main(hosts: str, interface: str) -> None:
    carried_out = 0

    async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        nonlocal carried_out
        carried_out += 1
        await asyncio.sleep(0)
        return request

    async def count(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return str(carried_out).encode()

    async def serving(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return b"\x08\x01"

    server = grpc.aio.server(options=SERVER_OPTIONS)
    unary = grpc.unary_unary_rpc_method_handler
    methods: dict[str, Any] = {"Look": unary(echo), "Put": unary(echo), "Charge": unary(echo), "Count": unary(count)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(interface, methods),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": unary(serving)}),
        )
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncExitStack() as stack:
        if hosts != "-":
            session = await stack.enter_async_context(Session(hosts, timeout_s=4.0))
            registry = Registry(session)
            await registry.register(provider_url(port, interface))
        print(port, flush=True)  # noqa: T201  whoever started us waits for it
        await stop.wait()
        if hosts != "-":
            await registry.unregister(provider_url(port, interface))
            await asyncio.sleep(UNREGISTER_PAUSE_S)
        await server.stop(DRAIN_S)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
