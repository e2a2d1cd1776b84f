"""Make the pictures of README anew: the race of two clerks on the console, and a recording of the demo.

    python -m tests.browser.pictures RECORDER…

RECORDER… is the command of termtosvg, as `make pictures` gives it.
"""

from __future__ import annotations

import asyncio
import os
import pty
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.async_api import async_playwright, expect

from services.devstack.stack import Stack
from tests.browser.conftest import chromium, clerks_press_both
from tests.e2e.conftest import options

ROOT: Final = Path(__file__).parents[2]
RACE: Final = ROOT / "services" / "gateway" / "console" / "race.png"
RECORDING: Final = ROOT / "services" / "demo" / "demo.svg"
_WIDTH, _HEIGHT = 1180, 900
#: Columns and lines; and the longest pause that is shown as it was, in milliseconds.
_GEOMETRY, _LONGEST_MS = "110x36", "800"


async def picture_race(data: Path, file: Path) -> None:
    """Take a screenshot of the counter after both clerks have pressed.

    Args:
        data: Where the stack is made.
    """
    async with Stack(options(data, replicas={"payment": 2}, gateway=True)) as stack, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, reduced_motion="reduce")
        await page.goto(f"http://{stack.describe().gateway}/#/counter")
        await page.locator("ul.people button").filter(has_text="ops").click()
        await clerks_press_both(page)
        await expect(page.locator(".order .state")).to_have_text("PAID")
        await page.screenshot(path=file, full_page=True)
        await browser.close()


def record_demo(recorder: list[str], file: Path) -> None:
    """Record the demo on a terminal of its own.

    Raises:
        SystemExit: It failed.
    """
    demo = shlex.join([sys.executable, "-m", "services.cli.main", "demo"])
    command = [*recorder, str(file), "-g", _GEOMETRY, "-M", _LONGEST_MS, "-t", "window_frame", "-c", demo]
    if code := os.waitstatus_to_exitcode(pty.spawn(command)):
        raise SystemExit(f"the recorder failed with exit code {code}")


def main() -> None:
    """Make both."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(picture_race(Path(folder) / "data", RACE))
    record_demo(sys.argv[1:], RECORDING)
    sys.stdout.write(f"made {RACE.relative_to(ROOT)} and {RECORDING.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
