"""Traces: which steps a call took, in which process, and how long each step was.

    HTTP ──▶ gateway ──▶ payment ──▶ order, ledger, acquirer        one trace, of which each process makes its spans
                            ├─▶ lock (ZooKeeper)
                            └─▶ commit ──▶ SQL

Rules
1. Off, unless a tracer is in use (`trace_export.py`). Then no span is made and no header is read: every function here
   returns at its first line.
2. A trace begins with a call that comes in (`http_request`, `served`) and with a recovery (`root`). Any other span is a
   child. Without a parent none is made, so that health checks and polls leave no traces.
3. A task that works for several callers has the context of its owner, and none of theirs. `batch` makes its span: a
   child of the first item's span, with a link to the span of each item.
4. A span has methods, codes, reasons, and ids of orders and payments. It has no token, ticket, card, name, amount or
   statement, and no text of an error.

Nothing here imports OpenTelemetry: `opentelemetry_tracer.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from enum import Enum
from types import TracebackType
from typing import Any, Final, Protocol, Self

from services.kernel.errors import CountinghouseError

Value = str | int | float | bool
#: Headers of HTTP, or metadata of gRPC.
Headers = Iterable[tuple[str, Any]]
Metadata = tuple[tuple[str, str], ...]

#: Before the names of our own attributes.
_OWN: Final = "countinghouse."


class Kind(Enum):
    """What a span is to the one on the other side: a call that is served, a call that is made, or neither."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"


class Span:
    """One step. `with` makes it the current one and ends it; an exception is its outcome.

    This class does nothing: it stands for the span that is not made.
    """

    __slots__ = ()

    @property
    def recording(self) -> bool:
        """Whether it is sent, so that its children are worth making."""
        return False

    @property
    def trace_id(self) -> str:
        """The id of its trace, 32 hexadecimal digits; empty: it has none."""
        return ""

    @property
    def span_id(self) -> str:
        """Its id, 16 hexadecimal digits; empty: it has none."""
        return ""

    def set(self, **attributes: Value) -> None:
        """Set attributes of our own."""

    def event(self, name: str, **attributes: Value) -> None:
        """Note that something happened now, with attributes of our own."""

    def answered(self, code: str, reason: str = "") -> None:
        """Set the status that ended it: of gRPC by its name, of HTTP by its number.

        Args:
            reason: Why it was refused; empty: it was not.
        """

    def metadata(self) -> Metadata:
        """Return what continues its trace in another process."""
        return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class CurrentSpan(Span):
    """The base of spans that are made: inside `with` it is the current one."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: Token[Span | None] | None = None

    def end(self, reason: str) -> None:
        """End it.

        Args:
            reason: Of the exception that ended it; empty: there was none.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(self._token)
        self.end("" if error is None else _reason_of(error))


class _Continued(Span):
    """A span that is the current one inside `with`, and goes on after it."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> Self:
        self._token = _current.set(self._span)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(self._token)


class Traced(Protocol):
    """An item of a batch.

    Attributes:
        span: What `current` returned where the item came from.
    """

    span: Span | None


class Tracer(Protocol):
    """What makes spans."""

    def begin(self, name: str, kind: Kind, parent: Span | None, attributes: Mapping[str, Value]) -> Span:
        """Return a new span; without a parent that of a new trace."""
        ...

    def continue_from(self, name: str, kind: Kind, headers: Headers, attributes: Mapping[str, Value]) -> Span:
        """Return a new span of the trace that some headers name; if they name none, that of a new trace."""
        ...

    def begin_batch(self, name: str, items: Sequence[Span | None], attributes: Mapping[str, Value]) -> Span:
        """Return the span of a batch, a child of the first item that is recorded. At least one is."""
        ...

    def begin_item(self, name: str, batch: Span, place: int, size: int, attributes: Mapping[str, Value]) -> Span:
        """Return the span of one request of a batch that is served.

        Args:
            batch: The span of the call that brought the batch.
            place: The place of the request in the batch, from 0.
            size: How many requests the batch has.
        """
        ...


NO_SPAN: Final = Span()

_tracer: Tracer | None = None
_current: ContextVar[Span | None] = ContextVar("countinghouse_span", default=None)


def use(tracer: Tracer | None) -> None:
    """Make spans by a tracer from now on; None: make none. One a process, as its log is."""
    global _tracer  # noqa: PLW0603
    _tracer = tracer


# Where a trace begins


def served(method: str, metadata: Callable[[], Headers | None]) -> Span:
    """Return the span of a call that a gRPC server serves.

    Args:
        method: `/package.Service/Method`.
        metadata: Returns what the caller sent.
    """
    if _tracer is None:
        return NO_SPAN
    return _tracer.continue_from(_rpc_name(method), Kind.SERVER, metadata() or (), _rpc(method))


def http_request(verb: str, route: str, headers: Callable[[], Headers]) -> Span:
    """Return the span of a request of HTTP.

    Args:
        route: The path with the names of its variables. Their values are not for a trace: a ticket may be among them.
        headers: Returns those of the request.
    """
    if _tracer is None:
        return NO_SPAN
    attributes = {"http.request.method": verb, "http.route": route}
    return _tracer.continue_from(f"{verb} {route}", Kind.SERVER, headers(), attributes)


def root(name: str, **attributes: Value) -> Span:
    """Return the first span of a new trace, of work that no call asks for."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.begin(name, Kind.INTERNAL, None, own(attributes))


