"""Every public method over HTTP, by the example of the OpenAPI document: it is served, and answered as over gRPC."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx
from google.protobuf.message import Message

from countinghouse.acquirer.v1 import acquirer_pb2 as bank
from services.devstack.stack import Stack
from services.gateway.examples import (
    CARD_ORDER,
    CARD_PAYMENT,
    EXAMPLES,
    PAYMENT,
    SECOND_ORDER,
    THIRD_ORDER,
    TICKET,
    Example,
)
from services.gateway.messages import fill_path, parse_body, parse_query, to_json
from services.gateway.routes import GET, Route, public_routes
from services.kernel.principal import Role
from services.testkit.client import RecordingClient
from services.testkit.harness import Harness
from tests.e2e.conftest import FreshStack

#: Of each role; the customer is the one whose orders they are.
_NAMES = {Role.CUSTOMER: "mei", Role.CASHIER: "li", Role.ACCOUNTANT: "wang", Role.OPERATOR: "ops", Role.AUDITOR: "zhao"}
ROUTES: Mapping[str, Route] = {route.method.name: route for route in public_routes().documented}


def test_every_method_has_an_example() -> None:
    assert set(EXAMPLES) == set(ROUTES)


async def test_every_example_is_served_over_http_and_answered_alike_over_grpc(fresh_stack: FreshStack) -> None:
    """A change is asked for again over gRPC under its key, so both answers are of one execution."""
    async with fresh_stack(gateway=True) as stack, Harness(stack) as harness:
        ids = await prepared(harness)
        for name, example in EXAMPLES.items():
            if name == "Park":
                ids[CARD_PAYMENT] = await unheard(harness)
            route, sent = ROUTES[name], with_ids(example, ids)
            client = harness.client(_NAMES[example.role], example.role)
            answer = await over_http(stack, client, route, sent)
            assert answer.status_code == 200, f"{name}: {answer.text}"
            over_grpc = await client.ask(request_of(route, sent, f"{name}-example"))
            if name == "SettleBatch":
                assert [each.replayed for each in over_grpc.outcomes] == [True]
                over_grpc.outcomes[0].replayed = False
            assert answer.json() == to_json(over_grpc), name
            note_ids(name, answer.json(), ids)
            if name == "Park":
                await harness.set_acquirer_faults()


async def prepared(harness: Harness) -> dict[str, str]:
    """The orders of the story but the first; returns the ids that are known, by those of the examples."""
    for order_id in (SECOND_ORDER, THIRD_ORDER, CARD_ORDER):
        example = Example(Role.CASHIER, body={**(EXAMPLES["CreateOrder"].body or {}), "orderId": order_id})
        await harness.cashier.ask(request_of(ROUTES["CreateOrder"], example, f"make-{order_id}"))
    return {}


async def unheard(harness: Harness) -> str:
    """The id of a payment by card whose charge the acquirer does not answer."""
    await harness.set_acquirer_faults(bank.Fault(kind=bank.FAULT_KIND_DOWN))
    settle = harness.cashier.settle_request(CARD_ORDER, "by-card", card="tok-mei")
    return str((await harness.cashier.call(settle, timeout_s=8.0)).payment.payment_id)


def with_ids(example: Example, ids: Mapping[str, str]) -> Example:
    def replaced(text: str) -> str:
        return re.sub("|".join(map(re.escape, ids)), lambda found: ids[found[0]], text) if ids else text

    return Example(example.role, {name: replaced(value) for name, value in example.fields.items()}, example.body)


def note_ids(method: str, answer: Mapping[str, Any], ids: dict[str, str]) -> None:
    """Keep the ids that the services have chosen."""
    if method == "Settle":
        ids[PAYMENT] = answer["payment"]["paymentId"]
    if method == "IssueTicket":
        ids[TICKET] = answer["ticket"]["ticketId"]


async def over_http(stack: Stack, client: RecordingClient, route: Route, example: Example) -> httpx.Response:
    path = re.sub(r"\{(\w+)\}", lambda found: example.fields[camel(found[1])], route.path)
    in_path = {camel(name) for name in route.variables}
    query = {name: value for name, value in example.fields.items() if name not in in_path}
    headers = {"authorization": f"Bearer {client.identity.token}", "prefer": "wait=30"}
    if route.key and route.key not in route.variables:
        headers["idempotency-key"] = f"{route.method.name}-example"
    async with httpx.AsyncClient(base_url=f"http://{stack.describe().gateway}", timeout=60) as http:
        return await http.request(
            route.verb, path, params=query, headers=headers, json=None if route.verb == GET else example.body
        )


def request_of(route: Route, example: Example, key: str) -> Message:
    """The message that the example is."""
    names = {camel(name): name for name in (field.name for field in route.method.input_type.fields)}
    in_path = {name: value for name, value in example.fields.items() if names[name] in route.variables}
    request: Message
    if route.verb == GET:
        request = parse_query(route.request_type, [each for each in example.fields.items() if each[0] not in in_path])
    else:
        request = parse_body(route.request_type, to_bytes(example.body))
        if route.key and route.key not in route.variables:
            setattr(request, route.key, key)
    fill_path(request, {names[name]: value for name, value in in_path.items()})
    return request


def to_bytes(body: Mapping[str, Any] | None) -> bytes:
    return json.dumps(body or {}).encode()


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)
