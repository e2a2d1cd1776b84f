"""The instances of a service as sources of what changes: found through ZooKeeper, watched by their stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc

from coordination.discovery.directory import Directory
from countinghouse.order.v1 import order_pb2, order_pb2_grpc
from countinghouse.payment.v1 import payment_pb2, payment_pb2_grpc
from services.gateway.messages import to_json
from services.gateway.watching import Piece
from services.runtime.grpc import status
from services.runtime.grpc.tls import Dialer, RenewedChannel

ORDERS: Final = "orders"
PAYMENTS: Final = "payments"
#: By topic: the service, the class of its stub, the method, and its request.
_WATCHED: Final[dict[str, tuple[str, Any, str, Any]]] = {
    ORDERS: ("order", order_pb2_grpc.OrderServiceStub, "WatchOrders", order_pb2.WatchOrdersRequest),
    PAYMENTS: ("payment", payment_pb2_grpc.PaymentServiceStub, "WatchPayments", payment_pb2.WatchPaymentsRequest),
}


class StubSource:
    """See `watching.Source`.

    Args:
        topic: ORDERS or PAYMENTS; its name is that of the field in an answer, too.
        directory: Of the service.
        dialer: Connects to its instances.
    """

    def __init__(self, topic: str, directory: Directory, dialer: Dialer) -> None:
        self.topic = topic
        self._service, self._stub, self._method, self._request = _WATCHED[topic]
        self._directory = directory
        self._dialer = dialer
        self._channels: dict[str, RenewedChannel] = {}

    def addresses(self) -> frozenset[str]:
        return frozenset(endpoint.address for endpoint in self._directory.registered)

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._directory.subscribe(changed)

    async def watch(self, address: str, position: str, order_id: str, authorization: str) -> AsyncIterator[Piece]:
        for gone in self._channels.keys() - self.addresses():
            await self._channels.pop(gone).close()
        if address not in self._channels:
            self._channels[address] = RenewedChannel(self._dialer, address, self._service)
        stub = self._stub(self._channels[address].current())
        request = self._request(position=position, order_id=order_id)
        call = getattr(stub, self._method)(request, metadata=(("authorization", authorization),))
        try:
            async for answer in call:
                changes = to_json(answer)[self.topic]
                yield Piece(changes, answer.position, answer.lost)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()
