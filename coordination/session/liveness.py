"""kazoo's connection loop, extended to know until when the session is surely alive, from what ZooKeeper acknowledged.

Invariants
1. `validity.until` never exceeds (send time of an acknowledged packet) + negotiated timeout − margin.
   ZooKeeper counts a session's time from *receiving* a packet, which is after sending it, so the session
   lives at least so long.
2. A packet's send time is taken before its first byte is written; with two pings out, the earlier counts.
3. `validity` always names the session it is about; a new session starts with its own.
4. `on_end` is called once when the loop ends, whatever ended it.
5. A server that does not answer a connect costs its share of the time in which the session surely lives, so that the
   others can still be asked; the one whose connection has just dropped is asked last.
6. The pause between connects grows until a request was answered: a handshake alone does not count.

Which function makes each move
    _connect       bounds the connect and the handshake of one server
    _invoke        handshake answered: a validity for the (old or new) session; refused: none
    _hung_up_on    hung up on again and again: no validity, and the session is given up
    _submit, _sending  note a packet's send time
    _read_header   a reply is here: the validity is renewed from that packet's send time
    _send_request  drops a connection that takes requests and answers none
    abort          wakes the loop so that closing need not wait for a silent server

Everything but `abort` runs on kazoo's I/O thread; `validity` is one reference, so other threads read it whole.

What it cannot know: in an ensemble a follower cut off from its leader goes on answering pings and reads for
up to syncLimit ticks while the leader may already count the session as expired. That is why holders also
carry a fence.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import ConnectionDropped, SessionExpiredError
from kazoo.protocol.connection import AUTH_XID
from kazoo.protocol.serialization import Auth, Connect
from kazoo.retry import KazooRetry

from coordination.session.pipeline import PipelinedConnection

log = logging.getLogger(__name__)


def _without_password(record: logging.LogRecord) -> bool:
    """Return whether kazoo may log a record; of the requests that it logs at DEBUG one has the user's password."""
    return not (isinstance(record.args, tuple) and any(isinstance(argument, Auth) for argument in record.args))


log.addFilter(_without_password)  # kazoo's connection logs with it

#: Part of the timeout not counted on: for clocks of unequal speed, and the step from checking to acting.
MARGIN_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class SessionValidity:
    """Until `until` (monotonic seconds), session `session_id` has surely not expired."""

    session_id: int
    timeout_s: float
    until: float

    def renewed(self, sent_at: float) -> SessionValidity:
        """Return the validity after a packet sent at `sent_at` was acknowledged; never shorter than before."""
        until = sent_at + self.timeout_s * (1 - MARGIN_FRACTION)
        return SessionValidity(self.session_id, self.timeout_s, max(until, self.until))


#: So often may each server hang up on the handshake before the session is given up.
MAX_HANG_UPS = 3

#: Part of a server's even share of the timeout that it gets at the least, however little of the session is left.
MIN_SHARE_FRACTION = 0.25


class Backoff(KazooRetry):  # type: ignore[misc]  # kazoo has no types
    """kazoo's growing pause between connects, which ends only when a server has answered a request.

    kazoo starts it anew after every handshake. A server that hangs up after the handshake would then be connected to
    without a pause.
    """

    def reset(self) -> None:
        """Do nothing: see `answered`."""

    def answered(self) -> None:
        """Start again with the shortest pause."""
        super().reset()

    def copy(self) -> Backoff:
        """Return one like this that has not paused yet."""
        other = copy(self)
        other.answered()
        return other


