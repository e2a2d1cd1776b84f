"""TLS between processes: whom a client connects to, who has called a server, and certificates that are renewed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordination.registry import ProviderURL
from coordination.registry.endpoint import Endpoint
from services.devstack.authority import LIFE_S
from services.kernel.errors import CountinghouseError
from services.runtime.grpc import tls
from services.runtime.grpc.identity import Identity
from services.runtime.grpc.tls import Dialer, RenewedChannel, TlsFiles, internal_address
from tests.certificates import CertificateIssuer
from tests.fakes.clock import ManualClock

PATIENCE_S = 10.0


@pytest.fixture
def issuer(tmp_path: Path) -> CertificateIssuer:
    return CertificateIssuer(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> CertificateIssuer:
    """Another authority, which certifies the same names."""
    return CertificateIssuer(tmp_path / "stranger")


@asynccontextmanager
async def listening(files: TlsFiles, *, demand: bool = False) -> AsyncIterator[tuple[str, list[Identity | None]]]:
    """A server; its address, and who has called it."""
    callers: list[Identity | None] = []

    async def answer(_request: bytes, context: Any) -> bytes:
        callers.append(files.identity_of(context.auth_context(), time.time()))
        return b"done"

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Call": handler})])
    port = server.add_secure_port("127.0.0.1:0", files.server_credentials(demand_certificate=demand))
    await server.start()
    try:
        yield f"127.0.0.1:{port}", callers
    finally:
        await server.stop(None)


async def called(dialer: Dialer, address: str, service: str) -> bool:
    """Whether a call over a new connection was answered."""
    async with dialer.open(address, service) as channel:
        call: Any = channel.unary_unary("/test.Service/Call")
        code = await call(b"secret", timeout=PATIENCE_S).code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
        return bool(code is grpc.StatusCode.OK)


async def test_client_connects_to_the_service_that_it_calls_and_to_no_other(issuer: CertificateIssuer) -> None:
    async with listening(issuer.files("order")) as (address, callers):
        assert await called(Dialer(issuer.files()), address, "order")
        assert not await called(Dialer(issuer.files()), address, "ledger")
    assert callers == [None]


async def test_client_refuses_a_certificate_of_another_authority(
    issuer: CertificateIssuer, stranger: CertificateIssuer
) -> None:
    async with listening(stranger.files("order")) as (address, callers):
        assert not await called(Dialer(issuer.files()), address, "order")
    assert callers == []


async def test_client_refuses_a_server_in_plain_text(issuer: CertificateIssuer) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert not await called(Dialer(issuer.files()), f"127.0.0.1:{port}", "order")
    await server.stop(None)


async def test_outside_server_is_known_by_the_host_of_its_address(issuer: CertificateIssuer) -> None:
    async with listening(issuer.files("acquirer")) as (address, _):
        assert await called(Dialer(issuer.files(), outside=True), address, "acquirer")
        port = address.rpartition(":")[2]
        assert not await called(Dialer(issuer.files(), outside=True), f"127.0.0.2:{port}", "acquirer")


async def test_server_that_demands_a_certificate_knows_who_calls(
    issuer: CertificateIssuer, stranger: CertificateIssuer
) -> None:
    async with listening(issuer.files("order"), demand=True) as (address, callers):
        assert await called(Dialer(issuer.files("payment")), address, "order")
        assert not await called(Dialer(issuer.files()), address, "order")
        forged = TlsFiles(issuer.authority.file, stranger.certify("payment"))
        assert not await called(Dialer(forged), address, "order")
        assert not await called(Dialer(None), address, "order")
    assert callers == [Identity("payment", "payment-1")]


async def test_open_connection_shows_nobody_after_its_authority_was_replaced(
    issuer: CertificateIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handshake was before; each call is looked at anew. So is the time."""
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    serving = issuer.files("order")
    async with (
        listening(serving, demand=True) as (address, callers),
        Dialer(issuer.files("payment")).open(address, "order") as channel,
    ):
        call: Any = channel.unary_unary("/test.Service/Call")
        await call(b"", timeout=PATIENCE_S)
        issuer.authority.replace_now()
        issuer.certify("order")
        await call(b"", timeout=PATIENCE_S)
    assert callers == [Identity("payment", "payment-1"), None]


def test_certificate_is_good_until_it_expires(issuer: CertificateIssuer) -> None:
    content = issuer.certify("payment").read_bytes()
    certificate = content[content.index(b"-----BEGIN CERTIFICATE") :]
    shown = {"peer_spiffe_id": [b"spiffe://countinghouse/payment/payment-1"], "x509_pem_cert": [certificate]}
    files = issuer.files("order")
    now_s = time.time()
    assert files.identity_of(shown, now_s) == Identity("payment", "payment-1")
    assert files.identity_of(shown, now_s + LIFE_S + 60) is None
    assert files.identity_of({**shown, "peer_spiffe_id": []}, now_s) is None
    assert files.identity_of({}, now_s) is None


