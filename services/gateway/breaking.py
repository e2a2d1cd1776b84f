"""In development: what an operator may do to the processes of the stack, to see what becomes of the payments.

GET /dev/processes                     each process, and whether it runs, is stopped or is gone
POST /dev/processes/payment-1:kill     SIGKILL: it is started again
POST /dev/processes/payment-1:stop     SIGSTOP: it is frozen, as by a long pause
POST /dev/processes/payment-1:resume   SIGCONT

`/dev/runs` is in `runs.py`, `/dev/registry` in `traffic.py`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from services.gateway import messages, traffic
from services.gateway.problems import HttpRefusal
from services.gateway.runs import Runs
from services.gateway.sign_in import authorization_of
from services.gateway.traffic import Traffic

ACTIONS: Final = ("kill", "stop", "resume")
_PATH: Final = re.compile(r"/dev/processes/([A-Za-z0-9-]{1,64}):([a-z]+)")
PROCESSES: Final = "/dev/processes"


class Processes(Protocol):
    """The processes of a stack."""

    def listed(self) -> list[dict[str, Any]]:
        """Return each with its `name`, `service`, `pid` and `state`: running, stopped or gone."""

    def act(self, name: str, action: str) -> None:
        """Do one of ACTIONS to a process.

        Raises:
            NotFound: PROCESS_UNKNOWN.
            FailedPrecondition: PROCESS_GONE.
        """


class Breaking:
    """See the module.

    Args:
        check: Raises unless a header `Bearer …` is an operator's.
        told: Is called with the name of a process and the action, once it is done.
        runs: What serves the paths of `runs.py`; None: there are none.
        rules: What serves those of `traffic.py`; None: there are none.
    """

    def __init__(
        self,
        processes: Processes,
        check: Callable[[str], Awaitable[None]],
        told: Callable[[str, str], None],
        runs: Runs | None = None,
        rules: Traffic | None = None,
    ) -> None:
        self._processes = processes
        self._runs = runs
        self._rules = rules
        self._check = check
        self._told = told

    async def answer(self, request: Request) -> Response:
        """Answer a request for `/dev/…`."""
        await self._check(authorization_of(request))
        path, verb = request.url.path, request.method
        if self._runs is not None and self._runs.serves(path):
            return await self._runs.answer(request)
        if self._rules is not None and path.startswith(traffic.PATH):
            return await self._rules.answer(request)
        if (path, verb) == (PROCESSES, "GET"):
            return _json({"processes": self._processes.listed()})
        found = _PATH.fullmatch(path)
        if found is None or found[2] not in ACTIONS:
            raise HttpRefusal(HTTPStatus.NOT_FOUND, "PATH_UNKNOWN", f"there is {PROCESSES}, and for each {ACTIONS}")
        if verb != "POST":
            raise HttpRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "send POST", {"allow": "POST"})
        name, action = found.groups()
        self._processes.act(name, action)
        self._told(name, action)
        return _json({"processes": self._processes.listed()})


def _json(document: object) -> Response:
    return Response(messages.dumped(document), media_type="application/json", headers={"cache-control": "no-store"})