class AcknowledgedConnection(PipelinedConnection):
    """See the module's header.

    Args:
        on_event, on_gulp: as `PipelinedConnection` has them.
        on_end: called once, when the loop has ended.
    """

    def __init__(
        self,
        client: Any,
        retry_sleeper: Any,
        on_event: Callable[[int, str], None],
        on_batch: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(client, retry_sleeper, log, on_event, on_batch)
        self.validity: SessionValidity | None = None
        self._on_end = on_end
        self._aborted = False
        self._hang_ups = 0  # in the handshake, one after the other
        self._backoff: Backoff | None = None
        self._address: tuple[str, int] | None = None
        self._servers = 1
        self._share_s = 0.0  # of the server that is being connected to
        self._sent_at: dict[int, float] = {}  # xid -> send time, oldest first

    def zk_loop(self) -> None:
        try:
            super().zk_loop()
        except Exception:
            log.exception("kazoo's connection loop ended unexpectedly")
        finally:
            self._on_end()

    def abort(self) -> None:
        """Make the loop notice at once that the client's stop was requested. Any thread."""
        self._aborted = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _expand_client_hosts(self) -> list[tuple[str, str, int]]:
        found: list[tuple[str, str, int]] = super()._expand_client_hosts()
        self._servers = max(1, len(found))
        return sorted(found, key=lambda server: server[1:] == self._address)

    def _connect_attempt(self, host: str, address: str, port: int, retry: Backoff) -> Any:
        self._backoff = retry
        self._address = address, port
        return super()._connect_attempt(host, address, port, retry)

    def _connect(self, *server: Any) -> Any:
        self._share_s = self._share()
        self.handler.connect_timeout_s = self._share_s
        return super()._connect(*server)

    def _share(self) -> float:
        """Return the seconds that one server may take for the connect, and again for the handshake."""
        even_s = float(self.client._session_timeout) / 1000.0 / self._servers
        left_s = self.validity.until - time.monotonic() if self.validity is not None else 0.0
        return even_s if left_s <= 0 else max(left_s / self._servers, even_s * MIN_SHARE_FRACTION)

    def _invoke(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        if self._aborted:
            raise ConnectionDropped("closing")
        if not isinstance(request, Connect):
            return super()._invoke(timeout, request, xid)
        self._sent_at.clear()
        sent_at = time.monotonic()
        try:
            answer = super()._invoke(min(timeout, self._share_s), request, xid)
        except ConnectionDropped:
            self._hung_up_on()
            raise
        self._hang_ups = 0
        granted = answer[0]
        if granted.time_out > 0:
            nothing_yet = SessionValidity(granted.session_id, granted.time_out / 1000.0, float("-inf"))
            self.validity = nothing_yet.renewed(sent_at)
        else:
            self.validity = None
        return answer

    def _hung_up_on(self) -> None:
        """Give the session up once every server hangs up on its handshake, and it cannot be relied on any more.

        That is how ZooKeeper refuses a client that has seen a newer zxid than it has itself: one that lost its data,
        or is an older backup, would refuse it for ever. kazoo forgets the zxid with the session.

        Raises:
            SessionExpiredError: it is given up.
        """
        self._hang_ups += 1
        over = self.validity is None or time.monotonic() > self.validity.until
        if self.client.last_zxid > 0 and over and self._hang_ups >= MAX_HANG_UPS * self._servers:
            log.warning("ZooKeeper hangs up on our session, as if it had lost its data; asking for a new one")
            self._hang_ups = 0
            self.validity = None
            raise SessionExpiredError("hung up on")

    def _submit(self, request: Any, timeout: float, xid: int | None = None) -> None:
        if xid and xid != AUTH_XID:  # ZooKeeper answers it without counting it as a sign of life
            self._sent_at.setdefault(xid, time.monotonic())
        super()._submit(request, timeout, xid)

    def _sending(self, xid: int) -> None:
        self._sent_at[xid] = time.monotonic()

    def _read_header(self, timeout: float) -> Any:
        header, buffer, offset = super()._read_header(timeout)
        sent_at = self._sent_at.pop(header.xid, None)
        if sent_at is not None and self._backoff is not None:
            self._backoff.answered()
        if sent_at is not None and self.validity is not None:
            self.validity = self.validity.renewed(sent_at)
        return header, buffer, offset

    def _send_request(self, read_timeout: float, connect_timeout: float) -> None:
        # kazoo looks for an overdue ping only when a select times out, which never happens while requests
        # keep coming: under load it would stay on a frozen server for as long as TCP takes to notice.
        oldest = next(iter(self._sent_at.values()), None)
        if oldest is not None and time.monotonic() - oldest > read_timeout:
            raise ConnectionDropped(f"no reply for {read_timeout:.1f} s")
        super()._send_request(read_timeout, connect_timeout)
