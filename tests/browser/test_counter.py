"""The counter: two clerks race for one order, a customer clicks ten times, a reply is lost, a process dies."""

from __future__ import annotations

import re
import signal
from typing import Any

from playwright.async_api import Page, expect

from countinghouse.debug.v1.failpoint_pb2 import FAILPOINT_ACTION_DELAY, FAILPOINT_ACTION_STOP
from services.devstack.stack import Stack
from services.testkit.harness import Harness
from tests.browser.conftest import PATIENCE_MS, OpenPage, clerks_press_both, new_order
from tests.e2e.checked import at_acquirer, charges, checked_books

expect.set_options(timeout=PATIENCE_MS)


def clerk(page: Page, name: str) -> Any:
    return page.locator("section.clerk").filter(has_text=name)


async def test_two_clerks_press_at_once_and_one_settles(open_page: OpenPage, harness: Harness) -> None:
    """The loser reads who settled it; both were in the queue; there is one journal."""
    async with open_page() as page:
        order_id = await clerks_press_both(page)
        lost = page.locator("section.clerk .outcome").filter(has_text="Already settled by")
        await expect(lost).to_have_text(re.compile(r"by (li \(cashier\)|wang \(accountant\)) at \d\d:\d\d:\d\d\.\d{3}"))
        await expect(page.locator(".ticket")).to_have_count(2)
        await expect(page.locator(".order .state")).to_have_text("PAID")
        await expect(page.locator(".step.journal")).to_have_count(1)
    assert len(charges(await checked_books(harness), order_id)) == 1


async def test_customer_clicks_ten_times_and_is_charged_once(open_page: OpenPage, harness: Harness) -> None:
    async with open_page() as page:
        order_id = await new_order(page)
        pay = page.get_by_role("button", name="Pay by card")
        for _ in range(10):
            await pay.click()
        await expect(page.locator("section.customer .outcome")).to_have_text(re.compile("Settled. Payment"))
        await expect(page.locator(".order .state")).to_have_text("PAID")
    books = await checked_books(harness)
    (payment_id,) = charges(books, order_id)
    assert at_acquirer(books, payment_id) == ["CHARGED"]


async def test_lost_reply_and_another_click_show_the_same_receipt(open_page: OpenPage, harness: Harness) -> None:
    async with open_page() as page:
        order_id = await new_order(page)
        await page.get_by_label("Lose my reply").check()
        li = clerk(page, "li")
        await li.get_by_role("button").click()
        await expect(li.locator(".outcome")).to_contain_text("No reply came")
        await expect(page.locator(".order .state")).to_have_text("PAID")
        await page.get_by_label("Lose my reply").uncheck()
        await li.get_by_role("button").click()
        await expect(li.locator(".outcome")).to_contain_text("Settled. Payment")
        await expect(li.locator(".mark")).to_have_text("replayed")
        receipt = await li.locator(".outcome").inner_text()
    (payment_id,) = charges(await checked_books(harness), order_id)
    assert payment_id in receipt


async def test_silent_acquirer_leaves_a_payment_open_until_it_answers(open_page: OpenPage, harness: Harness) -> None:
    async with open_page() as page:
        order_id = await new_order(page)
        await page.get_by_label("Make the acquirer silent").check()
        await page.get_by_role("button", name="Pay by card").click()
        await expect(page.locator(".step").filter(has_text="UNKNOWN")).to_have_count(1)
        await page.get_by_label("Make the acquirer silent").uncheck()
        await expect(page.locator(".order .state")).to_have_text("PAID")
    assert len(charges(await checked_books(harness), order_id)) == 1


async def test_payment_whose_process_was_killed_is_finished_by_another(
    open_page: OpenPage, stack: Stack, harness: Harness
) -> None:
    """From *Break it*; the timeline of the payment shows that it came to its end."""
    async with open_page(but=["504"]) as page:  # the answer is lost with the process
        order_id = await new_order(page)
        await harness.failpoints.arm("payment-1", "submitted", FAILPOINT_ACTION_STOP, order_id)
        await harness.failpoints.arm("payment-2", "submitted", FAILPOINT_ACTION_STOP, order_id)
        await clerk(page, "li").get_by_role("button").click()
        await expect(page.locator(".step").filter(has_text="SUBMITTED")).to_have_count(1)
        await page.get_by_role("link", name="Break it").click()
        for name in ("payment-1", "payment-2"):
            await page.get_by_role("button", name=f"Kill {name}").click()
        await stack.wait_serving("payment-1", "payment-2")
        await page.goto(page.url.split("#")[0] + f"#/orders/{order_id}")
        await expect(page.locator("table .state").filter(has_text=re.compile("^PAID$"))).to_have_count(1)
        await page.locator("table a[href^='#/payments/']").first.click()
        await expect(page.locator(".timeline .state").last).to_have_text("SUCCEEDED")
    assert len(charges(await checked_books(harness), order_id)) == 1


async def test_settle_whose_gateway_is_killed_has_one_receipt_when_it_is_pressed_again(
    open_page: OpenPage, stack: Stack, harness: Harness
) -> None:
    """The second press has the same key, so it finds out what became of the first."""
    async with open_page(but=["net::ERR_"]) as page:
        order_id = await new_order(page)
        for instance in ("payment-1", "payment-2"):
            await harness.failpoints.arm(instance, "posted", FAILPOINT_ACTION_DELAY, order_id, delay_s=3)
        settle = clerk(page, "li").get_by_role("button")
        await settle.click()
        await expect(page.locator(".step").filter(has_text="SUBMITTED")).to_have_count(1)
        stack.kill("gateway", signal.SIGKILL)
        await expect(clerk(page, "li").locator(".outcome")).to_have_class(re.compile("unheard"))
        await stack.wait_serving("gateway")
        await settle.click()
        await expect(clerk(page, "li").locator(".outcome")).to_have_text(re.compile("Settled. Payment"))
    assert len(charges(await checked_books(harness), order_id)) == 1
