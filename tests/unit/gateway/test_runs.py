"""Runs that an operator begins from the console: what may be asked for, and who gets the page of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.gateway.app import make_app
from services.gateway.breaking import Breaking
from services.gateway.routes import public_routes
from services.gateway.runs import Runs, WantedRun
from services.kernel.errors import Aborted, NotFound
from tests.unit.gateway.test_app import Services
from tests.unit.gateway.test_breaking import OPERATOR, Stack, check


class Store:
    """Keeps what it was asked for; has the page of one run, `r1`."""

    acts = ("double click",)

    def __init__(self) -> None:
        self.begun: list[WantedRun] = []

    def listed(self) -> list[dict[str, Any]]:
        return [{"id": "r1", "kind": each.kind} for each in self.begun]

    async def begin(self, wanted: WantedRun) -> None:
        if self.begun:
            raise Aborted("RUN_UNDER_WAY", "wait", retry_after_ms=5_000)
        self.begun.append(wanted)

    def report(self, run_id: str) -> bytes:
        if run_id != "r1":
            raise NotFound("RUN_UNKNOWN", "no")
        return b"<p>report"


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    breaking = Breaking(Stack(), check, lambda _name, _action: None, Runs(store))
    app = make_app(public_routes(), Services(), breaking=breaking)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def test_act_is_run_without_guards(client: httpx.AsyncClient, store: Store) -> None:
    asked = {"kind": "demo", "act": "double click", "guardsOff": ["ticket"]}
    answer = await client.post("/dev/runs", headers=OPERATOR, json=asked)
    assert (answer.status_code, answer.json()["runs"]) == (200, [{"id": "r1", "kind": "demo"}])
    assert store.begun == [WantedRun("demo", "double click", ("ticket",))]
    assert answer.json()["acts"] == ["double click"]
    assert "unique" in answer.json()["guards"]


async def test_chaos_run_has_its_seed_and_length(client: httpx.AsyncClient, store: Store) -> None:
    asked = {"kind": "chaos", "seed": 7, "minutes": 1, "guardsOff": []}
    assert (await client.post("/dev/runs", headers=OPERATOR, json=asked)).status_code == 200
    assert store.begun == [WantedRun("chaos", "", (), 7, 1.0)]


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "rm"},
        {"kind": "demo", "act": "--keep"},
        {"kind": "demo", "act": "double click", "guardsOff": "ticket"},
        {"kind": "demo", "act": "double click", "guardsOff": ["--data"]},
        {"kind": "chaos", "seed": -1},
        {"kind": "chaos", "seed": "7"},
        {"kind": "chaos", "seed": True},
        {"kind": "chaos", "minutes": 600},
        {"kind": "chaos", "minutes": "1"},
        {"kind": "chaos", "data": "/"},
    ],
)
async def test_run_that_may_not_be_is_refused(client: httpx.AsyncClient, store: Store, asked: dict[str, Any]) -> None:
    answer = await client.post("/dev/runs", headers=OPERATOR, json=asked)
    assert (answer.status_code, answer.json()["reason"]) in ((400, "BODY_INVALID"), (400, "GUARD_UNKNOWN"))
    assert store.begun == []


async def test_second_run_waits_for_the_first(client: httpx.AsyncClient) -> None:
    asked = {"kind": "chaos"}
    await client.post("/dev/runs", headers=OPERATOR, json=asked)
    answer = await client.post("/dev/runs", headers=OPERATOR, json=asked)
    assert (answer.status_code, answer.json()["reason"]) == (409, "RUN_UNDER_WAY")


async def test_page_of_a_run_is_for_operators_and_runs_no_script(client: httpx.AsyncClient) -> None:
    answer = await client.get("/dev/runs/r1/report", headers=OPERATOR)
    assert (answer.status_code, answer.text) == (200, "<p>report")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert (await client.get("/dev/runs/r2/report", headers=OPERATOR)).status_code == 404
    assert (await client.get("/dev/runs/../report", headers=OPERATOR)).status_code == 404
    for path in ("/dev/runs", "/dev/runs/r1/report"):
        assert (await client.get(path, headers={"authorization": "Bearer cashier"})).status_code == 403
    assert (await client.request("DELETE", "/dev/runs", headers=OPERATOR)).status_code == 405
