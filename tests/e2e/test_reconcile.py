"""Reconciliation on a running stack: every class of difference is planted, found, mended, and not found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from countinghouse.acquirer.v1 import acquirer_pb2 as bank
from countinghouse.payment.v1 import payment_pb2 as pb
from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.testkit.client import money, new_id
from services.testkit.harness import Harness, open_client
from tests.e2e import databases
from tests.e2e.checked import checked_books
from tests.e2e.command import command_line, document
from tests.e2e.conftest import SETTINGS, options

AMOUNT = 1250
#: Far enough for no worker to ask by itself during the test.
_HOURS_MS = 3_600_000
#: The pause of a worker has to be this long for a look at it and a change of it to fit in.
_PAUSE_MS = 2_500
_LOOK_S = 0.05
#: All that the payment service keeps.
_TABLES = ("payments", "payment_events", "requests", "outbox")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harness(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """A stack of its own: what is done to its databases here is not lawful."""
    data = tmp_path_factory.mktemp("reconcile") / "data"
    settings = SETTINGS | {"acquirer_timeout_s": 1.0}
    async with Stack(options(data, settings=settings)) as stack, Harness(stack) as harness:
        yield harness


async def by_card(harness: Harness, card: str = "tok-mei") -> tuple[str, pb.Payment]:
    """Li settles a fresh order by card; the order and the payment."""
    order_id = await harness.new_order(AMOUNT)
    seen = await harness.cashier.settle(order_id, card=card)
    if seen.error is None:
        return order_id, seen.payment
    (row,) = [row for row in (await harness.snapshot()).payments if row["order_id"] == order_id]
    return order_id, pb.Payment(payment_id=str(row["payment_id"]), acquirer_key=str(row["acquirer_key"]))


async def asked_about(harness: Harness, payment_id: str) -> int:
    """When a payment's outcome is asked about next."""
    query = "SELECT ask_at_ms FROM payments WHERE payment_id = :payment_id"
    ((at_ms,),) = await databases.say(harness.stack.data, "payment", query, payment_id=payment_id)
    return int(at_ms)


async def charge(harness: Harness, key: str, reference: str) -> None:
    """Somebody charges a card at the bank, and we know nothing of it."""
    async with open_client(harness.stack, "payment-service", Role.SERVICE) as client:
        request = bank.ChargeRequest(key=key, card="tok-mei", amount=money(AMOUNT), reference=reference)
        await client.ask(request)


