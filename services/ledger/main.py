"""The composition root of the ledger service. `python -m services.ledger.main [migrate | prune]`"""

from __future__ import annotations

from pathlib import Path

from countinghouse.ledger.v1 import ledger_pb2_grpc
from services.ledger.operations import LedgerOperations
from services.ledger.schema import ENSEMBLE, JOURNALS, ORDER_FENCES, POSTINGS, REFUSALS, RETENTION
from services.ledger.servicer import LedgerResponses, LedgerServicer
from services.ledger.store import SqlLedgerStore
from services.runtime.cluster_member import Components, Runtime, Service, run


async def build(runtime: Runtime) -> Components:
    """Build one instance, and open the house accounts."""
    store = SqlLedgerStore(runtime.database, runtime.guards, runtime.failpoints)
    await store.prepare()
    operations = LedgerOperations(
        store=store,
        clock=runtime.clock,
        ids=runtime.ids,
        failpoints=runtime.failpoints,
        responses=LedgerResponses(),
    )
    await operations.open_house_accounts(runtime.settings.currencies)
    servicer = LedgerServicer(operations)
    return Components(add=lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer, server))


SERVICE = Service(
    name="ledger",
    interface="countinghouse.ledger.v1.LedgerService",
    package=Path(__file__).parent,
    ensemble=ENSEMBLE,
    fences=(ORDER_FENCES.c.generation, ORDER_FENCES.c.token),
    append_only=(JOURNALS, POSTINGS, REFUSALS),
    retention=RETENTION,
    build=build,
)


def main() -> None:
    """Run the service until a signal stops it."""
    run(SERVICE)


if __name__ == "__main__":
    main()
