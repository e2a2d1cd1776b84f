"""The command line against a running stack."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from coordination.locks.lock import Holder, ResourceLocks
from coordination.session import Session
from countinghouse.debug.v1 import failpoint_pb2 as debug
from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import Stack
from services.devstack.state import INTERFACES
from services.kernel.principal import Role
from services.kernel.release import release
from services.runtime.zookeeper_paths import LOCKS_ROOT
from services.testkit.client import new_id
from services.testkit.harness import open_client
from tests.e2e.command import command_line, document, start_command_line


class Terminal:
    """Commands against one stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    async def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs one; returns what it printed."""
        return await command_line(*arguments, **environment, COUNTINGHOUSE_DATA=str(self._stack.data))

    async def json(self, *arguments: str) -> Any:
        """Runs one with --json; returns the document."""
        return document(await self.run(*arguments, "--json"))

    async def new_order(self) -> str:
        """Makes an order without a command; returns its id."""
        async with open_client(self._stack, "li", Role.CASHIER) as client:
            return await client.new_order()


@pytest.fixture
def terminal(stack: Stack) -> Terminal:
    """A terminal at the stack of the run."""
    return Terminal(stack)


async def test_order_from_its_making_to_its_reversal(terminal: Terminal) -> None:
    """Each step is seen by the others: orders, payments, journals and the balance."""
    made = await terminal.json(
        *("order", "create", "--customer", "mei", "--currency", "CNY", "--as", "cashier:li"),
        *("--line", "green tea: hot:2:3.00", "--line", "cake:1:6.50"),
    )
    order_id = made["order"]["order_id"]
    assert made["order"]["amount"] == {"minor_units": 1250, "currency_code": "CNY"}
    assert made["order"]["lines"][0]["description"] == "green tea: hot"
    assert made["replayed"] is False

    settled = await terminal.json("settle", order_id, "--source", "drawer", "--as", "cashier:li", "--memo", "table 4")
    payment = settled["payment"]
    assert payment["state"] == "PAYMENT_STATE_SUCCEEDED"
    assert payment["clerk"] == {"name": "li", "role": "ROLE_CASHIER"}
    assert (await terminal.json("payment", "get", payment["payment_id"]))["payment"] == payment
    listed = await terminal.json("payment", "list", "--order", order_id)
    assert [each["payment_id"] for each in listed["payments"]] == [payment["payment_id"]]

    order = (await terminal.json("order", "get", order_id))["order"]
    assert order["state"] == "ORDER_STATE_PAID"
    assert order["settled_by"]["name"] == "li"

    reversed_ = await terminal.json(
        "reverse", payment["payment_id"], "--reason", "wrong order", "--as", "accountant:wang"
    )
    assert reversed_["payment"]["state"] == "PAYMENT_STATE_REVERSED"
    journals = (await terminal.json("ledger", "journals", "--order", order_id))["journals"]
    assert [journal["memo"] for journal in journals] == ["wrong order", "table 4"]
    assert sum(leg["amount"] for journal in journals for leg in journal["postings"]) == 0
    again = await terminal.json("settle", order_id, "--source", "bank", "--as", "accountant:wang")
    assert again["payment"]["round"] == 2


async def test_yen_are_settled_on_a_fresh_stack(terminal: Terminal) -> None:
    """Its house accounts are open; the amount has no decimals."""
    order = ("--customer", "mei", "--amount", "1250", "--currency", "JPY", "--as", "cashier:li")
    order_id = (await terminal.json("order", "create", *order))["order"]["order_id"]
    settled = await terminal.run("settle", order_id, "--source", "drawer", "--as", "cashier:li")
    assert settled.returncode == 0, settled.stderr
    assert "1250 JPY" in settled.stdout


async def test_account_kind_follows_from_its_name(terminal: Terminal) -> None:
    """A drawer is an asset; a name that says nothing needs --kind, which the tests of odd input show."""
    drawer = f"drawer:{new_id('till')}:CNY"
    opened = await terminal.json("ledger", "open", drawer, "--currency", "CNY")
    assert opened["account"]["kind"] == "ACCOUNT_KIND_ASSET"
    merchant = new_id("merchant")
    named = await terminal.json("ledger", "open", merchant, "--currency", "CNY", "--kind", "expense")
    assert named["account"]["kind"] == "ACCOUNT_KIND_EXPENSE"


async def test_ticket_pays_once(terminal: Terminal) -> None:
    wallet = f"wallet:{new_id('buyer')}:CNY"
    assert (await terminal.json("ledger", "open", wallet, "--currency", "CNY"))["account"]["balance"] == 0
    ticket = (await terminal.json("ticket", "--ttl", "60", "--as", "cashier:li"))["ticket"]["ticket_id"]
    pay = ("pay", ticket, "--source", "drawer", "--amount", "50.00", "--currency", "CNY", "--payee", wallet)
    first = await terminal.json(*pay, "--as", "cashier:li")
    again = await terminal.json(*pay, "--as", "cashier:li")
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again["payment"] == first["payment"]
    (account,) = (await terminal.json("ledger", "accounts", "--prefix", wallet))["accounts"]
    assert account["balance"] == 5000
    said = await terminal.run(*pay, "--as", "cashier:li")
    assert "(replayed)" in said.stdout


async def test_request_id_makes_a_repeat_a_replay(terminal: Terminal) -> None:
    order_id, request_id = await terminal.new_order(), new_id()
    settle = ("settle", order_id, "--source", "drawer", "--as", "cashier:li", "--request-id", request_id)
    first = await terminal.json(*settle)
    again = await terminal.json(*settle)
    assert again["payment"] == first["payment"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert first["request_id"] == request_id


async def test_second_settle_is_refused_with_clerk_and_time(terminal: Terminal) -> None:
    order_id = await terminal.new_order()
    await terminal.json("settle", order_id, "--source", "drawer", "--as", "cashier:li")
    done = await terminal.run("settle", order_id, "--source", "bank", "--as", "accountant:wang")
    assert done.returncode == 1
    assert "already settled by li" in done.stderr
    assert done.stderr.count("\n") == 1
    as_json = await terminal.run("settle", order_id, "--source", "bank", "--as", "accountant:wang", "--json")
    assert json.loads(as_json.stdout)["error"]["reason"] == "ORDER_ALREADY_PAID"


async def test_two_terminals_at_once_settle_once(terminal: Terminal) -> None:
    order_id = await terminal.new_order()
    cashier, accountant = await asyncio.gather(
        terminal.run("settle", order_id, "--source", "drawer", "--as", "cashier:li"),
        terminal.run("settle", order_id, "--source", "bank", "--as", "accountant:wang"),
    )
    assert sorted((cashier.returncode, accountant.returncode)) == [0, 1]
    assert len((await terminal.json("ledger", "journals", "--order", order_id))["journals"]) == 1


async def test_lost_reply_is_asked_for_again(terminal: Terminal, stack: Stack) -> None:
    """The reply is dropped after the commit, on whichever instance is asked; the command gets the stored one."""
    order_id = await terminal.new_order()
    async with open_client(stack, "ops", Role.OPERATOR) as operator:
        for instance in ("payment-1", "payment-2"):
            arm = debug.ArmFailpointRequest(name="recorded", action=debug.FAILPOINT_ACTION_DROP_REPLY, subject=order_id)
            await operator.ask(arm, at=instance)
    done = await terminal.json("settle", order_id, "--source", "drawer", "--as", "cashier:li", "--timeout", "6")
    assert done["replayed"] is True
    assert done["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED"
    assert len((await terminal.json("ledger", "journals", "--order", order_id))["journals"]) == 1


async def test_settle_without_an_answer_in_time_names_the_request_id(terminal: Terminal, stack: Stack) -> None:
    """And with it the same operation is asked for again, not done twice."""
    order_id, request_id = await terminal.new_order(), new_id("req")
    settle = ("settle", order_id, "--source", "drawer", "--as", "cashier:li", "--request-id", request_id)
    stack.restarts = False
    try:
        for instance in ("payment-1", "payment-2"):
            stack.kill(instance)
        done = await terminal.run(*settle, "--timeout", "2")
    finally:
        stack.restarts = True
    assert done.returncode == 1
    assert f"--request-id {request_id}" in done.stderr
    await stack.wait_serving()
    assert (await terminal.json(*settle))["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_settle_whose_answer_cannot_be_written_is_told_as_done_with_its_request_id(
    terminal: Terminal, stack: Stack
) -> None:
    """A code that says "nothing was done" would have the caller take the money another way."""
    made = await terminal.json("order", "create", "--customer", "mei", "--amount", "12.50", "--currency", "CNY")
    order_id = made["order"]["order_id"]
    settle = ("settle", order_id, "--source", "drawer", "--as", "cashier:li")
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = await start_command_line(*settle, output=full, COUNTINGHOUSE_DATA=str(stack.data))
    finally:
        os.close(full)
    _, errors = await process.communicate()
    assert process.returncode == 5
    named = re.search(rb"it was answered; to get the answer again, use --request-id (\S+)\n", errors)
    assert named, errors
    again = await terminal.json(*settle, "--request-id", named[1].decode())
    assert (again["replayed"], again["payment"]["state"]) == (True, "PAYMENT_STATE_SUCCEEDED")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_interrupted_order_create_names_the_request_id_that_makes_no_second_order(
    terminal: Terminal, stack: Stack, number: signal.Signals
) -> None:
    """Ctrl-C, or a terminal that is closed, while it is under way: repeated by the id it named it has one order."""
    order_id = new_id("ord")
    create = (
        *("order", "create", "--customer", "mei", "--amount", "12.50", "--currency", "CNY"),
        *("--order-id", order_id, "--as", "cashier:li"),
    )
    async with open_client(stack, "ops", Role.OPERATOR) as operator:

        async def passed() -> int:
            listed = await operator.ask(debug.ListFailpointsRequest(), at="order-1")
            return sum(point.passed for point in listed.failpoints if point.name == "accepted")

        arm = debug.ArmFailpointRequest(
            name="accepted", action=debug.FAILPOINT_ACTION_DELAY, delay_ms=2_000, subject=order_id
        )
        await operator.ask(arm, at="order-1")
        before = await passed()
        process = await start_command_line(*create, COUNTINGHOUSE_DATA=str(stack.data))
        async with asyncio.timeout(30):
            while await passed() == before:  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)
        process.send_signal(number)
        _, errors = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    named = re.search(rb"--request-id (\S+)", errors)
    assert named, errors
    for _ in range(2):
        made = await terminal.json(*create, "--request-id", named[1].decode())
    assert made["replayed"] is True
    listed = await terminal.json("order", "get", order_id)
    assert listed["order"]["amount"] == {"minor_units": 1250, "currency_code": "CNY"}


async def test_amounts_are_shown_in_major_units_and_json_keeps_minor_ones(terminal: Terminal) -> None:
    """Of an order, its lines, payments, journals, accounts, and in what a server refuses."""
    buyer = new_id("buyer")
    wallet = f"wallet:{buyer}:CNY"
    opened = await terminal.run("ledger", "open", wallet, "--currency", "CNY", "--overdraft", "1.00")
    assert "1.00 CNY" in opened.stdout
    made = await terminal.json(
        *("order", "create", "--customer", buyer, "--currency", "CNY", "--line", "tea:2:3.00", "--line", "cake:1:6.50"),
        *("--amount", "12.50", "--as", "cashier:li"),
    )
    order_id = made["order"]["order_id"]
    assert made["order"]["amount"]["minor_units"] == 1250
    shown = (await terminal.run("order", "get", order_id)).stdout
    assert "12.50 CNY" in shown
    assert "2 × tea at 3.00 CNY" in shown
    contradiction = await terminal.run(
        *("order", "create", "--customer", buyer, "--currency", "CNY", "--line", "tea:2:3.00", "--amount", "12.50")
    )
    assert contradiction.returncode == 2
    assert "12.50 CNY but the lines add up to 6.00 CNY" in contradiction.stderr
    short = await terminal.run("settle", order_id, "--source", "wallet", "--as", f"customer:{buyer}")
    assert short.returncode == 4
    assert "short by 11.50 CNY" in short.stderr
    paid = await terminal.run("settle", order_id, "--source", "drawer", "--as", "cashier:li")
    assert "12.50 CNY" in paid.stdout
    assert "12.50 CNY" in (await terminal.run("payment", "list", "--order", order_id)).stdout
    journals = (await terminal.run("ledger", "journals", "--order", order_id)).stdout
    assert "+12.50 CNY" in journals
    assert "-12.50 CNY" in journals
    assert re.search(r"\d\.\d\d CNY", (await terminal.run("ledger", "trial-balance")).stdout)
    accounts = (await terminal.run("ledger", "accounts", "--prefix", wallet)).stdout
    assert "0.00 CNY" in accounts
    assert "1.00 CNY" in accounts


async def test_locks_show_the_holder_and_the_waiters(terminal: Terminal, stack: Stack) -> None:
    """A holder of the test's own, and a clerk whose Settle waits behind it."""
    order_id, clerk = await terminal.new_order(), Holder("ming", {"role": "cashier", "instance": "test"}, 1)

    async def queue() -> list[dict[str, Any]]:
        queues = (await terminal.json("locks"))["queues"]
        return [place for each in queues if each["order_id"] == order_id for place in each["queue"]]

    async with (
        Session(stack.zookeeper, name="test", security=stack.zookeeper_security()) as session,
        open_client(stack, "li", Role.CASHIER) as li,
    ):
        async with await ResourceLocks(session, root=LOCKS_ROOT).acquire(order_id, clerk, timeout_s=10):
            assert len(await queue()) == 1
            waiting = asyncio.ensure_future(li.settle(order_id, at="payment-1", timeout_s=60, within_s=60))
            while len(found := await queue()) < 2:
                assert not waiting.done()
            assert [(place["position"], place["clerk"], place["instance"]) for place in found] == [
                (0, "ming", "test"),
                (1, "li", "payment-1"),
            ]
            # On a slow machine the clerk has left the queue meanwhile, and comes again.
            while "waits, 1 ahead" not in (said := (await terminal.run("locks")).stdout):
                assert not waiting.done()
            assert "holds" in said
        assert (await waiting).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    while "no order is being settled" not in (await terminal.run("locks")).stdout:
        pass  # a lock is released a moment after the reply


