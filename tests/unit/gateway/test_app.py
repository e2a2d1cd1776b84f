"""The gateway over HTTP, with services that are played: what they are called with, and what their answers become."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.gateway.app import MAX_BODY_BYTES, make_app
from services.gateway.calls import Answered
from services.gateway.routes import Route, public_routes
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    CountinghouseError,
    InvalidArgument,
    KeyMismatch,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    RequestInProgress,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

TOKEN = {"authorization": "Bearer abc"}
KEY = {"idempotency-key": "req-1"}
CREATE = {"customerId": "mei", "amount": {"amount": "12.50", "currencyCode": "CNY"}}


class Services:
    """Keeps what it was called with, and answers with `answer`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Route, Message, str, float]] = []
        self.answer: Message | Exception = order_pb2.CreateOrderResponse()
        self.replayed = False

    async def call(self, route: Route, request: Message, authorization: str, timeout_s: float) -> Answered:
        self.calls.append((route, request, authorization, timeout_s))
        if isinstance(self.answer, Exception):
            raise self.answer
        return Answered(self.answer, self.replayed)


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(public_routes(), services))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=TOKEN) as client:
        yield client


async def test_change_carries_its_key_its_body_and_the_callers_token(
    client: httpx.AsyncClient, services: Services
) -> None:
    answer = await client.post("/v1/orders", json=CREATE, headers=KEY)
    assert answer.status_code == 200
    ((route, request, authorization, timeout_s),) = services.calls
    assert route.full_method == "/countinghouse.order.v1.OrderService/CreateOrder"
    assert request == order_pb2.CreateOrderRequest(
        request_id="req-1", customer_id="mei", amount=money_pb2.Money(minor_units=1250, currency_code="CNY")
    )
    assert (authorization, timeout_s) == ("Bearer abc", 10.0)


@pytest.mark.parametrize("header", ["req-1", '"req-1"'])
async def test_key_is_taken_with_and_without_quotes(client: httpx.AsyncClient, services: Services, header: str) -> None:
    await client.post("/v1/orders", json=CREATE, headers={"idempotency-key": header})
    assert services.calls[0][1].request_id == "req-1"  # type: ignore[attr-defined]


