"""A browser's session with the gateway, and what other sites cannot do in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from countinghouse.order.v1 import order_pb2
from services.gateway.app import make_app
from services.gateway.routes import public_routes
from services.gateway.sign_in import COOKIE, SignIn
from services.kernel.clock import SystemClock
from services.kernel.errors import Unauthenticated
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tokens import TokenSigner
from tests.unit.gateway.test_app import CREATE, KEY, Services

LI, WANG = Principal("li", Role.CASHIER), Principal("wang", Role.ACCOUNTANT)
SITE = {"origin": "http://gateway"}
SIGNER = TokenSigner(Ed25519PrivateKey.generate(), SystemClock())


def token_of(principal: Principal) -> str:
    return SIGNER.sign(principal, 600)


LI_TOKEN = token_of(LI)


async def check(authorization: str) -> None:
    """The services take any token that is signed as ours are."""
    if "eyJ" not in authorization:
        raise Unauthenticated("TOKEN_INVALID", "the token is not one of ours")


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def sign_in() -> SignIn:
    return SignIn(check, (LI, WANG), token_of)


@pytest.fixture
async def browser(services: Services, sign_in: SignIn) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(public_routes(), services, sign_in=sign_in))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def signed_in(browser: httpx.AsyncClient, **asked: Any) -> httpx.Response:
    return await browser.post("/session", json=asked or {"token": LI_TOKEN}, headers=SITE)


async def test_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(browser: httpx.AsyncClient) -> None:
    answer = await signed_in(browser)
    assert (answer.status_code, answer.json()["name"], answer.json()["role"]) == (200, "li", "cashier")
    cookie = SimpleCookie(answer.headers["set-cookie"])[COOKIE]
    assert (cookie.value, cookie["httponly"], cookie["samesite"], cookie["path"]) == (LI_TOKEN, True, "strict", "/")
    assert answer.headers["cache-control"] == "no-store"


async def test_cookie_is_secure_over_https(services: Services, sign_in: SignIn) -> None:
    transport = httpx.ASGITransport(make_app(public_routes(), services, sign_in=sign_in))
    async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
        answer = await client.post("/session", json={"token": LI_TOKEN}, headers={"origin": "https://gateway"})
    assert SimpleCookie(answer.headers["set-cookie"])[COOKIE]["secure"] is True


async def test_calls_of_a_session_carry_its_token(browser: httpx.AsyncClient, services: Services) -> None:
    await signed_in(browser)
    services.answer = order_pb2.GetOrderResponse()
    assert (await browser.get("/v1/orders/o1")).status_code == 200
    services.answer = order_pb2.CreateOrderResponse()
    assert (await browser.post("/v1/orders", json=CREATE, headers=KEY | SITE)).status_code == 200
    assert [call[2] for call in services.calls] == [f"Bearer {LI_TOKEN}"] * 2


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "origin": "http://gateway"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ],
)
async def test_change_that_another_site_makes_in_a_session_is_refused(
    browser: httpx.AsyncClient, services: Services, said: dict[str, str]
) -> None:
    """As a form or a script there would, if the browser sent the cookie; so is signing in and out."""
    await signed_in(browser)
    for answer in (
        await browser.post("/v1/orders", json=CREATE, headers=KEY | said),
        await browser.post("/session", json={"as": "accountant:wang"}, headers=said),
        await browser.delete("/session", headers=said),
    ):
        assert (answer.status_code, answer.json()["reason"]) == (403, "OTHER_SITE")
    assert services.calls == []
    assert (await browser.get("/session")).json()["caller"]["name"] == "li"


async def test_form_of_another_site_is_refused(browser: httpx.AsyncClient, services: Services) -> None:
    await signed_in(browser)
    answer = await browser.post("/v1/orders/o1:settle", data={"source": "SOURCE_DRAWER"}, headers=KEY | SITE)
    assert (answer.status_code, answer.json()["reason"]) == (415, "MEDIA_TYPE_UNSUPPORTED")
    assert services.calls == []


async def test_token_in_a_header_needs_no_site(browser: httpx.AsyncClient, services: Services) -> None:
    """Another site cannot set it."""
    answer = await browser.post("/v1/orders", json=CREATE, headers=KEY | {"authorization": "Bearer abc"})
    assert answer.status_code == 200
    assert services.calls[0][2] == "Bearer abc"


async def test_session_ends(browser: httpx.AsyncClient) -> None:
    await signed_in(browser)
    assert (await browser.delete("/session", headers=SITE)).status_code == 204
    assert (await browser.get("/session")).json()["caller"] is None
    assert (await browser.get("/v1/orders/o1")).json()["reason"] == "TOKEN_REQUIRED"


async def test_person_of_the_development_profile_signs_in_without_a_token(browser: httpx.AsyncClient) -> None:
    shown = (await browser.get("/session")).json()
    assert shown == {
        "caller": None,
        "people": [{"name": "li", "role": "cashier"}, {"name": "wang", "role": "accountant"}],
    }
    assert (await signed_in(browser, **{"as": "accountant:wang"})).json()["role"] == "accountant"


async def test_only_its_people_sign_in_without_a_token(services: Services) -> None:
    """In production no person does."""
    for people, name in (((), "cashier:li"), ((LI,), "operator:li"), ((LI,), "cashier:wang")):
        app = make_app(public_routes(), services, sign_in=SignIn(check, people, token_of))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            answer = await client.post("/session", json={"as": name}, headers=SITE)
        assert (answer.status_code, answer.json()["reason"]) == (401, "TOKEN_REQUIRED")
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ({"token": "rubbish"}, 401, "TOKEN_INVALID"),
        ({"token": "a; Path=/evil"}, 401, "TOKEN_INVALID"),
        ({"token": "x" * 4000}, 401, "TOKEN_INVALID"),
        ({"token": "é"}, 401, "TOKEN_INVALID"),
        ({"token": 5}, 400, "BODY_INVALID"),
        ({"token": LI_TOKEN, "as": "cashier:li"}, 400, "BODY_INVALID"),
        ({"who": "me"}, 400, "BODY_INVALID"),
    ],
)
async def test_sign_in_that_is_none_is_refused(
    browser: httpx.AsyncClient, asked: dict[str, Any], status: int, reason: str
) -> None:
    answer = await browser.post("/session", json=asked, headers=SITE)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert "set-cookie" not in answer.headers


async def test_cookie_that_is_rubbish_is_the_services_to_refuse(browser: httpx.AsyncClient) -> None:
    browser.cookies.set(COOKIE, "rubbish")
    assert (await browser.get("/session")).json()["caller"] is None


async def test_answers_are_of_no_use_to_other_sites(browser: httpx.AsyncClient) -> None:
    for answer in (await browser.get("/healthz"), await browser.get("/nothing"), await signed_in(browser)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-frame-options"] == "DENY"


async def test_page_of_the_development_profile_gets_the_tokens_of_its_people(browser: httpx.AsyncClient) -> None:
    """No page of another site, and no other program."""
    asked = {"as": "accountant:wang"}
    answer = await browser.post("/session/token", json=asked, headers=SITE)
    assert (answer.status_code, answer.json()["name"]) == (200, "wang")
    assert answer.json()["token"].startswith("eyJ")
    assert "set-cookie" not in answer.headers
    assert (await browser.post("/session/token", json=asked)).status_code == 403
    assert (await browser.post("/session/token", json={"as": "operator:ops"}, headers=SITE)).status_code == 401