async def test_trial_balance_and_chain_are_ok(terminal: Terminal) -> None:
    await terminal.json("settle", await terminal.new_order(), "--source", "drawer", "--as", "cashier:li")
    balance = await terminal.json("ledger", "trial-balance", "--currency", "CNY")
    assert balance["balanced"] is True
    assert sum(row["debits"] - row["credits"] for row in balance["rows"]) == 0
    assert "balanced" in (await terminal.run("ledger", "trial-balance")).stdout
    verified = await terminal.json("ledger", "verify")
    assert verified["intact"] is True
    assert verified["examined"] >= 1


async def test_lists_go_on_page_by_page(terminal: Terminal) -> None:
    mine = {await terminal.new_order() for _ in range(3)}
    seen: list[str] = []
    page: tuple[str, ...] = ()
    while not mine <= set(seen):
        answer = await terminal.json("order", "list", "--limit", "2", *page)
        seen += [order["order_id"] for order in answer["orders"]]
        assert answer["next_page_token"]
        page = ("--page", answer["next_page_token"])
    assert len(seen) == len(set(seen))
    unpaid = await terminal.json("order", "list", "--state", "unpaid", "--customer", "mei")
    assert all(order["state"] == "ORDER_STATE_UNPAID" for order in unpaid["orders"])
    assert "more: --page" in (await terminal.run("order", "list", "--limit", "1")).stdout


