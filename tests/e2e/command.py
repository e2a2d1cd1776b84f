"""`countinghouse` as a process: run to its end, or started; and what it printed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e import databases

#: Below the 120 s that a test has. A busy machine takes several times as long as an idle one.
_TIMEOUT_S = 110.0


async def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `countinghouse` with these arguments."""
    return await command_line_within(_TIMEOUT_S, *arguments, **environment)


async def command_line_within(seconds: float, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `countinghouse` with these arguments, and gives it so much time."""
    process = await start_command_line(*arguments, output=asyncio.subprocess.PIPE, **environment)
    async with asyncio.timeout(seconds):
        output, errors = await process.communicate()
    code = process.returncode
    assert code is not None
    return subprocess.CompletedProcess(arguments, code, output.decode(), errors.decode())


async def start_command_line(
    *arguments: str, output: int = asyncio.subprocess.PIPE, **environment: str
) -> asyncio.subprocess.Process:
    """Starts `countinghouse` with these arguments, apart from the terminal of the tests."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("COUNTINGHOUSE_")}
    if "--data" in arguments:
        settings["COUNTINGHOUSE_DATABASE"] = databases.of(Path(arguments[arguments.index("--data") + 1]))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
        env=settings | environment,
        start_new_session=True,
    )


def processes_of(data: Path) -> list[int]:
    """Every process whose environment or command line names this data directory, zombies not counted."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(data) in word for word in words):
            found.append(process.pid)
    return found


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document a command printed."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
