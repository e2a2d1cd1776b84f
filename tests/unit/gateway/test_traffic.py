"""The share of calls that an instance gets, changed by an operator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from coordination.discovery import Directory
from coordination.errors import Unavailable
from coordination.registry import Endpoint, ProviderURL, Service
from coordination.rules import Overrides
from coordination.rules.overrides import OverrideRefused
from services.gateway.app import make_app
from services.gateway.breaking import Breaking
from services.gateway.routes import public_routes
from services.gateway.traffic import Traffic
from tests.unit.gateway.test_app import Services
from tests.unit.gateway.test_breaking import OPERATOR, Stack, check

INTERFACE = "countinghouse.payment.v1.PaymentService"
URL = ProviderURL.parse(f"tri://10.0.0.5:50061/{INTERFACE}?interface={INTERFACE}&instance=payment-1")


class Rules:
    """Keeps what it was told to change."""

    def __init__(self) -> None:
        self.changed: list[tuple[Service, str, dict[str, Any]]] = []
        self.error: Exception | None = None

    async def change(self, service: Service, address: str, changes: dict[str, Any]) -> bool:
        if self.error is not None:
            raise self.error
        self.changed.append((service, address, changes))
        return True


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
async def client(rules: Rules) -> AsyncIterator[httpx.AsyncClient]:
    directory = SimpleNamespace(interface=INTERFACE, registered=[Endpoint("10.0.0.5:50061", URL)])
    traffic = Traffic({"payment": cast(Directory, directory)}, cast(Overrides, rules))
    breaking = Breaking(Stack(), check, lambda _name, _action: None, rules=traffic)
    app = make_app(public_routes(), Services(), breaking=breaking)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize(
    ("action", "body", "changes"),
    [
        ("offline", None, {"disabled": True}),
        ("online", {}, {"disabled": None}),
        ("weight", {"weight": 20}, {"weight": 20}),
    ],
)
async def test_operator_changes_the_rule_of_an_instance(
    client: httpx.AsyncClient, rules: Rules, action: str, body: Any, changes: dict[str, Any]
) -> None:
    answer = await client.post(f"/dev/registry/payment-1:{action}", headers=OPERATOR, json=body)
    assert (answer.status_code, answer.json()) == (200, {"instance": "payment-1", **changes})
    assert rules.changed == [(Service(INTERFACE, "", ""), "10.0.0.5:50061", changes)]


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("payment-9:offline", None, 404, "PROVIDER_NOT_FOUND"),
        ("payment-1:delete", None, 404, "PATH_UNKNOWN"),
        ("payment-1:weight", None, 400, "BODY_INVALID"),
        ("payment-1:weight", {"weight": -1}, 400, "BODY_INVALID"),
        ("payment-1:weight", {"weight": "20"}, 400, "BODY_INVALID"),
        ("payment-1:weight", {"weight": True}, 400, "BODY_INVALID"),
        ("payment-1:offline", {"weight": 20}, 400, "BODY_INVALID"),
    ],
)
async def test_change_that_may_not_be_is_refused(
    client: httpx.AsyncClient, rules: Rules, path: str, body: Any, status: int, reason: str
) -> None:
    answer = await client.post(f"/dev/registry/{path}", headers=OPERATOR, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert rules.changed == []


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (OverrideRefused("by hand"), 400, "RULE_NOT_OURS"),
        (Unavailable("away"), 503, "ZOOKEEPER_UNAVAILABLE"),
    ],
)
async def test_rule_that_cannot_be_written_says_why(
    client: httpx.AsyncClient, rules: Rules, error: Exception, status: int, reason: str
) -> None:
    rules.error = error
    answer = await client.post("/dev/registry/payment-1:offline", headers=OPERATOR)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


async def test_others_change_nothing(client: httpx.AsyncClient, rules: Rules) -> None:
    answer = await client.post("/dev/registry/payment-1:offline", headers={"authorization": "Bearer cashier"})
    assert answer.status_code == 403
    assert (await client.get("/dev/registry/payment-1:offline", headers=OPERATOR)).status_code == 405
    assert rules.changed == []
