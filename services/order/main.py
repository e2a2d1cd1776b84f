"""The composition root of the order service. `python -m services.order.main [migrate | prune]`"""

from __future__ import annotations

from pathlib import Path

from countinghouse.order.v1 import order_pb2_grpc
from services.order.operations import OrderOperations
from services.order.schema import ENSEMBLE, ORDER_EVENTS, ORDER_LINES, ORDERS, RETENTION
from services.order.servicer import OrderResponses, OrderServicer
from services.order.store import SqlOrderStore
from services.runtime.cluster_member import Components, Runtime, Service, run


async def build(runtime: Runtime) -> Components:
    """Build one instance."""
    store = SqlOrderStore(runtime.database, runtime.guards, runtime.failpoints)
    operations = OrderOperations(
        store=store,
        clock=runtime.clock,
        ids=runtime.ids,
        failpoints=runtime.failpoints,
        responses=OrderResponses(),
    )
    servicer = OrderServicer(operations)
    return Components(
        add=lambda server: order_pb2_grpc.add_OrderServiceServicer_to_server(servicer, server), workers=[store.feed.run]
    )


SERVICE = Service(
    name="order",
    interface="countinghouse.order.v1.OrderService",
    package=Path(__file__).parent,
    ensemble=ENSEMBLE,
    fences=(ORDERS.c.fence_generation, ORDERS.c.fence_token),
    append_only=(ORDER_LINES, ORDER_EVENTS),
    retention=RETENTION,
    build=build,
)


def main() -> None:
    """Run the service until a signal stops it."""
    run(SERVICE)


if __name__ == "__main__":
    main()