class Planted:
    """What was done behind everybody's back, and which difference that makes."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._data = harness.stack.data

    async def only_theirs(self) -> tuple[str, str]:
        """The bank charges a card of which we know nothing."""
        key = new_id("stranger")
        await charge(self._harness, key, "")
        return "only theirs", key

    async def only_theirs_of_a_declined_payment(self) -> tuple[str, str]:
        """The bank declined it, and charges it later all the same."""
        _, payment = await by_card(self._harness, "tok-declined")
        change = "UPDATE charges SET state = 'CHARGED' WHERE key = :key"
        await databases.say(self._data, "acquirer", change, key=payment.acquirer_key)
        return "only theirs", payment.acquirer_key

    async def only_ours_given_back(self) -> tuple[str, str]:
        """Somebody gives the money back at the bank, and not in our books."""
        _, payment = await by_card(self._harness)
        async with open_client(self._harness.stack, "wang", Role.ACCOUNTANT) as client:
            await client.ask(bank.ReverseByKeyRequest(key=payment.acquirer_key))
        return "only ours", payment.acquirer_key

    async def only_ours_lost(self) -> tuple[str, str]:
        """The bank has lost its memory of a charge."""
        _, payment = await by_card(self._harness)
        await databases.say(self._data, "acquirer", "DELETE FROM charges WHERE key = :key", key=payment.acquirer_key)
        return "only ours", payment.acquirer_key

    async def another_amount(self) -> tuple[str, str]:
        """The acquirer has charged more than was asked."""
        _, payment = await by_card(self._harness)
        await self.change_amount(payment.acquirer_key, AMOUNT + 50)
        return "amount differs", payment.acquirer_key

    async def change_amount(self, key: str, amount: int) -> None:
        """The acquirer has charged this, and not what was asked."""
        change = "UPDATE charges SET amount_minor = :amount WHERE key = :key"
        await databases.say(self._data, "acquirer", change, amount=amount, key=key)

    async def a_duplicate(self) -> tuple[str, str]:
        """The bank has charged twice for one payment."""
        _, payment = await by_card(self._harness)
        key = new_id("second")
        await charge(self._harness, key, payment.payment_id)
        return "duplicate", key

    async def late(self) -> tuple[str, str]:
        """Charged without a word; then the acquirer is closed for a while, and the worker's next look is far away."""
        payment = await self._charged_without_a_word()
        await self._look_away(payment)
        return "late", payment.acquirer_key

    async def reversal_owed(self) -> tuple[str, str]:
        """The same, and meanwhile the payment is parked."""
        payment = await self._charged_without_a_word()
        key = new_id("park")
        request = pb.ParkRequest(request_id=key, payment_id=payment.payment_id, reason="cash was taken")
        seen = await self._harness.accountant.call_until_answered(request, at="payment-1")
        assert seen.payment.state == pb.PAYMENT_STATE_PARKED
        await self._look_away(payment)
        return "reversal owed", payment.acquirer_key

    async def _charged_without_a_word(self) -> pb.Payment:
        card = new_id("tok")
        everything = bank.Fault(kind=bank.FAULT_KIND_DOWN, subject=card)
        drop = bank.Fault(kind=bank.FAULT_KIND_DROP_REPLY, subject=card)
        lost = bank.Fault(kind=bank.FAULT_KIND_NOTICE_LOST, subject=card)
        await self._harness.set_acquirer_faults(drop, lost)
        order_id = await self._harness.new_order(AMOUNT)
        payment = (await self._harness.cashier.settle_once(order_id, card=card, timeout_s=8.0)).payment
        assert payment.state == pb.PAYMENT_STATE_UNKNOWN
        silent = [bank.Fault(kind=bank.FAULT_KIND_DOWN, method=method) for method in ("GetCharge", "ReverseByKey")]
        await self._harness.set_acquirer_faults(everything, *silent)
        return payment

    async def _look_away(self, payment: pb.Payment) -> None:
        """Lets nobody ask the acquirer about a payment by themselves."""
        clock = self._harness.clock
        async with asyncio.timeout(60):
            while await asked_about(self._harness, payment.payment_id) - clock.now_ms() < _PAUSE_MS:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
        far_ms = clock.now_ms() + _HOURS_MS
        change = "UPDATE payments SET ask_at_ms = :far_ms WHERE payment_id = :payment_id"
        await databases.say(self._data, "payment", change, far_ms=far_ms, payment_id=payment.payment_id)
        await self._harness.set_acquirer_faults()


async def reconciled(harness: Harness, *arguments: str) -> tuple[int, Any]:
    """Runs the command; its exit code, and what it printed."""
    done = await command_line("reconcile", "--json", "--data", str(harness.stack.data), *arguments)
    return done.returncode, document(done)


async def test_every_class_of_difference_is_found_and_repaired(harness: Harness) -> None:
    """Each with what will be done; a look alone mends nothing; afterwards the books are right."""
    await by_card(harness)
    code, found = await reconciled(harness)
    assert (code, found["agreed"]) == (0, True)
    planted = Planted(harness)
    wanted = [
        await planted.late(),
        await planted.reversal_owed(),
        await planted.only_theirs(),
        await planted.only_theirs_of_a_declined_payment(),
        await planted.only_ours_given_back(),
        await planted.only_ours_lost(),
        await planted.another_amount(),
        await planted.a_duplicate(),
    ]
    for _ in range(2):
        code, found = await reconciled(harness)
        assert code == 1
        assert sorted((row["class"], row["key"]) for row in found["discrepancies"]) == sorted(wanted)
        assert all(row["action"] and "repaired" not in row for row in found["discrepancies"])
    code, found = await reconciled(harness, "--repair")
    assert sorted((row["class"], row["key"]) for row in found["discrepancies"]) == sorted(wanted)
    left = [(row["class"], row["key"]) for row in found["discrepancies"] if not row["repaired"]]
    strangers = [wanted[2], wanted[-1]]
    contradicted = wanted[-2]
    assert left == [(row["class"], row["key"]) for row in found["open"]]
    assert sorted(left) == sorted([*strangers, contradicted]), "of no payment of ours, or not what was asked"
    assert code == 1
    await planted.change_amount(contradicted[1], AMOUNT)
    code, found = await reconciled(harness, *(word for _, key in strangers for word in ("--refund", key)))
    assert (code, found["open"]) == (0, [])
    code, found = await reconciled(harness)
    assert (code, found["agreed"], found["discrepancies"]) == (0, True, [])
    assert found["examined"]["payment"] == 8
    assert {total["difference"] for total in found["control_totals"]} == {0}
    books = await checked_books(harness)
    (late,) = [key for kind, key in wanted if kind == "late"]
    assert [row["state"] for row in books.payments if row["acquirer_key"] == late] == ["SUCCEEDED"]
    (parked,) = [key for kind, key in wanted if kind == "reversal owed"]
    assert [row["state"] for row in books.payments if row["acquirer_key"] == parked] == ["REVERSED"]
    assert [row["state"] for row in await charged(harness) if row["key"] == parked] == ["REFUNDED"]


