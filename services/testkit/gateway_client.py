"""A client that calls the services through the gateway, over HTTP and JSON, and records its calls as any other does."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from countinghouse.type.v1 import http_pb2
from services.kernel.errors import CountinghouseError
from services.runtime.grpc import status
from services.runtime.grpc.status import DETAILS_KEY
from services.testkit.client import Connections, RecordingClient, method_of
from services.testkit.identities import Identity

_VARIABLE: Final = re.compile(r"\{(\w+)\}")
_KEY: Final = "request_id"
#: What a connection is given beyond the call itself.
_GRACE_S: Final = 2.0


class GatewayClient(RecordingClient):
    """Calls the public methods through the gateway; others, and those at a certain instance, directly.

    Args:
        address: Returns where the gateway is: `host:port`.
    """

    def __init__(
        self, connections: Connections, identity: Identity, process: str, *, address: Callable[[], str]
    ) -> None:
        super().__init__(connections, identity, process)
        self._address = address

    def _send(self, request: Message, at: str, timeout_s: float) -> Any:
        rule = _rule_of(method_of(request))
        if at or rule is None:
            return super()._send(request, at, timeout_s)
        return _HttpCall(self._address(), rule, request, self.identity.token, timeout_s)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a method is called: its verb, its path, and the class of its response."""

    verb: str
    path: str
    response: type[Message]


class _HttpCall:
    """One call, as far as a call of gRPC is used: it is awaited, and asked for its trailing metadata."""

    def __init__(self, address: str, rule: _Rule, request: Message, token: str, timeout_s: float) -> None:
        self._address, self._rule, self._request = address, rule, request
        self._token, self._timeout_s = token, timeout_s
        self._replayed = False

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._run().__await__()

    async def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-replayed", "true"),) if self._replayed else ()

    async def _run(self) -> bytes:
        try:
            code, headers, document = await asyncio.to_thread(self._exchange)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refusal(grpc.StatusCode.UNAVAILABLE, f"no answer of the gateway: {type(error).__name__}") from error
        self._replayed = headers.get("idempotency-replayed") == "true"
        if code != 200:
            raise _refusal_of(document, replayed=self._replayed)
        response = json_format.ParseDict(document, self._rule.response(), ignore_unknown_fields=True)
        return response.SerializeToString(deterministic=True)

    def _exchange(self) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """Send the request and read the answer; blocks."""
        fields = json_format.MessageToDict(self._request, preserving_proto_field_name=True)
        path = _VARIABLE.sub(lambda found: str(fields.pop(found[1])), self._rule.path)
        headers = {
            "authorization": f"Bearer {self._token}",
            "content-type": "application/json",
            "prefer": f"wait={max(self._timeout_s, 0.1):g}",
        }
        if self._rule.verb == "POST" and (key := fields.pop(_KEY, "")):
            headers["idempotency-key"] = key
        body = json.dumps(fields) if self._rule.verb == "POST" else None
        host, _, port = self._address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=self._timeout_s + _GRACE_S)
        try:
            connection.request(self._rule.verb, path, body, headers)
            answer = connection.getresponse()
            shown = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, shown, dict(json.loads(answer.read() or b"{}"))
        finally:
            connection.close()


def _rule_of(full_method: str) -> _Rule | None:
    """Return how a method is called over HTTP; None: it is not public, or a GET with more than what is in its path."""
    service, _, name = full_method.strip("/").partition("/")
    method = Default().FindServiceByName(service).methods_by_name[name]
    options = method.GetOptions()
    if not options.HasExtension(http_pb2.http):
        return None
    rule = options.Extensions[http_pb2.http]
    path = rule.get or rule.post
    if rule.get and {*_VARIABLE.findall(path)} != {field.name for field in method.input_type.fields}:
        return None
    return _Rule("GET" if rule.get else "POST", path, GetMessageClass(method.output_type))


def _refusal_of(problem: Mapping[str, Any], *, replayed: bool) -> grpc.aio.AioRpcError:
    """Return a problem (RFC 9457) as the refusal of gRPC that it stands for."""
    name, detail = str(problem.get("code", "")), str(problem.get("detail", ""))
    if name not in grpc.StatusCode.__members__ or not problem.get("reason"):
        return _refusal(grpc.StatusCode.UNAVAILABLE, f"the gateway refused: {problem.get('reason')}: {detail}")
    code = grpc.StatusCode[name]
    info = error_details_pb2.ErrorInfo(reason=str(problem["reason"]), domain=status.DOMAIN)
    bare = status_pb2.Status(code=code.value[0], message=detail)
    bare.details.add().Pack(info)
    kind: type[CountinghouseError] = type(status.from_status(bare))
    error = kind(
        str(problem["reason"]),
        detail,
        metadata=problem.get("metadata"),
        retry_after_ms=problem.get("retryAfterMs"),
        fields=tuple((str(each["field"]), str(each["description"])) for each in problem.get("fields", ())),
    )
    return _refusal(code, detail, status.to_status(error).SerializeToString(deterministic=True), replayed=replayed)


def _refusal(code: grpc.StatusCode, said: str, details: bytes = b"", *, replayed: bool = False) -> grpc.aio.AioRpcError:
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, details)] if details else []
    if replayed:
        trailers.append(("x-replayed", "true"))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), said)
