"""The gateway as an ASGI application: one request of HTTP is one call of gRPC.

| header of a request | meaning |
|---|---|
| `Authorization: Bearer …` | the caller's token, which the service gets; a browser has a cookie (`sign_in.py`) |
| `Idempotency-Key` | the request id of a change, which needs one (draft-ietf-httpapi-idempotency-key-header-07) |
| `Prefer: wait=5` | how many seconds the call may take (RFC 7240); 10 unless it is given, and 30 at most |
| `traceparent`, `tracestate` | the trace that the request belongs to (W3C Trace Context), if spans are sent |

| header of an answer | meaning |
|---|---|
| `Idempotency-Replayed: true` | it is the stored answer of an earlier request |
| `Retry-After` | after how many seconds the same request may be answered otherwise |

`/v1/events` streams what changes, as server-sent events; its parameters are `topic` (repeated; without it all) and
`orderId`, and a reader goes on after `Last-Event-ID`. Bodies, errors and events: `messages.py`, `problems.py`,
`event_stream.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

import structlog
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from services.gateway import messages, openapi, problems
from services.gateway.breaking import Breaking
from services.gateway.calls import Calls
from services.gateway.event_stream import EventStream
from services.gateway.pages import Pages
from services.gateway.problems import HttpRefusal
from services.gateway.rate_limit import RateLimit
from services.gateway.routes import GET, POST, Route, Routes
from services.gateway.sign_in import COOKIE, SignIn, authorization_of
from services.gateway.watching import Event, Source, Watch, positions_in
from services.kernel.errors import CountinghouseError, InvalidArgument, ResourceExhausted
from services.kernel.ids import check_name
from services.runtime import tracing

#: As the services take it in one message.
MAX_BODY_BYTES: Final = 1 << 20
#: Requests at once; one more is answered 503.
MAX_REQUESTS: Final = 512
#: Of these, streams of what changes.
MAX_STREAMS: Final = 256
#: Requests in a second: of one token, and of one address, which may be that of many callers.
CALLER_PER_S: Final = 100.0
ADDRESS_PER_S: Final = 500.0
_BODY_TIMEOUT_S: Final = 15.0
_WAIT_S, _MAX_WAIT_S = 10.0, 30.0
_KEY_HEADER: Final = "idempotency-key"
_REPLAYED_HEADER: Final = "idempotency-replayed"
_JSON: Final = "application/json"
_VERBS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
#: Of every answer: none is run as a script, shown in another site's frame, or read by another site.
_SAFE: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
#: RFC 8941: the draft's header is an item of text, in quotes; plain text is taken too.
_QUOTED = re.compile(r'"([^"\\]*)"')
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,3})(?:$|[,;\s])")

log = structlog.get_logger()


def make_app(
    routes: Routes,
    calls: Calls,
    sources: Sequence[Source] = (),
    sign_in: SignIn | None = None,
    breaking: Breaking | None = None,
) -> Starlette:
    """Return the application.

    Args:
        sources: What can be watched.
        sign_in: The sessions of browsers; None: callers send a token only.
        breaking: In development, what may be done to the processes; None: nothing.
    """
    gateway = _Gateway(routes, calls, sources, sign_in, breaking)
    return Starlette(routes=[StarletteRoute("/{path:path}", gateway.answer, methods=_VERBS)])


class _Gateway:
    def __init__(
        self,
        routes: Routes,
        calls: Calls,
        sources: Sequence[Source],
        sign_in: SignIn | None,
        breaking: Breaking | None,
    ) -> None:
        self._breaking = breaking
        self._routes = routes
        self._calls = calls
        self._sources = {source.topic: source for source in sources}
        self._sign_in = sign_in
        self._pages = Pages()
        self._document = messages.dumped(openapi.document(routes))
        self._streams = 0
        self._of_a_caller = RateLimit(CALLER_PER_S)
        self._of_an_address = RateLimit(ADDRESS_PER_S)

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        try:
            answer = await self._served(request)
        except CountinghouseError as error:
            answer = _problem(*problems.problem_of(error), replayed="replayed" in error.metadata)
        except HttpRefusal as refusal:
            answer = _problem(*problems.problem_of_refusal(refusal))
        except ClientDisconnect:
            answer = Response(status_code=HTTPStatus.BAD_REQUEST)  # it is not read
        except Exception:
            log.exception("unexpected", path=request.url.path)
            said = HttpRefusal(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "INTERNAL",
                "something went wrong here that should not have; it has been logged",
            )
            answer = _problem(*problems.problem_of_refusal(said))
        answer.headers.update(_SAFE)
        return answer

    async def _served(self, request: Request) -> Response:
        self._limit(request)
        path, verb = request.url.path, request.method
        if path in ("/healthz", "/openapi.json"):
            _check_verb(verb, GET, "HEAD")
            body = self._document if path == "/openapi.json" else messages.dumped({"status": "SERVING"})
            return Response(body, media_type=_JSON)
        if self._pages.at(path):
            _check_verb(verb, GET, "HEAD")
            return self._pages.answer(request)
        if path in ("/session", "/session/token") and self._sign_in is not None:
            _check_verb(verb, *((POST,) if path == "/session/token" else (GET, POST, "DELETE")))
            return await self._sign_in.answer(request, await _body(request) if verb == POST else b"")
        if path.startswith("/dev/") and self._breaking is not None:
            return await self._breaking.answer(request)
        if path == "/v1/events":
            _check_verb(verb, GET)
            return await self._watched(request)
        found = self._routes.at(path)
        if not found:
            raise HttpRefusal(HTTPStatus.NOT_FOUND, "PATH_UNKNOWN", "there is no such path; /openapi.json lists them")
        _check_verb(verb, *found)
        route, variables = found[verb]
        with tracing.http_request(verb, route.path, request.headers.items) as span:
            try:
                answer = await self._called(route, variables, request)
            except CountinghouseError as error:
                span.answered(str(int(problems.status_of(error))), error.reason)
                raise
            except HttpRefusal as refusal:
                span.answered(str(int(refusal.code)), refusal.reason)
                raise
            span.answered("200")
            return answer

    async def _called(self, route: Route, variables: dict[str, str], request: Request) -> Response:
        """Return the answer of a service."""
        message = await self._message(route, variables, request)
        wait_s = _wait_s(request.headers.get("prefer", ""))
        answered = await self._calls.call(route, message, authorization_of(request), wait_s)
        headers = {_REPLAYED_HEADER: "true"} if answered.replayed else {}
        return Response(messages.dumped(messages.to_json(answered.message)), media_type=_JSON, headers=headers)

    def _limit(self, request: Request) -> None:
        """Count a request of its caller, and of the address that it comes from."""
        self._of_an_address.take(request.client.host if request.client else "")
        token = request.headers.get("authorization", "") or request.cookies.get(COOKIE, "")
        if token:
            self._of_a_caller.take(token)

    async def _watched(self, request: Request) -> Response:
        """Return the stream of what changes, once it has begun."""
        authorization = authorization_of(request)
        for name in request.query_params:
            if name not in ("topic", "orderId"):
                raise InvalidArgument("PARAMETER_INVALID", f"there is no parameter {name!r}; there are topic, orderId")
        topics = request.query_params.getlist("topic") or [*self._sources]
        if unknown := [topic for topic in topics if topic not in self._sources]:
            known = ", ".join(self._sources)
            raise InvalidArgument("TOPIC_UNKNOWN", f"there is no topic {unknown[0]!r}; there are {known}")
        if self._streams >= MAX_STREAMS:
            raise ResourceExhausted("STREAM_LIMIT", "too many streams are open; try again", retry_after_ms=1_000)
        order_id = request.query_params.get("orderId", "")
        last = request.headers.get("last-event-id", "")
        watch = Watch(
            [self._sources[topic] for topic in dict.fromkeys(topics)],
            order_id and check_name(order_id, "orderId"),
            authorization,
            positions_in(last) if last else None,
        )
        events = self._counted(watch.events())
        return EventStream(await anext(events), events)

    async def _counted(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        self._streams += 1
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        finally:
            self._streams -= 1

    async def _message(self, route: Route, variables: dict[str, str], request: Request) -> Message:
        if route.verb == POST:
            authorization_of(request)  # before the body is read
            if request.url.query:
                raise InvalidArgument("PARAMETER_INVALID", "this path takes no parameters; send them in the body")
            message = messages.parse_body(route.request_type, await _body(request))
        else:
            message = messages.parse_query(route.request_type, request.query_params.multi_items())
        messages.fill_path(message, variables)
        if route.key:
            _fill_key(route, message, request.headers.get(_KEY_HEADER, ""))
        return message


def _fill_key(route: Route, message: Any, header: str) -> None:
    """Set the request id from the header. A ticket in the path is the key of its payment, and needs no header."""
    given = _QUOTED.fullmatch(header)
    key = given[1] if given else header
    known = getattr(message, route.key)
    if not key and not known:
        raise InvalidArgument(
            "IDEMPOTENCY_KEY_REQUIRED",
            "send an id of your own in the header Idempotency-Key, and the same one when you ask again",
        )
    if key and known and key != known:
        raise InvalidArgument(
            "IDEMPOTENCY_KEY_MISMATCHED", f"the header Idempotency-Key differs from {route.key}; leave one of them out"
        )
    setattr(message, route.key, check_name(key or known, route.key))


async def _body(request: Request) -> bytes:
    """Return the body, of a limited size and within a time."""
    kind = request.headers.get("content-type", "")
    if kind and kind.partition(";")[0].strip().lower() != _JSON:
        raise HttpRefusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "MEDIA_TYPE_UNSUPPORTED", f"send {_JSON}")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise HttpRefusal(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        "BODY_TOO_LARGE",
                        f"a body has at most {MAX_BODY_BYTES} bytes; send less at a time",
                        {"connection": "close"},
                    )
                parts.append(part)
    except TimeoutError:
        raise HttpRefusal(
            HTTPStatus.REQUEST_TIMEOUT, "BODY_NOT_RECEIVED", "the body did not come in time", {"connection": "close"}
        ) from None
    return b"".join(parts)


def _wait_s(prefer: str) -> float:
    """Return how long a call may take."""
    found = _WAIT.search(prefer)
    return min(float(found[1]), _MAX_WAIT_S) if found and int(found[1]) else _WAIT_S


def _check_verb(verb: str, *taken: str) -> None:
    """Raise HttpRefusal, METHOD_NOT_ALLOWED, unless a path takes a verb."""
    if verb not in taken:
        allowed = ", ".join(sorted(taken))
        raise HttpRefusal(
            HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", f"this path takes {allowed}", {"allow": allowed}
        )


def _problem(
    code: HTTPStatus, document: dict[str, Any], headers: dict[str, str], *, replayed: bool = False
) -> Response:
    if replayed:
        document["metadata"].pop("replayed", None)
        headers |= {_REPLAYED_HEADER: "true"}
    return Response(messages.dumped(document), code, headers, problems.CONTENT_TYPE)