async def test_reconcile_prints_a_table_for_people(harness: Harness) -> None:
    """One line for each difference and each account, and one for what was looked at; then what became of it."""
    _, key = await Planted(harness).only_theirs()
    data = str(harness.stack.data)
    looked = await command_line("reconcile", "--repair", "--data", data, COLUMNS="200")
    assert looked.returncode == 1
    assert f"only theirs  {key}" in looked.stdout
    assert "--refund KEY gives the money back" in looked.stdout
    assert f"not repaired: only theirs: {key}: " in looked.stdout
    assert "1 is still open" in looked.stdout
    mended = await command_line("reconcile", "--refund", key, "--data", data, COLUMNS="200")
    assert mended.returncode == 0, mended.stdout
    assert f"repaired: only theirs: {key}: {key} is REFUNDED" in mended.stdout
    assert "nothing is still open" in mended.stdout
    again = await command_line("reconcile", "--data", data)
    assert again.returncode == 0
    assert "nothing differs" in again.stdout
    assert "acquirer:CNY" in again.stdout


async def test_check_names_a_key_without_a_payment_until_it_is_refunded(harness: Harness) -> None:
    """Also one that names a payment of ours, and is not that payment's key."""
    _, payment = await by_card(harness)
    planted = Planted(harness)
    (_, stranger), (_, second) = await planted.only_theirs(), await planted.a_duplicate()
    wanted = {"acquirer agrees with ledger", "cards agree"}
    assert (await named_by_check(harness, stranger), await named_by_check(harness, second)) == (wanted, wanted)
    code, _ = await reconciled(harness, "--refund", stranger, "--refund", second)
    assert code == 0
    assert (await named_by_check(harness, stranger), await named_by_check(harness, second)) == (set(), set())
    assert await named_by_check(harness, payment.acquirer_key) == set()


async def named_by_check(harness: Harness, key: str) -> set[str]:
    """The checks of `countinghouse check` that name a key at the acquirer."""
    done = await command_line("check", "--json", "--data", str(harness.stack.data))
    checks = document(done)["checks"]
    return {check["name"] for check in checks if any(key in sentence for sentence in check["violations"])}


async def test_key_that_is_not_open_is_not_refunded(harness: Harness) -> None:
    """Not even beside one that is."""
    _, payment = await by_card(harness)
    _, key = await Planted(harness).only_theirs()
    arguments = ("--refund", key, "--refund", payment.acquirer_key, "--data", str(harness.stack.data))
    refused = await command_line("reconcile", *arguments, COLUMNS="200")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "nothing was refunded" in refused.stderr
    assert [row["state"] for row in (await charged(harness)) if row["key"] in (key, payment.acquirer_key)] == [
        "CHARGED",
        "CHARGED",
    ]
    code, _ = await reconciled(harness, "--refund", key)
    assert code == 0


async def test_period_has_the_charges_that_the_acquirer_decided_on_in_it(harness: Harness) -> None:
    """From its first moment to before its last; what is of another period is neither named nor counted."""
    _, payment = await by_card(harness)
    _, key = await Planted(harness).only_theirs()
    decided = {row["key"]: int(row["decided_at_ms"]) for row in await charged(harness)}
    ours_ms, theirs_ms = decided[payment.acquirer_key], decided[key]
    assert ours_ms < theirs_ms
    code, found = await reconciled(harness, "--from", rfc3339(ours_ms), "--to", rfc3339(theirs_ms))
    assert (code, found["open"]) == (0, [])
    total = in_cny(found)
    assert (total["captured"], total["booked"]) == (AMOUNT, AMOUNT)
    code, found = await reconciled(harness, "--from", rfc3339(theirs_ms))
    assert code == 1
    assert [row["key"] for row in found["open"]] == [key]
    total = in_cny(found)
    assert (total["captured"], total["difference"], total["unexplained"]) == (AMOUNT, AMOUNT, 0)
    code, _ = await reconciled(harness, "--refund", key)
    assert code == 0


