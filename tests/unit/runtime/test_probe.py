"""The health check of a container: exit code 0 if grpc.health says SERVING, else 1."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def address(servicer: health.HealthServicer) -> Iterator[str]:
    """Where it is served."""
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def probe(address: str, *interface: str) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "services.runtime.grpc.probe", address, *interface]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(("said", "code"), [("SERVING", 0), ("NOT_SERVING", 1), ("UNKNOWN", 1)])
def test_only_serving_is_healthy(servicer: health.HealthServicer, address: str, said: str, code: int) -> None:
    """What it says is printed, for `docker inspect`."""
    servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(said))
    assert probe(address) == (code, said)


def test_probe_with_interface_asks_for_its_readiness(servicer: health.HealthServicer, address: str) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("countinghouse.order.v1.OrderService", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert probe(address, "countinghouse.order.v1.OrderService") == (1, "NOT_SERVING")
    assert probe(address) == (0, "SERVING")


def test_closed_port_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    assert probe(address) == (1, "UNAVAILABLE")


def test_probe_imports_only_grpc() -> None:
    """It runs every few seconds in every container: no framework, no settings, no database."""
    program = "import sys, services.runtime.grpc.probe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "sqlalchemy", "structlog", "kazoo", "alembic", "typer", "rich", "jwt"}
    assert not heavy & set(done.stdout.split())
