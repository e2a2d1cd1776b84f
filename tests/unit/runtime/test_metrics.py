"""What a server counts, and the page it is read from."""

from __future__ import annotations

import ast
import asyncio
import http.client
import inspect
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from coordination.metrics import Metrics
from services.kernel.errors import CountinghouseError
from services.runtime import metrics
from services.runtime.grpc import access, interceptors, tokens
from services.runtime.metrics import REFUSAL_REASONS, CallMetrics, MetricsPage, process_registry

HOST = "127.0.0.1"
READERS = 4
#: A tenth of a second apart: many times the time for a page.
_PARTS = 200


def read(port: int, timeout_s: float = 5.0) -> str:
    """The page; blocks."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Values by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def registry() -> CollectorRegistry:
    return process_registry()


@pytest.fixture
async def page(registry: CollectorRegistry) -> AsyncIterator[MetricsPage]:
    served = MetricsPage(registry, HOST, 0)
    yield served
    await served.close()


async def test_page_has_call_coordination_and_process_metrics(registry: CollectorRegistry, page: MetricsPage) -> None:
    """Calls, coordination and the process, in one registry."""
    CallMetrics(registry).answered("Settle", grpc.StatusCode.OK, 0.02)
    Metrics(registry).locks_held.set(3)
    found = samples(await asyncio.to_thread(read, page.port))
    assert found["countinghouse_calls_total", frozenset({("method", "Settle"), ("code", "OK")})] == 1
    assert found["countinghouse_call_seconds_sum", frozenset({("method", "Settle")})] == 0.02
    assert found["coordination_locks_held", frozenset()] == 3
    assert found["process_resident_memory_bytes", frozenset()] > 1 << 20
    assert any(name == "python_info" for name, _ in found)


def test_calls_and_durations_are_as_many() -> None:
    """Each call counts once under its code, and once among the durations of its method."""
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    for number, code in enumerate([grpc.StatusCode.OK, grpc.StatusCode.ABORTED, grpc.StatusCode.OK]):
        metrics.answered("Pay", code, 0.1 * number)
    metrics.answered("Settle", grpc.StatusCode.OK, 0.1)
    assert registry.get_sample_value("countinghouse_calls_total", {"method": "Pay", "code": "OK"}) == 2
    assert registry.get_sample_value("countinghouse_calls_total", {"method": "Pay", "code": "ABORTED"}) == 1
    assert registry.get_sample_value("countinghouse_call_seconds_count", {"method": "Pay"}) == 3


def test_call_is_in_flight_until_it_is_answered() -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)

    def now() -> float | None:
        return registry.get_sample_value("countinghouse_calls_in_flight")

    assert now() == 0
    with metrics.in_flight():
        with metrics.in_flight():
            assert now() == 2
        assert now() == 1
    assert now() == 0


def test_refusals_count_from_zero_by_reason() -> None:
    """A series that is there from the start: Prometheus sees the increase of the first refusal."""
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    name = "countinghouse_identity_refusals_total"
    assert [registry.get_sample_value(name, {"reason": reason}) for reason in REFUSAL_REASONS] == [0] * 11
    metrics.refused("TOKEN_REVOKED")
    metrics.refused("TOKEN_REVOKED")
    metrics.refused("TOKEN_EXPIRED")
    assert registry.get_sample_value(name, {"reason": "TOKEN_REVOKED"}) == 2
    assert registry.get_sample_value(name, {"reason": "TOKEN_EXPIRED"}) == 1
    assert registry.get_sample_value(name, {"reason": "TOKEN_INVALID"}) == 0


def test_reasons_of_refusals_are_those_that_the_code_raises() -> None:
    """Each of them is a constant: nothing that a caller sends becomes a label."""
    raised = set()
    for module in (access, interceptors, tokens):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Unauthenticated", "PermissionDenied"):
                assert isinstance(node.args[0], ast.Constant), ast.unparse(node)
                raised.add(node.args[0].value)
    assert raised == set(REFUSAL_REASONS)


async def test_page_is_served_while_the_event_loop_is_busy(page: MetricsPage) -> None:
    """The moment at which one wants to know most."""
    with ThreadPoolExecutor(1) as elsewhere:
        text = elsewhere.submit(read, page.port).result(timeout=10)  # the loop stands still meanwhile
    assert "process_cpu_seconds_total" in text


async def test_readers_beyond_the_bound_are_turned_away(page: MetricsPage) -> None:
    """Those who say nothing hold their thread until they hang up; then there is room again."""
    silent = [socket.create_connection((HOST, page.port)) for _ in range(READERS)]
    try:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            await asyncio.to_thread(read, page.port)
    finally:
        for connection in silent:
            connection.close()
    async with asyncio.timeout(10):
        while True:
            try:
                await asyncio.to_thread(read, page.port)
            except (http.client.RemoteDisconnected, ConnectionResetError):
                continue  # a thread has not noticed yet that its reader is gone
            return


async def test_reader_that_sends_little_by_little_is_hung_up_on(
    page: MetricsPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part comes within a reader's time; all of them together do not."""
    monkeypatch.setattr(metrics, "_PAGE_TIMEOUT_S", 0.3)

    def dawdle() -> None:
        with socket.create_connection((HOST, page.port)) as connection:
            connection.settimeout(0.1)
            for _ in range(_PARTS):
                connection.send(b"G")
                with suppress(TimeoutError):
                    assert connection.recv(1) == b""
                    return
        pytest.fail("the reader was let")

    with suppress(ConnectionResetError, BrokenPipeError):
        await asyncio.to_thread(dawdle)


async def test_busy_port_is_named_with_its_setting(page: MetricsPage, registry: CollectorRegistry) -> None:
    with pytest.raises(CountinghouseError, match=f"{page.port}.*COUNTINGHOUSE_METRICS_PORT") as refusal:
        MetricsPage(registry, HOST, page.port)
    assert refusal.value.reason == "METRICS_PORT_BUSY"


async def test_host_that_is_not_ours_is_refused(registry: CollectorRegistry) -> None:
    with pytest.raises(CountinghouseError, match=r"192\.0\.2\.1"):
        MetricsPage(registry, "192.0.2.1", 0)


async def test_closed_page_frees_its_port(registry: CollectorRegistry) -> None:
    first = MetricsPage(registry, HOST, 0)
    await first.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(read, first.port)
    second = MetricsPage(registry, HOST, first.port)
    assert await asyncio.to_thread(read, second.port)
    await second.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_ipv6_is_an_address_like_any_other(registry: CollectorRegistry) -> None:
    try:
        page = MetricsPage(registry, "::1", 0)
    except CountinghouseError:
        pytest.skip("no IPv6 loopback here")
    try:
        with socket.create_connection(("::1", page.port), timeout=5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"200 OK" in connection.recv(100)
    finally:
        await page.close()