async def test_order_is_cancelled(terminal: Terminal) -> None:
    order_id = await terminal.new_order()
    cancelled = await terminal.json("order", "cancel", order_id, "--reason", "ordered twice", "--version", "1")
    assert cancelled["order"]["state"] == "ORDER_STATE_CANCELLED"
    assert "CANCELLED" in (await terminal.run("order", "get", order_id)).stdout


async def test_history_commands_show_actor_change_and_reason(terminal: Terminal) -> None:
    """Of an order that was settled, reversed and cancelled, and of its payment: as JSON, and for people."""
    order_id = await terminal.new_order()
    paid = await terminal.json("settle", order_id, "--source", "drawer", "--as", "cashier:li")
    payment_id = paid["payment"]["payment_id"]
    await terminal.json("reverse", payment_id, "--reason", "wrong order", "--as", "accountant:wang")
    await terminal.json("order", "cancel", order_id, "--reason", "ordered twice", "--as", "cashier:li")
    history = await terminal.json("order", "history", order_id)
    assert [(event["to_state"], event["actor"]["name"], event["reason"]) for event in history["events"]][-3:] == [
        ("ORDER_STATE_PAID", "li", ""),
        ("ORDER_STATE_UNPAID", "wang", "wrong order"),
        ("ORDER_STATE_CANCELLED", "li", "ordered twice"),
    ]
    assert [event["version"] for event in history["events"]] == list(range(1, len(history["events"]) + 1))
    of_payment = await terminal.json("payment", "history", payment_id)
    assert [(event["state"], event["actor"]["name"]) for event in of_payment["events"]][-2:] == [
        ("PAYMENT_STATE_REVERSING", "wang"),
        ("PAYMENT_STATE_REVERSED", "wang"),
    ]
    assert "wang (accountant)" in (await terminal.run("order", "history", order_id)).stdout
    assert "wrong order" in (await terminal.run("payment", "history", payment_id)).stdout


