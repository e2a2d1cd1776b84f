"""Who is believed where: stolen tokens, revoked callers, the acquirer's credential, and keys that are rotated."""

from __future__ import annotations

import asyncio
import json
import operator
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from services.devstack import authority, keys, signing_keys
from services.devstack.authority import Authority
from services.devstack.signing_keys import SigningKeys
from services.devstack.stack import Stack
from services.devstack.state import INTERFACES
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.testkit.client import RecordingClient, money
from services.testkit.harness import Harness, open_client
from tests.e2e.as_service import open_service
from tests.e2e.checked import checked_books, refusal
from tests.e2e.command import command_line, document
from tests.e2e.conftest import FreshStack

#: Callers at once while keys are rotated; each calls again and again.
_CALLERS = 8
_ROTATIONS = 2


def stolen(stack: Stack, service: str, callee: str) -> str:
    """The token with which one service calls another."""
    return (stack.data / "keys" / "tokens" / service / f"{callee}.token").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(stack: Stack) -> AsyncIterator[Harness]:
    async with Harness(stack) as harness:
        yield harness


async def reason(stack: Stack, token: str, request: Any, certificate: str = "payment-1") -> tuple[str, str]:
    """How a request with this token is refused; to a service it comes with the certificate of the payment service."""
    if isinstance(request, acquirer_pb2.ListLogRequest):
        opened = open_client(stack, "thief", Role.SERVICE, token=token)
    else:
        opened = open_service(stack, "thief", token=token, certificate=certificate)
    async with opened as thief:
        code, error = await refusal(thief.call(request))
        return code, error.reason


class TestStolenToken:
    """What a server is sent is of no use elsewhere."""

    async def test_token_for_the_ledger_is_refused_by_the_order_service(self, shared: Harness) -> None:
        order_id = await shared.new_order()
        request = order_pb2.GetOrderRequest(order_id=order_id)
        stack = shared.stack
        assert await reason(stack, stolen(stack, "payment", "ledger"), request) == (
            "UNAUTHENTICATED",
            "TOKEN_FOR_ANOTHER",
        )
        async with open_service(stack, token=stolen(stack, "payment", "order")) as own:
            assert (await own.call(request)).response.order.order_id == order_id

    async def test_credential_of_the_acquirer_is_refused_in_the_house(self, shared: Harness) -> None:
        """It is sent outside with every charge. The house does not know the key that signed it."""
        stack = shared.stack
        token = stolen(stack, "payment", "acquirer")
        for request in (order_pb2.ListOrdersRequest(), ledger_pb2.TrialBalanceRequest()):
            assert await reason(stack, token, request) == ("UNAUTHENTICATED", "TOKEN_INVALID")

    async def test_token_of_the_house_is_refused_by_the_acquirer(self, shared: Harness) -> None:
        stack = shared.stack
        request = acquirer_pb2.ListLogRequest()
        for token in (stack.token("wang", Role.ACCOUNTANT), stolen(stack, "payment", "order")):
            assert await reason(stack, token, request) == ("UNAUTHENTICATED", "TOKEN_INVALID")

    async def test_notice_of_the_acquirer_opens_nothing_else(self, shared: Harness) -> None:
        stack = shared.stack
        token = stolen(stack, "acquirer", "payment")
        assert (await reason(stack, token, order_pb2.ListOrdersRequest()))[0] == "UNAUTHENTICATED"

    async def test_payment_service_posts_and_does_not_read_the_books(self, shared: Harness) -> None:
        """Nor does another service post in its place."""
        stack = shared.stack
        token = stolen(stack, "payment", "ledger")
        assert await reason(stack, token, ledger_pb2.TrialBalanceRequest()) == (
            "PERMISSION_DENIED",
            "SERVICE_NOT_ALLOWED",
        )
        forged = stack.token("order-service", Role.SERVICE)
        assert await reason(stack, forged, ledger_pb2.PostRequest(), "order-1") == (
            "PERMISSION_DENIED",
            "SERVICE_NOT_ALLOWED",
        )

    def test_services_that_call_none_have_no_token(self, shared: Harness) -> None:
        folder = shared.stack.data / "keys" / "tokens"
        assert {each.name for each in folder.iterdir() if list(each.iterdir())} == {"payment", "acquirer"}


