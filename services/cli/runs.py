"""Runs of the demo and chaos runs that the gateway begins: each a command of its own, with its files in a directory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from coordination.files import write_whole
from services.demo.acts import ACTS
from services.gateway.runs import CHAOS, DEMO, WantedRun
from services.kernel.clock import Clock
from services.kernel.errors import Aborted, NotFound

_KEPT: Final = 20
_AGAIN_MS: Final = 5_000
_FILE: Final = "run.json"
_REPORT: Final = "report.html"
_RUNNING, _ENDED_BADLY = "running", "failed"
#: Longer than a run of the longest kind takes, its start and its end included.
_TIMEOUT_S: Final = 900.0
_MAX_SAID: Final = 300


class StackRuns:
    """See `gateway.runs.RunStore`.

    Args:
        folder: Where each run has a directory.
        environment: Of the commands.
        program: Runs a command of `countinghouse`.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        environment: Mapping[str, str] = os.environ,
        program: Sequence[str] = (sys.executable, "-P", "-m", "services.cli.main"),
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._environment = dict(environment)
        self._program = tuple(program)
        self._running: asyncio.Task[None] | None = None

    @property
    def acts(self) -> Sequence[str]:
        return tuple(ACTS)

    def listed(self) -> list[dict[str, Any]]:
        return [self._shown(place) for place in reversed(self._places())]

    async def begin(self, wanted: WantedRun) -> None:
        if self._running is not None and not self._running.done():
            raise Aborted(
                "RUN_UNDER_WAY", "a run is under way; begin the next when it has ended", retry_after_ms=_AGAIN_MS
            )
        now_ms = self._clock.now_ms()
        place = self._folder / f"{now_ms:013}-{wanted.kind}"
        place.mkdir(parents=True, mode=0o700)
        arguments = _arguments(wanted, place)
        record = {"kind": wanted.kind, "command": " ".join(_quoted(each) for each in arguments), "begunAtMs": now_ms}
        self._write(place, {**record, "state": _RUNNING})
        for old in self._places()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._running = asyncio.create_task(self._run(place, record, arguments))

    def report(self, run_id: str) -> bytes:
        try:
            return (self._folder / run_id / _REPORT).read_bytes()
        except OSError as error:
            raise NotFound("RUN_UNKNOWN", f"there is no page of a run {run_id}") from error

    async def close(self) -> None:
        """End the run that is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self, place: Path, record: dict[str, Any], arguments: Sequence[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *(*self._program, *arguments, "--json"),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        ended = {"state": _ENDED_BADLY, "detail": "it was ended before its time"}
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                printed, errors = await process.communicate()
            ended = _outcome(printed, errors)
        except TimeoutError:
            ended["detail"] = f"it took more than {_TIMEOUT_S:.0f} s"
        finally:
            if process.returncode is None:
                process.terminate()
            self._write(place, {**record, **ended, "endedAtMs": self._clock.now_ms()})

    def _places(self) -> list[Path]:
        """The directories of the runs, the oldest first."""
        return sorted(each.parent for each in self._folder.glob(f"*/{_FILE}"))

    def _shown(self, place: Path) -> dict[str, Any]:
        try:
            record = json.loads((place / _FILE).read_bytes())
        except (OSError, ValueError):
            record = {"state": _ENDED_BADLY, "detail": "its record cannot be read"}
        under_way = self._running is not None and not self._running.done() and place == self._places()[-1]
        if record.get("state") == _RUNNING and not under_way:
            record |= {"state": _ENDED_BADLY, "detail": "the gateway ended while it was under way"}
        return {"id": place.name, "report": (place / _REPORT).exists(), **record}

    @staticmethod
    def _write(place: Path, record: dict[str, Any]) -> None:
        write_whole(place / _FILE, json.dumps(record).encode(), mode=0o600)


def _arguments(wanted: WantedRun, place: Path) -> list[str]:
    off = ["--guards-off", ",".join(wanted.guards_off)] if wanted.guards_off else []
    seed = ["--seed", str(wanted.seed)] if wanted.seed is not None else []
    if wanted.kind == DEMO:
        return [DEMO, "--act", wanted.act, *off, *seed]
    rest = ["--minutes", f"{wanted.minutes:g}", "--database", "sqlite", "--data", str(place)]
    return [CHAOS, "run", *seed, *off, *rest]


def _outcome(printed: bytes, errors: bytes) -> dict[str, Any]:
    """Return what came of a run, by what its command printed."""
    try:
        document = json.loads(printed)
        verdict = str(document["verdict"])
    except (ValueError, KeyError, TypeError):
        said = errors.decode(errors="replace").strip().splitlines() or ["it printed no result"]
        return {"state": _ENDED_BADLY, "detail": said[-1][:_MAX_SAID]}
    violations = [
        f"{check['name']}: {sentence}" for check in document.get("checks", ()) for sentence in check["violations"]
    ]
    detail = "; ".join([*(act["detail"] for act in document.get("acts", ())), *document.get("reasons", ())])
    return {
        "state": verdict,
        "detail": detail[:_MAX_SAID],
        "violations": [each[:_MAX_SAID] for each in violations[:10]],
        "seed": document.get("seed"),
    }


def _quoted(argument: str) -> str:
    return f"'{argument}'" if " " in argument else argument
