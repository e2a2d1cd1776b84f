"""A client that calls as a service of a running stack does: with its certificate, at the internal ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.runtime.grpc.tls import Dialer, TlsFiles, internal_address
from services.testkit.client import Connections, RecordingClient
from services.testkit.identities import Identity


@asynccontextmanager
async def open_service(
    stack: Stack, name: str = "payment-service", *, token: str = "", certificate: str = "payment-1"
) -> AsyncIterator[RecordingClient]:
    """Return the client.

    Args:
        token: Of another than `name`.
        certificate: The instance whose certificate it shows.
    """
    keys = stack.data / "keys"
    dialer = Dialer(TlsFiles(keys / "ca.pem", keys / "tls" / f"{certificate}.pem"))
    async with Connections(
        lambda instance: stack.instance(instance).address,
        SystemClock(),
        dialer=lambda **_: dialer,
        zookeeper=stack.zookeeper,
        security=stack.zookeeper_security,
        endpoint_address=internal_address,
    ) as connections:
        yield RecordingClient(connections, Identity(name, Role.SERVICE, token or stack.token(name, Role.SERVICE)))
