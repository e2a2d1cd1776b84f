"""The order service: puts its parts together."""

from __future__ import annotations

from pathlib import Path

from countinghouse.order.v1 import order_pb2_grpc
from services.order.operations import OrderOperations
from services.order.servicer import MessageEncoding, OrderServicer
from services.order.store import SqlOrderStore, ensemble, order_events, order_lines, orders, retention
from services.runtime.cluster_member import Components, Runtime, Service, run


async def build(runtime: Runtime) -> Components:
    """The parts of one instance."""
    operations = OrderOperations(
        store=SqlOrderStore(runtime.database, runtime.guards),
        clock=runtime.clock,
        ids=runtime.ids,
        failpoints=runtime.failpoints,
        encoding=MessageEncoding(),
    )
    servicer = OrderServicer(operations)
    return Components(add=lambda server: order_pb2_grpc.add_OrderServiceServicer_to_server(servicer, server))


SERVICE = Service(
    name="order",
    interface="countinghouse.order.v1.OrderService",
    package=Path(__file__).parent,
    ensemble=ensemble,
    fences=(orders.c.fence_generation, orders.c.fence_token),
    append_only=(order_lines, order_events),
    retention=retention,
    build=build,
)


def main() -> None:
    """Runs the service until it is told to stop."""
    run(SERVICE)


if __name__ == "__main__":
    main()
