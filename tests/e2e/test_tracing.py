"""One settle as a collector of OpenTelemetry sees it: the spans of five processes, in one trace."""

from __future__ import annotations

import httpx
import pytest

from services.devstack.keys import mint
from services.kernel.clock import SystemClock
from services.kernel.principal import Principal, Role
from services.testkit.client import new_id
from tests.e2e.conftest import FreshStack
from tests.spans import collecting

TIMEOUT_S = 60.0
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ORDER, LEDGER = "countinghouse.order.v1.OrderService", "countinghouse.ledger.v1.LedgerService"
SETTLE, CHARGE = "countinghouse.payment.v1.PaymentService/Settle", "countinghouse.acquirer.v1.AcquirerService/Charge"
GATEWAY = "POST /v1/orders/{order_id}:settle"


async def test_card_settled_through_the_gateway_is_one_trace(
    fresh_stack: FreshStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the header of HTTP to the commits of every service, the lock and the acquirer; no secret is in it."""
    async with collecting() as (collector, endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        async with fresh_stack(gateway=True) as stack:
            token = mint(stack.data, Principal("li", Role.CASHIER), 600, SystemClock())
            headers = {"authorization": f"Bearer {token}", "prefer": "wait=30"}
            address = f"http://{stack.describe().gateway}"
            async with httpx.AsyncClient(base_url=address, headers=headers, timeout=TIMEOUT_S) as li:
                order = {"customerId": "mei", "amount": {"amount": "12.50", "currencyCode": "CNY"}}
                made = await li.post("/v1/orders", json=order, headers={"idempotency-key": new_id()})
                order_id = made.json()["order"]["orderId"]
                settled = await li.post(
                    f"/v1/orders/{order_id}:settle",
                    json={"source": "SOURCE_CARD", "card": "tok-mei"},
                    headers={"idempotency-key": new_id(), "traceparent": f"00-{TRACE}-{SPAN}-01"},
                )
            assert settled.json()["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED", settled.text
            served = f"{GATEWAY} > {SETTLE} > {SETTLE}"
            found = await collector.until(
                f"{served} > lock",
                f"{served} > commit > SQL write",
                f"{served} > ClaimOrder > {ORDER}/ClaimOrder > {ORDER}/ClaimOrder > commit > SQL write",
                f"{served} > {CHARGE} > {CHARGE} > commit > SQL write",
                f"{served} > Post > {LEDGER}/Post > {LEDGER}/Post > commit > SQL write",
                f"{served} > CompleteOrder > {ORDER}/CompleteOrder > {ORDER}/CompleteOrder > commit > SQL write",
                trace_id=TRACE,
                timeout_s=TIMEOUT_S,
            )
    services = {span.resource["service.name"].removeprefix("countinghouse-") for span in found}
    assert services == {"gateway", "payment", "order", "ledger", "acquirer"}
    (lock,) = [span for span in found if span.name == "lock"]
    assert lock.attributes["countinghouse.token"] > 0
    assert not [secret for secret in ("tok-mei", "Bearer", token, "1250") if secret in repr(found)]
