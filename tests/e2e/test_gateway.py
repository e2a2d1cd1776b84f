"""The gateway on a running stack: what it answers is what the services answer."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest_asyncio
from google.protobuf import json_format

from countinghouse.order.v1 import order_pb2
from services.devstack.keys import mint
from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.kernel.principal import Principal, Role
from services.testkit.client import RecordingClient, new_id
from tests.e2e.command import start_command_line

TIMEOUT_S = 60.0
ORDER = {"customerId": "mei", "amount": {"amount": "12.50", "currencyCode": "CNY"}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def address(stack: Stack) -> AsyncIterator[str]:
    """Where the gateway of this module is."""
    process = await start_command_line("gateway", "--json", "--listen", "127.0.0.1:0", "--data", str(stack.data))
    assert process.stdout is not None
    said = b""
    async with asyncio.timeout(TIMEOUT_S):
        while not said.rstrip().endswith(b"}"):
            said += await process.stdout.read(1)
    yield str(json.loads(said)["listen"])
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(TIMEOUT_S):
        assert await process.wait() == 0


def caller(stack: Stack, address: str, name: str, role: Role) -> httpx.AsyncClient:
    token = mint(stack.data, Principal(name, role), 600, SystemClock())
    return httpx.AsyncClient(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=TIMEOUT_S)


@pytest_asyncio.fixture(loop_scope="session")
async def li(stack: Stack, address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(stack, address, "li", Role.CASHIER) as client:
        yield client


async def created(li: httpx.AsyncClient) -> str:
    answer = await li.post("/v1/orders", json=ORDER, headers={"idempotency-key": new_id()})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["order"]["orderId"])


async def settled(client: httpx.AsyncClient, order_id: str, key: str, source: str = "SOURCE_DRAWER") -> httpx.Response:
    return await client.post(f"/v1/orders/{order_id}:settle", json={"source": source}, headers={"idempotency-key": key})


async def test_order_is_settled_once_however_often_it_is_asked_for(li: httpx.AsyncClient) -> None:
    """The second answer is the first one, marked."""
    order_id, key = await created(li), new_id()
    first, again = await settled(li, order_id, key), await settled(li, order_id, key)
    assert (first.status_code, again.status_code) == (200, 200), first.text
    assert first.json()["payment"]["amount"]["amount"] == "12.50"
    assert first.json() == again.json()
    assert ["idempotency-replayed" in each.headers for each in (first, again)] == [False, True]


async def test_ten_requests_at_once_settle_once(li: httpx.AsyncClient) -> None:
    order_id = await created(li)
    answers = await asyncio.gather(*(settled(li, order_id, new_id()) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 9]
    assert {answer.json()["reason"] for answer in answers if answer.status_code == 409} == {"ORDER_ALREADY_PAID"}


async def test_key_of_another_payload_is_refused(li: httpx.AsyncClient) -> None:
    key = new_id()
    await settled(li, await created(li), key)
    other = await settled(li, await created(li), key)
    assert (other.status_code, other.json()["reason"]) == (422, "IDEMPOTENCY_KEY_MISMATCH")


async def test_refusal_of_another_clerk_names_who_was_first(stack: Stack, address: str, li: httpx.AsyncClient) -> None:
    order_id = await created(li)
    await settled(li, order_id, new_id())
    async with caller(stack, address, "wang", Role.ACCOUNTANT) as wang:
        answer = await settled(wang, order_id, new_id(), "SOURCE_BANK")
    assert (answer.status_code, answer.json()["reason"]) == (409, "ORDER_ALREADY_PAID")
    assert answer.json()["metadata"]["clerk"] == "li"


async def test_reads_are_those_of_the_stub(li: httpx.AsyncClient, cashier: RecordingClient) -> None:
    order_id = await created(li)
    over_http = (await li.get(f"/v1/orders/{order_id}")).json()
    response: Any = await cashier.ask(order_pb2.GetOrderRequest(order_id=order_id))
    without_ours(over_http)
    assert json_format.ParseDict(over_http, order_pb2.GetOrderResponse()) == response


def without_ours(document: Any) -> None:
    """Takes the amounts in major units out, which protobuf's own JSON has not."""
    if isinstance(document, dict):
        if "minorUnits" in document:
            document.pop("amount")
        for value in document.values():
            without_ours(value)
    elif isinstance(document, list):
        for value in document:
            without_ours(value)


async def test_caller_has_the_rights_of_their_token(stack: Stack, address: str, li: httpx.AsyncClient) -> None:
    order_id = await created(li)
    async with caller(stack, address, "zhao", Role.AUDITOR) as zhao:
        assert (await settled(zhao, order_id, new_id())).status_code == 403
        assert (await zhao.get(f"/v1/orders/{order_id}")).status_code == 200
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT_S) as stranger:
        assert (await stranger.get(f"/v1/orders/{order_id}")).status_code == 401
    async with caller(stack, address, "jun", Role.CUSTOMER) as jun:
        assert (await jun.get(f"/v1/orders/{order_id}")).status_code == 404


