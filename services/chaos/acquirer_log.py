"""Read the acquirer's own log: the third witness, which knows nothing of orders or locks."""

from __future__ import annotations

from typing import Any, Final

from countinghouse.acquirer.v1 import acquirer_pb2, acquirer_pb2_grpc
from services.checker.acquirer_log import KINDS, AcquirerLog, AcquirerRecord
from services.runtime.grpc.tls import Dialer

_PAGE: Final = 1000
_TIMEOUT_S: Final = 10.0


async def read_acquirer_log(dialer: Dialer, address: str, token: str) -> AcquirerLog:
    """Return the whole log of the acquirer at `address`, oldest first.

    Args:
        dialer: Connects to it.

    Raises:
        grpc.aio.AioRpcError: It does not answer.
    """
    records: list[AcquirerRecord] = []
    async with dialer.open(address, "acquirer") as channel:
        stub: Any = acquirer_pb2_grpc.AcquirerServiceStub(channel)
        page_token = ""
        while True:
            request = acquirer_pb2.ListLogRequest(page_size=_PAGE, page_token=page_token)
            page = await stub.ListLog(
                request, timeout=_TIMEOUT_S, metadata=(("authorization", f"Bearer {token}"),), wait_for_ready=True
            )
            records += [record_of(entry) for entry in page.entries]
            page_token = page.next_page_token
            if not page_token:
                return tuple(records)


def record_of(entry: acquirer_pb2.LogEntry) -> AcquirerRecord:
    """Return an entry of the log as the checker reads it."""
    return AcquirerRecord(
        sequence=entry.number,
        key=entry.key,
        kind=KINDS[entry.method],
        amount_minor=entry.amount.minor_units,
        currency=entry.amount.currency_code,
        decision=entry.word,
    )
