"""Spans on their way to a collector: which settings send them, what arrives, and what it costs if it is away."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from services.kernel.errors import CountinghouseError
from services.runtime import tracing
from services.runtime.settings import TracingSettings
from services.runtime.trace_export import exporting
from tests.spans import collecting

METHOD = "/countinghouse.payment.v1.PaymentService/Settle"
SETTLE = METHOD.removeprefix("/")


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, ""),
        ({"OTEL_SERVICE_NAME": "x"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://t:2"},
            "https://t:2",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_SDK_DISABLED": "True"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_SDK_DISABLED": "no"}, "http://c:1"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_TRACES_EXPORTER": "console,otlp"}, "http://c:1"),
    ],
)
def test_spans_are_sent_only_where_an_endpoint_is_set(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], endpoint: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert TracingSettings().endpoint == endpoint


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "http://host:port"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:secret@c:4317"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "correct the variables"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    """And nothing of them is printed that may be secret."""
    for name, value in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CountinghouseError) as refusal, exporting("payment", "payment-1"):
        raise AssertionError
    assert refusal.value.reason == "TRACING_SETTINGS"
    assert said in refusal.value.message
    assert "secret" not in refusal.value.message


async def test_collector_receives_spans_of_a_named_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended is sent at the end; credentials go into the headers."""
    async with collecting() as (collector, endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
        await asyncio.to_thread(trace_one, "payment-1")
        await collector.until(f"{SETTLE} > lock")
        by_name = {span.name: span for span in collector.spans}
    assert by_name["lock"].parent_id == by_name[SETTLE].span_id
    assert by_name["lock"].attributes == {"countinghouse.order_id": "o1"}
    named = {"service.namespace": "countinghouse", "service.name": "countinghouse-payment"}
    assert named.items() <= by_name["lock"].resource.items()
    assert by_name["lock"].resource["service.instance.id"] == "payment-1"
    assert collector.headers[0]["x-key"] == "abc"


async def test_service_name_of_the_operator_prevails(monkeypatch: pytest.MonkeyPatch) -> None:
    async with collecting() as (collector, endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "till")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        await asyncio.to_thread(trace_one, "payment-1")
        (span, *_) = await collector.until(SETTLE)
    assert (span.resource["service.name"], span.resource["deployment.environment.name"]) == ("till", "test")


def test_nothing_is_traced_before_and_after(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent)
    assert tracing.root("a") is tracing.NO_SPAN
    with exporting("payment", "payment-1"):
        assert tracing.root("a") is not tracing.NO_SPAN
    assert tracing.root("a") is tracing.NO_SPAN


async def test_collector_that_does_not_answer_holds_up_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans wait in a queue of a limited size, and are dropped when it is full."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    async with collecting() as (collector, endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        collector.may_answer.clear()
        loop, filled = asyncio.get_running_loop(), asyncio.Event()

        def fill() -> None:
            with exporting("payment", "payment-1"):
                make_spans(16)
                asyncio.run_coroutine_threadsafe(collector.exporting.wait(), loop).result()
                make_spans(2_000)  # the collector answers after them only
                loop.call_soon_threadsafe(collector.may_answer.set)
            loop.call_soon_threadsafe(filled.set)

        threading.Thread(target=fill, daemon=True).start()  # should it wait for ever, the test does not
        async with asyncio.timeout(60):
            await filled.wait()
        assert 16 < len(collector.spans) <= 16 + 64


def test_collector_that_refuses_connections_holds_up_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with exporting("payment", "payment-1"):
        make_spans(5_000)


def test_end_waits_a_second_for_a_silent_collector(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    """The SDK by itself would wait for half a minute."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "100")
    with exporting("payment", "payment-1"):
        make_spans(1)
        ending_s = time.monotonic()
    assert time.monotonic() - ending_s < 20  # on a busy machine


def test_header_of_a_caller_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, silent: str
) -> None:
    """Nor a credential of ours that the SDK cannot parse."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "secret")
    sent = (("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"), ("tracestate", "secret!"))
    with exporting("payment", "payment-1"), tracing.served(METHOD, lambda: sent):
        pass
    assert "secret" not in caplog.text


def make_spans(count: int) -> None:
    """Make some spans, each in a trace of its own."""
    for _ in range(count):
        with tracing.served(METHOD, lambda: ()):
            pass


def trace_one(instance: str) -> Any:
    """Make a span with one below it, and send them; blocks until they were sent."""
    with exporting("payment", instance), tracing.served(METHOD, lambda: ()), tracing.span("lock", order_id="o1"):
        pass
