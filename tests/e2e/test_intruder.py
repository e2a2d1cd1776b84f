"""What an intruder gets who can write to ZooKeeper, has a token or a certificate that is not theirs, or reads the
network: nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest

from coordination.registry import ProviderURL, Registry
from coordination.session import Session
from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.type.v1 import clerk_pb2, fence_pb2
from services.devstack.stack import Stack
from services.devstack.state import INTERFACES
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.runtime.grpc import status
from services.runtime.grpc.methods import method_names
from services.runtime.grpc.tls import INTERNAL_PORT, Dialer, TlsFiles
from services.testkit.client import new_id
from services.testkit.harness import ONE, TWO, Harness
from tests.certificates import CertificateIssuer
from tests.e2e.checked import checked_books, refusal
from tests.e2e.command import command_line, document
from tests.e2e.conftest import FreshStack
from tests.e2e.test_identities import stolen
from tests.integration.echo import Cable

HOST = "127.0.0.1"
FENCE = fence_pb2.Fence(generation=1, token=1)
_SETTLES = 20


@dataclass
class Intruder:
    """A server at an address that should be another's.

    Attributes:
        heard: What connections sent: bytes of TLS or of HTTP/2, or the metadata and the request of a call.
        cable: Counts the connections on their way to it.
    """

    port: int = 0
    heard: list[bytes] = field(default_factory=list)
    cable: Cable = field(default_factory=lambda: Cable(0))

    @property
    def connections(self) -> int:
        return self.cable.connections


@asynccontextmanager
async def listener() -> AsyncIterator[Intruder]:
    """Takes whatever is sent, and answers nothing."""
    intruder = Intruder()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65_536):
            intruder.heard.append(content)
        writer.close()

    server = await asyncio.start_server(take, HOST, 0)
    intruder.cable.port = server.sockets[0].getsockname()[1]
    async with server, intruder.cable.laid() as intruder.port:
        yield intruder


@asynccontextmanager
async def impostor(files: TlsFiles) -> AsyncIterator[Intruder]:
    """A gRPC server with a certificate that is not of the service in whose place it is."""
    intruder = Intruder()

    async def take(request: bytes, context: Any) -> bytes:
        intruder.heard += [request, *(f"{key}: {value}".encode() for key, value in context.invocation_metadata())]
        return b""

    class Every(grpc.GenericRpcHandler):
        def service(self, _details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(take)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Every()])
    credentials = files.server_credentials(demand_certificate=False)
    intruder.cable.port = server.add_secure_port(f"{HOST}:0", credentials)
    await server.start()
    try:
        async with intruder.cable.laid() as intruder.port:
            yield intruder
    finally:
        await server.stop(None)


@dataclass
class Alterer(Intruder):
    """Passes on what it is sent, to the server that is meant and back.

    Attributes:
        altering: Whether it changes what comes back.
        altered: How many pieces it has changed.
    """

    altering: bool = False
    altered: int = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        while content := await reader.read(65_536):
            if back and self.altering:
                content = content[:-1] + bytes([content[-1] ^ 1])
                self.altered += 1
            writer.write(content)
        writer.close()


@asynccontextmanager
async def altering(address: str) -> AsyncIterator[Alterer]:
    """Between a client and the server at an address."""
    alterer = Alterer()
    host, _, port = address.rpartition(":")

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection(host, int(port))
        ways = (alterer.carry(reader, downstream, back=False), alterer.carry(upstream, writer, back=True))
        with suppress(ConnectionError):
            await asyncio.gather(*ways)

    server = await asyncio.start_server(take, HOST, 0)
    alterer.cable.port = server.sockets[0].getsockname()[1]
    async with server, alterer.cable.laid() as alterer.port:
        yield alterer


@asynccontextmanager
async def registered(stack: Stack, service: str, intruder: Intruder) -> AsyncIterator[None]:
    """The intruder is registered for a service, with a hundred times the weight of the others."""
    interface = INTERFACES[service]
    url = ProviderURL.provider(
        interface,
        HOST,
        intruder.port,
        application=f"countinghouse-{service}",
        methods=method_names(interface),
        release="countinghouse",
        timestamp_ms=SystemClock().now_ms(),
        weight=10_000,
        **{INTERNAL_PORT: str(intruder.port)},
    )
    async with Session(stack.zookeeper, timeout_s=4.0, name="intruder", security=stack.zookeeper_security()) as session:
        registry = Registry(session)
        assert await registry.register(url, timeout_s=10.0)
        try:
            yield
        finally:
            await registry.close()


async def settle_until_tried(harness: Harness, intruder: Intruder) -> None:
    """Settles orders through both instances until the intruder was connected to, and some more."""
    left = itertools.count(_SETTLES, -1)
    async with asyncio.timeout(60):
        for number in itertools.count():
            await harness.cashier.settle_ok(await harness.new_order(), at=(ONE, TWO)[number % 2], timeout_s=10.0)
            if intruder.connections and not next(left):
                return


def secrets_in(heard: list[bytes]) -> list[bytes]:
    """What was sent that only the service itself should get."""
    return [
        each for each in heard if any(word in each for word in (b"Bearer", b"authorization", b"PRI * HTTP", b"order-"))
    ]


class TestFakeProvider:
    """It was registered in ZooKeeper with the operator's own rights, and is preferred by its weight."""

    @pytest.mark.parametrize("service", ["order", "ledger"])
    async def test_nothing_of_a_call_reaches_a_listener(self, fresh_stack: FreshStack, service: str) -> None:
        """It hears the beginning of TLS; every settle goes to the real one."""
        async with fresh_stack(replicas={"payment": 2}) as stack, Harness(stack) as harness, listener() as intruder:
            async with registered(stack, service, intruder):
                await settle_until_tried(harness, intruder)
            assert secrets_in(intruder.heard) == []
            await checked_books(harness)

    @pytest.mark.parametrize("certificate", ["another authority's", "another service's"])
    async def test_nothing_of_a_call_reaches_a_server_with_the_wrong_certificate(
        self, fresh_stack: FreshStack, tmp_path: Path, certificate: str
    ) -> None:
        """Another service's is of the house's own authority: what a stolen payment service would show."""
        async with fresh_stack(replicas={"payment": 2}) as stack, Harness(stack) as harness:
            keys = stack.data / "keys"
            files = TlsFiles(keys / "ca.pem", keys / "tls" / "payment-1.pem")
            if certificate == "another authority's":
                files = CertificateIssuer(tmp_path / "own").files("ledger")
            async with impostor(files) as intruder:
                async with registered(stack, "ledger", intruder):
                    await settle_until_tried(harness, intruder)
                assert intruder.heard == []
            await checked_books(harness)

    async def test_command_sends_it_no_token(self, fresh_stack: FreshStack) -> None:
        async with fresh_stack() as stack, Harness(stack) as harness, listener() as intruder:
            order_id = await harness.new_order()
            async with registered(stack, "order", intruder):
                done = await command_line("order", "get", order_id, "--data", str(stack.data))
            assert (done.returncode, order_id in done.stdout) == (0, True)
            assert secrets_in(intruder.heard) == []

    async def test_rule_that_routes_to_it_alone_stops_calls_and_gives_nothing_away(
        self, fresh_stack: FreshStack
    ) -> None:
        """Availability is lost to a writer of rules; money is not."""
        async with fresh_stack(replicas={"payment": 2}) as stack, Harness(stack) as harness, listener() as intruder:
            async with registered(stack, "ledger", intruder):
                taken = await command_line("registry", "offline", "ledger-1", "--data", str(stack.data))
                assert taken.returncode == 0, taken.stderr
                async with asyncio.timeout(20):
                    order_id, key = await until_unsettled(harness)
                assert secrets_in(intruder.heard) == []
            brought = await command_line("registry", "online", "ledger-1", "--data", str(stack.data))
            assert brought.returncode == 0, brought.stderr
            assert (await harness.cashier.settle(order_id, key)).answer.state == "SUCCEEDED"
            await checked_books(harness)


