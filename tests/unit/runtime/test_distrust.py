"""Why a server is not believed: its authority, its name, or that it speaks no TLS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from services.runtime.grpc.distrust import distrust
from tests.certificates import CertificateIssuer


@pytest.fixture
def issuer(tmp_path: Path) -> CertificateIssuer:
    return CertificateIssuer(tmp_path / "ours")


@pytest.fixture
def address(issuer: CertificateIssuer) -> Iterator[str]:
    """Where the order service listens."""
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = issuer.files("order").server_credentials(demand_certificate=False)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_believed_server_has_no_reason(issuer: CertificateIssuer, address: str) -> None:
    assert distrust(address, issuer.authority.file, "order.countinghouse") == ""


def test_certificate_of_another_authority_or_for_another_name_is_the_reason(
    issuer: CertificateIssuer, address: str, tmp_path: Path
) -> None:
    other = CertificateIssuer(tmp_path / "other").authority.file
    assert "its certificate is not believed" in distrust(address, other, "order.countinghouse")
    assert "its certificate is not believed" in distrust(address, issuer.authority.file, "ledger.countinghouse")


def test_server_without_tls_is_told_apart(issuer: CertificateIssuer) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert distrust(f"127.0.0.1:{port}", issuer.authority.file, "order.countinghouse") == "it does not speak TLS"
    finally:
        server.stop(None)


def test_server_that_does_not_answer_is_not_distrusted(issuer: CertificateIssuer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        closed = f"127.0.0.1:{held.getsockname()[1]}"
    assert distrust(closed, issuer.authority.file, "order.countinghouse") == ""
    assert distrust("no address", issuer.authority.file, "order.countinghouse") == ""
