"""The tracer that makes spans of OpenTelemetry and sends them to a collector: OTLP over gRPC.

    a span ends ──▶ a queue of 2048 spans ──▶ a thread of the SDK ──▶ the collector

No call waits for the collector. While it cannot be reached, the queue fills and the SDK drops spans. The queue, the
pauses and the sampler are those of the SDK, which reads them from its standard variables (OTEL_BSP_*,
OTEL_TRACES_SAMPLER and others).

The context of a trace travels as W3C Trace Context: `traceparent` and `tracestate`. A call that carries a batch has
`x-batch-traceparents` as well: the traceparent of each item, in the order of the items, separated by commas.

OpenTelemetry's own current context is not used: `tracing.py` has the current span.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.kernel.errors import CountinghouseError
from services.runtime.tracing import CurrentSpan, Headers, Kind, Metadata, Span, Tracer, Value, own

BATCH_HEADER: Final = "x-batch-traceparents"
_TRACEPARENT: Final = "traceparent"
_TRACESTATE: Final = "tracestate"
_KINDS: Final = {Kind.INTERNAL: SpanKind.INTERNAL, Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
#: The status codes that are a server's own fault (semantic conventions for gRPC); of a client each but OK is an error.
_SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
#: Their warnings about a malformed header contain it: a credential of ours, or whatever a caller has sent.
_TELL_HEADERS: Final = ("opentelemetry.util.re", "opentelemetry.trace")
#: As every channel of this house, the one to the collector ignores `http_proxy`.
_CHANNEL_OPTIONS: Final[Any] = (("grpc.enable_http_proxy", 0),)
#: How long the last spans have to be sent.
_FLUSH_S: Final = 0.5
_PROPAGATOR: Final = TraceContextTextMapPropagator()

log = structlog.get_logger()


class _Recorded(CurrentSpan):
    """A span of OpenTelemetry, also one that its sampler has left out: its trace goes on in other processes.

    Args:
        carried: The traceparents of the items of a batch that calls below this span carry, or that came with it.
    """

    __slots__ = ("_answered", "_kind", "_span", "carried")

    def __init__(self, span: OtelSpan, kind: Kind, carried: str = "") -> None:
        super().__init__()
        self._span = span
        self._kind = kind
        self._answered = False
        self.carried = carried

    @property
    def recording(self) -> bool:
        return self._span.get_span_context().trace_flags.sampled

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def span_id(self) -> str:
        return f"{self._span.get_span_context().span_id:016x}"

    @property
    def link(self) -> Link:
        """A link to it."""
        return Link(self._span.get_span_context())

    def context(self) -> Context:
        """Return the context of its children."""
        return set_span_in_context(self._span, Context())

    def carried_by(self, kind: Kind) -> str:
        """Return what a child of this kind carries: a call that this process makes for a batch has its items."""
        return self.carried if (self._kind, kind) == (Kind.INTERNAL, Kind.CLIENT) else ""

    def link_to(self, other: _Recorded) -> None:
        """Add a link to another span, unless this one has ended."""
        if self._span.is_recording():
            self._span.add_link(other._span.get_span_context())

    def set(self, **attributes: Value) -> None:
        if self._span.is_recording():  # a task that outlives its call comes too late
            self._span.set_attributes(own(attributes))

    def event(self, name: str, **attributes: Value) -> None:
        if self._span.is_recording():
            self._span.add_event(name, own(attributes))

    def answered(self, code: str, reason: str = "") -> None:
        if not self._span.is_recording():
            return
        self._answered = True
        if code.isdecimal():
            self._span.set_attribute("http.response.status_code", int(code))
            failed = int(code) >= 500
        else:
            self._span.set_attribute("rpc.response.status_code", code)
            failed = code != "OK" if self._kind is Kind.CLIENT else code in _SERVER_ERRORS
        if reason:
            self._span.set_attribute("error.type", reason)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))

    def metadata(self) -> Metadata:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self.context())
        if self.carried and self._kind is Kind.CLIENT:
            carrier[BATCH_HEADER] = self.carried
        return tuple(carrier.items())

    def end(self, reason: str) -> None:
        if reason and not self._answered:
            self._span.set_attribute("error.type", reason)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class OpenTelemetryTracer(Tracer):
    """See `tracing.Tracer`.

    Args:
        provider: Makes the spans.
        exporter: Sends them; None: they are not sent from here, for tests.
    """

    def __init__(self, provider: TracerProvider, exporter: SpanExporter | None = None) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("countinghouse")

    def begin(self, name: str, kind: Kind, parent: Span | None, attributes: Mapping[str, Value]) -> Span:
        known = parent if isinstance(parent, _Recorded) else None
        context = Context() if known is None else known.context()
        carried = "" if known is None else known.carried_by(kind)
        return self._begun(name, kind, context, attributes, carried=carried)

    def continue_from(self, name: str, kind: Kind, headers: Headers, attributes: Mapping[str, Value]) -> Span:
        found: dict[str, list[str]] = {}
        for key, value in headers:
            if key in (_TRACEPARENT, _TRACESTATE, BATCH_HEADER) and isinstance(value, str):
                found.setdefault(key, []).append(value)
        context = _context_in(found)
        carried = found.get(BATCH_HEADER, ())
        return self._begun(name, kind, context, attributes, carried=carried[0] if len(carried) == 1 else "")

    def begin_batch(self, name: str, items: Sequence[Span | None], attributes: Mapping[str, Value]) -> Span:
        recorded = [item for item in dict.fromkeys(items) if isinstance(item, _Recorded) and item.recording]
        carried = ",".join(_traceparent(item) for item in items)
        begun = self._begun(name, Kind.INTERNAL, recorded[0].context(), attributes, recorded, carried)
        for item in recorded:
            item.link_to(begun)
        return begun

    def begin_item(self, name: str, batch: Span, place: int, size: int, attributes: Mapping[str, Value]) -> Span:
        carried = batch.carried.split(",") if isinstance(batch, _Recorded) else []
        if len(carried) == size and carried[place]:
            context = _context_in({_TRACEPARENT: [carried[place]]})
            return self._begun(name, Kind.SERVER, context, attributes, [batch])
        return self.begin(name, Kind.INTERNAL, batch, attributes)

    def close(self) -> None:
        """Send what has ended, within a second at most. Blocks."""
        closing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        closing.start()
        closing.join(_FLUSH_S)
        if self._exporter is not None and closing.is_alive():
            log.warning("the last spans were not sent: the collector does not answer in time")
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it drops now is in that line
            self._exporter.shutdown()
            closing.join(_FLUSH_S)

    def _begun(
        self,
        name: str,
        kind: Kind,
        context: Context,
        attributes: Mapping[str, Value],
        links: Sequence[Span] = (),
        carried: str = "",
    ) -> _Recorded:
        span = self._tracer.start_span(
            name,
            context,
            kind=_KINDS[kind],
            attributes=dict(attributes),
            links=[span.link for span in links if isinstance(span, _Recorded)],
            record_exception=False,  # its text may have values
            set_status_on_exception=False,
        )
        return _Recorded(span, kind, carried)


def open_tracer(endpoint: str, service: str, instance: str) -> OpenTelemetryTracer:
    """Return a tracer that sends its spans to a collector. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES prevail.

    Args:
        endpoint: The collector, `http://host:port` or `https://host:port`.
        service: The name of this service.
        instance: The name of this process among the service's instances.

    Raises:
        CountinghouseError: TRACING_SETTINGS: the SDK does not take one of its variables.
    """
    for name in _TELL_HEADERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ours = {
        "service.namespace": "countinghouse",
        "service.name": f"countinghouse-{service}",
        "service.instance.id": instance,
    }
    try:
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, channel_options=_CHANNEL_OPTIONS)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:  # the SDK has no type of its own for a variable that it does not take
        raise CountinghouseError(
            "TRACING_SETTINGS", f"tracing cannot begin: {error}; correct the variables OTEL_…, or unset them"
        ) from error
    return OpenTelemetryTracer(provider, exporter)


def _context_in(found: Mapping[str, Sequence[str]]) -> Context:
    """Return the context that some headers name; an empty one if they name none, or several."""
    if len(found.get(_TRACEPARENT, ())) != 1:
        return Context()
    return _PROPAGATOR.extract(found, Context())


def _traceparent(item: Span | None) -> str:
    return "" if item is None else dict(item.metadata()).get(_TRACEPARENT, "")