async def test_registry_lists_every_instance_and_consumer(terminal: Terminal, stack: Stack) -> None:
    """Providers by address; and that each payment instance consumes order and ledger."""
    interfaces = {one["interface"]: one for one in (await terminal.json("registry"))["interfaces"]}
    addresses = {provider["address"] for interface in interfaces.values() for provider in interface["providers"]}
    assert {instance.address for instance in stack.instances} <= addresses
    assert "payment-2" in (await terminal.run("registry")).stdout
    for service in ("order", "ledger"):
        consumers = [consumer["parameters"] for consumer in interfaces[INTERFACES[service]]["consumers"]]
        assert {consumer["instance"] for consumer in consumers} == {"payment-1", "payment-2"}
        assert {consumer["application"] for consumer in consumers} == {"countinghouse-payment"}


async def test_instance_taken_offline_gets_no_calls(terminal: Terminal) -> None:
    """The other settles; explain says why, and online undoes it."""
    (done,) = (await terminal.json("registry", "offline", "payment-1"))["changes"]
    try:
        explained = await terminal.json("registry", "explain", "o1")
        why = {provider["instance"]: provider["why"] for provider in explained["providers"]}
        assert why["payment-1"] == f"disabled by {done['interface']}::.configurators, configs 1"
        chosen = [provider["instance"] for provider in explained["providers"] if provider["chosen"]]
        assert chosen == ["payment-2"]
        settled = await terminal.json("settle", await terminal.new_order(), "--source", "drawer", "--as", "cashier:li")
        assert settled["payment"]["state"] == "PAYMENT_STATE_SUCCEEDED"
    finally:
        await terminal.json("registry", "online", "payment-1")
    explained = await terminal.json("registry", "explain", "o1")
    assert [provider["weight"] for provider in explained["providers"]] == [100, 100]


