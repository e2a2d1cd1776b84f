"""A foreign program at work: what it says, what it is told, and its end.

Programs speak in lines of `name value` on their standard output; whatever else they print there is theirs. They end
when their standard input does, so that none outlives the run.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.interop.toolchain import last_error_line, shown

_SAYING = re.compile(r"[a-z]+( .*)?")
_GRACE_S = 20.0
_MAX_LINE_BYTES = 1 << 20  # dubbo-go logs whole URLs


class ProgramFailed(Exception):
    """A program ended with an error, or did not say what it should have."""


class Program:
    """One running program. `async with` starts it and sees to its end.

    Args:
        environment: What it is told besides ours.
        log: Where all its output goes.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.said: defaultdict[str, list[str]] = defaultdict(list)
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("COUNTINGHOUSE_")}
        self._output = self._log.open("wb")
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments,
            cwd=self._log.parent,
            env=ours | dict(self._environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._output,
            limit=_MAX_LINE_BYTES,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._listening
        self._output.close()

    @property
    def ended(self) -> bool:
        """Whether no process of it is left."""
        return self._process.returncode is not None

    async def finished(self, timeout_s: float) -> Mapping[str, list[str]]:
        """Waits for its end, and returns what it said.

        Raises:
            ProgramFailed: It ended with an error, or not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait({self._listening})
                code = await self._process.wait()
        except TimeoutError:
            raise self._failed(f"still at work after {timeout_s:g} s") from None
        if code != 0:
            raise self._failed(f"ended with {_how(code)}")
        return self.said

    async def says(self, name: str, timeout_s: float) -> str:
        """Waits until it says something under this name that it has not been asked about, and returns it.

        Raises:
            ProgramFailed: It ended before that, or did not say it in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.said[name]:
                    if self._listening.done():
                        raise self._failed(f"ended with {_how(await self._process.wait())}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise self._failed(f"did not say {name!r} within {timeout_s:g} s") from None
        return self.said[name].pop(0)

    async def ask(self, line: str, name: str, timeout_s: float) -> str:
        """Tells it a line and waits for what it says to that under `name`; raises as `says`."""
        self.tell(line)
        return await self.says(name, timeout_s)

    def tell(self, line: str) -> None:
        """Writes a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def stop(self) -> None:
        """Sends SIGTERM and waits for its end.

        Raises:
            ProgramFailed: It had ended before, or did not end in time.
        """
        if self._process.returncode is not None:
            raise self._failed(f"had ended with {_how(self._process.returncode)}")
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            raise self._failed(f"did not stop within {_GRACE_S:g} s of SIGTERM") from None

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._output.write(raw)
            self._output.flush()
            if _SAYING.fullmatch(line):
                name, _, value = line.partition(" ")
                self.said[name].append(value)
                self._news.set()
        self._news.set()

    def _failed(self, how: str) -> ProgramFailed:
        words = last_error_line(self._log.read_text(errors="replace"))
        return ProgramFailed(f"the program {how}: {words}; see {shown(self._log)}")


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
