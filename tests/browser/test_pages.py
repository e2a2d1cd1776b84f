"""Every page, in both themes and languages, on a wide and on a narrow screen; by keyboard; and without the gateway."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.testkit.harness import Harness
from tests.browser.conftest import PATIENCE_MS, OpenPage
from tests.e2e.command import command_line, document

expect.set_options(timeout=PATIENCE_MS)

PAGES = ("counter", "orders", "payments", "ledger", "requests", "registry", "break", "tour")
#: By `make test-console`, from npm.
_AXE = Path(os.environ.get("COUNTINGHOUSE_AXE", ""))
_AXE_SOURCE = _AXE.read_text() if _AXE.is_file() else ""
_SCREENSHOTS = os.environ.get("COUNTINGHOUSE_SCREENSHOTS", "")
_SERIOUS = ("serious", "critical")


async def look(page: Page) -> None:
    """Something was drawn, nothing is wider than the screen."""
    await expect(page.locator("main")).not_to_be_empty()
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"the page is {width} pixels wide"  # type: ignore[index]


@pytest.mark.parametrize("place", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("theme", "language"), [("light", "en-GB"), ("dark", "zh-CN")])
async def test_page_is_drawn_without_an_error(
    open_page: OpenPage, harness: Harness, tmp_path: Path, place: str, width: int, theme: str, language: str
) -> None:
    await harness.cashier.settle_ok(await harness.new_order())
    async with open_page(place, width=width, theme=theme, language=language) as page:
        await look(page)
        assert await page.locator("html").get_attribute("lang") == ("zh-CN" if language == "zh-CN" else "en")
        await page.screenshot(
            path=Path(_SCREENSHOTS or tmp_path) / f"{place}-{width}-{theme}-{language}.png", full_page=True
        )


@pytest.mark.parametrize("place", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_page_has_no_serious_finding_of_axe(
    open_page: OpenPage, harness: Harness, place: str, theme: str
) -> None:
    if not _AXE_SOURCE:
        pytest.skip("COUNTINGHOUSE_AXE names no axe.min.js; `make test-console` fetches it")
    await harness.cashier.settle_ok(await harness.new_order())
    async with open_page(place, theme=theme, bypass_csp=True) as page:
        await look(page)
        await page.add_script_tag(content=_AXE_SOURCE)
        found = await page.evaluate("axe.run()")
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in found["violations"]
            if each["impact"] in _SERIOUS
        ]
        assert serious == []


async def test_order_is_settled_by_keyboard_alone(open_page: OpenPage) -> None:
    async with open_page() as page:
        await page.locator("input[name=amount]").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".order .state")).to_have_text("UNPAID")
        await page.get_by_role("button", name="Settle, cash drawer").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".order .state")).to_have_text("PAID")


async def test_page_says_that_the_gateway_is_away_and_goes_on_by_itself(open_page: OpenPage, stack: Stack) -> None:
    async with open_page("orders", but=["net::ERR_"]) as page:
        await expect(page.locator("table")).to_be_visible()
        stack.kill("gateway", signal.SIGKILL)
        await expect(page.locator(".notice.away")).to_be_visible()
        await stack.wait_serving("gateway")
        await expect(page.locator(".notice.away")).to_have_count(0)


async def test_token_signs_in_and_a_wrong_one_says_why(open_page: OpenPage, stack: Stack) -> None:
    async with open_page("orders") as page:
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_label("Token").fill("rubbish")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("token")
        await page.get_by_label("Token").fill(stack.token("zhao", Role.AUDITOR))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator(".tools")).to_contain_text("zhao")


async def test_instance_that_is_taken_offline_is_shown_as_that(open_page: OpenPage, harness: Harness) -> None:
    """And gets no calls; back online it has its share again."""
    async with open_page("registry") as page:
        row = page.locator("tr").filter(has_text="payment-1")
        await expect(row.locator(".state")).to_have_text("online")
        await row.get_by_role("button", name="Take offline payment-1").click()
        await expect(row.locator(".state")).to_have_text("offline")
        await row.get_by_role("button", name="Put online payment-1").click()
        await expect(row.locator(".state")).to_have_text("online")
        await row.get_by_role("button", name="Halve the weight payment-1").click()
        await expect(row.locator("td").nth(2)).to_have_text("50")
        await row.get_by_role("button", name="100 payment-1").click()
        await expect(row.locator("td").nth(2)).to_have_text("100")
    await harness.cashier.settle_ok(await harness.new_order())


async def test_request_is_repeated_by_the_command_that_is_shown(open_page: OpenPage, stack: Stack) -> None:
    """With the same request id: so the receipt is the same."""
    async with open_page() as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="New order").click()
        await page.get_by_role("button", name="Settle, cash drawer").click()
        outcome = page.locator("section.clerk .outcome").filter(has_text="Settled. Payment")
        payment_id = (await outcome.inner_text()).rstrip(".").rpartition(" ")[2]
        await page.get_by_role("link", name="Requests").click()
        settled = page.locator("tr").filter(has_text=":settle")
        await settled.get_by_role("button", name="Copy command").click()
        program, *arguments = shlex.split(await page.evaluate("navigator.clipboard.readText()"))
    assert program == "countinghouse"
    done = await command_line(*arguments, "--json", "--data", str(stack.data))
    assert document(done)["payment"]["payment_id"] == payment_id
