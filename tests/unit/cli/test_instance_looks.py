"""What is seen of each instance, also of one that does not answer or has gone."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from services.cli.call_rates import CallRates
from services.cli.instance_looks import NOT_REGISTERED, InstanceLook, InstanceLooks
from services.kernel.errors import Unavailable
from tests.fakes.clock import ManualClock

PAGE = """# TYPE countinghouse_calls counter
countinghouse_calls_total{{code="OK",method="Settle"}} {calls}
# TYPE countinghouse_calls_in_flight gauge
countinghouse_calls_in_flight 3
"""


def endpoint(name: str, address: str, **parameters: str) -> Any:
    more = {"instance": name, "metrics": f"metrics-{address}"} | parameters
    return SimpleNamespace(address=address, url=SimpleNamespace(parameters={k: v for k, v in more.items() if v}))


class Stack:
    """Instances that a test registers, and what they answer."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.order = SimpleNamespace(registered=(endpoint("order-1", "o:1"),))
        self.payment = SimpleNamespace(registered=(endpoint("payment-1", "p:1"),))
        self.health: dict[str, str] = {}
        self.pages: dict[str, str | Unavailable] = {}
        self.asked: list[tuple[str, str]] = []
        self.watches: dict[str, int] = {}
        directories: Any = {"order": self.order, "payment": self.payment}
        self.looks = InstanceLooks(
            directories,
            self.clock,
            health=self._health,
            page=self._page,
            watches=lambda address: self.watches.get(address, 0),
        )

    async def look(self, after_ms: int = 1000) -> Mapping[str, InstanceLook]:
        self.clock.advance(after_ms)
        return {look.name: look for look in await self.looks.look()}

    async def _health(self, service: str, address: str) -> str:
        self.asked.append((service, address))
        return self.health.get(address, "SERVING")

    async def _page(self, address: str) -> str:
        page = self.pages.get(address, PAGE.format(calls=0))
        if isinstance(page, Unavailable):
            raise page
        return page


@pytest.fixture
def stack() -> Stack:
    return Stack()


async def test_every_registered_instance_is_asked_under_its_service(stack: Stack) -> None:
    found = await stack.look()
    assert sorted(stack.asked) == [("order", "o:1"), ("payment", "p:1")]
    assert found["payment-1"] == InstanceLook("payment-1", "payment", "p:1", "SERVING", CallRates(None, 3))
    assert [each.note for each in found.values()] == ["", ""]


async def test_rates_are_those_since_the_look_before_at_the_same_address(stack: Stack) -> None:
    await stack.look()
    stack.pages["metrics-p:1"] = PAGE.format(calls=8)
    stack.watches["p:1"] = 1
    found = (await stack.look(after_ms=4000))["payment-1"].calls
    assert found is not None
    assert (found.calls_per_s, found.in_flight) == (2.0, 2)
    stack.payment.registered = (endpoint("payment-1", "p:2"),)
    other = (await stack.look())["payment-1"].calls
    assert other is not None
    assert other.calls_per_s is None, "another process has counted something else"


async def test_instance_that_does_not_answer_is_shown_with_a_note(stack: Stack) -> None:
    stack.health["p:1"] = "UNREACHABLE"
    stack.pages["metrics-p:1"] = Unavailable("METRICS_UNAVAILABLE", "no metrics are to be had at metrics-p:1")
    found = (await stack.look())["payment-1"]
    assert (found.health, found.calls) == ("UNREACHABLE", None)
    assert found.note == "payment-1 at p:1 is UNREACHABLE"


@pytest.mark.parametrize(
    ("page", "note"),
    [
        (Unavailable("METRICS_UNAVAILABLE", "it is away"), "order-1: it is away"),
        ("<html>", "order-1: no metrics are at metrics-o:1"),
        ('countinghouse_calls_total{method="Settle"} 1\n', "order-1: no metrics are at metrics-o:1"),
    ],
)
async def test_page_that_cannot_be_read_is_a_note_and_no_end(stack: Stack, page: str | Unavailable, note: str) -> None:
    stack.pages["metrics-o:1"] = page
    found = await stack.look()
    assert (found["order-1"].health, found["order-1"].calls, found["order-1"].note) == ("SERVING", None, note)
    assert found["payment-1"].calls is not None


async def test_instance_without_metrics_says_so(stack: Stack) -> None:
    stack.order.registered = (endpoint("order-1", "o:1", metrics=""),)
    assert "COUNTINGHOUSE_METRICS_PORT is -1" in (await stack.look())["order-1"].note


async def test_instance_that_is_registered_no_more_is_still_shown(stack: Stack) -> None:
    """Until it is back, under any address."""
    await stack.look()
    stack.payment.registered = ()
    gone = (await stack.look())["payment-1"]
    assert (gone.health, gone.calls, gone.address) == (NOT_REGISTERED, None, "p:1")
    assert gone.note == "payment-1 is not registered any more"
    stack.payment.registered = (endpoint("payment-1", "p:9"),)
    back = await stack.looks.look()
    assert [(look.name, look.address, look.health) for look in back if look.service == "payment"] == [
        ("payment-1", "p:9", "SERVING")
    ]


async def test_name_of_others_is_cut_and_may_be_missing(stack: Stack) -> None:
    stack.order.registered = (endpoint("x" * 1000, "o:1"), endpoint("", "o:2"))
    found = await stack.look()
    assert {"x" * 60, "o:2"} <= found.keys()