class TestAlteredReply:
    """It stands between the payment service and the order service, whose certificate it passes on."""

    async def test_reply_that_was_altered_is_none(self, fresh_stack: FreshStack) -> None:
        """The call goes to the service by another way; every order is settled once, for what it costs."""
        async with fresh_stack(replicas={"payment": 2}) as stack, Harness(stack) as harness:
            async with altering(await internal_address_of(stack, "order-1")) as alterer:
                async with registered(stack, "order", alterer):
                    await settle_until_tried(harness, alterer)
                    alterer.altering = True
                    for number in range(_SETTLES):
                        await harness.cashier.settle_ok(
                            await harness.new_order(), at=(ONE, TWO)[number % 2], timeout_s=10.0
                        )
                assert alterer.altered
            await checked_books(harness)


class TestStolen:
    """What was stolen from one process is of no use elsewhere."""

    async def test_token_of_a_service_without_its_certificate_is_refused(self, stack: Stack) -> None:
        """At the public port, which asks for no certificate."""
        for service, request in (("order", order_pb2.ClaimOrderRequest()), ("ledger", ledger_pb2.PostRequest())):
            method = f"/{INTERFACES[service]}/{type(request).__name__.removesuffix('Request')}"
            address, token = stack.instance(f"{service}-1").address, stolen(stack, "payment", service)
            error = await refused(stack.dialer(), address, service, method, request, token)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert status.from_rpc_error(error).reason == "CERTIFICATE_REQUIRED"

    async def test_token_of_a_service_with_the_certificate_of_another_is_refused(self, stack: Stack) -> None:
        """A ledger that was taken over does not claim orders in the payment service's name."""
        keys = stack.data / "keys"
        ledgers = Dialer(TlsFiles(keys / "ca.pem", keys / "tls" / "ledger-1.pem"))
        address = await internal_address_of(stack, "order-1")
        method, request = f"/{INTERFACES['order']}/ClaimOrder", order_pb2.ClaimOrderRequest()
        error = await refused(ledgers, address, "order", method, request, stolen(stack, "payment", "order"))
        assert status.from_rpc_error(error).reason == "CERTIFICATE_FOR_ANOTHER"

    async def test_certificate_without_a_token_is_refused(self, stack: Stack) -> None:
        keys = stack.data / "keys"
        payments = Dialer(TlsFiles(keys / "ca.pem", keys / "tls" / "payment-1.pem"))
        address = await internal_address_of(stack, "order-1")
        method, request = f"/{INTERFACES['order']}/ClaimOrder", order_pb2.ClaimOrderRequest()
        error = await refused(payments, address, "order", method, request, "")
        assert status.from_rpc_error(error).reason == "TOKEN_REQUIRED"

    async def test_internal_port_is_closed_to_a_client_without_a_certificate_of_the_house(
        self, stack: Stack, tmp_path: Path
    ) -> None:
        own = CertificateIssuer(tmp_path / "own")
        forged = Dialer(TlsFiles(stack.data / "keys" / "ca.pem", own.certify("payment")))
        method, request = f"/{INTERFACES['order']}/ClaimOrder", order_pb2.ClaimOrderRequest()
        address, token = await internal_address_of(stack, "order-1"), stolen(stack, "payment", "order")
        for dialer in (stack.dialer(), forged):
            error = await refused(dialer, address, "order", method, request, token)
            assert error.code() is grpc.StatusCode.UNAVAILABLE