class EventReader:
    """Reads server-sent events.

    Attributes:
        last: The id of the last event that had one.
    """

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.last = ""

    async def until(self, wanted: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
        """The events up to one that is wanted, each with its name and its data."""
        found: list[tuple[str, Any]] = []
        fields: dict[str, str] = {}
        async with asyncio.timeout(TIMEOUT_S):
            async for line in self._lines:
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    continue
                self.last = fields.get("id", self.last)
                if "event" in fields:
                    found.append((fields["event"], json.loads(fields["data"])))
                    if wanted(*found[-1]):
                        return found
                fields = {}
        raise AssertionError("the stream has ended")


@asynccontextmanager
async def reading(client: httpx.AsyncClient, last: str = "", **parameters: str) -> AsyncIterator[EventReader]:
    headers = {"last-event-id": last} if last else {}
    async with client.stream("GET", "/v1/events", params=parameters, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        reader = EventReader(answer)
        assert await reader.until(lambda name, _data: name == "begun")
        yield reader


def is_paid(order_id: str) -> Callable[[str, Any], bool]:
    return lambda name, data: (
        name == "orders"
        and any((each["orderId"], each["state"]) == (order_id, "ORDER_STATE_PAID") for each in data["orders"])
    )


async def test_reader_sees_an_order_being_settled(li: httpx.AsyncClient) -> None:
    async with reading(li) as reader:
        order_id = await created(li)
        await settled(li, order_id, new_id())
        events = await reader.until(is_paid(order_id))
    assert "lost" not in {name for name, _ in events}
    orders = [each for name, data in events if name == "orders" for each in data["orders"]]
    payments = [each for name, data in events if name == "payments" for each in data["payments"]]
    ours = [each for each in orders if each["orderId"] == order_id]
    assert [each["state"] for each in ours] == [f"ORDER_STATE_{state}" for state in ("UNPAID", "PAYING", "PAID")]
    assert ours[-1]["amount"]["amount"] == "12.50"
    states = [each["state"] for each in payments if each["orderId"] == order_id]
    assert states[:2] == ["PAYMENT_STATE_CREATED", "PAYMENT_STATE_SUBMITTED"]


async def test_reader_goes_on_after_its_last_event(li: httpx.AsyncClient) -> None:
    """What happened meanwhile is told; nothing was lost."""
    async with reading(li, topic="orders") as reader:
        first = await created(li)
        await reader.until(lambda name, data: name == "orders" and data["orders"][-1]["orderId"] == first)
    second = await created(li)
    await settled(li, second, new_id())
    async with reading(li, last=reader.last, topic="orders") as again:
        events = await again.until(is_paid(second))
    assert "lost" not in {name for name, _ in events}
    told = [each["orderId"] for name, data in events if name == "orders" for each in data["orders"]]
    assert told.count(second) == 3
    assert first not in told


async def test_reader_with_an_id_of_another_life_is_told_that_events_were_lost(li: httpx.AsyncClient) -> None:
    async with reading(li, last="orders%40127.0.0.1%3A1=0.5", topic="orders") as reader:
        assert await reader.until(lambda name, _data: name == "lost")


async def test_customer_sees_changes_of_their_own_orders_only(
    stack: Stack, address: str, li: httpx.AsyncClient
) -> None:
    async with (
        caller(stack, address, "mei", Role.CUSTOMER) as mei,
        caller(stack, address, "jun", Role.CUSTOMER) as jun,
        reading(mei, topic="orders") as hers,
        reading(jun, topic="orders") as his,
    ):
        order_id = await created(li)
        of_jun = await li.post("/v1/orders", json=ORDER | {"customerId": "jun"}, headers={"idempotency-key": new_id()})
        assert await hers.until(lambda name, data: name == "orders" and data["orders"][-1]["orderId"] == order_id)
        events = await his.until(lambda name, _data: name == "orders")
    (told,) = [each["orderId"] for name, data in events if name == "orders" for each in data["orders"]]
    assert told == of_jun.json()["order"]["orderId"]


async def test_stream_is_refused_as_other_calls_are(li: httpx.AsyncClient, address: str) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT_S) as stranger:
        assert (await stranger.get("/v1/events")).status_code == 401
        forged = await stranger.get("/v1/events", headers={"authorization": "Bearer rubbish"})
    assert (forged.status_code, forged.json()["reason"]) == (401, "TOKEN_INVALID")
    for parameters, reason in (({"topic": "gossip"}, "TOPIC_UNKNOWN"), ({"page": "1"}, "PARAMETER_INVALID")):
        answer = await li.get("/v1/events", params=parameters)
        assert (answer.status_code, answer.json()["reason"]) == (400, reason)
    assert (await li.post("/v1/events")).status_code == 405
