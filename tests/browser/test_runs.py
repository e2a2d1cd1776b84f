"""Runs that are begun from *Break it*: with a guard off the checker finds what the guard stops."""

from __future__ import annotations

from playwright.async_api import expect

from tests.browser.conftest import OpenPage

#: A run starts a stack of its own.
RUN_MS = 120_000


async def test_double_charge_without_a_guard_is_found_by_the_checker(open_page: OpenPage) -> None:
    """And with all guards on it is not."""
    async with open_page("break") as page:
        runs = page.locator("section.runs")
        await expect(runs.get_by_role("switch")).to_have_count(7)
        await runs.get_by_label("Act").select_option("double click")
        await runs.get_by_role("button", name="Run the act").click()
        newest = runs.locator("tbody tr").first
        await expect(newest.locator(".state")).to_have_text("running")
        await expect(newest.locator(".state")).to_have_text("violated", timeout=RUN_MS)
        await expect(newest.locator(".violation").first).to_contain_text("one charge per key")
        await expect(newest.locator("code")).to_have_text("demo --act 'double click' --guards-off ticket")

        await runs.get_by_role("switch", name="ticket").check()
        await runs.get_by_role("button", name="Run the act").click()
        await expect(newest.locator("code")).to_have_text("demo --act 'double click'")
        await expect(newest.locator(".state")).to_have_text("ok", timeout=RUN_MS)
        await expect(newest.locator(".violation")).to_have_count(0)
