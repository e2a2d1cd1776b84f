"""Builds of `make interop`: what is missing is skipped, what is broken has failed, what is built is not built again."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.interop import languages
from tests.interop.tally import Skip
from tests.interop.toolchain import BuildFailed, Step, Toolchain, Workshop, last_error_line

UNFETCHED = re.compile("could not fetch")


def step(code: str, *, limit_s: float = 20.0, fetches: bool = True) -> Step:
    """A step that runs some Python."""
    unfetched = UNFETCHED if fetches else None
    return Step("building", (sys.executable, "-c", code), Path(), unfetched=unfetched, limit_s=limit_s)


def toolchain(sources: Path, *steps: Step, tools: Sequence[str] = ()) -> Toolchain:
    """A toolchain that builds in these steps."""
    return Toolchain("fake", tuple(tools), sources, lambda _folder: steps, lambda _folder, _program: ())


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "main.c").write_text("one")
    return folder


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "made", lambda _sentence: None)


async def test_missing_tool_is_named(workshop: Workshop, sources: Path) -> None:
    """Nothing is run to find that out."""
    fake = toolchain(
        sources, step("raise SystemExit(1)"), tools=("no-such-compiler", sys.executable, "no-such-fetcher")
    )
    with pytest.raises(Skip, match="because no-such-compiler and no-such-fetcher cannot be found on the PATH"):
        await workshop.ready(fake)


async def test_package_that_cannot_be_fetched_is_skipped(workshop: Workshop, sources: Path) -> None:
    """With the client's own words, but without anybody's address."""
    code = "raise SystemExit('Error: could not fetch https://repository.example/x: 503\\nsee the manual')"
    with pytest.raises(Skip) as reason:
        await workshop.ready(toolchain(sources, step(code)))
    assert "because its packages could not be fetched: Error: could not fetch … 503; see" in str(reason.value)


async def test_package_that_takes_too_long_is_skipped(workshop: Workshop, sources: Path) -> None:
    """Its process is ended."""
    with pytest.raises(Skip, match=r"could not be fetched within 0\.3 s"):
        await workshop.ready(toolchain(sources, step("import time; time.sleep(60)", limit_s=0.3)))


@pytest.mark.parametrize(
    "broken",
    [
        step("raise SystemExit('main.c: error: this will never compile')"),
        step("raise SystemExit('could not fetch: error: never compiles')", fetches=False),
        step("import time; print('error: never compiles', flush=True); time.sleep(60)", limit_s=0.5, fetches=False),
    ],
    ids=["another error", "a step that fetches nothing", "a step that fetches nothing and hangs"],
)
async def test_program_that_does_not_build_fails(workshop: Workshop, sources: Path, broken: Step) -> None:
    """Our own mistakes are never taken for somebody's missing package; asked again, they are told again."""
    for _ in range(2):
        with pytest.raises(BuildFailed, match=r"never compile|not within 0\.5 s"):
            await workshop.ready(toolchain(sources, broken))


async def test_program_is_built_again_only_after_a_change(tmp_path: Path, sources: Path) -> None:
    """That is what makes the second run fast."""
    trace = tmp_path / "trace"
    fake = toolchain(sources, step(f"open({str(trace)!r}, 'a').write('built ')"))

    async def run() -> str:
        await Workshop(tmp_path / "made", lambda _sentence: None).ready(fake)
        return trace.read_text()

    assert [await run(), await run()] == ["built ", "built "]
    (sources / "main.c").write_text("two")
    assert [await run(), await run()] == ["built built ", "built built "]


async def test_build_that_failed_is_begun_again_by_the_next_run(tmp_path: Path, sources: Path) -> None:
    """Half of what is needed is no toolchain."""
    (sources / "main.c").write_text("raise SystemExit('error')")
    fake = toolchain(sources, step(f"exec(open({str(sources / 'main.c')!r}).read())"))
    for _ in range(2):
        with pytest.raises(BuildFailed):
            await Workshop(tmp_path / "made", lambda _sentence: None).ready(fake)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("fine\n\x1b[31mERROR\x1b[0m it broke\n  at a.b.C.d(E.java:1)\n... 7 more\n", "ERROR it broke"),
        (
            "[ERROR] C.java:[4,1] cannot find\n[ERROR] symbol: x\n[ERROR] To see the full stack trace of the errors",
            "C.java:[4,1] cannot find",
        ),
        ("one\ntwo\n", "two"),
        ("", "it said nothing"),
    ],
)
def test_last_error_line_is_shown(output: str, words: str) -> None:
    """The last line that speaks of an error, else the last line."""
    assert last_error_line(output) == words


@pytest.mark.parametrize(
    ("pattern", "unfetched", "ours"),
    [
        (
            languages._MAVEN_UNFETCHED,
            "[ERROR] Failed to execute goal on project interop: Could not resolve dependencies for project x",
            "[ERROR] COMPILATION ERROR : Consumer.java:[4,1] cannot find symbol",
        ),
        (
            languages._GO_UNFETCHED,
            "go: example.org/x@v1.0.0: reading https://proxy.example/x/@v/v1.0.0.mod: 403 Forbidden",
            "verifying example.org/x@v1.0.0: checksum mismatch",
        ),
        (
            languages._UV_UNFETCHED,
            "error: Failed to fetch: `https://index.example/simple/h2/`",
            "error: Hash mismatch for `h2==4.4.1`",
        ),
        (
            languages._NPM_UNFETCHED,
            "npm error code ENOTFOUND",
            "npm error code EUSAGE\nnpm error `npm ci` can only install with an existing package-lock.json",
        ),
    ],
    ids=["maven", "go", "uv", "npm"],
)
def test_fetch_failure_is_distinguished_from_a_defect(pattern: re.Pattern[str], unfetched: str, ours: str) -> None:
    """A checksum or a lock that does not fit must never look like a network that is away."""
    assert pattern.search(unfetched)
    assert not pattern.search(ours)
