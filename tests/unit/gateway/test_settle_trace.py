"""One trace for a settle: from the gateway through the payment service to the others, and down to SQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from services.runtime import log
from tests.spans import Spans, path_of, paths_of, recorded
from tests.unit.gateway.in_process import LI, InProcess, in_process

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ORDER, LEDGER = "countinghouse.order.v1.OrderService", "countinghouse.ledger.v1.LedgerService"
PAYMENT, ACQUIRER = "countinghouse.payment.v1.PaymentService", "countinghouse.acquirer.v1.AcquirerService"
SETTLE = f"{PAYMENT}/Settle"
BATCHES = (f"{ORDER}/ClaimOrders", f"{LEDGER}/PostBatch", f"{ORDER}/CompleteOrders")
GATEWAY = "POST /v1/orders/{order_id}:settle"


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded() as kept:
        yield kept


@pytest.fixture
async def house(tmp_path: Path, spans: Spans) -> AsyncIterator[InProcess]:
    async with in_process(tmp_path) as running:
        yield running


@pytest.fixture
async def li(house: InProcess) -> httpx.AsyncClient:
    return await house.gateway(LI)


async def created(li: httpx.AsyncClient, order_id: str = "o1") -> str:
    """An order of mei's; its id."""
    body = {"orderId": order_id, "customerId": "mei", "amount": {"amount": "12.50", "currencyCode": "CNY"}}
    answer = await li.post("/v1/orders", json=body, headers={"idempotency-key": f"create-{order_id}"})
    assert answer.status_code == 200, answer.text
    return order_id


async def settled(
    li: httpx.AsyncClient, order_id: str, key: str = "", trace_id: str = TRACE, **fields: Any
) -> httpx.Response:
    body = {"source": "SOURCE_DRAWER"} | fields
    headers = {
        "idempotency-key": key or f"settle-{order_id}",
        "traceparent": f"00-{trace_id}-{SPAN}-01",
        "prefer": "wait=30",
    }
    return await li.post(f"/v1/orders/{order_id}:settle", json=body, headers=headers)


async def test_settle_is_one_trace_down_to_sql(li: httpx.AsyncClient, spans: Spans) -> None:
    """With a span for each step, each below the step that it is part of."""
    answer = await settled(li, await created(li))
    assert answer.status_code == 200, answer.text
    found = [span for span in spans.all if span.trace_id == TRACE]
    paths = paths_of(found)
    served = f"{GATEWAY} > {SETTLE} > {SETTLE}"
    for below in (
        "commit > SQL write",
        "lock",
        f"ClaimOrder > {ORDER}/ClaimOrder > {ORDER}/ClaimOrder > commit > SQL write",
        f"Post > {LEDGER}/Post > {LEDGER}/Post > commit > SQL write",
        f"CompleteOrder > {ORDER}/CompleteOrder > {ORDER}/CompleteOrder > commit > SQL write",
    ):
        assert f"{served} > {below}" in paths
    assert not [path for path in paths if not path.startswith(GATEWAY)]
    commits = Counter(path_of(span, found)[-2] for span in found if span.name == "commit")
    assert commits == {SETTLE: 4, f"{ORDER}/ClaimOrder": 1, f"{LEDGER}/Post": 1, f"{ORDER}/CompleteOrder": 1}
    (gateway,) = [span for span in found if span.name == GATEWAY]
    assert (gateway.parent_id, gateway.attributes["http.response.status_code"]) == (SPAN, 200)


async def test_spans_tell_what_they_are_about(li: httpx.AsyncClient, spans: Spans) -> None:
    """The order and the payment, the steps, the endpoint, the fence; no token, amount, customer or key."""
    answer = await settled(li, await created(li), key="settle-secretly")
    found = [span for span in spans.all if span.trace_id == TRACE]
    payment_id = answer.json()["payment"]["paymentId"]
    (client, server) = sorted((span for span in found if span.name == SETTLE), key=lambda span: span.kind)
    assert client.events == ("attempt",)
    steps = ("accepted", "locked", "claimed", "submitted", "posted", "recorded", "completed", "released")
    assert server.events == steps
    about = {"countinghouse.order_id": "o1", "countinghouse.payment_id": payment_id}
    assert (about | {"rpc.response.status_code": "OK"}).items() <= server.attributes.items()
    (lock,) = [span for span in found if span.name == "lock"]
    assert lock.attributes["countinghouse.token"] == 1
    assert len([span for span in found if span.attributes.get("countinghouse.payment_id") == payment_id]) == 4
    told = repr(found)
    assert not [secret for secret in ("Bearer", "eyJ", "1250", "12.50", "mei", "drawer", "secretly") if secret in told]