class TestImpersonation:
    """A payment service that was taken over names whom it likes. It has its own certificate and token."""

    async def test_person_who_has_not_called_is_not_recorded(self, fresh_stack: FreshStack) -> None:
        """Orders and journals record the service itself. The books of this stack do not agree afterwards."""
        async with fresh_stack() as stack:
            await self._is_not_recorded(stack)

    async def _is_not_recorded(self, stack: Stack) -> None:
        async with Harness(stack) as harness:
            order_id = await harness.new_order()
        wang = clerk_pb2.Clerk(name="wang", role=clerk_pb2.ROLE_ACCOUNTANT)
        ours: dict[str, Any] = {"order_id": order_id, "payment_id": new_id("pay"), "fence": FENCE}
        claim = order_pb2.ClaimOrderRequest(clerk=wang, **ours)
        completion = order_pb2.CompleteOrderRequest(settled_by=wang, settled_at_ms=1, **ours)
        post = ledger_pb2.PostRequest(
            request_id=ours["payment_id"],
            business_key=f"pay:{ours['payment_id']}",
            postings=[
                ledger_pb2.Posting(account_id="drawer:CNY", amount=1),
                ledger_pb2.Posting(account_id="sales:CNY", amount=-1),
            ],
            currency_code="CNY",
            payment_id=ours["payment_id"],
            clerk=wang,
        )
        await as_payment(stack, "order", claim)
        paid = order_pb2.CompleteOrderResponse.FromString(await as_payment(stack, "order", completion)).order
        journal = ledger_pb2.PostResponse.FromString(await as_payment(stack, "ledger", post)).journal
        itself = clerk_pb2.Clerk(name="payment-service", role=clerk_pb2.ROLE_SERVICE)
        assert (paid.settled_by, journal.posted_by) == (itself, itself)

    async def test_person_is_not_named_with_the_delegation_of_another(self, stack: Stack) -> None:
        """That of a cashier whose token it was sent."""
        token = stack.token("li", Role.CASHIER)
        delegation = jwt.decode(token, options={"verify_signature": False})["delegation"]
        wang = clerk_pb2.Clerk(name="wang", role=clerk_pb2.ROLE_ACCOUNTANT, delegation=delegation)
        request = order_pb2.ClaimOrderRequest(order_id="o1", payment_id="p1", fence=FENCE, clerk=wang)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await as_payment(stack, "order", request)
        assert status.from_rpc_error(error.value).reason == "DELEGATION_FOR_ANOTHER"


