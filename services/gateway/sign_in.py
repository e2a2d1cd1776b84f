"""Who calls the gateway: a token in the header, or a browser's session, which is a token in a cookie.

    POST /session {"token": "…"}          the token becomes the cookie; it is refused here if the services refuse it
    POST /session {"as": "cashier:li"}    in development: the gateway signs the token of one of its people
    GET /session                          who is signed in; in development also who could be
    DELETE /session                       the cookie goes
    POST /session/token {"as": "…"}       in development: the token itself, for a page that acts as several people

Nothing is kept here: a session ends when its token expires or is revoked.

Invariants
1. Scripts cannot read the cookie (HttpOnly), and other sites cannot send it (SameSite=Strict).
2. A change in the name of the cookie comes from a page of this gateway: the browser says so (Sec-Fetch-Site, or
   Origin). A form cannot send JSON, either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
from starlette.requests import Request
from starlette.responses import Response

from services.gateway import messages
from services.gateway.problems import HttpRefusal
from services.kernel.errors import InvalidArgument, Unauthenticated
from services.kernel.principal import Principal

COOKIE: Final = "countinghouse-session"
_MAX_TOKEN_CHARS: Final = 3072  # a browser keeps a cookie of 4096 bytes
_READS: Final = ("GET", "HEAD")


class SignIn:
    """The sessions.

    Args:
        check: Raises unless the services take a header `Bearer …`.
        people: In development: who may be signed in without a token.
        sign: Returns a token for one of them.
    """

    def __init__(
        self,
        check: Callable[[str], Awaitable[None]],
        people: Sequence[Principal] = (),
        sign: Callable[[Principal], str] | None = None,
    ) -> None:
        self._check = check
        self._people = tuple(people)
        self._sign = sign

    async def answer(self, request: Request, body: bytes) -> Response:
        """Answer a request for `/session`."""
        if request.method == "GET":
            return self._shown(request)
        refuse_other_sites(request)
        if request.method == "DELETE":
            ended = Response(status_code=HTTPStatus.NO_CONTENT)
            ended.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
            return ended
        asked = messages.parse_object(body)
        if request.url.path == "/session/token":
            token = self._signed(str(asked.get("as", "")))
            return _json({"token": token, **(_described(token) or {})})
        token = self._wanted(asked)
        await self._check(f"Bearer {token}")
        begun = _json(_described(token))
        secure = request.url.scheme == "https"
        begun.set_cookie(COOKIE, token, path="/", httponly=True, samesite="strict", secure=secure)
        return begun

    def _shown(self, request: Request) -> Response:
        token = request.cookies.get(COOKIE, "")
        people = [{"name": each.name, "role": str(each.role)} for each in self._people]
        return _json({"caller": _described(token) if token else None, "people": people})

    def _wanted(self, asked: dict[str, Any]) -> str:
        """Return the token that a request brings, or that is signed for it."""
        token, name = asked.pop("token", ""), asked.pop("as", "")
        if asked or not isinstance(token, str) or not isinstance(name, str) or bool(token) == bool(name):
            raise InvalidArgument("BODY_INVALID", 'send {"token": "…"}, or in development {"as": "cashier:li"}')
        if token:
            if len(token) > _MAX_TOKEN_CHARS or not token.isascii() or any(each in token for each in ' ",;\\'):
                raise Unauthenticated("TOKEN_INVALID", "this is no token; get one with `countinghouse token`")
            return token
        return self._signed(name)

    def _signed(self, name: str) -> str:
        """Return a token for one of the people.

        Raises:
            Unauthenticated: TOKEN_REQUIRED.
        """
        for each in self._people:
            if self._sign is not None and name == f"{each.role}:{each.name}":
                return self._sign(each)
        raise Unauthenticated("TOKEN_REQUIRED", f"{name[:64]!r} cannot be signed in without a token")


def authorization_of(request: Request) -> str:
    """Return the header with which a request is passed on to the services.

    Raises:
        Unauthenticated: TOKEN_REQUIRED: it has neither a header nor a cookie.
        HttpRefusal: OTHER_SITE: a change in the name of the cookie comes from elsewhere.
    """
    if sent := request.headers.get("authorization", ""):
        return sent
    token = request.cookies.get(COOKIE, "")
    if not token:
        raise Unauthenticated("TOKEN_REQUIRED", "send a token: Authorization: Bearer …")
    if request.method not in _READS:
        refuse_other_sites(request)
    return f"Bearer {token}"


def refuse_other_sites(request: Request) -> None:
    """Refuse a request of a browser that another site has made.

    Raises:
        HttpRefusal: OTHER_SITE.
    """
    fetched = request.headers.get("sec-fetch-site", "")
    origin = request.headers.get("origin", "")
    same = fetched == "same-origin" if fetched else urlsplit(origin).netloc == request.headers.get("host")
    if not same:
        raise HttpRefusal(HTTPStatus.FORBIDDEN, "OTHER_SITE", "only a page of this address may do this in your session")


def _described(token: str) -> dict[str, Any] | None:
    """Return whose token it is, as it says itself: the services decide whether it is good."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return {"name": str(claims["sub"]), "role": str(claims["role"]), "expiresAtMs": str(int(claims["exp"]) * 1000)}
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
        return None


def _json(document: object) -> Response:
    return Response(messages.dumped(document), media_type="application/json", headers={"cache-control": "no-store"})
