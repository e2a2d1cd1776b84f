"""The ledger service: puts its parts together."""

from __future__ import annotations

from pathlib import Path

from countinghouse.ledger.v1 import ledger_pb2_grpc
from services.ledger.operations import LedgerOperations
from services.ledger.schema import ensemble, journals, order_fences, postings, refusals, retention
from services.ledger.servicer import LedgerServicer, MessageEncoding
from services.ledger.store import SqlLedgerStore
from services.runtime.cluster_member import Components, Runtime, Service, run


async def build(runtime: Runtime) -> Components:
    """The parts of one instance, its house accounts open."""
    store = SqlLedgerStore(runtime.database, runtime.guards)
    await store.prepare()
    operations = LedgerOperations(
        store=store,
        clock=runtime.clock,
        ids=runtime.ids,
        failpoints=runtime.failpoints,
        encoding=MessageEncoding(),
    )
    await operations.open_house_accounts(runtime.settings.currencies)
    servicer = LedgerServicer(operations)
    return Components(add=lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer, server))


SERVICE = Service(
    name="ledger",
    interface="countinghouse.ledger.v1.LedgerService",
    package=Path(__file__).parent,
    ensemble=ensemble,
    fences=(order_fences.c.generation, order_fences.c.token),
    append_only=(journals, postings, refusals),
    retention=retention,
    build=build,
)


def main() -> None:
    """Runs the service until it is told to stop."""
    run(SERVICE)


if __name__ == "__main__":
    main()