async def test_token_option_decides_on_the_caller(terminal: Terminal) -> None:
    token = (await terminal.run("token", "--role", "cashier", "--name", "ming")).stdout.strip()
    order_id = await terminal.new_order()
    done = await terminal.run("settle", order_id, "--source", "drawer", "--json", COUNTINGHOUSE_TOKEN=token)
    assert document(done)["payment"]["clerk"]["name"] == "ming"


async def test_stack_is_reached_without_its_directory(terminal: Terminal, stack: Stack, tmp_path: Path) -> None:
    """With ZooKeeper's address, a token and the authority one needs nothing else, as from another machine."""
    token = (await terminal.run("token", "--role", "auditor", "--name", "zhao")).stdout.strip()
    order_id = await terminal.new_order()
    done = await command_line(
        *("order", "get", order_id, "--json", "--data", str(tmp_path)),
        *("--zookeeper", stack.zookeeper, "--token", token),
        COUNTINGHOUSE_CA_FILE=str(stack.data / "keys" / "ca.pem"),
    )
    assert document(done)["order"]["order_id"] == order_id


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("order", "get", "nope"), "nope"),
        (("payment", "get", "nope"), "nope"),
        (("settle", "nope", "--source", "drawer"), "nope"),
        (("settle", "nope", "--source", "drawer", "--as", "auditor:zhao"), "may not call Settle"),
        (("settle", "nope", "--source", "drawer", "--token", "nonsense"), "countinghouse token"),
        (("pay", "nope", "--source", "drawer"), "nope"),
        (("payment", "park", "nope", "--reason", "cash"), "nope"),
    ],
)
async def test_error_is_one_sentence(terminal: Terminal, arguments: tuple[str, ...], says: str) -> None:
    await refused_in_a_sentence(terminal, arguments, says, code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("settle", "o1", "--source", "drawer", "--card", "tok-mei"), "--card: leave card out"),
        (("settle", "o 1", "--source", "drawer"), "ORDER must be"),
        (("order", "list", "--page", "nonsense"), "--page is not of this list"),
        (("order", "create", "--customer", "li mei", "--amount", "5", "--currency", "CNY"), "--customer must be"),
        (("acquirer", "log", "--key", "k 1"), "--key must be"),
    ],
)
async def test_server_refusal_of_a_field_names_the_flag_and_is_wrong_usage(
    terminal: Terminal, arguments: tuple[str, ...], says: str
) -> None:
    await refused_in_a_sentence(terminal, arguments, says, code=2)


async def refused_in_a_sentence(terminal: Terminal, arguments: tuple[str, ...], says: str, *, code: int) -> None:
    done = await terminal.run(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


async def test_doctor_finds_a_running_stack_fit(terminal: Terminal) -> None:
    done = await terminal.run("doctor", "--json")
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "ZooKeeper 1" in checks["generation"]["detail"]
    assert f"{release()}, of all 4 instances" in checks["releases"]["detail"]
    assert "ZooKeeper " in checks["clocks"]["detail"]
    assert {"order database", "payment database", "ledger database"} <= set(checks)
