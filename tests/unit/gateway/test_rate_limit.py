"""How many requests a caller may make."""

from __future__ import annotations

from contextlib import suppress

import httpx
import pytest

from countinghouse.order.v1 import order_pb2
from services.gateway import app, rate_limit
from services.gateway.app import make_app
from services.gateway.rate_limit import RateLimit
from services.gateway.routes import public_routes
from services.kernel.errors import ResourceExhausted
from tests.unit.gateway.test_app import Services


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def taken(limit: RateLimit, caller: str) -> int:
    """How many requests a caller may make now."""
    number = 0
    with suppress(ResourceExhausted):
        while True:
            limit.take(caller)
            number += 1
    return number


def test_caller_has_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    assert taken(limit, "li") == 20
    clock.now_s = 0.5
    assert taken(limit, "li") == 5
    clock.now_s = 100
    assert taken(limit, "li") == 20


def test_refusal_says_when_to_ask_again() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    taken(limit, "li")
    with pytest.raises(ResourceExhausted) as refusal:
        limit.take("li")
    assert (refusal.value.reason, refusal.value.retry_after_ms) == ("RATE_LIMIT", 100)
    clock.now_s = 0.1
    limit.take("li")


def test_callers_are_apart() -> None:
    limit = RateLimit(10, Clock())
    taken(limit, "li")
    assert taken(limit, "wang") == 20


def test_callers_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_CALLERS", 3)
    limit = RateLimit(10, Clock())
    for number in range(100):
        limit.take(f"caller-{number}")
    assert len(limit._buckets) == 3


async def test_gateway_refuses_one_token_and_serves_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CALLER_PER_S", 5.0)
    services = Services()
    services.answer = order_pb2.GetOrderResponse()
    transport = httpx.ASGITransport(make_app(public_routes(), services))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answers = [await client.get("/v1/orders/o1", headers={"authorization": "Bearer busy"}) for _ in range(40)]
        other = await client.get("/v1/orders/o1", headers={"authorization": "Bearer quiet"})
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].json()["reason"] == "RATE_LIMIT"
    assert int(refused[0].headers["retry-after"]) >= 1
    assert len(services.calls) == len(answers) - len(refused) + 1
    assert other.status_code == 200
