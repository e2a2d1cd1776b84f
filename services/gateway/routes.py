"""The paths of HTTP, as the protos give them (`countinghouse.type.v1.http`).

A method without that option is not served. Where two paths fit, the one with more fixed text is meant:
`/v1/orders/{order_id}:settle` before `/v1/orders/{order_id}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from coordination.channel import Idempotency
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import http_pb2
from services.runtime.grpc.methods import idempotency

GET: Final = "GET"
POST: Final = "POST"
_VARIABLE: Final = re.compile(r"\{(\w+)\}")
#: Fields of a request under which a caller may repeat it, the one that counts first.
_KEYS: Final = ("ticket_id", "request_id")
#: The services, in the order in which they are documented. Their modules are imported so that the pool has them.
_FILES: Final = (order_pb2, payment_pb2, ledger_pb2)


@dataclass(frozen=True, slots=True)
class Route:
    """One method as HTTP.

    Args:
        verb: GET or POST.
        path: With its variables: `/v1/orders/{order_id}:settle`.
        service: `package.Service`.
        key: The field of the request under which it is repeated; empty: it changes nothing, or each of its parts has
            a key of its own.
    """

    verb: str
    path: str
    service: str
    method: MethodDescriptor
    key: str

    @property
    def variables(self) -> tuple[str, ...]:
        """The fields of the request that are in the path."""
        return tuple(_VARIABLE.findall(self.path))

    @property
    def full_method(self) -> str:
        """The method's name in gRPC: `/package.Service/Method`."""
        return f"/{self.service}/{self.method.name}"

    @property
    def changes(self) -> bool:
        """Whether it changes something."""
        return idempotency(self.full_method) is not Idempotency.NO_SIDE_EFFECTS

    @property
    def request_type(self) -> type[Message]:
        """The class of its request."""
        return GetMessageClass(self.method.input_type)

    @property
    def response_type(self) -> type[Message]:
        """The class of its response."""
        return GetMessageClass(self.method.output_type)

    def matched(self, path: str) -> dict[str, str] | None:
        """Return the values of the variables in a path; None: it is another path."""
        found = re.fullmatch(_pattern(self.path), path)
        return found.groupdict() if found else None


class Routes:
    """All routes.

    Args:
        routes: In the order in which they are documented.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.documented = tuple(routes)
        self._ordered = sorted(self.documented, key=lambda route: -len(_VARIABLE.sub("", route.path)))

    def at(self, path: str) -> dict[str, tuple[Route, dict[str, str]]]:
        """Return the routes of a path by their verbs, each with the values of its variables.

        With `/v1/orders/o-1:settle` nothing else can be meant, so it is no order of that name for GET.
        """
        found: dict[str, tuple[Route, dict[str, str]]] = {}
        meant = ""
        for route in self._ordered:
            values = route.matched(path)
            if values is not None and route.path == (meant := meant or route.path):
                found[route.verb] = route, values
        return found


def public_routes() -> Routes:
    """Return the routes of every public method of the order, payment and ledger services."""
    return Routes(route for file in _FILES for service in _services(file) for route in _routes_of(service))


def _services(file: Any) -> list[ServiceDescriptor]:
    names = file.DESCRIPTOR.services_by_name
    pool = descriptor_pool.Default()
    return [pool.FindServiceByName(service.full_name) for service in names.values()]


def _routes_of(service: ServiceDescriptor) -> Iterable[Route]:
    for method in service.methods:
        options = method.GetOptions()
        if not options.HasExtension(http_pb2.http):
            continue
        rule = options.Extensions[http_pb2.http]
        verb = GET if rule.WhichOneof("pattern") == "get" else POST
        names = method.input_type.fields_by_name
        key = next((name for name in _KEYS if name in names), "") if verb == POST else ""
        yield Route(verb, rule.get or rule.post, service.full_name, method, key)


def _pattern(path: str) -> str:
    """Return the regular expression of a path: a variable is one segment, with whatever colons it has."""
    parts = _VARIABLE.split(path)
    return "".join(f"(?P<{part}>[^/]+)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