async def test_expired_certificate_is_refused(tmp_path: Path) -> None:

    long_ago = CertificateIssuer(tmp_path / "old", ManualClock(1_000_000_000_000))
    async with listening(long_ago.files("order")) as (address, callers):
        assert not await called(Dialer(long_ago.files()), address, "order")
    assert callers == []


async def test_renewed_files_hold_for_the_next_connection(
    issuer: CertificateIssuer, stranger: CertificateIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that listens, and of a client; with the authority's successor."""
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    client = issuer.files("payment")
    async with listening(issuer.files("order"), demand=True) as (address, _):
        assert await called(Dialer(client), address, "order")
        before = client.client_credentials()
        assert client.client_credentials() is before
        issuer.authority.replace_now()
        issuer.certify("order")
        assert not await called(Dialer(TlsFiles(issuer.authority.file)), address, "order")
        issuer.certify("payment")
        assert client.client_credentials() is not before
        assert await called(Dialer(client), address, "order")


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
async def test_damaged_files_change_nothing(
    issuer: CertificateIssuer, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Also a key with the certificate of another process."""
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    files = issuer.files("order")
    before = files.client_credentials()
    whole = (issuer.folder / "order-1.pem").read_bytes()
    if content is None:
        key = whole[: whole.index(b"-----BEGIN CERTIFICATE")]
        content = key + (issuer.certify("payment").read_bytes()).partition(b"PRIVATE KEY-----\n-")[2]
    (issuer.folder / "order-1.pem").write_bytes(content)
    assert files.client_credentials() is before
    async with listening(files) as (address, _):
        assert await called(Dialer(issuer.files()), address, "order")


def test_missing_and_damaged_files_are_named(issuer: CertificateIssuer, tmp_path: Path) -> None:
    with pytest.raises(CountinghouseError, match=r"nowhere\.pem cannot be read") as missing:
        TlsFiles(issuer.authority.file, tmp_path / "nowhere.pem")
    assert missing.value.reason == "TLS_FILE_MISSING"
    (tmp_path / "rubbish.pem").write_text("rubbish")
    with pytest.raises(CountinghouseError, match=r"rubbish\.pem cannot be used") as damaged:
        TlsFiles(tmp_path / "rubbish.pem")
    assert damaged.value.reason == "TLS_FILE_INVALID"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://countinghouse/order/order-1",
        "spiffe://elsewhere/order/order-1",
        "spiffe://countinghouse/order",
        "spiffe://countinghouse/order/",
        "spiffe://countinghouse//order-1",
        "spiffe://countinghouse/order/order-1/more",
    ],
)
def test_uri_that_names_no_process_of_the_house_is_none(uri: str) -> None:
    assert Identity.parse(uri) is None


def test_uri_of_a_process_is_read_as_it_is_written() -> None:
    order = Identity("order", "order-1")
    assert order.spiffe_id == "spiffe://countinghouse/order/order-1"
    assert Identity.parse(order.spiffe_id) == order


@pytest.mark.parametrize(
    ("registered", "address"),
    [
        ("tri://10.0.0.1:50051/x?internal-port=50151", "10.0.0.1:50151"),
        ("tri://[2001:db8::7]:50051/x?internal-port=50151", "[2001:db8::7]:50151"),
        ("tri://10.0.0.1:50051/x", "10.0.0.1:50051"),
        *(
            (f"tri://10.0.0.1:50051/x?internal-port={port}", "10.0.0.1:50051")
            for port in ("", "0", "65536", "-1", "99999999999999999999", "%C2%B2", "10.0.0.2:1", "1e3")
        ),
    ],
)
def test_internal_port_is_read_from_the_registered_url(registered: str, address: str) -> None:
    """What makes no sense is passed over: the address itself demands the same certificate of its server."""
    url = ProviderURL.parse(registered)
    assert internal_address(Endpoint(url.address, url)) == address


async def test_renewed_channel_is_opened_anew_with_new_authorities(
    issuer: CertificateIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call under way on the one before comes to its end."""
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    server = issuer.files("acquirer")
    async with listening(server) as (address, callers):
        channel = RenewedChannel(Dialer(issuer.files(), outside=True), address, "acquirer")
        first = channel.current()
        assert channel.current() is first
        ask: Any = first.unary_unary("/test.Service/Call")
        assert await ask(b"", timeout=PATIENCE_S) == b"done"
        call = ask(b"", timeout=PATIENCE_S)
        issuer.authority.replace_now()
        issuer.certify("acquirer")
        second = channel.current()
        assert second is not first
        assert await call == b"done"
        again: Any = second.unary_unary("/test.Service/Call")
        assert await again(b"", timeout=PATIENCE_S) == b"done"
        await channel.close()
    assert len(callers) == 3
    assert second.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_renewed_channel_in_plain_text_stays_the_same() -> None:
    channel = RenewedChannel(Dialer(None), "127.0.0.1:1", "acquirer")
    assert channel.current() is channel.current()
    await channel.close()
