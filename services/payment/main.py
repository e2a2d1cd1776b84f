"""The composition root of the payment service. `python -m services.payment.main [migrate | prune]`"""

from __future__ import annotations

from pathlib import Path

from coordination.locks import ResourceLocks
from countinghouse.acquirer.v1.acquirer_pb2_grpc import AcquirerServiceStub
from countinghouse.ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from countinghouse.order.v1.order_pb2_grpc import OrderServiceStub
from countinghouse.payment.v1.payment_pb2_grpc import add_PaymentServiceServicer_to_server
from services.payment.locks import CoordinatedLocks
from services.payment.metrics import RecoveryMetrics
from services.payment.operations import PaymentOperations
from services.payment.peers import LEDGER_INTERFACE, ORDER_INTERFACE, AcquirerPeer, LedgerPeer, OrderPeer
from services.payment.ports import Limits
from services.payment.request_records import SqlRequestRecords
from services.payment.schema import CARD_OWNERS, ENSEMBLE, EVENTS, PAYMENTS, RETENTION
from services.payment.servicer import PaymentResponses, PaymentServicer
from services.payment.store import SqlPaymentStore
from services.payment.worker import LeaseRenewer, LockPreparer, RecoveryWorker
from services.runtime.cluster_member import Components, Runtime, Service, run
from services.runtime.grpc.tls import Dialer, RenewedChannel, TlsFiles
from services.runtime.grpc.tokens import TokenFile
from services.runtime.zookeeper_paths import LOCKS_ROOT


async def build(runtime: Runtime) -> Components:
    """Constructor injection, all of it."""
    settings, guards, peers = runtime.settings, runtime.guards, runtime.peers
    store = SqlPaymentStore(runtime.database, guards, runtime.failpoints)
    await store.prepare()
    locks = ResourceLocks(runtime.session, metrics=runtime.metrics, root=LOCKS_ROOT)
    orders, ledger = await peers.find(ORDER_INTERFACE), await peers.find(LEDGER_INTERFACE)
    outside = _outside_channel(runtime) if settings.acquirer_address else None
    operations = PaymentOperations(
        store=store,
        requests=SqlRequestRecords(runtime.database, guards),
        orders=OrderPeer(OrderServiceStub(orders.channel), orders),
        ledger=LedgerPeer(LedgerServiceStub(ledger.channel), ledger),
        acquirer=AcquirerPeer(
            (lambda: AcquirerServiceStub(outside.current())) if outside else None,
            token=TokenFile(settings.token_folder / "acquirer.token").token,
            timeout_s=settings.acquirer_timeout_s,
            notify_address=lambda: settings.notify_address or runtime.advertised.address,
        ),
        locks=CoordinatedLocks(
            locks, runtime.ensemble, runtime.clock, instance=settings.instance, wait_turn=guards.lock
        ),
        responses=PaymentResponses(),
        failpoints=runtime.failpoints,
        clock=runtime.clock,
        ids=runtime.ids,
        guards=guards,
        limits=Limits(
            lock_wait_s=settings.lock_wait_s,
            lease_s=settings.lease_s,
            acquirer_asks=settings.acquirer_asks,
            ticket_quota=settings.ticket_quota,
        ),
        instance=settings.instance,
        metrics=RecoveryMetrics(runtime.collected),
    )
    workers = [LockPreparer(runtime.session, locks).run, store.feed.run]
    if guards.recovery:
        workers.append(RecoveryWorker(operations.recovery, settings.recovery_interval_s).run)

    async def close() -> None:
        await locks.drained(timeout_s=0.5)
        if outside is not None:
            await outside.close()

    return Components(
        add=lambda server: add_PaymentServiceServicer_to_server(PaymentServicer(operations, runtime.clock), server),
        workers=workers,
        drain_tasks=[LeaseRenewer(operations.leases, settings.lease_s).run],
        close=close,
    )


def _outside_channel(runtime: Runtime) -> RenewedChannel:
    """Return a channel to the acquirer, whose certificate must name the host of its address."""
    settings = runtime.settings
    files = None if settings.plaintext else TlsFiles(settings.outside_ca_file)
    runtime.credentials.show_tls("acquirer", files)
    return RenewedChannel(Dialer(files, outside=True), settings.acquirer_address, "acquirer")


SERVICE = Service(
    name="payment",
    interface="countinghouse.payment.v1.PaymentService",
    package=Path(__file__).parent,
    ensemble=ENSEMBLE,
    fences=(PAYMENTS.c.fence_generation, PAYMENTS.c.fence_token),
    append_only=(EVENTS, CARD_OWNERS),
    retention=RETENTION,
    build=build,
)


def main() -> None:
    """Run the service."""
    run(SERVICE)


if __name__ == "__main__":
    main()
