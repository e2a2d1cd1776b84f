"""The servers that some peers need beside PostgreSQL, each for as long as a context lasts."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from services.devstack.ports import HOST, PortReservation

_TRIES, _PAUSE_S = 400, 0.05
_STOP_S = 10.0
#: The worker gets an activity with the answer to its last call, and the task queue is not split.
_TEMPORAL_SETTINGS = (
    "system.enableActivityEagerExecution=true",
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
)


def find(program: str) -> str | None:
    """Return the path of a program: on PATH, or where deploy/setup-bench.sh installs it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return shutil.which(program) or shutil.which(program, path=str(cache / "countinghouse/bench/bin"))


@asynccontextmanager
async def servers(programs: Sequence[str]) -> AsyncIterator[tuple[str, ...]]:
    """Run the servers that a peer needs; return its arguments for them."""
    async with AsyncExitStack() as resources:
        arguments = [await resources.enter_async_context(_SERVERS[program]()) for program in programs]
        yield tuple(argument for each in arguments for argument in each)


@asynccontextmanager
async def _redis() -> AsyncIterator[tuple[str, ...]]:
    """Run a Redis that writes nothing to its disk; return its URL."""
    with _ports(1) as [port]:
        command = ("redis-server", "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no")
        async with _process(command, [port]):
            yield (f"redis://{HOST}:{port}",)


@asynccontextmanager
async def _restate() -> AsyncIterator[tuple[str, ...]]:
    """Run a Restate server; return its ingress, its admin API, and a port for the peer's handler."""
    with tempfile.TemporaryDirectory(prefix="countinghouse-restate-") as folder, _ports(4) as ports:
        ingress, admin, node, handler = ports
        settings = {
            "RESTATE_INGRESS__BIND_ADDRESS": f"{HOST}:{ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"{HOST}:{admin}",
            "RESTATE_BIND_ADDRESS": f"{HOST}:{node}",
            "RESTATE_ADVERTISED_ADDRESS": f"http://{HOST}:{node}",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "error",
        }
        command = (find("restate-server") or "", "--no-logo", "--node-name", "one", "--base-dir", folder)
        async with _process(command, [ingress, admin], settings):
            yield f"http://{HOST}:{ingress}", f"http://{HOST}:{admin}", str(handler)


@asynccontextmanager
async def _temporal() -> AsyncIterator[tuple[str, ...]]:
    """Run Temporal's development server, whose store is a file and durable at each commit; return its address."""
    with tempfile.TemporaryDirectory(prefix="countinghouse-temporal-") as folder, _ports(3) as [port, http, metrics]:
        options = (
            *("--ip", HOST, "--port", str(port), "--http-port", str(http), "--metrics-port", str(metrics)),
            *("--headless", "--log-level", "never", "--db-filename", f"{folder}/temporal.db"),
            *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=FULL"),
            *(f"--dynamic-config-value={setting}" for setting in _TEMPORAL_SETTINGS),
        )
        async with _process((find("temporal") or "", "server", "start-dev", *options), [port]):
            yield (f"{HOST}:{port}",)


@contextmanager
def _ports(count: int) -> Iterator[list[int]]:
    """Reserve free ports."""
    reservations = [PortReservation() for _ in range(count)]
    try:
        yield [reservation.port for reservation in reservations]
    finally:
        for reservation in reservations:
            reservation.close()


@asynccontextmanager
async def _process(
    command: Sequence[str], ports: Sequence[int], settings: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    """Run a server until the context ends; enter it when the server listens."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **(settings or {})},
    )
    try:
        for port in ports:
            await _wait_listening(port)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _wait_listening(port: int) -> None:
    for _ in range(_TRIES):
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(_PAUSE_S)
        else:
            writer.close()
            return
    raise RuntimeError(f"no server listens on port {port}")


#: By program.
_SERVERS = {"redis-server": _redis, "restate-server": _restate, "temporal": _temporal}
