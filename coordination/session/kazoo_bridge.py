"""The bridge from kazoo's client and its threads to the event loop, for one session.

    kazoo's I/O thread ──▶ CallbackQueue ──▶ loop: on_state, on_event
    loop ──hand_over──▶ PipelinedConnection ──▶ ZooKeeper

Invariants
1. kazoo's threads call nothing of a session directly: state changes, events and replies reach it on the loop, in the
   order in which they came.
2. A client that ended by itself (authentication failed, or the server is no ZooKeeper) is replaced by a new one. Where
   none can be made, it is tried again.
3. Nothing of a client that was replaced, or of a bridge that was closed, changes the session's state.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial

from kazoo.client import KazooClient
from kazoo.protocol.states import KazooState

from coordination.session.in_flight import CallbackQueue, PendingReply
from coordination.session.liveness import AcknowledgedConnection, Backoff, SessionValidity
from coordination.session.pipeline import PollingHandler
from coordination.session.requests import Request
from coordination.session.security import Security
from coordination.session.watches import OnEvent

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.05
MAX_RETRY_S = 0.7  # kazoo adds up to 40 % jitter: about a second
REBUILD_AFTER_S = 1.0

#: Called on the loop with a `KazooState` and, if that is CONNECTED, the session's id.
OnState = Callable[[str, int], object]


class KazooBridge:
    """One kazoo client at a time. Must be made on the loop.

    Args:
        hosts: as kazoo takes them.
        timeout_s: session timeout to ask for, seconds.
        name: shown in log lines.
        security: how ZooKeeper is known, and as whom the session comes.
        on_state: called at every change of kazoo's state.
        on_event: called at every watch event, with the path below the chroot.

    Attributes:
        client: kazoo's client.
        connection: its connection.
        callbacks: what kazoo's threads have for the loop.
    """

    client: KazooClient
    connection: AcknowledgedConnection

    def __init__(
        self,
        hosts: str,
        timeout_s: float,
        name: str,
        *,
        security: Security,
        on_state: OnState,
        on_event: OnEvent,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._name = name
        self._security = security
        self._on_state = on_state
        self._on_event = on_event
        self._closed = False
        self.callbacks = CallbackQueue(self._loop, name)
        self._build()

    @property
    def chroot(self) -> str:
        """The node under which all paths lie; "" for the root."""
        return str(self.client.chroot)

    @property
    def last_zxid(self) -> int:
        """The newest zxid that the client has received from ZooKeeper; 0: none."""
        return int(self.client.last_zxid)

    @property
    def validity(self) -> SessionValidity | None:
        """Until when the session is surely alive; None: there is none."""
        return self.connection.validity

    def hand_over(self, batch: Iterable[tuple[Request, PendingReply]]) -> None:
        """Queue requests for ZooKeeper."""
        self.connection.hand_over(batch)

    async def close(self, *, polite: bool, timeout_s: float) -> None:
        """Stop the client.

        Args:
            polite: wait up to `timeout_s` for ZooKeeper to end the session.
        """
        self._closed = True
        stopped = self._stop_in_background(self.client)
        if polite:
            await asyncio.wait({stopped}, timeout=timeout_s)
        if not stopped.done():
            self.connection.abort()
            await asyncio.wait({stopped}, timeout=0.05 if polite else timeout_s)

    def _build(self) -> None:
        client = KazooClient(
            hosts=self._hosts,
            timeout=self._timeout_s,
            handler=PollingHandler(self._security),
            auth_data=[("digest", self._security.user())] if self._security.user else None,
            logger=logging.getLogger("coordination.kazoo"),
        )
        connection = AcknowledgedConnection(
            client,
            Backoff(max_tries=-1, delay=FIRST_RETRY_S, max_delay=MAX_RETRY_S, interrupt=client._stopped.is_set),
            partial(self.callbacks.put, self._dispatch_event, client),
            self.callbacks.wake,
            partial(self.callbacks.post, self._on_client_end, client),
        )
        client._connection = connection
        client.add_listener(partial(self._on_kazoo_state, client))
        client.start_async()
        self.client, self.connection = client, connection

    def _on_kazoo_state(self, client: KazooClient, state: str) -> None:
        """Pass a state on to the loop. Runs on kazoo's I/O thread, where the session's id belongs to the state."""
        session_id = client.client_id[0] if state == KazooState.CONNECTED else 0
        self.callbacks.post(self._dispatch_state, client, state, session_id)

    def _dispatch_state(self, client: KazooClient, state: str, session_id: int) -> None:
        if client is self.client and not self._closed:
            self._on_state(state, session_id)

    def _dispatch_event(self, client: KazooClient, kind: int, path: str) -> None:
        self._on_event(kind, client.unchroot(path))

    def _on_client_end(self, client: KazooClient) -> None:
        if client is self.client and not self._closed:
            log.error("%s: the ZooKeeper client gave up; building another in %s s", self._name, REBUILD_AFTER_S)
            self._on_state(KazooState.LOST, 0)
            self._loop.call_later(REBUILD_AFTER_S, self._rebuild, client)

    def _rebuild(self, client: KazooClient) -> None:
        if client is not self.client or self._closed:
            return
        try:
            self._build()
        except Exception as error:  # as when the user's file cannot be read for a moment
            log.error("%s: no ZooKeeper client can be built (%s); trying again", self._name, error)
            self._loop.call_later(REBUILD_AFTER_S, self._rebuild, client)
        else:
            self._stop_in_background(client)

    def _stop_in_background(self, client: KazooClient) -> asyncio.Future[None]:
        """Stop a client on a daemon thread: kazoo's stop() blocks, and an executor would hold up exit."""
        stopped: asyncio.Future[None] = self._loop.create_future()

        def stop() -> None:
            try:
                client.stop()
                client.close()
            except Exception as error:
                log.warning("%s: closing the ZooKeeper client: %r", self._name, error)
            self.callbacks.post(stopped.set_result, None)

        threading.Thread(target=stop, name=f"{self._name}-stop", daemon=True).start()
        return stopped