async def test_card_payment_is_traced_at_the_acquirer(li: httpx.AsyncClient, spans: Spans) -> None:
    answer = await settled(li, await created(li), source="SOURCE_CARD", card="tok-mei")
    assert answer.json()["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED", answer.text
    found = [span for span in spans.all if span.trace_id == TRACE]
    (charged,) = [span for span in found if span.name == f"{ACQUIRER}/Charge" and span.kind == "SERVER"]
    assert path_of(charged, found) == [GATEWAY, SETTLE, SETTLE, f"{ACQUIRER}/Charge", f"{ACQUIRER}/Charge"]
    assert "tok-mei" not in repr(found)


async def test_refusal_is_told_at_every_level(li: httpx.AsyncClient, spans: Spans) -> None:
    """It is no error of the servers; to the gateway's call it is one."""
    await settled(li, await created(li))
    spans_before = len(spans.all)
    assert (await settled(li, "o1", key="again")).status_code == 409
    found = spans.all[spans_before:]
    told = {(span.name, span.kind): span for span in found if span.attributes.get("error.type")}
    assert {key: (span.attributes["error.type"], span.failed) for key, span in told.items()} == {
        (SETTLE, "SERVER"): ("ORDER_ALREADY_PAID", False),
        (SETTLE, "CLIENT"): ("ORDER_ALREADY_PAID", True),
        (GATEWAY, "SERVER"): ("ORDER_ALREADY_PAID", False),
    }


async def test_settles_at_once_are_traces_of_their_own_that_batches_link_to(
    li: httpx.AsyncClient, spans: Spans
) -> None:
    """Each has all of its steps, whichever task committed them; a batch has a link to each of its items."""
    count = 12
    orders = [await created(li, f"o{number}") for number in range(count)]
    before = len(spans.all)

    async def settle(order_id: str) -> str:
        trace_id = f"{int(order_id[1:]) + 1:032x}"
        answer = await settled(li, order_id, trace_id=trace_id)
        assert answer.status_code == 200, answer.text
        return trace_id

    traces = await asyncio.gather(*map(settle, orders))
    found = spans.all[before:]
    by_id = {span.span_id: span for span in found}
    for order_id, trace_id in zip(orders, traces, strict=True):
        of_trace = [span for span in found if span.trace_id == trace_id]
        served = Counter(span.name for span in of_trace if span.kind == "SERVER" and span.name not in BATCHES)
        assert served == Counter((GATEWAY, SETTLE, f"{ORDER}/ClaimOrder", f"{LEDGER}/Post", f"{ORDER}/CompleteOrder"))
        about = {span.attributes.get("countinghouse.order_id", order_id) for span in of_trace}
        assert about == {order_id}
    batches = [span for span in found if span.name.endswith(" batch")]
    assert {span.name for span in batches} >= {"commit batch"}
    for batch in batches:
        assert len(batch.links) == batch.attributes["countinghouse.batch.size"]
        assert len({by_id[link].trace_id for link in batch.links}) == len(batch.links)
        assert all(batch.span_id in by_id[link].links for link in batch.links)


async def test_log_line_of_each_call_has_the_ids_that_are_known(li: httpx.AsyncClient, spans: Spans) -> None:
    """The trace, the order and the payment, in every service; no token, ticket or card."""
    await created(li)
    with lines() as written:
        answer = await settled(li, "o1", source="SOURCE_CARD", card="tok-mei")
    payment_id = answer.json()["payment"]["paymentId"]
    calls = {line["method"]: line for line in written if line["event"] == "call"}
    assert set(calls) == {"Settle", "ClaimOrder", "GetAccount", "Charge", "Post", "CompleteOrder"}
    assert {line["trace_id"] for line in written} == {TRACE}
    ids = {method: (line.get("order_id"), line.get("payment_id")) for method, line in calls.items()}
    assert ids == {
        "Settle": ("o1", payment_id),
        "ClaimOrder": ("o1", payment_id),
        "CompleteOrder": ("o1", payment_id),
        "Post": ("o1", payment_id),
        "Charge": (None, payment_id),
        "GetAccount": (None, None),
    }
    assert not [secret for secret in ("tok-mei", "eyJ", "Bearer") if secret in repr(written)]


async def test_ids_are_logged_without_a_trace_too(tmp_path: Path) -> None:
    async with in_process(tmp_path) as house:
        li = await house.gateway(LI)
        await created(li)
        with lines() as written:
            await settled(li, "o1")
            await li.get("/v1/orders/o1")
    assert not [line for line in written if "trace_id" in line]
    assert {line["order_id"] for line in written if line["event"] == "call"} == {"o1"}


async def test_order_named_by_a_card_number_is_in_no_log_line_and_no_span(li: httpx.AsyncClient, spans: Spans) -> None:
    """Such a name is refused where an order is made, and not where one is asked about."""
    with lines() as written:
        assert (await settled(li, "4111111111111111")).status_code == 404
    assert written
    assert "4111111111111111" not in repr(written)
    assert "4111111111111111" not in repr(spans.all)


@contextmanager
def lines() -> Iterator[list[dict[str, Any]]]:
    """The lines that are logged while inside, with the ids that a configured process adds."""
    kept: list[dict[str, Any]] = []

    def keep(_logger: object, _method: str, line: Any) -> Any:
        kept.append(dict(line))
        raise structlog.DropEvent

    processors = structlog.get_config()["processors"]
    before = list(processors)
    processors[:] = [log.add_ids, keep]
    try:
        yield kept
    finally:
        processors[:] = before