class TestPlainText:
    """No port takes a call that is not encrypted, and none of TLS before 1.2."""

    async def test_every_port_refuses_plain_text(self, stack: Stack) -> None:
        plain = Dialer(None)
        for name in ("order-1", "payment-1", "ledger-1", "acquirer-1"):
            instance = stack.instance(name)
            addresses = [instance.address]
            if name != "acquirer-1":
                addresses.append(await internal_address_of(stack, name))
            for address in addresses:
                request = acquirer_pb2.GetChargeRequest()
                error = await refused(plain, address, "", "/grpc.health.v1.Health/Check", request, "")
                assert error.code() is grpc.StatusCode.UNAVAILABLE, address

    async def test_every_port_refuses_old_versions_of_tls(self, stack: Stack) -> None:
        for name in ("order-1", "payment-1", "ledger-1", "acquirer-1"):
            host, _, port = stack.instance(name).address.rpartition(":")
            old = ssl.create_default_context(cafile=stack.data / "keys" / "ca.pem")
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(host, int(port), ssl=old)


async def test_revoked_instance_calls_no_service_until_it_is_taken_back(fresh_stack: FreshStack) -> None:
    """The other instance of its service goes on."""
    async with fresh_stack(replicas={"payment": 2}) as stack, Harness(stack) as harness:
        data, first = ["--data", str(stack.data)], await harness.new_order()
        assert (await command_line("revoke", "--instance", ONE, *data)).returncode == 0
        shown = document(await command_line("status", "--json", *data))["services"]
        assert [each["name"] for each in shown if each["revoked"]] == [ONE]
        code, error = await refusal(harness.cashier.settle_once(first, at=ONE, timeout_s=5.0))
        assert (code, error.reason) == ("UNAVAILABLE", "PEER_REFUSED_US")
        await harness.cashier.settle_ok(await harness.new_order(), at=TWO, timeout_s=10.0)
        assert (await command_line("revoke", "--instance", ONE, "--undo", *data)).returncode == 0
        await harness.cashier.settle_ok(await harness.new_order(), at=ONE, timeout_s=10.0)


