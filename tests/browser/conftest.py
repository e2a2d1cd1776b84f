"""A browser on the console of a running stack. `make test-console` runs these tests."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from services.devstack.components import zookeeper
from services.devstack.components.zookeeper import ZooKeeperMissing
from services.devstack.stack import Stack
from services.testkit.harness import Harness
from tests.e2e.conftest import options

_NAMES = ("chromium", "chromium-browser", "google-chrome")
#: How long a page may take to show something, on a busy machine.
PATIENCE_MS = 30_000
#: What a browser says of every answer that is no success, as a refusal is none.
_REFUSED = "Failed to load resource: the server responded with a status of 4"

OpenPage = Callable[..., AbstractAsyncContextManager[Page]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of this folder on the loop of their stack, and leaves them to `make test-console`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(300))
            if pytest_asyncio.is_async_test(item):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack with a gateway, and two payment instances."""
    import os

    try:
        zookeeper.find(os.environ)
    except ZooKeeperMissing as error:
        pytest.skip(error.message)
    data = tmp_path_factory.mktemp("console") / "data"
    async with Stack(options(data, replicas={"payment": 2}, gateway=True)) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def harness(stack: Stack) -> AsyncIterator[Harness]:
    async with Harness(stack) as harness:
        yield harness


def chromium() -> str | None:
    """Where Chromium is; None: it is not installed."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


async def new_order(page: Page) -> str:
    """Makes an order at the counter; returns its id."""
    await page.get_by_role("button", name="New order").click()
    shown = page.locator(".order code")
    await shown.wait_for()
    return str(await shown.inner_text())


async def clerks_press_both(page: Page) -> str:
    """Has both clerks settle a new order at once; returns its id when each has an answer and has left the queue."""
    order_id = await new_order(page)
    await page.get_by_role("button", name="Press both").click()
    outcomes = page.locator("section.clerk .outcome")
    await expect(outcomes.filter(has_text="Settled. Payment")).to_have_count(1)
    await expect(outcomes.filter(has_text="Already settled by")).to_have_count(1)
    await expect(page.locator(".ticket").filter(has_text="has left")).to_have_count(2)
    return order_id


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if chromium() is None:
        pytest.skip("there is no Chromium; deploy/setup-chromium.sh installs one")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def open_page(stack: Stack, browser: Browser) -> OpenPage:
    """`async with open_page(…) as page`: the console, signed in to as `who`. It fails if the page had an error, unless
    it has one of `but` in it.
    """

    @asynccontextmanager
    async def open_(
        place: str = "counter",
        *,
        who: str = "ops",
        width: int = 1280,
        theme: str = "light",
        language: str = "en-GB",
        bypass_csp: bool = False,
        but: Sequence[str] = (),
    ) -> AsyncIterator[Page]:
        context = await browser.new_context(
            viewport={"width": width, "height": 900},
            locale=language,
            color_scheme="dark" if theme == "dark" else "light",
            bypass_csp=bypass_csp,
        )
        context.set_default_timeout(PATIENCE_MS)
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))

        def found(error: str) -> None:
            if not any(each in error for each in (_REFUSED, *but)):
                errors.append(error)

        page.on("console", lambda said: found(said.text) if said.type == "error" else None)
        page.on("response", lambda answer: found(f"{answer.status} {answer.url}") if answer.status >= 500 else None)
        await page.goto(f"http://{stack.describe().gateway}/#/{place}")
        await page.locator("ul.people button").filter(has_text=who).first.click()
        await page.locator("nav a[aria-current]").wait_for()
        yield page
        assert errors == []
        await context.close()

    return open_
