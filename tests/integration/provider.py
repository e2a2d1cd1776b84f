"""A provider in a process of its own, to be killed: ``python -m tests.integration.provider <hosts> <interface>``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from coordination.registry import Registry
from coordination.session import Session
from coordination.url import ProviderURL


def provider_url(port: int, interface: str) -> ProviderURL:
    """Return the URL of a provider that need not exist."""
    return ProviderURL.provider(
        interface, "127.0.0.1", port, application="tests", methods=("A", "B"), release="1", timestamp_ms=1
    )


async def main(hosts: str, interface: str) -> None:
    async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = grpc.aio.server()
    methods: dict[str, Any] = dict.fromkeys(("Look", "Charge"), grpc.unary_unary_rpc_method_handler(echo))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(interface, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Session(hosts, timeout_s=4.0) as session:
        await Registry(session).register(provider_url(port, interface))
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
