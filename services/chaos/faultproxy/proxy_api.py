"""toxiproxy's HTTP API for `Proxies`, so that its clients in any language can be used.

    GET /version   GET, POST /proxies   POST /populate   POST /reset
    GET, POST or PATCH, DELETE  /proxies/{name}
    GET, POST                   /proxies/{name}/toxics
    GET, POST or PATCH, DELETE  /proxies/{name}/toxics/{toxic}

Invariants
1. Paths, fields, statuses and bodies are toxiproxy's, `{"error": …, "status": …}` for a refusal.
2. Browsers are refused: a web page must not control a machine's connections.
3. The size and the duration of a request's body are limited, and the number of requests at once.

`proxies` has the operations; here is HTTP only.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.chaos.faultproxy.proxies import Proxies, ProxyFields, ToxicFields
from services.chaos.faultproxy.proxy import Proxy, Toxic
from services.kernel.errors import (
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.runtime.http_server import serve_http

#: The toxiproxy version whose API this is; clients ask for it.
VERSION: Final = "2.12.0"
MAX_BODY_BYTES: Final = 256 * 1024
_BODY_TIMEOUT_S: Final = 15.0
MAX_REQUESTS: Final = 64
_DRAIN_S: Final = 1
_STATUSES: Final[dict[type[CountinghouseError], HTTPStatus]] = {
    InvalidArgument: HTTPStatus.BAD_REQUEST,
    FailedPrecondition: HTTPStatus.BAD_REQUEST,
    NotFound: HTTPStatus.NOT_FOUND,
    AlreadyExists: HTTPStatus.CONFLICT,
    Unavailable: HTTPStatus.INTERNAL_SERVER_ERROR,  # a port that is taken
}
_T = TypeVar("_T")
_PROXY: Final = TypeAdapter(ProxyFields)
_PROXY_LIST: Final = TypeAdapter(list[ProxyFields])
_TOXIC: Final = TypeAdapter(ToxicFields)


def make_app(proxies: Proxies) -> Starlette:
    return Starlette(
        routes=_Api(proxies).routes(),
        middleware=[Middleware(_NoBrowsers)],
        exception_handlers={CountinghouseError: _refused, HTTPException: _unserved},
    )


async def serve(proxies: Proxies, listening: socket.socket, stop: asyncio.Event) -> None:
    """Serve the API until `stop` is set.

    Args:
        listening: A bound socket; it is closed at the end.
    """
    await serve_http(make_app(proxies), listening, stop, max_requests=MAX_REQUESTS, drain_s=_DRAIN_S)


def parse_proxies(text: bytes) -> list[ProxyFields]:
    """Read a list of proxies, as in /populate and in toxiproxy's configuration file.

    Raises:
        InvalidArgument: BODY_INVALID.
    """
    return _parsed(_PROXY_LIST, text)


class _NoBrowsers:
    """Refuse clients whose User-Agent begins with Mozilla, as every browser's does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if Headers(scope=scope).get("user-agent", "").startswith("Mozilla/"):
            response = PlainTextResponse("User agent not allowed\n", HTTPStatus.FORBIDDEN)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Api:
    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies

    def routes(self) -> list[Route]:
        proxy, toxic = "/proxies/{name}", "/proxies/{name}/toxics/{toxic}"
        return [
            Route("/version", self._version, methods=["GET"]),
            Route("/reset", self._reset, methods=["POST"]),
            Route("/populate", self._populate, methods=["POST"]),
            Route("/proxies", self._list, methods=["GET"]),
            Route("/proxies", self._create, methods=["POST"]),
            Route(proxy, self._show, methods=["GET"]),
            Route(proxy, self._update, methods=["POST", "PATCH"]),
            Route(proxy, self._delete, methods=["DELETE"]),
            Route(proxy + "/toxics", self._list_toxics, methods=["GET"]),
            Route(proxy + "/toxics", self._add_toxic, methods=["POST"]),
            Route(toxic, self._show_toxic, methods=["GET"]),
            Route(toxic, self._change_toxic, methods=["POST", "PATCH"]),
            Route(toxic, self._remove_toxic, methods=["DELETE"]),
        ]

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def _reset(self, _: Request) -> Response:
        await self._proxies.reset()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _populate(self, request: Request) -> Response:
        wanted = parse_proxies(await _body(request))
        done: list[Proxy] = []
        document: dict[str, Any] = {}
        status = HTTPStatus.CREATED
        try:
            await self._proxies.populate(wanted, done)
        except CountinghouseError as error:
            status = _status(error)
            document = _error(error.message, status)
        return JSONResponse({**document, "proxies": [_proxy_document(proxy) for proxy in done]}, status)

    async def _list(self, _: Request) -> Response:
        return JSONResponse({proxy.name: _proxy_document(proxy) for proxy in self._proxies})

    async def _create(self, request: Request) -> Response:
        proxy = await self._proxies.create(_parsed(_PROXY, await _body(request)))
        return JSONResponse(_proxy_document(proxy), HTTPStatus.CREATED)

    async def _show(self, request: Request) -> Response:
        return JSONResponse(_proxy_document(self._proxies.get(_name(request))))

    async def _update(self, request: Request) -> Response:
        self._proxies.get(_name(request))  # an unknown proxy is refused before a wrong body
        fields = _parsed(_PROXY, await _body(request))
        return JSONResponse(_proxy_document(await self._proxies.update(_name(request), fields)))

    async def _delete(self, request: Request) -> Response:
        await self._proxies.delete(_name(request))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _list_toxics(self, request: Request) -> Response:
        return JSONResponse([_toxic_document(toxic) for toxic in self._proxies.get(_name(request)).toxics.values()])

    async def _add_toxic(self, request: Request) -> Response:
        self._proxies.get(_name(request))
        fields = _parsed(_TOXIC, await _body(request))
        return JSONResponse(
            _toxic_document(await self._proxies.add_toxic(_name(request), fields))
        )  # 200, as toxiproxy has it

    async def _show_toxic(self, request: Request) -> Response:
        return JSONResponse(_toxic_document(self._proxies.toxic(_name(request), _toxic_name(request))))

    async def _change_toxic(self, request: Request) -> Response:
        self._proxies.toxic(_name(request), _toxic_name(request))
        fields = _parsed(_TOXIC, await _body(request))
        return JSONResponse(
            _toxic_document(await self._proxies.change_toxic(_name(request), _toxic_name(request), fields))
        )

    async def _remove_toxic(self, request: Request) -> Response:
        await self._proxies.remove_toxic(_name(request), _toxic_name(request))
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _toxic_name(request: Request) -> str:
    return str(request.path_params["toxic"])


