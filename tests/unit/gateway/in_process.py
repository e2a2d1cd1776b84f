"""The services in one process: gateway, payment, order, ledger and acquirer behind their interceptors, on loopback.

Real are the servers, the calls between them and the SQLite databases. The lock and the registry are played.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio

import services
from coordination.channel import DiscoveredChannel
from coordination.discovery import Directory
from coordination.grpc_channel import PATIENT
from coordination.locks.lock import Holder, ResourceLocks
from coordination.registry import ProviderURL
from countinghouse.acquirer.v1.acquirer_pb2_grpc import AcquirerServiceStub, add_AcquirerServiceServicer_to_server
from countinghouse.ledger.v1.ledger_pb2_grpc import LedgerServiceStub, add_LedgerServiceServicer_to_server
from countinghouse.order.v1.order_pb2_grpc import OrderServiceStub, add_OrderServiceServicer_to_server
from countinghouse.payment.v1.payment_pb2_grpc import add_PaymentServiceServicer_to_server
from services.acquirer.faults import Faults
from services.acquirer.operations import AcquirerOperations
from services.acquirer.servicer import AcquirerServicer
from services.acquirer.store import SqlChargeStore
from services.gateway.app import make_app
from services.gateway.calls import ChannelCalls
from services.gateway.routes import public_routes
from services.kernel.clock import SystemClock
from services.kernel.guards import Guards
from services.kernel.ids import RandomIds
from services.kernel.principal import Principal, Role
from services.ledger.operations import LedgerOperations
from services.ledger.servicer import LedgerResponses, LedgerServicer
from services.ledger.store import SqlLedgerStore
from services.order.operations import OrderOperations
from services.order.servicer import OrderResponses, OrderServicer
from services.order.store import SqlOrderStore
from services.payment.locks import CoordinatedLocks
from services.payment.operations import PaymentOperations
from services.payment.peers import LEDGER_INTERFACE, ORDER_INTERFACE, AcquirerPeer, LedgerPeer, OrderPeer
from services.payment.ports import Limits
from services.payment.request_records import SqlRequestRecords
from services.payment.servicer import PaymentResponses, PaymentServicer
from services.payment.store import SqlPaymentStore
from services.runtime import tracing
from services.runtime.database.database import Database
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.ensemble import Ensemble
from services.runtime.grpc.admission import Admission
from services.runtime.grpc.interceptors import CallInterceptor
from services.runtime.grpc.methods import idempotency
from services.runtime.grpc.service_client import Peer
from services.runtime.grpc.tokens import TokenFile, TokenSigner, audience_of, service_principal
from services.runtime.ports import NO_FAILPOINTS
from tests.tokens import verifier_of

PAYMENT_INTERFACE = "countinghouse.payment.v1.PaymentService"
ACQUIRER_INTERFACE = "countinghouse.acquirer.v1.AcquirerService"


LIMITS = Limits(lock_wait_s=5, lease_s=60, acquirer_asks=28, ticket_quota=100)


class InProcess:
    """See the module. Make it by `in_process`.

    Attributes:
        payments: The use cases of the payment service.
    """

    payments: PaymentOperations

    def __init__(self, folder: Path, resources: AsyncExitStack) -> None:
        self.clock = SystemClock()
        self._ids = RandomIds()
        self._signer = TokenSigner(Ed25519PrivateKey.generate(), self.clock)
        self._folder = folder
        self._resources = resources
        self._ports: dict[str, int] = {}

    async def start(self) -> None:
        """Start the servers, the payment service last."""
        await self._serve("order", ORDER_INTERFACE, await self._order())
        await self._serve("ledger", LEDGER_INTERFACE, await self._ledger())
        await self._serve("acquirer", ACQUIRER_INTERFACE, await self._acquirer())
        self.payments = await self._payment()
        servicer = PaymentServicer(self.payments, self.clock)
        await self._serve(
            "payment", PAYMENT_INTERFACE, lambda server: add_PaymentServiceServicer_to_server(servicer, server)
        )

    async def gateway(self, principal: Principal) -> httpx.AsyncClient:
        """A client of the gateway with the token of one caller."""
        channels = {name: await self._channel(name) for name in (ORDER_INTERFACE, PAYMENT_INTERFACE)}
        headers = {"authorization": f"Bearer {self._signer.sign(principal, 600)}"}
        transport = httpx.ASGITransport(make_app(public_routes(), ChannelCalls(channels)))
        client = httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers, timeout=60)
        return await self._resources.enter_async_context(client)

    async def _order(self) -> Callable[[aio.Server], None]:
        store = SqlOrderStore(await self._database("order"), Guards())
        servicer = OrderServicer(OrderOperations(store, self.clock, self._ids, NO_FAILPOINTS, OrderResponses()))
        return lambda server: add_OrderServiceServicer_to_server(servicer, server)

    async def _ledger(self) -> Callable[[aio.Server], None]:
        store = SqlLedgerStore(await self._database("ledger"), Guards())
        operations = LedgerOperations(store, self.clock, self._ids, NO_FAILPOINTS, LedgerResponses())
        await operations.open_house_accounts(["CNY"])
        servicer = LedgerServicer(operations)
        return lambda server: add_LedgerServiceServicer_to_server(servicer, server)

    async def _acquirer(self) -> Callable[[aio.Server], None]:
        store = SqlChargeStore(await self._database("acquirer"))
        operations = AcquirerOperations(store, cast(Any, None), Faults(), NO_FAILPOINTS, self.clock)
        servicer = AcquirerServicer(operations)
        return lambda server: add_AcquirerServiceServicer_to_server(servicer, server)

    async def _payment(self) -> PaymentOperations:
        database, guards = await self._database("payment"), Guards()
        orders, ledger = await self._peer("order", ORDER_INTERFACE), await self._peer("ledger", LEDGER_INTERFACE)
        acquirer = await self._peer("acquirer", ACQUIRER_INTERFACE)
        stub: Any = AcquirerServiceStub(acquirer.channel)
        return PaymentOperations(
            store=SqlPaymentStore(database, guards),
            requests=SqlRequestRecords(database, guards),
            orders=OrderPeer(OrderServiceStub(orders.channel), orders),
            ledger=LedgerPeer(LedgerServiceStub(ledger.channel), ledger),
            acquirer=AcquirerPeer(
                lambda: stub,
                token=TokenFile(self._folder / "acquirer.token").token,
                timeout_s=30,
                notify_address=lambda: "",
            ),
            locks=CoordinatedLocks(
                cast(ResourceLocks, _OpenLocks()),
                cast(Ensemble, _Settled()),
                self.clock,
                instance="payment-1",
                wait_turn=True,
            ),
            responses=PaymentResponses(),
            failpoints=NO_FAILPOINTS,
            clock=self.clock,
            ids=self._ids,
            guards=guards,
            limits=LIMITS,
            instance="payment-1",
        )

    async def _database(self, service: str) -> Database:
        database = await self._resources.enter_async_context(Database(f"sqlite:///{self._folder / service}.db"))
        await bring_up_to_date(database, Path(services.__path__[0]) / service, migrate=True)
        return database

    async def _serve(self, service: str, interface: str, add: Callable[[aio.Server], None]) -> None:
        interceptor = CallInterceptor(
            verifier_of(self._signer, self.clock, service),
            self.clock,
            default_deadline_s=60,
            max_deadline_s=60,
            message_timeout_s=30,
            admission=Admission(caller_budget=4096, service_budget=4096, max_executions=512),
        )
        server = aio.server(interceptors=[interceptor], options=PATIENT)
        add(server)
        self._ports[interface] = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._resources.push_async_callback(server.stop, None)

    async def _peer(self, service: str, interface: str) -> Peer:
        token = self._folder / f"{service}.token"
        token.write_text(self._signer.sign(service_principal("payment"), 600, audience_of(service)))
        return Peer(await self._channel(interface), TokenFile(token))

    async def _channel(self, interface: str) -> DiscoveredChannel:
        directory = Directory(interface)
        url = ProviderURL("tri", "127.0.0.1", self._ports[interface], interface, {"interface": interface})
        directory.take(directory.reader.read([url.node_name()]))
        channel = DiscoveredChannel(
            directory, idempotency=idempotency, options=PATIENT, on_attempt=tracing.attempt_observer()
        )
        await self._resources.enter_async_context(channel)
        await channel.channel_ready()  # a busy machine connects too late for a call
        return channel


class _OpenLocks:
    """Locks that are free whenever they are wanted; their tokens grow."""

    def __init__(self) -> None:
        self._tokens = 0

    async def acquire(self, resource_id: str, _holder: Holder, *, timeout_s: float) -> Any:
        self._tokens += 1
        return _Lease(resource_id, self._tokens)


class _Lease:
    def __init__(self, resource_id: str, token: int) -> None:
        self.resource_id, self.token, self.session_id, self.waited_s = resource_id, token, 1, 0.0

    def ensure(self) -> None:
        """It is held."""

    def release(self) -> None:
        """Forget it."""


class _Settled:
    def check(self) -> None:
        """It is fit."""

    async def generation_in(self, _session_id: int, _timeout_s: float) -> int:
        return 1


@asynccontextmanager
async def in_process(folder: Path) -> AsyncIterator[InProcess]:
    """The services, while inside."""
    async with AsyncExitStack() as resources:
        running = InProcess(folder, resources)
        await running.start()
        yield running


LI = Principal("li", Role.CASHIER)
