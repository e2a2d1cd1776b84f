"""kazoo's connection loop, changed to send all queued requests in one write and to read all replies in one read.

    loop ──hand_over──▶ queue ──one write──▶ ZooKeeper ──one read──▶ frames ──settle──▶ Session ──one wake-up──▶ loop

kazoo sends one request a turn of its loop and reads each reply in two pieces, with a fresh epoll object before every
step: some 15 system calls for a request and its reply. Here a turn takes all there is.

Invariants
1. Requests of one `hand_over` leave in order and in one write, as far as the socket takes them.
2. A request leaves the queue before its first byte is written, so it fails with the connection and is never sent
   twice. One whose reply was given up meanwhile, because an earlier connection dropped, is not sent at all.
3. At most one byte lies in kazoo's wake-up socket pair for all requests that are queued: handing over never blocks.
4. `on_batch` is called after replies and events have been given out, once for all that came together.

Which function makes each move
    hand_over      loop -> queue                  _read_socket       ZooKeeper -> frames -> kazoo's _read_response
    _send_request  queue -> ZooKeeper             _read_watch_event  an event -> on_event

All but `hand_over` runs on kazoo's I/O thread.
"""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kazoo.exceptions import EXCEPTIONS, ConnectionDropped, SystemZookeeperError
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import CLOSE_RESPONSE, ConnectionHandler
from kazoo.protocol.serialization import Watch, int_int_struct, int_struct

from coordination.session.in_flight import PendingReply
from coordination.session.requests import Request
from coordination.session.security import Security

