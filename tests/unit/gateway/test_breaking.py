"""What an operator may do to the processes of a stack, in development."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.gateway.app import make_app
from services.gateway.breaking import Breaking
from services.gateway.routes import public_routes
from services.kernel.errors import FailedPrecondition, NotFound, PermissionDenied
from tests.unit.gateway.test_app import Services

OPERATOR = {"authorization": "Bearer operator"}


class Stack:
    """One process, `payment-1`."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.state = "running"

    def listed(self) -> list[dict[str, Any]]:
        return [{"name": "payment-1", "service": "payment", "pid": 7, "state": self.state}]

    def act(self, name: str, action: str) -> None:
        if name != "payment-1":
            raise NotFound("PROCESS_UNKNOWN", f"there is no process {name}")
        if self.state == "gone":
            raise FailedPrecondition("PROCESS_GONE", "it is not running")
        self.done.append((name, action))


async def check(authorization: str) -> None:
    if authorization != OPERATOR["authorization"]:
        raise PermissionDenied("ROLE_NOT_ALLOWED", "it is for operators")


@pytest.fixture
def stack() -> Stack:
    return Stack()


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def client(stack: Stack, told: list[tuple[str, str]]) -> AsyncIterator[httpx.AsyncClient]:
    breaking = Breaking(stack, check, lambda name, action: told.append((name, action)))
    app = make_app(public_routes(), Services(), breaking=breaking)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize("action", ["kill", "stop", "resume"])
async def test_operator_does_something_to_a_process_and_readers_are_told(
    client: httpx.AsyncClient, stack: Stack, told: list[tuple[str, str]], action: str
) -> None:
    answer = await client.post(f"/dev/processes/payment-1:{action}", headers=OPERATOR)
    assert (answer.status_code, answer.json()) == (200, {"processes": stack.listed()})
    assert stack.done == told == [("payment-1", action)]
    assert (await client.get("/dev/processes", headers=OPERATOR)).json() == {"processes": stack.listed()}


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer cashier"}])
async def test_others_do_nothing_and_see_nothing(
    client: httpx.AsyncClient, stack: Stack, told: list[tuple[str, str]], headers: dict[str, str]
) -> None:
    for answer in (
        await client.post("/dev/processes/payment-1:kill", headers=headers),
        await client.get("/dev/processes", headers=headers),
    ):
        assert answer.status_code in (401, 403)
        assert "processes" not in answer.json()
    assert stack.done == told == []


@pytest.mark.parametrize(
    ("verb", "path", "status", "reason"),
    [
        ("POST", "/dev/processes/payment-9:kill", 404, "PROCESS_UNKNOWN"),
        ("POST", "/dev/processes/payment-1:reboot", 404, "PATH_UNKNOWN"),
        ("POST", "/dev/processes/..:kill", 404, "PATH_UNKNOWN"),
        ("POST", "/dev/processes", 404, "PATH_UNKNOWN"),
        ("GET", "/dev/processes/payment-1:kill", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    client: httpx.AsyncClient, stack: Stack, told: list[tuple[str, str]], verb: str, path: str, status: int, reason: str
) -> None:
    answer = await client.request(verb, path, headers=OPERATOR)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert stack.done == told == []


async def test_process_that_is_gone_is_said_to_be(
    client: httpx.AsyncClient, stack: Stack, told: list[tuple[str, str]]
) -> None:
    """Readers are told of nothing."""
    stack.state = "gone"
    answer = await client.post("/dev/processes/payment-1:kill", headers=OPERATOR)
    assert (answer.status_code, answer.json()["reason"]) == (400, "PROCESS_GONE")
    assert told == []


async def test_gateway_of_a_production_stack_has_no_such_paths() -> None:
    transport = httpx.ASGITransport(make_app(public_routes(), Services()))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post("/dev/processes/payment-1:kill", headers=OPERATOR)
    assert (answer.status_code, answer.json()["reason"]) == (404, "PATH_UNKNOWN")
