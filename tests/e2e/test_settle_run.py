"""`countinghouse settle-run` against a stack: a file of orders, each settled once, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from countinghouse.order.v1 import order_pb2
from services.devstack.stack import Stack
from services.testkit.client import money, new_id
from services.testkit.failpoints import DELAY
from services.testkit.harness import Harness
from services.testkit.waiting import wait_until
from tests.e2e.checked import charges, checked_books
from tests.e2e.command import command_line, start_command_line
from tests.e2e.conftest import FreshStack

_WANG = ("--as", "accountant:wang")
#: Orders of the run in which processes are killed.
_ORDERS = int(os.environ.get("COUNTINGHOUSE_TEST_RUN_ORDERS") or 2_000)
#: Orders made at a time.
_MADE_AT_ONCE = 32


async def make_orders(harness: Harness, number: int) -> list[str]:
    """Make orders; return their ids."""
    prefix = new_id("run")
    order_ids = [f"{prefix}-{place:05d}" for place in range(number)]

    async def make(order_id: str) -> None:
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{order_id}", order_id=order_id, customer_id="mei", amount=money(1250)
        )
        await harness.cashier.ask_until_ok(request)

    for place in range(0, number, _MADE_AT_ONCE):
        await asyncio.gather(*map(make, order_ids[place : place + _MADE_AT_ONCE]))
    return order_ids


def write_orders(path: Path, order_ids: list[str]) -> None:
    path.write_text("order_id\n" + "".join(f"{order_id}\n" for order_id in order_ids))


class WrittenLines:
    """Counts the lines of a file that grows, and that is emptied by the next start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = self._read = 0

    def count(self) -> int:
        """Return how many there are now."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:
                self._lines = self._read = 0
            file.seek(self._read)
            more = file.read()
        self._read += len(more)
        self._lines += more.count(b"\n")
        return self._lines


def outcomes(result: Path) -> dict[str, tuple[str, ...]]:
    """Return the outcomes of each order, in the order of its lines."""
    with result.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["line"]))
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        found[row["order_id"]] = (*found.get(row["order_id"], ()), row["outcome"])
    return found


async def test_run_settles_each_order_of_its_file_once(stack: Stack, tmp_path: Path) -> None:
    """Dry run, run, and the same run again: the first changes nothing, the last settles nothing."""
    file = tmp_path / "orders.csv"
    result = tmp_path / "orders.csv.result.csv"

    async def run(*arguments: str) -> tuple[int, Any]:
        command = ("settle-run", "--file", str(file), *_WANG, "--json", *arguments)
        done = await command_line(*command, COUNTINGHOUSE_DATA=str(stack.data))
        return done.returncode, json.loads(done.stdout)

    async with Harness(stack) as harness:
        order_ids = await make_orders(harness, 300)
        paid, cancelled, missing = order_ids[:5], order_ids[5:10], [new_id("missing") for _ in range(5)]
        for order_id in paid:
            await harness.cashier.settle_ok(order_id)
        for order_id in cancelled:
            request = order_pb2.CancelOrderRequest(request_id=new_id(), order_id=order_id, reason="a mistake")
            await harness.cashier.ask(request)
        write_orders(file, [*order_ids, *missing, *order_ids[20:30], "no order"])
        wanted: dict[str, tuple[str, ...]] = {"": ("bad line",)}
        wanted |= dict.fromkeys(order_ids, ("settled",)) | dict.fromkeys([*paid, *cancelled, *missing], ("skipped",))
        wanted |= dict.fromkeys(order_ids[20:30], ("settled", "skipped"))

        code, told = await run("--dry-run")
        assert code == 1
        assert not result.exists()
        assert (told["outcomes"]["would_be_settled"], told["outcomes"]["would_be_skipped"]) == (290, 25)
        assert await harness.cashier.order_state(order_ids[-1]) == "UNPAID"

        code, told = await run()
        assert (code, told["lines"], told["stopped"]) == (1, 316, "")
        assert {name: count for name, count in told["outcomes"].items() if count} == {
            "settled": 290,
            "skipped": 25,
            "bad_line": 1,
        }
        assert outcomes(result) == wanted
        first = await checked_books(harness)

        code, told = await run()
        assert (code, told["outcomes"]["settled"], told["outcomes"]["already_settled_in_this_run"]) == (1, 0, 290)
        again = await checked_books(harness)

        code, told = await run("--dry-run")
        assert (code, told["outcomes"]["already_settled_in_this_run"], told["outcomes"]["would_be_settled"]) == (
            1,
            290,
            0,
        )
    settled = [order_id for order_id, each in wanted.items() if each[0] == "settled"]
    assert [charges(again, order_id) for order_id in settled] == [charges(first, order_id) for order_id in settled]
    assert {len(charges(again, order_id)) for order_id in settled} == {1}
    assert [charges(again, order_id) for order_id in (*cancelled, *missing)] == [[]] * 10


async def test_run_of_a_file_whose_orders_are_all_settled_ends_with_0(stack: Stack, tmp_path: Path) -> None:
    """Without --json it says so in lines, and progress is not among them."""
    file = tmp_path / "orders.csv"
    async with Harness(stack) as harness:
        write_orders(file, await make_orders(harness, 3))
    command = ("settle-run", "--file", str(file), "--run-id", new_id("r"), *_WANG)
    for line in ("settled                      3", "already settled in this run  3"):
        done = await command_line(*command, COUNTINGHOUSE_DATA=str(stack.data))
        assert (done.returncode, done.stderr) == (0, "")
        assert line in done.stdout.splitlines()


async def test_interrupted_run_says_how_to_go_on_and_every_line_has_a_result(
    fresh_stack: FreshStack, tmp_path: Path
) -> None:
    """One order is held by its failpoint, so that the run cannot end before it is interrupted."""
    file = tmp_path / "orders.csv"
    async with fresh_stack() as stack, Harness(stack) as harness:
        order_ids = await make_orders(harness, 200)
        write_orders(file, order_ids)
        await harness.failpoints.arm("payment-1", "locked", DELAY, order_ids[0], delay_s=3.0)
        command = ("settle-run", "--file", str(file), "--run-id", "r1", "--at-once", "1", *_WANG)
        process = await start_command_line(*command, COUNTINGHOUSE_DATA=str(stack.data))
        await harness.failpoints.wait_fired("payment-1", "locked", 0)
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
        assert process.returncode == 130, errors
        assert b"Traceback" not in errors
        assert b"run the same command again with --run-id r1" in errors
        counts = Counter(outcomes(tmp_path / "orders.csv.result.csv").values())
        assert counts.keys() <= {("settled",), ("open",)}
        assert counts.total() == 200
        assert counts[("settled",)] <= 64, "only the batch in flight may end"
        assert f"open                         {counts[('open',)]}".encode() in output.splitlines()
        done = await command_line(*command, COUNTINGHOUSE_DATA=str(stack.data))
        assert done.returncode == 0, done.stderr
        books = await checked_books(harness)
        assert {len(charges(books, order_id)) for order_id in order_ids} == {1}


async def test_run_by_a_caller_who_may_not_settle_in_batches_is_refused(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    write_orders(file, ["o1"])
    command = ("settle-run", "--file", str(file), "--as", "cashier:li")
    done = await command_line(*command, COUNTINGHOUSE_DATA=str(stack.data))
    assert done.returncode == 1
    assert "role cashier may not call SettleBatch" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(600 + _ORDERS // 10)
async def test_run_killed_with_its_services_settles_each_order_once(fresh_stack: FreshStack, tmp_path: Path) -> None:
    """Payment, the command and ledger are killed, each when a quarter more of the orders has an outcome."""
    file, result = tmp_path / "orders.csv", tmp_path / "orders.csv.result.csv"
    async with fresh_stack() as stack, Harness(stack) as harness:
        order_ids = await make_orders(harness, _ORDERS)
        write_orders(file, order_ids)
        written = WrittenLines(result)

        async def start() -> asyncio.subprocess.Process:
            command = ("settle-run", "--file", str(file), "--json", *_WANG)
            return await start_command_line(*command, COUNTINGHOUSE_DATA=str(stack.data))

        async def reached(process: asyncio.subprocess.Process, lines: int) -> None:
            async def enough() -> bool:
                assert process.returncode is None, "the run ended before it could be disturbed"
                return written.count() > lines

            await wait_until(enough, f"the run did not come to {lines} lines", 60 + _ORDERS / 20)

        run = await start()
        await reached(run, _ORDERS // 4)
        stack.kill("payment-1")
        await reached(run, _ORDERS // 2)
        run.kill()
        await run.communicate()
        assert all(len(each) == 1 for each in outcomes(result).values()), "a kill leaves a readable file"
        run = await start()
        await reached(run, 3 * _ORDERS // 4)
        stack.kill("ledger-1")
        output, errors = await run.communicate()
        assert run.returncode == 0, (output, errors)
        told = json.loads(output)
        assert told["lines"] == _ORDERS
        assert told["outcomes"]["already_settled_in_this_run"] >= _ORDERS // 2
        assert set(outcomes(result)) == set(order_ids)
        books = await checked_books(harness)
        assert {len(charges(books, order_id)) for order_id in order_ids} == {1}
