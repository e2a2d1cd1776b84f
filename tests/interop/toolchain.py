"""What a language needs to run its part: its tools, and the steps from our sources to something that runs.

    tools on the PATH? ──no──▶ Skip, at once
          │ yes
    inputs as they were built last time? ──yes──▶ ready
          │ no
    step after step ──cannot fetch──▶ Skip          ──anything else──▶ BuildFailed
          │
          ▼
        ready, remembered

Everything made lies in one ignored folder for each toolchain, where a second run finds it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.interop.tally import Skip

ROOT: Final = Path(__file__).parents[2]
PROTOS: Final = ROOT / "protos"
SOURCES: Final = Path(__file__).parent

_STILL_AT_IT_S = 10.0
_ADDRESS = re.compile(r"\b[a-z]+://\S+")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\[(ERROR|WARNING|INFO)\]\s*")  # Maven's
#: A trace of Java's, and what Maven adds to every error.
_SAYS_NOTHING = re.compile(r"at \S+\(|\.\.\. \d+ more|To see the full stack trace|For more information")
_TELLING = re.compile(r"error|exception|panic|denied|refused|cannot|could not|failed", re.IGNORECASE)


class BuildFailed(Exception):
    """Our sources do not build, and not for want of a package."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a build.

    Args:
        unfetched: Found in its output if it failed because something could not be fetched; None: it fetches nothing.
        limit_s: After so long it is ended. A step that fetches then counts as one that could not.
    """

    what: str
    arguments: Sequence[str]
    folder: Path
    unfetched: re.Pattern[str] | None = None
    limit_s: float = 300.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """One language's.

    Args:
        tools: What must be on the PATH.
        sources: What its builds are made from, besides the protos; a change of it builds anew.
        steps: How; given the folder in which to build.
        command: How a program of ours is then run; given that folder and the program's name.
        environment: What its programs are told besides; given that folder.
    """

    name: str
    tools: tuple[str, ...]
    sources: Path
    steps: Callable[[Path], Sequence[Step]]
    command: Callable[[Path, str], Sequence[str]]
    environment: Callable[[Path], Mapping[str, str]] = lambda _folder: {}


class Workshop:
    """Makes toolchains ready, each once.

    Args:
        folder: Where everything made is kept.
        say: Told what is going on.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._failures: dict[str, Exception] = {}

    def folder(self, toolchain: Toolchain) -> Path:
        """Where a toolchain's things are."""
        return self._folder / toolchain.name

    async def ready(self, toolchain: Toolchain) -> None:
        """Builds what is not built yet. What went wrong the first time goes wrong again at once.

        Raises:
            Skip: A tool is missing, or a package cannot be fetched.
            BuildFailed: Anything else.
        """
        if toolchain.name in self._failures:
            raise self._failures[toolchain.name]
        try:
            await self._ready(toolchain)
        except (Skip, BuildFailed) as failure:
            self._failures[toolchain.name] = failure
            raise

    async def _ready(self, toolchain: Toolchain) -> None:
        missing = [tool for tool in toolchain.tools if shutil.which(tool) is None]
        if missing:
            raise Skip(f"because {' and '.join(missing)} cannot be found on the PATH")
        folder = self.folder(toolchain)
        folder.mkdir(parents=True, exist_ok=True)
        inputs, remembered = _fingerprint(toolchain.sources), folder / "built-from"
        if remembered.exists() and remembered.read_text() == inputs:
            return
        remembered.unlink(missing_ok=True)
        for step in toolchain.steps(folder):
            await self._take(toolchain, step)
        remembered.write_text(inputs)

    async def _take(self, toolchain: Toolchain, step: Step) -> None:
        self._say(f"{toolchain.name}: {step.what} …")
        log = self.folder(toolchain) / "build.log"
        code = await self._run(toolchain, step, log)
        if code == 0:
            return
        output = log.read_text(errors="replace")
        if code is None and step.unfetched is not None:
            raise Skip(f"because its packages could not be fetched within {step.limit_s:g} s; see {shown(log)}")
        if step.unfetched is not None and step.unfetched.search(output):
            words = last_error_line(output, step.unfetched)
            raise Skip(f"because its packages could not be fetched: {words}; see {shown(log)}")
        why = f"not within {step.limit_s:g} s" if code is None else last_error_line(output)
        raise BuildFailed(f"{step.what}: {why}; see {shown(log)}")

    async def _run(self, toolchain: Toolchain, step: Step, log: Path) -> int | None:
        """Runs a step; returns its exit code, or None if it was ended at its limit."""
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *step.arguments,
                cwd=step.folder,
                env={**os.environ, **step.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        telling = asyncio.create_task(self._tell_that_it_goes_on(toolchain, step))
        try:
            async with asyncio.timeout(step.limit_s):
                return await process.wait()
        except TimeoutError:
            return None
        finally:
            telling.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _tell_that_it_goes_on(self, toolchain: Toolchain, step: Step) -> None:
        passed_s = 0.0
        while True:
            await asyncio.sleep(_STILL_AT_IT_S)
            passed_s += _STILL_AT_IT_S
            self._say(f"{toolchain.name}: {step.what}, {passed_s:g} s so far …")


def last_error_line(output: str, telling: re.Pattern[str] = _TELLING, limit: int = 240) -> str:
    """The line of an output that says most likely what went wrong, without colours and addresses."""
    plain = _ADDRESS.sub("…", _COLOUR.sub("", output))
    lines = [_PREFIX.sub("", line.strip()) for line in plain.splitlines()]
    lines = [line for line in lines if line and not _SAYS_NOTHING.match(line)]
    chosen = [line for line in lines if telling.search(line)] or lines
    return chosen[-1][:limit] if chosen else "it said nothing"


def shown(path: Path) -> Path:
    """A path as it is shown: from the repository if it is in there."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _fingerprint(sources: Path) -> str:
    """What is in the sources and in the protos."""
    digest = hashlib.sha256()
    for file in sorted((*PROTOS.rglob("*.proto"), *sources.rglob("*"))):
        if file.is_file() and "gen" not in file.relative_to(sources if file.is_relative_to(sources) else PROTOS).parts:
            digest.update(f"{file}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
