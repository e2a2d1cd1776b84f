"""Metrics of running services: found through the registry, and true."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict

import pytest

from countinghouse.order.v1 import order_pb2
from services.devstack.authority import LIFE_S
from services.devstack.stack import Stack
from services.testkit.client import RecordingClient, new_id
from tests.e2e.as_service import open_service
from tests.e2e.checked import refusal
from tests.e2e.command import command_line, document
from tests.e2e.conftest import SETTINGS, FreshStack
from tests.e2e.counts import pages

Samples = dict[str, float]


async def samples_of(stack: Stack, instance: str) -> Samples:
    """What an instance has counted so far."""
    done = await command_line("metrics", instance, "--json", "--data", str(stack.data))
    found = document(done)
    assert found["instance"] == instance
    samples: Samples = found["samples"]
    return samples


def calls(method: str, code: str = "OK") -> str:
    """The name of a count of calls."""
    return f'countinghouse_calls_total{{code="{code}",method="{method}"}}'


async def test_settled_order_is_counted_by_every_service(stack: Stack, cashier: RecordingClient) -> None:
    """One Settle at the one payment instance, and one that replays it; one claim and one completion at the order
    service, one Post at the ledger; another clerk's is refused, and counted as that. At the other payment instance
    nothing moved.
    """
    names = ("payment-1", "payment-2", "order-1", "ledger-1")
    order_id = await cashier.new_order()
    before = dict(zip(names, await asyncio.gather(*(samples_of(stack, name) for name in names)), strict=True))
    key = new_id("settle")
    for _ in range(2):
        await cashier.settle_ok(order_id, key, at="payment-1")
    await refusal(cashier.settle_once(order_id, new_id(), at="payment-1"))
    after = dict(zip(names, await asyncio.gather(*(samples_of(stack, name) for name in names)), strict=True))

    def moved(instance: str, *counts: str) -> list[float]:
        return [after[instance].get(count, 0) - before[instance].get(count, 0) for count in counts]

    assert moved("payment-1", calls("Settle"), calls("Settle", "ALREADY_EXISTS")) == [2, 1]
    assert moved("payment-1", 'countinghouse_replays_total{method="Settle"}') == [1]
    assert moved("payment-1", 'countinghouse_call_seconds_count{method="Settle"}') == [3]
    assert moved("payment-2", calls("Settle"), calls("Settle", "ALREADY_EXISTS")) == [0, 0]
    assert moved("order-1", calls("ClaimOrder"), calls("CompleteOrder")) == [2, 1]
    assert moved("ledger-1", calls("Post")) == [1]
    for samples in after.values():
        assert samples["process_resident_memory_bytes"] > 10 << 20


async def test_refused_caller_is_counted_by_the_server_that_refused_it(stack: Stack) -> None:
    """The payment service's token for the ledger is sent to the order service, with the right certificate."""
    stolen = (stack.data / "keys" / "tokens" / "payment" / "ledger.token").read_text()
    names, count = ("order-1", "ledger-1"), 'countinghouse_identity_refusals_total{reason="TOKEN_FOR_ANOTHER"}'
    before = [(await samples_of(stack, name))[count] for name in names]
    async with open_service(stack, "thief", token=stolen) as thief:
        _, error = await refusal(thief.call(order_pb2.GetOrderRequest(order_id="o-1"), timeout_s=30.0))
    assert error.reason == "TOKEN_FOR_ANOTHER"
    after = [(await samples_of(stack, name))[count] for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 0]


async def test_every_service_shows_when_its_certificate_expires(stack: Stack) -> None:
    """And the payment service whether it knows the acquirer's authority."""
    for instance in stack.instances:
        samples = await samples_of(stack, instance.name)
        left_s = samples['countinghouse_certificate_expiry_timestamp_seconds{authority="house"}'] - time.time()
        assert LIFE_S / 4 < left_s <= LIFE_S
        authorities = ("house", "acquirer") if instance.name.startswith("payment") else ("house",)
        expiry = {name for name in samples if name.startswith("countinghouse_authority_expiry")}
        assert expiry == {
            f'countinghouse_authority_expiry_timestamp_seconds{{authority="{each}"}}' for each in authorities
        }
        assert not any(value for name, value in samples.items() if "files_unusable" in name)


async def test_metrics_of_all_services_add_up(stack: Stack, cashier: RecordingClient) -> None:
    """Of every method of every instance: the calls of all codes are as many as the durations."""
    await cashier.settle_ok(await cashier.new_order())
    for instance in stack.instances:
        by_method: defaultdict[str, float] = defaultdict(float)
        durations: dict[str, float] = {}
        for name, value in (await samples_of(stack, instance.name)).items():
            method = name.partition('method="')[2].partition('"')[0]
            if name.startswith("countinghouse_calls_total"):
                by_method[method] += value
            elif name.startswith("countinghouse_call_seconds_count"):
                durations[method] = value
        assert by_method == durations
        assert durations or instance.name == "payment-2", "nobody has called it"


async def test_command_prints_what_prometheus_reads(stack: Stack) -> None:
    """Raw; without an instance it says where each one's are, which is where the registry says."""
    done = await command_line("metrics", "ledger-1", "--data", str(stack.data))
    assert done.returncode == 0, done.stderr
    assert "# TYPE countinghouse_calls_total counter" in done.stdout
    assert "# TYPE process_open_fds gauge" in done.stdout
    listed = document(await command_line("metrics", "--json", "--data", str(stack.data)))
    found = {part["instance"]: part["metrics"] for part in listed["instances"]}
    assert found == await pages(stack)
    assert found.keys() == {instance.name for instance in stack.instances}
    assert all(address.startswith("127.0.0.1:") for address in found.values())
    table = await command_line("metrics", "--data", str(stack.data))
    assert all(f"http://{address}/metrics" in table.stdout for address in found.values())


async def test_unknown_instance_is_refused_with_those_known(stack: Stack) -> None:
    done = await command_line("metrics", "ledger-9", "--json", "--data", str(stack.data))
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["reason"] == "INSTANCE_UNKNOWN"
    assert "ledger-1" in done.stderr


async def test_address_of_the_metrics_is_a_setting(fresh_stack: FreshStack) -> None:
    """Off, they are not told of; on all addresses, they are told under the one that others use."""
    settings = {
        "order-1": {"metrics_port": -1},
        "ledger-1": {"metrics_host": "0.0.0.0", "advertise_host": "localhost"},  # noqa: S104
    }
    async with fresh_stack(services=("order", "ledger"), settings_of=settings) as running:
        found = await pages(running)
        assert found["order-1"] == ""
        done = await command_line("metrics", "order-1", "--data", str(running.data))
        assert "COUNTINGHOUSE_METRICS_PORT is -1" in done.stderr
        assert found["ledger-1"].startswith("localhost:")
        done = await command_line("metrics", "ledger-1", "--data", str(running.data))
        assert "process_open_fds" in done.stdout


async def test_busy_port_is_named(fresh_stack: FreshStack, stack: Stack) -> None:
    """With the setting that chooses another, and exit code 2."""
    port = int((await pages(stack))["order-1"].rpartition(":")[2])
    with pytest.raises(Exception, match=f"{port}.*COUNTINGHOUSE_METRICS_PORT"):
        async with fresh_stack(services=("order",), settings=SETTINGS | {"metrics_port": port}):
            pass
