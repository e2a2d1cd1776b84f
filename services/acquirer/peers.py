"""Notices to merchants: the outcome of a key, sent to the address of a PaymentService.

A notice is sent once, or as often as a fault wants, and never again: it may be lost, late or doubled. A merchant
treats it as a hint, and queries the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from countinghouse.payment.v1 import payment_pb2, payment_pb2_grpc
from services.acquirer.model import Charge, ChargeState
from services.runtime import tracing
from services.runtime.grpc.tls import Dialer, RenewedChannel

_NOTICE_TIMEOUT_S = 2.0
_NOTIFY = "/countinghouse.payment.v1.PaymentService/NotifyAcquirer"
_OUTCOMES: dict[ChargeState, payment_pb2.AcquirerOutcome.ValueType] = {
    ChargeState.CHARGED: payment_pb2.ACQUIRER_OUTCOME_CHARGED,
    ChargeState.DECLINED: payment_pb2.ACQUIRER_OUTCOME_DECLINED,
    ChargeState.REFUNDED: payment_pb2.ACQUIRER_OUTCOME_REVERSED,
    ChargeState.TOMBSTONE: payment_pb2.ACQUIRER_OUTCOME_REVERSED,
}

log = structlog.get_logger()


class MerchantNotifier:
    """Notify merchants through the stubs of their payment service.

    Args:
        dialer: Connects to them; the certificate must be that of a payment service.
        token: Returns the acquirer's own token for calling a merchant.
    """

    def __init__(self, dialer: Dialer, token: Callable[[], str]) -> None:
        self._dialer = dialer
        self._token = token
        self._channels: dict[str, RenewedChannel] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def send(self, address: str, charge: Charge, *, times: int) -> None:
        """Notify the merchant at `address` so often, in the background."""
        for _ in range(times):
            task = asyncio.create_task(self._notify(address, charge))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        """Wait for the notices under way, and close the channels."""
        while self._sending:
            await asyncio.wait(self._sending)
        for channel in self._channels.values():
            await channel.close()

    async def _notify(self, address: str, charge: Charge) -> None:
        if address not in self._channels:
            self._channels[address] = RenewedChannel(self._dialer, address, "payment")
        stub: Any = payment_pb2_grpc.PaymentServiceStub(self._channels[address].current())
        request = payment_pb2.NotifyAcquirerRequest(key=charge.key, outcome=_OUTCOMES[charge.state])
        try:
            with tracing.called(_NOTIFY):
                metadata = (("authorization", f"Bearer {self._token()}"), *tracing.outgoing())
                await stub.NotifyAcquirer(request, timeout=_NOTICE_TIMEOUT_S, metadata=metadata)
        except (grpc.aio.AioRpcError, OSError) as error:
            log.info("notice lost", key=charge.key, address=address, why=str(error))
