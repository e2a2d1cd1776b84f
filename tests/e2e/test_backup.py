"""The restore drill: books saved under load, put back, and what the acquirer knows beyond them is named."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.devstack.backup import restoring, taking
from services.devstack.options import StackOptions
from services.devstack.stack import Stack
from services.devstack.state import StackRefused
from services.kernel.clock import SystemClock
from services.testkit.harness import Harness
from tests.e2e import databases
from tests.e2e.checked import charges, checked_books
from tests.e2e.command import command_line, document
from tests.e2e.conftest import FreshStack, options

#: Orders under way while the backup is taken.
_UNDER_WAY = 24
_AT_ONCE = 6
_SUCCEEDED = pb.PAYMENT_STATE_SUCCEEDED


class Died(Exception):
    """The end of a restore before its last step."""


async def run(*arguments: str) -> Any:
    """The document that a command printed; it must have ended well."""
    done = await command_line(*arguments, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return document(done)


async def by_card(harness: Harness) -> tuple[str, pb.Payment]:
    """An order that is settled by card, and the payment."""
    order_id = await harness.new_order()
    return order_id, await harness.cashier.settle_ok(order_id, card="tok-mei")


async def settled_under_way(harness: Harness, settled: list[str]) -> None:
    """Settles orders, some at a time, by card and by cash, and notes those that are."""
    orders = iter([await harness.new_order() for _ in range(_UNDER_WAY)])

    async def clerk(card: str) -> None:
        for order_id in orders:
            payment = await harness.cashier.settle_ok(order_id, card=card)
            assert payment.state == _SUCCEEDED
            settled.append(order_id)

    async with asyncio.TaskGroup() as clerks:
        for number in range(_AT_ONCE):
            clerks.create_task(clerk("tok-mei" if number % 2 else ""))


async def test_restored_books_are_of_one_moment_and_reconcile_names_the_charges_since(
    fresh_stack: FreshStack, tmp_path: Path
) -> None:
    """The drill. What was settled before the backup stays settled; what the acquirer took after it is given back."""
    data, folder = tmp_path / "data", tmp_path / "backups" / "monday"
    settled: list[str] = []
    async with fresh_stack(data=data) as stack, Harness(stack) as harness:
        order_before, paid_before = await by_card(harness)
        working = asyncio.create_task(settled_under_way(harness, settled))
        while len(settled) < _AT_ONCE:
            assert not working.done()
            await asyncio.sleep(0.01)
        taken = await run("backup", str(folder), "--data", str(data))
        await working
        order_since, paid_since = await by_card(harness)
        await checked_books(harness)
    assert set(taken["files"]) == {"order", "payment", "ledger"}
    restored = await run("restore", str(folder), "--data", str(data))
    assert len(restored["set_aside"]) == (3 if databases.on_postgresql() else 1)

    async with fresh_stack(data=data) as stack, Harness(stack) as harness:
        books = (await harness.settled_snapshot(15)).snapshot
        assert books.unfinished() == [], "what was under way at that moment has been finished"
        assert charges(books, order_before) == [paid_before.payment_id]
        assert not [row for row in books.orders if row["order_id"] == order_since]
        ours = {str(row["acquirer_key"]) for row in books.payments}
        beyond = {str(row["key"]) for row in books.charges or () if row["key"] not in ours}
        assert paid_since.acquirer_key in beyond

        compared = await command_line("reconcile", "--json", "--data", str(data))
        assert compared.returncode == 1
        named = {row["key"] for row in document(compared)["discrepancies"]}
        assert named == beyond
        refunds = [part for key in sorted(beyond) for part in ("--refund", key)]
        assert document(await command_line("reconcile", *refunds, "--json", "--data", str(data)))["open"] == []
        assert (await run("check", "--data", str(data)))["verdict"] == "ok"

        order_again, _ = await by_card(harness)
        assert len(charges((await harness.settled_snapshot(15)).snapshot, order_again)) == 1
    assert (await run("check", "--data", str(data)))["verdict"] == "ok"


async def test_backup_is_put_into_a_fresh_data_directory(fresh_stack: FreshStack, tmp_path: Path) -> None:
    """The machine is gone: another has neither the keys nor ZooKeeper's data, and perhaps other database names."""
    folder, other = tmp_path / "backup", tmp_path / "other"
    async with fresh_stack() as stack, Harness(stack) as harness:
        order_id = await harness.new_order()
        payment = await harness.cashier.settle_ok(order_id)
        await run("backup", str(folder), "--data", str(stack.data))
    await run("restore", str(folder), "--data", str(other))
    if databases.on_postgresql():  # else a start without --database would begin with empty files
        with pytest.raises(StackRefused, match="are in PostgreSQL"):
            await Stack(options(other, database="sqlite")).start()
    async with fresh_stack(data=other) as stack, Harness(stack) as harness:
        assert charges(await checked_books(harness), order_id) == [payment.payment_id]
        again = await harness.cashier.settle(order_id)
        assert again.error is not None
        assert again.error.reason == "ORDER_ALREADY_PAID"
        await harness.cashier.settle_ok(await harness.new_order())
        await checked_books(harness)


async def test_unfinished_restore_keeps_the_stack_from_starting_until_it_is_repeated(
    fresh_stack: FreshStack, tmp_path: Path
) -> None:
    """It ended when one service's books were in place, and the others' were not."""
    data, folder = tmp_path / "data", tmp_path / "backup"
    async with fresh_stack(data=data) as stack, Harness(stack) as harness:
        order_id = await harness.new_order()
        await harness.cashier.settle_ok(order_id)
        await taking.take(data, folder, SystemClock(), lambda _sentence: None)

    def die(_sentence: str) -> None:
        raise Died

    alone = StackOptions(data, database=databases.of(data), services=())
    with pytest.raises(Died):
        await restoring.restore(folder, alone, SystemClock(), die)
    with pytest.raises(StackRefused) as refusal:
        await Stack(options(data)).start()
    assert refusal.value.reason == "RESTORE_UNFINISHED"
    assert f"countinghouse restore {folder}" in refusal.value.message
    with pytest.raises(StackRefused):
        await taking.take(data, tmp_path / "half", SystemClock(), lambda _sentence: None)

    await run("restore", str(folder), "--data", str(data))
    async with fresh_stack(data=data) as stack, Harness(stack) as harness:
        assert len(charges(await checked_books(harness), order_id)) == 1


async def test_restore_is_refused_while_a_stack_runs_or_the_backup_is_damaged(
    fresh_stack: FreshStack, tmp_path: Path
) -> None:
    """And the books stay as they are."""
    folder = tmp_path / "backup"
    async with fresh_stack() as stack, Harness(stack) as harness:
        order_id = await harness.new_order()
        await harness.cashier.settle_ok(order_id)
        data = stack.data
        await run("backup", str(folder), "--data", str(data))
        running = await command_line("restore", str(folder), "--data", str(data))
        assert (running.returncode, "countinghouse down" in running.stderr) == (2, True)
        again = await command_line("backup", str(folder), "--data", str(data))
        assert (again.returncode, "exists already" in again.stderr) == (1, True)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (file,) = damaged.glob("ledger.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for bad, sentence in ((damaged, "not as it was written"), (tmp_path / "none", "holds no backup")):
        refused = await command_line("restore", str(bad), "--data", str(data))
        assert (refused.returncode, sentence in refused.stderr) == (2, True), refused.stderr
    async with fresh_stack(data=data) as stack, Harness(stack) as harness:
        assert len(charges(await checked_books(harness), order_id)) == 1