async def test_revoked_caller_is_refused_until_it_is_taken_back(fresh_stack: FreshStack) -> None:
    """By running services, also with a token that was taken before."""
    async with fresh_stack() as stack, Harness(stack) as harness:
        request = order_pb2.GetOrderRequest(order_id=await harness.new_order())
        assert (await harness.cashier.call(request)).error is None
        data = ["--data", str(stack.data)]
        revoked = await command_line("revoke", "--caller", "cashier:li", "--json", *data)
        assert document(revoked)["callers"] == ["cashier:li"]
        code, error = await refusal(harness.cashier.call(request))
        assert (code, error.reason) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
        assert (await harness.accountant.call(request)).error is None
        minted = await command_line("token", "--role", "cashier", "--name", "li", *data)
        assert (minted.returncode, "is revoked" in minted.stderr) == (1, True)
        assert (await command_line("revoke", "--caller", "cashier:li", "--undo", *data)).returncode == 0
        assert (await harness.cashier.call(request)).error is None
        token = harness.cashier.identity.token
        assert (await command_line("revoke", "--token", token, *data)).returncode == 0
        assert (await refusal(harness.cashier.call(request)))[1].reason == "TOKEN_REVOKED"
        another = harness.client("li", Role.CASHIER)  # of the same caller
        assert (await another.call(request)).error is None


async def test_keys_and_certificates_rotate_twice_under_load_without_a_failed_call(
    fresh_stack: FreshStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People's tokens of the first key stay good; services call with tokens and certificates of the newest."""
    monkeypatch.setattr(keys, "LOOK_S", 0.1)
    monkeypatch.setattr(signing_keys, "PUBLISHED_S", 1)
    monkeypatch.setattr(authority, "PUBLISHED_S", 4)  # a process looks at its files once a second
    async with fresh_stack(replicas={"payment": 2}) as stack, Harness(stack) as harness:
        stop, calls, failed = asyncio.Event(), 0, []

        async def work(client: RecordingClient) -> None:
            nonlocal calls
            while not stop.is_set():
                order_id = harness.new_id("order")
                made = order_pb2.CreateOrderRequest(
                    request_id=f"make-{order_id}", order_id=order_id, customer_id="mei", amount=money(100)
                )
                for result in (await client.call(made), await client.settle_once(order_id)):
                    calls += 1
                    if result.error is not None:
                        failed.append(str(result.error))

        working = [asyncio.create_task(work(harness.client(f"li-{each}", Role.CASHIER))) for each in range(_CALLERS)]
        seen = [signing(stack.data)]
        for _ in range(_ROTATIONS):
            calls_before = calls
            SigningKeys(stack.data / "keys", SystemClock()).rotate()  # as `key rotate` does
            Authority(stack.data / "keys", "countinghouse", SystemClock()).rotate()  # and with --authority
            async with asyncio.timeout(90):
                while calls < calls_before + 100 or not all(map(operator.ne, signing(stack.data), seen[-1])):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            seen.append(signing(stack.data))
        stop.set()
        await asyncio.gather(*working)
        assert failed == []
        assert [len(set(each)) for each in zip(*seen, strict=True)] == [_ROTATIONS + 1] * 4
        await checked_books(harness)


def signing(data: Path) -> tuple[str, ...]:
    """The key that signs tokens, and which authority signed the certificate of each service."""
    identities = (data / "keys" / "tls" / f"{service}-1.pem" for service in INTERFACES)
    certificates = (x509.load_pem_x509_certificates(each.read_bytes())[0] for each in identities)
    return signing_kid(data), *(each.issuer.rfc4514_string() for each in certificates)


def signing_kid(data: Path) -> str:
    """The key that signs now: the one that was neither published for later nor retired."""
    (kid,) = [
        each["kid"]
        for each in json.loads((data / "keys" / "verify.jwks").read_bytes())["keys"]
        if "nbf" not in each and "exp" not in each
    ]
    return str(kid)


async def test_production_profile_serves_no_reflection_and_settles(fresh_stack: FreshStack) -> None:
    async with fresh_stack(settings={"profile": "production"}, failpoints=False) as stack, Harness(stack) as harness:
        await harness.cashier.settle_ok(await harness.new_order())
        for instance in stack.instances:
            assert instance.interface in INTERFACES.values()
            async with stack.dialer().open(instance.address, instance.service) as channel:
                # with its one message, for a stream that is refused before its message is sent may fail as INTERNAL
                call: Any = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(b"")
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
