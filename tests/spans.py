"""Spans that a test looks at: kept in memory, or received by a collector that speaks OTLP over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler

from services.runtime import tracing
from services.runtime.opentelemetry_tracer import OpenTelemetryTracer


@dataclass(frozen=True, slots=True)
class Seen:
    """One span, however it came here; its ids are hexadecimal.

    Args:
        links: The ids of the spans that it links to.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    links: frozenset[str] = frozenset()
    attributes: dict[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    kind: str = ""
    failed: bool = False
    resource: dict[str, Any] = field(default_factory=dict)


class Spans:
    """The spans of a test, in the order in which they ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()

    def provider(self, sampler: Sampler) -> TracerProvider:
        """What makes spans that end up here."""
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        return provider

    @property
    def all(self) -> list[Seen]:
        """All that have ended."""
        return [_seen(span) for span in self._exporter.get_finished_spans()]

    def named(self, name: str) -> list[Seen]:
        """Those of one name."""
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> Seen:
        """The only one of a name."""
        (found,) = self.named(name)
        return found


@contextmanager
def recorded(sampler: Sampler | None = None) -> Iterator[Spans]:
    """Trace while inside, and keep the spans."""
    spans = Spans()
    tracing.use(OpenTelemetryTracer(spans.provider(sampler or ParentBased(ALWAYS_ON))))
    try:
        yield spans
    finally:
        tracing.use(None)


def path_of(span: Seen, spans: list[Seen]) -> list[str]:
    """The names from the first span of its trace down to it."""
    by_id = {each.span_id: each for each in spans}
    names = [span.name]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return names[::-1]


def paths_of(spans: list[Seen]) -> set[str]:
    """The path of each span, as one text."""
    return {" > ".join(path_of(span, spans)) for span in spans}


class Collector(otlp_grpc.TraceServiceServicer):
    """Receives spans as an OpenTelemetry collector does.

    Attributes:
        spans: What it has received.
        headers: The metadata of each export.
        exporting: Set once an export has come.
        may_answer: Exports wait for it; it is set.
    """

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.headers: list[dict[str, Any]] = []
        self.exporting, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self._received = asyncio.Event()

    async def Export(  # noqa: N802
        self, request: otlp.ExportTraceServiceRequest, context: aio.ServicerContext[Any, Any]
    ) -> otlp.ExportTraceServiceResponse:
        """Take some spans."""
        self.exporting.set()
        await self.may_answer.wait()
        self.headers.append(dict(context.invocation_metadata() or ()))
        for of_resource in request.resource_spans:
            resource = _values(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_received(span, resource) for span in of_scope.spans]
        self._received.set()
        return otlp.ExportTraceServiceResponse()

    async def until(self, *paths: str, trace_id: str = "", timeout_s: float = 30.0) -> list[Seen]:
        """Wait until spans with all these paths were received; return all that were.

        Args:
            trace_id: Of this trace only; empty: of any.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._received.clear()
                found = [span for span in self.spans if trace_id in ("", span.trace_id)]
                if set(paths) <= paths_of(found):
                    return found
                await self._received.wait()


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """A collector, and its address as OTEL_EXPORTER_OTLP_ENDPOINT has it."""
    collector, server = Collector(), aio.server()
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


def _seen(span: ReadableSpan) -> Seen:
    context = span.get_span_context()
    assert context is not None
    return Seen(
        name=span.name,
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else "",
        links=frozenset(f"{link.context.span_id:016x}" for link in span.links),
        attributes=dict(span.attributes or {}),
        events=tuple(event.name for event in span.events),
        kind=span.kind.name,
        failed=not span.status.is_ok,
        resource=dict(span.resource.attributes),
    )


def _received(span: Any, resource: dict[str, Any]) -> Seen:
    return Seen(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=frozenset(link.span_id.hex() for link in span.links),
        attributes=_values(span.attributes),
        events=tuple(event.name for event in span.events),
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