async def test_authority_that_was_replaced_at_once_is_believed_no_more(fresh_stack: FreshStack) -> None:
    """What it has signed is refused, by servers and by clients; the stack goes on with new certificates."""
    async with fresh_stack() as stack:
        keys = stack.data / "keys"
        kept = stack.data / "kept"
        kept.mkdir()
        for file in (keys / "ca.pem", keys / "tls" / "payment-1.pem"):
            (kept / file.name).write_bytes(file.read_bytes())
        stolen_from = Dialer(TlsFiles(keys / "ca.pem", kept / "payment-1.pem"))
        address = await internal_address_of(stack, "order-1")
        replaced = await command_line("key", "rotate", "--authority", "--now", "--data", str(stack.data))
        assert replaced.returncode == 0, replaced.stderr
        method, request = f"/{INTERFACES['order']}/ClaimOrder", order_pb2.ClaimOrderRequest()
        fresh_authority = Dialer(TlsFiles(keys / "ca.pem"))
        async with asyncio.timeout(60):
            while await health_over(fresh_authority, stack.instance("order-1").address) != "OK":  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert (await refused(stolen_from, address, "order", method, request, "")).code() is grpc.StatusCode.UNAVAILABLE
        old_authority = Dialer(TlsFiles(kept / "ca.pem"))
        assert await health_over(old_authority, stack.instance("order-1").address) == "UNAVAILABLE"
        async with Harness(stack) as again:
            await again.cashier.settle_ok(await again.new_order(), timeout_s=30.0)  # ZooKeeper starts again


async def until_unsettled(harness: Harness) -> tuple[str, str]:
    """Settles new orders until one cannot be settled; returns that one and its key. A rule takes a moment to arrive."""
    while True:
        order_id, key = await harness.new_order(), harness.new_id("settle")
        result = await harness.cashier.settle_once(order_id, key, timeout_s=2.0)
        if result.answer.state != "SUCCEEDED":
            return order_id, key


async def health_over(dialer: Dialer, address: str) -> str:
    async with dialer.open(address, "order") as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        return str((await call(b"", timeout=5.0).code()).name)


async def internal_address_of(stack: Stack, instance: str) -> str:
    """Where an instance is called with a certificate, as it is registered."""
    async with Session(stack.zookeeper, timeout_s=4.0, name="intruder", security=stack.zookeeper_security()) as session:
        listings = await Registry(session).ls(timeout_s=10.0)
    (url,) = [url for each in listings for url in each.providers if url.parameters.get("instance") == instance]
    return f"{url.host}:{url.parameters[INTERNAL_PORT]}"


async def as_payment(stack: Stack, service: str, request: Any) -> bytes:
    """The answer to a call of the payment service."""
    keys = stack.data / "keys"
    dialer = Dialer(TlsFiles(keys / "ca.pem", keys / "tls" / "payment-1.pem"))
    method = f"/{INTERFACES[service]}/{type(request).__name__.removesuffix('Request')}"
    metadata = (("authorization", f"Bearer {stolen(stack, 'payment', service)}"),)
    async with dialer.open(await internal_address_of(stack, f"{service}-1"), service) as channel:
        call: Any = channel.unary_unary(method)
        answer: bytes = await call(request.SerializeToString(), timeout=5.0, metadata=metadata)
    return answer


async def refused(
    dialer: Dialer, address: str, service: str, method: str, request: Any, token: str
) -> grpc.aio.AioRpcError:
    """The error with which a call is refused."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with dialer.open(address, service) as channel:
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(request.SerializeToString(), timeout=5.0, metadata=metadata)
    return error.value
