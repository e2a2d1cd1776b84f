"""In development: runs of the demo without some guards, and chaos runs. Each has a stack of its own.

GET /dev/runs                  those of this stack's directory, the newest first, and what a run may be given
POST /dev/runs                 {"kind": "demo", "act": "double click", "guardsOff": ["ticket"]}
                               {"kind": "chaos", "seed": 7, "minutes": 0.5, "guardsOff": []}
GET /dev/runs/ID/report        the page of a chaos run

One run goes on at a time, and what it costs is bounded: a demo is one act, a chaos run takes five minutes at most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from services.gateway import messages
from services.gateway.problems import HttpRefusal
from services.kernel import guards
from services.kernel.errors import InvalidArgument
from services.kernel.guards import Guards

PATH: Final = "/dev/runs"
DEMO, CHAOS = "demo", "chaos"
MAX_MINUTES: Final = 5.0
_MAX_SEED: Final = 2**31 - 1
_REPORT: Final = re.compile(rf"{PATH}/([a-z0-9-]{{1,40}})/report")
#: A report has its style and its pictures in it, and nothing else: no script of it is run here.
_REPORT_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@dataclass(frozen=True, slots=True)
class WantedRun:
    """A run to begin.

    Args:
        kind: DEMO or CHAOS.
        act: Of the demo.
        seed: None: a random one.
        minutes: Of the chaos run's workload.
    """

    kind: str
    act: str = ""
    guards_off: tuple[str, ...] = ()
    seed: int | None = None
    minutes: float = 0.5


class RunStore(Protocol):
    """The runs of a stack's directory."""

    @property
    def acts(self) -> Sequence[str]:
        """The acts of the demo."""

    def listed(self) -> list[dict[str, Any]]:
        """Return each with its `id`, `kind`, `command`, `state`, `begunAtMs`, `detail`, `violations` and `report`."""

    async def begin(self, wanted: WantedRun) -> None:
        """Begin a run, which goes on by itself.

        Raises:
            Aborted: RUN_UNDER_WAY.
        """

    def report(self, run_id: str) -> bytes:
        """Return the page of a run.

        Raises:
            NotFound: RUN_UNKNOWN.
        """


class Runs:
    """Serves the paths. Its caller has seen that the request is an operator's."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def serves(self, path: str) -> bool:
        """Return whether a path is one of these."""
        return path == PATH or path.startswith(f"{PATH}/")

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        path, verb = request.url.path, request.method
        if found := _REPORT.fullmatch(path):
            _only(verb, "GET")
            headers = {"cache-control": "no-store", "content-security-policy": _REPORT_POLICY}
            return Response(self._store.report(found[1]), media_type="text/html", headers=headers)
        if path != PATH:
            raise HttpRefusal(HTTPStatus.NOT_FOUND, "PATH_UNKNOWN", f"there are {PATH} and {PATH}/ID/report")
        _only(verb, "GET", "POST")
        if verb == "POST":
            await self._store.begin(self._wanted(messages.parse_object(await request.body())))
        document = {"runs": self._store.listed(), "acts": [*self._store.acts], "guards": [*guards.NAMES]}
        return Response(messages.dumped(document), media_type="application/json", headers={"cache-control": "no-store"})

    def _wanted(self, asked: dict[str, Any]) -> WantedRun:
        """Read what is asked for.

        Raises:
            InvalidArgument: BODY_INVALID, GUARD_UNKNOWN.
        """
        kind, off, seed = asked.pop("kind", ""), asked.pop("guardsOff", []), asked.pop("seed", None)
        act, minutes = asked.pop("act", ""), asked.pop("minutes", 0.5)
        problem = ""
        if asked:
            problem = f"there is no field {next(iter(asked))!r}"
        elif kind not in (DEMO, CHAOS):
            problem = f"kind is {DEMO} or {CHAOS}"
        elif not isinstance(off, list) or not all(isinstance(each, str) for each in off):
            problem = "guardsOff is a list of names"
        elif seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _MAX_SEED):
            problem = f"seed is a number from 0 to {_MAX_SEED}"
        elif kind == DEMO and act not in self._store.acts:
            problem = f"act is one of {', '.join(self._store.acts)}"
        elif not isinstance(minutes, int | float) or not 0.1 <= minutes <= MAX_MINUTES:
            problem = f"minutes is a number from 0.1 to {MAX_MINUTES:g}"
        if problem:
            raise InvalidArgument("BODY_INVALID", problem)
        return WantedRun(kind, act, Guards.without(off).off, seed, float(minutes))


def _only(verb: str, *allowed: str) -> None:
    if verb not in allowed:
        names = ", ".join(allowed)
        raise HttpRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", f"send {names}", {"allow": names})