# Spans inside a trace


def span(name: str, kind: Kind = Kind.INTERNAL, **attributes: Value) -> Span:
    """Return a span below the current one."""
    if _tracer is None:
        return NO_SPAN
    parent = _current.get()
    if parent is None or not parent.recording:
        return NO_SPAN
    return _tracer.begin(name, kind, parent, own(attributes))


def called(method: str | Callable[..., Any]) -> Span:
    """Return the span of a call of gRPC that this process makes.

    Args:
        method: `/package.Service/Method`, or the stub's method of a `DiscoveredChannel`.
    """
    if _tracer is None:
        return NO_SPAN
    parent = _current.get()
    if parent is None or not parent.recording:
        return NO_SPAN
    name = method if isinstance(method, str) else str(getattr(method, "method", ""))
    return _tracer.begin(_rpc_name(name), Kind.CLIENT, parent, _rpc(name))


def sql(operation: str, system: str) -> Span:
    """Return the span of a transaction.

    Args:
        operation: Like `write`.
        system: `sqlite` or `postgresql`.
    """
    if _tracer is None:
        return NO_SPAN
    parent = _current.get()
    if parent is None or not parent.recording:
        return NO_SPAN
    return _tracer.begin(f"SQL {operation}", Kind.CLIENT, parent, {"db.system.name": system})


def batch(name: str, items: Sequence[Traced]) -> Span:
    """Return the span of work for several callers.

    For a single caller it is that caller's span, which goes on afterwards.
    """
    if _tracer is None:
        return NO_SPAN
    every = [each.span for each in items]
    known = list(dict.fromkeys(item for item in every if item is not None))
    if not known:
        return NO_SPAN
    if len(known) == 1 or not any(item.recording for item in known):
        return _Continued(known[0])
    return _tracer.begin_batch(name, every, {f"{_OWN}batch.size": len(every)})


def item(method: str, request: Any, place: int, size: int) -> Span:
    """Return the span of one request of a batch that this process serves.

    Its trace is the one of the item's caller, if the call that brought the batch names that; else the call's own.

    Args:
        method: Of the batch, `/package.Service/ClaimOrders`.
        request: A message of it; `ClaimOrderRequest` is a request of the method ClaimOrder.
        place: The place of the request in the batch, from 0.
        size: How many requests the batch has.
    """
    if _tracer is None or (served_batch := _current.get()) is None:
        return NO_SPAN
    one = f"{method.rpartition('/')[0]}/{request.DESCRIPTOR.name.removesuffix('Request')}"
    return _tracer.begin_item(_rpc_name(one), served_batch, place, size, _rpc(one))


# The current span


def current() -> Span | None:
    """Return the current span, for `batch`; None: there is none."""
    return None if _tracer is None else _current.get()


def annotate(**attributes: Value) -> None:
    """Set attributes of our own on the current span."""
    if _tracer is not None and (present := _current.get()) is not None:
        present.set(**attributes)


def event(name: str, **attributes: Value) -> None:
    """Note in the current span that something happened now."""
    if _tracer is not None and (present := _current.get()) is not None:
        present.event(name, **attributes)


def answered(code: str, reason: str = "") -> None:
    """Set the status of the current span. See `Span.answered`."""
    if _tracer is not None and (present := _current.get()) is not None:
        present.answered(code, reason)


def attempt_observer() -> Callable[[str, str], None] | None:
    """Return what notes each attempt of a call in its span, for a `DiscoveredChannel`; None: tracing is off."""
    return None if _tracer is None else _note_attempt


def outgoing() -> Metadata:
    """Return the metadata by which a call continues the current trace; empty: there is none."""
    if _tracer is None or (present := _current.get()) is None:
        return ()
    return present.metadata()


def ids() -> Mapping[str, str]:
    """Return `trace_id` and `span_id` of the current span, for a log line; empty: there is none."""
    if _tracer is None or (present := _current.get()) is None or not present.trace_id:
        return {}
    return {"trace_id": present.trace_id, "span_id": present.span_id}


def own(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """Return attributes of our own under their full names."""
    return {_OWN + name: value for name, value in attributes.items()}


def _note_attempt(endpoint: str, code: str) -> None:
    event("attempt", endpoint=endpoint, code=code)


def _rpc_name(method: str) -> str:
    return method.removeprefix("/")


def _rpc(method: str) -> dict[str, Value]:
    return {"rpc.system.name": "grpc", "rpc.method": _rpc_name(method)}


def _leave(token: Token[Span | None] | None) -> None:
    if token is None:
        return
    try:
        _current.reset(token)
    except ValueError:  # it is left in another task than it was entered in, whose current span is not ours to change
        return


def _reason_of(error: BaseException) -> str:
    """Return what may be told of an exception: the reason of one of ours, else its type."""
    return error.reason if isinstance(error, CountinghouseError) else type(error).__name__