@pytest.mark.parametrize(
    "arguments", [("--from", "yesterday"), ("--to", "2026-03-01T08:00:00"), ("--from", "20260301")]
)
async def test_time_without_its_zone_is_refused(harness: Harness, arguments: tuple[str, str]) -> None:
    refused = await command_line("reconcile", *arguments, "--data", str(harness.stack.data), COLUMNS="200")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert arguments[0] in refused.stderr


async def test_period_that_ends_before_it_begins_is_refused(harness: Harness) -> None:
    arguments = ("--from", "2026-03-02", "--to", "2026-03-01", "--data", str(harness.stack.data))
    refused = await command_line("reconcile", *arguments, COLUMNS="200")
    assert refused.returncode == 2
    assert "--to" in refused.stderr


@pytest.mark.long
async def test_older_payment_database_leaves_everything_named_and_nothing_refunded(harness: Harness) -> None:
    """One payment was made after the backup, and one that it has was reversed after it.

    The reversal is done again and finds itself done. What was lost stays open, run after run: the charge, the journal
    and the PAID order of a payment that is not there.
    """
    undone_order, undone = await by_card(harness)
    await back_up(harness)
    lost_order, lost = await by_card(harness)
    await reverse(harness, undone.payment_id)
    await checked_books(harness)
    await restore(harness)

    wanted = [
        ("journal without payment", lost.journal_id),
        ("only theirs", lost.acquirer_key),
        ("order without payment", lost_order),
    ]
    code, found = await reconciled(harness)
    assert code == 1
    assert set(wanted) < {(row["class"], subject(row)) for row in found["discrepancies"]}
    assert ("only ours", undone.acquirer_key) in {(row["class"], row["key"]) for row in found["discrepancies"]}
    total = in_cny(found)
    assert (total["difference"], total["unexplained"]) == (0, 0)
    for arguments in (("--repair",), ("--repair",), ()):
        code, found = await reconciled(harness, *arguments)
        assert code == 1
        assert sorted((row["class"], subject(row)) for row in found["open"]) == wanted
    assert {row["state"] for row in await charged(harness) if row["key"] == lost.acquirer_key} == {"CHARGED"}
    assert [row["state"] for row in (await harness.snapshot()).orders if row["order_id"] == lost_order] == ["PAID"]
    assert [row["state"] for row in (await harness.snapshot()).orders if row["order_id"] == undone_order] == ["UNPAID"]

    code, found = await reconciled(harness, "--refund", lost.acquirer_key)
    assert code == 1, "the ledger says that the acquirer owes what it has given back"
    total = in_cny(found)
    assert (total["difference"], total["explained"]) == (-AMOUNT, -AMOUNT)


def subject(row: dict[str, Any]) -> str:
    return str(row["key"] or row["journal_id"] or row["order_id"] or row["payment_id"])


def in_cny(found: Any) -> Any:
    (total,) = [total for total in found["control_totals"] if total["account_id"] == "acquirer:CNY"]
    return total


def rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


async def charged(harness: Harness) -> list[Any]:
    """What the acquirer has, in its order."""
    return list((await harness.snapshot()).charges or ())


async def reverse(harness: Harness, payment_id: str) -> None:
    key = new_id("reverse")
    request = pb.ReverseRequest(request_id=key, payment_id=payment_id, reason="wrong card")
    seen = await harness.accountant.call_until_answered(request, at="payment-1")
    assert seen.payment.state == pb.PAYMENT_STATE_REVERSED


async def back_up(harness: Harness) -> None:
    """Keeps the payment database as it is now, beside it."""
    for table in _TABLES:
        statement = f"CREATE TABLE kept_{table} AS SELECT * FROM {table}"  # noqa: S608  names of ours
        await databases.say(harness.stack.data, "payment", statement)


async def restore(harness: Harness) -> None:
    """Makes the payment database again what it was."""
    for table in _TABLES:
        emptied = f"DELETE FROM {table}"  # noqa: S608  names of ours
        filled = f"INSERT INTO {table} SELECT * FROM kept_{table}"  # noqa: S608  names of ours
        for statement in (emptied, filled, f"DROP TABLE kept_{table}"):
            await databases.say(harness.stack.data, "payment", statement)
