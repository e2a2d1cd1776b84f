"""The health check of a container: exit code 0 if grpc.health says SERVING, else 1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.certificates import CertificateIssuer


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


def probe(address: str, *arguments: str, ca_file: str = "") -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "services.runtime.grpc.probe", address, *arguments]
    environment = os.environ | {"COUNTINGHOUSE_CA_FILE": ca_file}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(("said", "code"), [("SERVING", 0), ("NOT_SERVING", 1), ("UNKNOWN", 1)])
def test_only_serving_is_healthy(servicer: health.HealthServicer, address: str, said: str, code: int) -> None:
    """What it says is printed, for `docker inspect`."""
    servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(said))
    assert probe(address) == (code, said)


def test_status_that_this_version_does_not_know_is_printed_as_a_number_and_is_not_healthy(
    servicer: health.HealthServicer, address: str
) -> None:
    servicer.set("", 99)
    assert probe(address) == (1, "99")


def test_probe_with_interface_asks_for_its_readiness(servicer: health.HealthServicer, address: str) -> None:
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("countinghouse.order.v1.OrderService", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert probe(address, "countinghouse.order.v1.OrderService") == (1, "NOT_SERVING")
    assert probe(address) == (0, "SERVING")


def test_server_with_the_certificate_of_the_name_is_healthy(servicer: health.HealthServicer, tmp_path: Path) -> None:
    """A service's certificate names the service, and not the host."""
    files = CertificateIssuer(tmp_path).files("order")
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", files.server_credentials(demand_certificate=False))
    server.start()
    asked = partial(probe, f"127.0.0.1:{port}", ca_file=str(tmp_path / "ca.pem"))
    found = [asked("--name", "order.countinghouse"), asked("--name", "ledger.countinghouse"), asked()]
    server.stop(None)
    assert found == [(0, "SERVING"), (1, "UNAVAILABLE"), (1, "UNAVAILABLE")]


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