_READ_BYTES = 65536
_LEAST_S = 0.001  # 0 would make a socket that does not wait
_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class PollingHandler(SequentialThreadingHandler):  # type: ignore[misc]  # kazoo has no types
    """kazoo's threads, waiting with poll(2): kazoo makes, fills and closes an epoll object for every wait.

    Args:
        security: whether connections are secured, and by what.

    Attributes:
        connect_timeout_s: how long the next TCP connect may take at the most; kazoo allows the whole session timeout.
    """

    connect_timeout_s = float("inf")

    def __init__(self, security: Security) -> None:
        super().__init__()
        self._security = security

    def create_connection(self, *, timeout: float, **options: Any) -> Any:
        """Connect as kazoo does, within `connect_timeout_s`, the handshake of TLS included.

        kazoo's own TLS does without this limit, and demands the name under which the server was dialled.
        """
        timeout = min(timeout, self.connect_timeout_s)
        until_s = time.monotonic() + timeout
        connected = super().create_connection(timeout=timeout, **options)
        if self._security.context is None:
            return connected
        try:
            connected.settimeout(max(until_s - time.monotonic(), _LEAST_S))
            return self._security.context().wrap_socket(connected, server_hostname=self._security.server_name)
        except BaseException:
            connected.close()
            raise

    def select(
        self, rlist: Sequence[Any], wlist: Sequence[Any], _xlist: Sequence[Any], timeout: float | None = None
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Wait as select(2) does; a socket in error counts as ready, so that using it tells the error.

        So does one of TLS with bytes that were decrypted and not yet read: poll(2) does not know of them.
        """
        if decrypted := [sock for sock in rlist if isinstance(sock, ssl.SSLSocket) and sock.pending()]:
            return decrypted, [], []
        poll = select.poll()
        for sock in rlist:
            poll.register(sock, select.POLLIN)
        for sock in wlist:
            poll.register(sock, select.POLLOUT)
        ready = {number for number, _ in poll.poll(None if timeout is None else timeout * 1000)}
        return [sock for sock in rlist if sock.fileno() in ready], [s for s in wlist if s.fileno() in ready], []


class PipelinedConnection(ConnectionHandler):  # type: ignore[misc]
    """See the module's header.

    Args:
        on_event: called with (ZooKeeper's number of the event, path with the chroot).
        on_batch: called when replies or events have been given out.
    """

    def __init__(
        self,
        client: Any,
        retry_sleeper: Any,
        logger: Any,
        on_event: Callable[[int, str], None],
        on_batch: Callable[[], None],
    ) -> None:
        super().__init__(client, retry_sleeper, logger=logger)
        self._on_event = on_event
        self._on_batch = on_batch
        self._awake = False  # a byte lies in the socket pair
        self._xid = 0
        self._connecting = False
        self._came = bytearray()
        self._taken = 0  # of `_came`

    def hand_over(self, requests: Iterable[tuple[Request, PendingReply]]) -> None:
        """Queue requests and wake the I/O thread. Any thread."""
        self.client._queue.extend(requests)
        if not self._awake:
            self._awake = True
            with contextlib.suppress(OSError, AttributeError):  # closing: the session fails what is queued
                self._write_sock.send(b"\0")

    # ---- sending -------------------------------------------------------------------------------------

    def _send_request(self, _read_timeout: float, connect_timeout: float) -> None:
        self._read_sock.recv(_READ_BYTES)
        self._awake = False
        packet = bytearray()
        xid = self._xid
        queue, pending = self.client._queue, self.client._pending
        while queue:
            request, answer = queue.popleft()
            if answer is not None and not answer.wanted():
                answer.set(None)
                self._on_batch()
                continue
            self._xid = xid = xid % 0x7FFFFFFF + 1
            body = request.serialize()
            packet += int_struct.pack(8 + len(body)) + int_int_struct.pack(xid, request.type) + body
            pending.append((request, answer, xid))
            self._sending(xid)
        if packet:
            self._write(packet, connect_timeout)

    def _sending(self, xid: int) -> None:
        """Note that a request is about to be written."""

    def _write(self, packet: bytes | bytearray, timeout: float) -> None:
        rest = memoryview(packet)
        with self._socket_error_handling():
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except _AGAIN:
                    if not self.handler.select([], [self._socket], [], timeout)[1]:
                        raise self.handler.timeout_exception("the socket takes nothing") from None

    # ---- reading -------------------------------------------------------------------------------------

    def _connect(self, *address: Any) -> Any:
        self._came.clear()
        self._taken = 0
        self._connecting = True  # what follows the handshake is left in the socket, for kazoo's loop to see
        connected = super()._connect(*address)
        self._connecting = False
        return connected

    def _read_socket(self, read_timeout: float) -> Any:
        try:
            while True:
                response = super()._read_socket(read_timeout)
                if response == CLOSE_RESPONSE or not self._has_frame():
                    return response
        finally:
            self._on_batch()

    def _has_frame(self) -> bool:
        left = len(self._came) - self._taken
        return left >= 4 and left - 4 >= int.from_bytes(self._came[self._taken : self._taken + 4], "big")

    def _read(self, length: int, timeout: float) -> bytes:
        while (missing := length - (len(self._came) - self._taken)) > 0:
            self._fill_buffer(missing if self._connecting else _READ_BYTES, timeout)
        end = self._taken + length
        found = bytes(self._came[self._taken : end])
        self._taken = end
        return found

    def _fill_buffer(self, size: int, timeout: float) -> None:
        del self._came[: self._taken]
        self._taken = 0
        with self._socket_error_handling():
            while True:
                try:
                    chunk = self._socket.recv(size)
                except _AGAIN:
                    if not self.handler.select([self._socket], [], [], timeout)[0]:
                        raise self.handler.timeout_exception("nothing came") from None
                    continue
                if not chunk:
                    raise ConnectionDropped("ZooKeeper closed the connection")
                self._came += chunk
                return

    def _read_response(self, header: Any, buffer: bytes, offset: int) -> Any:
        if header.err and header.err not in EXCEPTIONS:  # kazoo would close the shared connection because of one answer
            header = header._replace(err=SystemZookeeperError.code)
        return super()._read_response(header, buffer, offset)

    def _read_watch_event(self, buffer: bytes, offset: int) -> None:
        event, _ = Watch.deserialize(buffer, offset)
        self._on_event(event.type, event.path)