def _proxy_document(proxy: Proxy) -> dict[str, Any]:
    return {
        "name": proxy.name,
        "listen": proxy.listen,
        "upstream": proxy.upstream,
        "enabled": proxy.enabled,
        "toxics": [_toxic_document(toxic) for toxic in proxy.toxics.values()],
    }


def _toxic_document(toxic: Toxic) -> dict[str, Any]:
    return {
        "name": toxic.name,
        "type": toxic.kind,
        "stream": toxic.stream.value,
        "toxicity": toxic.toxicity,
        "attributes": dict(toxic.attributes),
    }


async def _body(request: Request) -> bytes:
    """Return the whole body, whatever its content type: clients differ in it.

    Raises:
        HTTPException: 413, 408, or 400 if the client disconnected.
    """
    _keep_bounds(int(request.headers.get("content-length", "0")))  # h11 has checked that it is a number
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                _keep_bounds(len(body))
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {_BODY_TIMEOUT_S:g} s"
        ) from None
    except ClientDisconnect:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the client left") from None
    return bytes(body)


def _keep_bounds(body_bytes: int) -> None:
    if body_bytes > MAX_BODY_BYTES:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has {MAX_BODY_BYTES} bytes at most")


def _parsed(wanted: TypeAdapter[_T], text: bytes) -> _T:
    try:
        return wanted.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise InvalidArgument("BODY_INVALID", f"bad request body: {what}") from error


def _error(message: str, status: int) -> dict[str, Any]:
    return {"error": message, "status": int(status)}


def _status(error: CountinghouseError) -> HTTPStatus:
    return _STATUSES.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


async def _refused(_: Request, error: Exception) -> Response:
    status = _status(error) if isinstance(error, CountinghouseError) else HTTPStatus.INTERNAL_SERVER_ERROR
    return JSONResponse(_error(str(error), status), status)


async def _unserved(_: Request, error: Exception) -> Response:
    """Answer for an unknown path or method, or a body that did not arrive."""
    assert isinstance(error, HTTPException)  # noqa: S101
    return JSONResponse(_error(error.detail, error.status_code), error.status_code, headers=error.headers)