async def test_change_without_a_key_is_refused(client: httpx.AsyncClient, services: Services) -> None:
    answer = await client.post("/v1/orders", json=CREATE)
    assert (answer.status_code, answer.json()["reason"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    assert services.calls == []


async def test_ticket_in_the_path_is_the_key_of_its_payment(client: httpx.AsyncClient, services: Services) -> None:
    services.answer = payment_pb2.PayResponse()
    answer = await client.post("/v1/tickets/tkt-1:pay", json={"source": "SOURCE_DRAWER"})
    assert answer.status_code == 200
    assert services.calls[0][1].ticket_id == "tkt-1"  # type: ignore[attr-defined]
    other = await client.post("/v1/tickets/tkt-1:pay", json={}, headers={"idempotency-key": "another"})
    assert (other.status_code, other.json()["reason"]) == (400, "IDEMPOTENCY_KEY_MISMATCHED")


async def test_variable_of_a_path_may_have_colons(client: httpx.AsyncClient, services: Services) -> None:
    """As the ids of accounts have; the verb at the end is not part of it."""
    await client.get("/v1/accounts/wallet:mei:CNY")
    await client.post("/v1/accounts/wallet:mei:CNY:close", json={"reason": "moved"}, headers=KEY)
    assert [call[1].account_id for call in services.calls] == ["wallet:mei:CNY"] * 2  # type: ignore[attr-defined]
    assert [call[0].method.name for call in services.calls] == ["GetAccount", "CloseAccount"]


async def test_parameters_of_a_read_are_fields(client: httpx.AsyncClient, services: Services) -> None:
    await client.get("/v1/orders", params={"pageSize": "5", "state": "ORDER_STATE_PAID"})
    assert services.calls[0][1] == order_pb2.ListOrdersRequest(page_size=5, state=order_pb2.ORDER_STATE_PAID)


async def test_answer_has_every_field_and_amounts_in_both_forms(client: httpx.AsyncClient, services: Services) -> None:
    amount = money_pb2.Money(minor_units=1250, currency_code="JPY")
    services.answer = order_pb2.GetOrderResponse(order=order_pb2.Order(order_id="o1", amount=amount, version=7))
    order = (await client.get("/v1/orders/o1")).json()["order"]
    assert order["amount"] == {"minorUnits": "1250", "currencyCode": "JPY", "amount": "1250"}
    assert (order["orderId"], order["version"], order["paymentId"]) == ("o1", "7", "")


async def test_replayed_answer_is_marked(client: httpx.AsyncClient, services: Services) -> None:
    assert "idempotency-replayed" not in (await client.post("/v1/orders", json=CREATE, headers=KEY)).headers
    services.replayed = True
    answer = await client.post("/v1/orders", json=CREATE, headers=KEY)
    assert answer.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgument("A", "a"), 400),
        (KeyMismatch("req-1"), 422),
        (RequestInProgress("req-1"), 409),
        (Unauthenticated("TOKEN_EXPIRED", "a"), 401),
        (PermissionDenied("A", "a"), 403),
        (NotFound("A", "a"), 404),
        (AlreadyExists("A", "a"), 409),
        (Aborted("A", "a"), 409),
        (ResourceExhausted("A", "a"), 429),
        (Unavailable("A", "a"), 503),
        (OutcomeUnknown("A", "a"), 504),
        (CountinghouseError("A", "a"), 500),
        (RuntimeError("secret"), 500),
    ],
)
async def test_error_is_a_problem_with_its_reason(
    client: httpx.AsyncClient, services: Services, error: Exception, status: int
) -> None:
    services.answer = error
    answer = await client.get("/v1/orders/o1")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["reason"] == getattr(error, "reason", "INTERNAL")
    assert "secret" not in answer.text


async def test_problem_says_when_to_try_again_and_which_field_is_wrong(
    client: httpx.AsyncClient, services: Services
) -> None:
    services.answer = Unavailable("A", "a", retry_after_ms=1_500)
    answer = await client.get("/v1/orders/o1")
    assert (answer.headers["retry-after"], answer.json()["retryAfterMs"]) == ("2", 1_500)
    services.answer = InvalidArgument.of_field("A", "memo", "too long")
    assert (await client.get("/v1/orders/o1")).json()["fields"] == [{"field": "memo", "description": "too long"}]


BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "a list": b"[]",
    "a key twice": b'{"customerId": "mei", "customerId": "li"}',
    "NaN": b'{"customerId": NaN}',
    "nested deeply": b'{"lines":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "Latin-1": '{"customerId": "é"}'.encode("latin-1"),
    "an unknown field": b'{"nothing": 1}',
    "a number where text is": b'{"customerId": 5}',
    "two forms of an amount": b'{"amount": {"amount": "1.00", "minorUnits": "100", "currencyCode": "CNY"}}',
    "too many decimals": b'{"amount": {"amount": "1.001", "currencyCode": "CNY"}}',
    "an amount without its currency": b'{"amount": {"amount": "1.00"}}',
    "an amount that is a number": b'{"amount": {"amount": 1.5, "currencyCode": "CNY"}}',
    "a number beyond int64": b'{"amount": {"minorUnits": "99999999999999999999", "currencyCode": "CNY"}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_body_that_is_no_request_is_refused(client: httpx.AsyncClient, services: Services, body: bytes) -> None:
    answer = await client.post("/v1/orders", content=body, headers={**KEY, "content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert services.calls == []


@pytest.mark.parametrize("number", ['"1250"', "1250"])
async def test_int64_is_taken_as_text_and_as_a_number(
    client: httpx.AsyncClient, services: Services, number: str
) -> None:
    body = f'{{"amount": {{"minorUnits": {number}, "currencyCode": "CNY"}}}}'
    await client.post("/v1/orders", content=body, headers={**KEY, "content-type": "application/json"})
    assert services.calls[0][1].amount.minor_units == 1250  # type: ignore[attr-defined]


async def test_body_that_is_too_large_is_refused_before_it_is_read(
    client: httpx.AsyncClient, services: Services
) -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 1
            yield b" " * 65_536

    answer = await client.post("/v1/orders", content=parts(), headers={**KEY, "content-type": "application/json"})
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")
    assert services.calls == []
    assert MAX_BODY_BYTES < 1_000 * 65_536


@pytest.mark.parametrize(
    ("verb", "path", "headers", "status", "reason"),
    [
        ("GET", "/v1/nothing", {}, 404, "PATH_UNKNOWN"),
        ("GET", "/console/", {}, 404, "PATH_UNKNOWN"),
        ("POST", "/", KEY, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/v1/orders/o1", {}, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/tickets", {}, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/orders/o1:settle", {}, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/orders?pageSize=5&pageSize=6", {}, 400, "PARAMETER_INVALID"),
        ("GET", "/v1/orders?pageSize=many", {}, 400, "PARAMETER_INVALID"),
        ("GET", "/v1/orders?nothing=1", {}, 400, "PARAMETER_INVALID"),
        ("POST", "/v1/orders?x=1", KEY, 400, "PARAMETER_INVALID"),
        ("POST", "/v1/orders", {**KEY, "content-type": "text/plain"}, 415, "MEDIA_TYPE_UNSUPPORTED"),
        ("POST", "/v1/orders", {"idempotency-key": "a b"}, 400, "FIELD_MALFORMED"),
    ],
)
async def test_request_that_cannot_be_served_says_why(
    client: httpx.AsyncClient,
    services: Services,
    verb: str,
    path: str,
    headers: dict[str, str],
    status: int,
    reason: str,
) -> None:
    answer = await client.request(verb, path, headers=headers, content=b"{}" if verb == "POST" else None)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert services.calls == []


async def test_path_in_the_body_must_be_the_same(client: httpx.AsyncClient, services: Services) -> None:
    answer = await client.post("/v1/orders/o1:settle", json={"orderId": "o2"}, headers=KEY)
    assert (answer.status_code, answer.json()["reason"]) == (400, "PATH_MISMATCH")
    assert services.calls == []


async def test_change_without_a_token_is_refused_before_its_body_is_read(services: Services) -> None:
    transport = httpx.ASGITransport(make_app(public_routes(), services))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as stranger:
        answer = await stranger.post("/v1/orders", content=b"{", headers=KEY)
    assert (answer.status_code, answer.json()["reason"]) == (401, "TOKEN_REQUIRED")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("prefer", "waits_s"), [("wait=5", 5.0), ("respond-async, wait=7", 7.0), ("wait=600", 30.0), ("wait=0", 10.0)]
)
async def test_caller_says_how_long_the_call_may_take(
    client: httpx.AsyncClient, services: Services, prefer: str, waits_s: float
) -> None:
    await client.get("/v1/orders/o1", headers={"prefer": prefer})
    assert services.calls[0][3] == waits_s


async def test_document_names_every_route_and_no_inner_method(client: httpx.AsyncClient) -> None:
    document: dict[str, Any] = json.loads((await client.get("/openapi.json")).text)
    operations = {one["operationId"] for path in document["paths"].values() for one in path.values()}
    assert operations == {route.method.name for route in public_routes().documented}
    assert not operations & {"ClaimOrder", "CompleteOrder", "Post", "PostBatch", "VoidPost", "NotifyAcquirer"}
    references = set(json.dumps(document).split('"$ref": "#/components/schemas/')[1:])
    assert {each.partition('"')[0] for each in references} <= set(document["components"]["schemas"])


async def test_gateway_says_that_it_serves(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "SERVING"}
