"""The metrics of a server, and the page from which Prometheus reads them.

Each process has one `CollectorRegistry`, made by `process_registry`. It has the metrics of coordination
(`coordination/metrics.py`), those of this module, and the resources of the process. Threads of its own serve the page,
so that it answers while the event loop is busy and costs the loop nothing.

Labels have few values each: methods, status codes, reasons. Never an order, a clerk or a payment, nor anything else
that a caller chooses.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import AbstractContextManager, suppress
from functools import partial
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import grpc
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

from coordination.metrics import CALL_SECONDS
from services.kernel.errors import STALE_FENCE, CountinghouseError

#: Readers at once; the next one is turned away. A Prometheus is one reader.
_READERS = 4
#: How long a reader may take to send a part of its request, or to receive a part of the page; and how long for all.
_READER_TIMEOUT_S = 5.0
_PAGE_TIMEOUT_S = 15.0
_CLOSE_POLL_S = 0.1
#: Why a caller is refused before its request is read: all reasons of `runtime/grpc/interceptors.py`, `tokens.py` and
#: `access.py`.
REFUSAL_REASONS: Final = (
    "TOKEN_REQUIRED",
    "TOKEN_AMBIGUOUS",
    "TOKEN_INVALID",
    "TOKEN_EXPIRED",
    "TOKEN_REVOKED",
    "TOKEN_FOR_ANOTHER",
    "CERTIFICATE_REQUIRED",
    "CERTIFICATE_FOR_ANOTHER",
    "CERTIFICATE_REVOKED",
    "SERVICE_NOT_ALLOWED",
    "ROLE_NOT_ALLOWED",
)

log = structlog.get_logger()


def process_registry() -> CollectorRegistry:
    """Return a registry with the metrics of this process: memory, processor time, files, garbage collection, Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class CallMetrics:
    """The calls of our own services, as the server saw them. Of health and reflection, only refused ones are counted.

    Each call counts once, when it is answered; so the calls of a method, over all codes, are as many as its durations.
    One whose caller is refused counts once more, by the reason. A call of an unknown method is not counted, and a
    connection that ends in its TLS handshake is no call: gRPC tells the server nothing of it.

    Args:
        collected_by: The Prometheus registry to appear in; None: none, for tests.
    """

    def __init__(self, collected_by: CollectorRegistry | None = None) -> None:
        self._calls = Counter(
            "countinghouse_calls",
            "Calls answered, by method and gRPC status code.",
            ["method", "code"],
            registry=collected_by,
        )
        self._seconds = Histogram(
            "countinghouse_call_seconds",
            "From a call's arrival to its answer, by method.",
            ["method"],
            buckets=CALL_SECONDS,
            registry=collected_by,
        )
        self._in_flight = Gauge(
            "countinghouse_calls_in_flight", "Calls that have arrived and are not answered.", registry=collected_by
        )
        self._public_refusals = Counter(
            "countinghouse_public_refusals",
            "Calls of health and reflection refused, by method and gRPC status code.",
            ["method", "code"],
            registry=collected_by,
        )
        self._refusals = Counter(
            "countinghouse_identity_refusals",
            "Calls refused for who the caller is, before the request was read, by reason.",
            ["reason"],
            registry=collected_by,
        )
        self._undelegated = Counter(
            "countinghouse_undelegated_requests",
            "Requests of a service that named a person without a delegation of theirs that holds.",
            registry=collected_by,
        )
        self._replays = Counter(
            "countinghouse_replays",
            "Requests answered with the stored answer of an earlier one, by method.",
            ["method"],
            registry=collected_by,
        )
        self._fence_refusals = Counter(
            "countinghouse_fence_refusals",
            "Requests refused because another holder of the order's lock has written since, by method.",
            ["method"],
            registry=collected_by,
        )
        for reason in REFUSAL_REASONS:
            self._refusals.labels(reason)  # from 0: Prometheus sees no increase in a series that begins with 1

    def in_flight(self) -> AbstractContextManager[object]:
        """Return a context within which one more call is in flight."""
        return self._in_flight.track_inprogress()

    def refused(self, reason: str) -> None:
        """Count one call whose caller was refused.

        Args:
            reason: One of `REFUSAL_REASONS`.
        """
        self._refusals.labels(reason).inc()

    def undelegated(self) -> None:
        """Count one request that named a person without a delegation of theirs that holds."""
        self._undelegated.inc()

    def public_refused(self, method: str, code: grpc.StatusCode) -> None:
        """Count one call of health or reflection that was refused.

        Args:
            method: Its bare name.
        """
        self._public_refusals.labels(method, code.name).inc()

    def answered(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """Count one call.

        Args:
            method: Its bare name.
        """
        self._calls.labels(method, code.name).inc()
        self._seconds.labels(method).observe(seconds)

    def decided(self, method: str, reason: str, *, replayed: bool) -> None:
        """Count what became of one request: of a call, or of one in a batch.

        Args:
            method: The bare name of the call's.
            reason: Why it was refused; empty: it was not.
        """
        if replayed:
            self._replays.labels(method).inc()
        if reason == STALE_FENCE:
            self._fence_refusals.labels(method).inc()


class MetricsPage:
    """An HTTP server with the one page.

    Args:
        port: 0: a free one.

    Raises:
        CountinghouseError: METRICS_PORT_BUSY.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise CountinghouseError(
                "METRICS_PORT_BUSY",
                f"the metrics cannot be served on port {port} of {host}: {error.strerror}; choose another by "
                "COUNTINGHOUSE_METRICS_PORT and COUNTINGHOUSE_METRICS_HOST, or -1 for none",
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        serve = partial(self._server.serve_forever, poll_interval=_CLOSE_POLL_S)
        threading.Thread(target=serve, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    async def close(self) -> None:
        """Stop serving; a reader of this moment may be cut off."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each reader, and so many of them at most."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._turns = threading.BoundedSemaphore(_READERS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind as the base class does, without asking the network for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a reader its thread, or refuse it."""
        if not self._turns.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._turns.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one reader, in its thread, and hang up on one that takes too long."""
        hang_up = threading.Timer(_PAGE_TIMEOUT_S, _hang_up, (request,))
        hang_up.daemon = True
        hang_up.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            hang_up.cancel()
            self._turns.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  as the base class has it
        """Ignore a reader that hung up."""
        log.info("metrics were not read to the end", reader=client_address, exc_info=True)


def _hang_up(request: socket.socket) -> None:
    """End a connection whose thread may still read from it or write to it."""
    with suppress(OSError):  # it has ended by itself
        request.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    timeout = _READER_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: reading the metrics is no news."""
