"""In development: an operator changes the share of calls that an instance gets, by Dubbo's rules in ZooKeeper.

POST /dev/registry/payment-1:offline                   it goes on running, and gets no calls
POST /dev/registry/payment-1:online
POST /dev/registry/payment-1:weight   {"weight": 20}   100 is the default
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from coordination.discovery import Directory
from coordination.errors import Unavailable as ZooKeeperAway
from coordination.registry import Service
from coordination.rules import Changes, Overrides
from coordination.rules.overrides import OverrideRefused
from services.gateway import messages
from services.gateway.problems import HttpRefusal
from services.kernel.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable

PATH: Final = "/dev/registry/"
_TARGET: Final = re.compile(rf"{PATH}([A-Za-z0-9-]{{1,64}}):(offline|online|weight)")
_MOST_WEIGHT: Final = 1_000_000


class Traffic:
    """Serves the paths. Its caller has seen that the request is an operator's.

    Args:
        directories: By service, as consumers see them.
        overrides: Of the operator's session.
    """

    def __init__(self, directories: Mapping[str, Directory], overrides: Overrides) -> None:
        self._directories = directories
        self._overrides = overrides

    async def answer(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            NotFound: PROVIDER_NOT_FOUND.
            InvalidArgument: BODY_INVALID.
            FailedPrecondition: RULE_NOT_OURS: the rule there was written by hand.
            Unavailable: ZOOKEEPER_UNAVAILABLE.
        """
        found = _TARGET.fullmatch(request.url.path)
        if found is None:
            raise HttpRefusal(HTTPStatus.NOT_FOUND, "PATH_UNKNOWN", f"there is {PATH}INSTANCE:offline, online, weight")
        if request.method != "POST":
            raise HttpRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "send POST", {"allow": "POST"})
        instance, action = found.groups()
        changes = _changes(action, messages.parse_object(await request.body()))
        service, address = self._place_of(instance)
        try:
            await self._overrides.change(service, address, changes)
        except OverrideRefused as error:
            raise FailedPrecondition("RULE_NOT_OURS", str(error)) from error
        except ZooKeeperAway as error:
            raise Unavailable("ZOOKEEPER_UNAVAILABLE", "ZooKeeper does not answer; try again") from error
        return Response(messages.dumped({"instance": instance, **changes}), media_type="application/json")

    def _place_of(self, instance: str) -> tuple[Service, str]:
        for directory in self._directories.values():
            for endpoint in directory.registered:
                if endpoint.registered.parameters.get("instance") == instance:
                    url = endpoint.registered
                    return Service(directory.interface, url.group, url.version), endpoint.address
        raise NotFound("PROVIDER_NOT_FOUND", f"no instance {instance} is registered")


def _changes(action: str, asked: dict[str, Any]) -> Changes:
    weight = asked.pop("weight", None) if action == "weight" else None
    if asked:
        raise InvalidArgument("BODY_INVALID", f"there is no field {next(iter(asked))!r}")
    if action != "weight":
        return {"disabled": True if action == "offline" else None}
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= _MOST_WEIGHT:
        raise InvalidArgument("BODY_INVALID", f"weight is a number from 0 to {_MOST_WEIGHT}")
    return {"weight": weight}
