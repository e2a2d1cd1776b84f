"""Deletion of lock nodes in the background, until each is gone or its session is.

    delete ──posted──▶ ZooKeeper ──done, or not there──▶ gone
       ▲                  │ the connection dropped, or ZooKeeper refused
       │                  ▼
       └── same session ─ left over ── another session, or none ──▶ gone, with its session

Invariants
1. Only `drained` waits: a caller that gives a node up goes on at once, also while ZooKeeper is frozen.
2. A node is forgotten only when ZooKeeper answered that it is gone, or its session is: on any other answer (throttled,
   not authorised) the delete is retried.
3. Nodes given up together are deleted in one transaction, and one by one if one of them had gone already.
4. The nodes of a create whose reply was lost are looked for by their nonce, in any session, until surely none is left.

Which function makes each move
    delete       any -> posted                     _answered   posted -> gone, or left over
    _retry_left_over       left over -> posted, or gone      _sweep      perhaps made -> posted, or surely not there
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kazoo.exceptions import NoNodeError

from coordination.deadline import Deadline
from coordination.errors import Refused, Unavailable, WrongProcess
from coordination.locks.lock_node import made_by
from coordination.metrics import Metrics
from coordination.session import requests
from coordination.session.in_flight import Reply
from coordination.session.session import Session, SessionState

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0  # between attempts to delete, on a connection that stays
REFUSED_PAUSE_S = 0.5  # between listings, if ZooKeeper refuses one
LOOK_TIMEOUT_S = 2.0  # one listing of a sweep; it is repeated until it was answered
#: When to look for a node whose create was never answered. ZooKeeper closes a session's old connection before it opens
#: the new one, so the first look should settle it; the others are for a request that was already being read at that
#: moment.
SWEEP_PAUSES_S = (0.0, 0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of ours, made together, and the session they live and die with."""

    paths: tuple[str, ...]
    session_id: int


class Removal:
    """Removes the lock nodes of one session's `ResourceLocks`."""

    def __init__(self, session: Session, metrics: Metrics) -> None:
        self._session = session
        self._metrics = metrics
        self._left_over: list[Nodes] = []
        self._pause_s = FIRST_PAUSE_S
        self._sweeps: set[asyncio.Task[None]] = set()
        self._under_way = 0  # sweeps and sets of nodes
        self._idle: asyncio.Event | None = None  # while a caller waits in `drained`
        session.subscribe(lambda _: self._retry_left_over())

    def delete(self, nodes: Nodes) -> None:
        """Delete nodes of ours."""
        self._begun()
        self._post(nodes)

    def sweep(self, shards: Sequence[str], nonce: str) -> None:
        """Find and delete the nodes of a create whose reply was lost, or make sure that there are none."""
        self._begun()
        task = asyncio.get_running_loop().create_task(self._sweep(shards, nonce))
        self._sweeps.add(task)
        task.add_done_callback(self._swept)

    async def drained(self, deadline: Deadline) -> bool:
        """Wait until nothing is under way; False if that took longer."""
        while self._under_way and not deadline.expired():
            self._idle = self._idle or asyncio.Event()
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await self._idle.wait()
            except TimeoutError:
                break
        return not self._under_way

    def _begun(self) -> None:
        self._under_way += 1
        self._metrics.lock_nodes_to_delete.set(self._under_way)

    def _gone(self) -> None:
        self._under_way -= 1
        self._metrics.lock_nodes_to_delete.set(self._under_way)
        if not self._under_way and self._idle is not None:
            self._idle.set()
            self._idle = None

    # ---- deleting ------------------------------------------------------------------------------------

    def _post(self, nodes: Nodes) -> None:
        if self._session.session_id != nodes.session_id or self._session.state is SessionState.CLOSED:
            self._gone()
            return
        if len(nodes.paths) == 1:
            reply = self._session.post(requests.delete(nodes.paths[0]))
        else:
            reply = self._session.post(requests.transaction([requests.Delete(path) for path in nodes.paths]))
        if reply is None:
            self._left_over.append(nodes)
        else:
            reply.add_done_callback(partial(self._answered, nodes))

    def _answered(self, nodes: Nodes, reply: Reply) -> None:
        error = reply.exception()
        refused = isinstance(reply.result(), list) and requests.refusal(reply.result()) if error is None else None
        if error is None and not refused:
            self._pause_s = FIRST_PAUSE_S
            self._gone()
        elif isinstance(error, NoNodeError) or self._session.state is SessionState.CLOSED:
            self._gone()  # with its session, at the latest
        elif refused:
            self._under_way += len(nodes.paths) - 1
            for path in nodes.paths:
                self._post(Nodes((path,), nodes.session_id))
        else:
            self._try_later(nodes, error)

    def _try_later(self, nodes: Nodes, error: BaseException | None) -> None:
        """Keep nodes that could not be deleted: one attempt a pause, which doubles while it is refused."""
        if not self._left_over:
            log.warning("lock nodes could not be deleted, trying again in %.1f s: %r", self._pause_s, error)
            asyncio.get_running_loop().call_later(self._pause_s, self._retry_left_over)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._left_over.append(nodes)

    def _retry_left_over(self) -> None:
        left_over, self._left_over = self._left_over, []
        for nodes in left_over:
            self._post(nodes)

    # ---- sweeping ------------------------------------------------------------------------------------

    async def _sweep(self, shards: Sequence[str], nonce: str) -> None:
        for pause_s in SWEEP_PAUSES_S:
            await asyncio.sleep(pause_s)
            found = await self._look(shards, nonce)
            if found and (session_id := self._session.session_id) is not None:
                self.delete(Nodes(tuple(found), session_id))
                return

    def _swept(self, task: asyncio.Task[None]) -> None:
        self._sweeps.discard(task)
        self._gone()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a lock node could not be looked for", exc_info=error)

    async def _look(self, shards: Sequence[str], nonce: str) -> list[str]:
        while self._session.state is not SessionState.CLOSED:
            try:
                await self._session.wait_connected(None)
                listings = await sync_and_list(self._session, shards, Deadline.after(LOOK_TIMEOUT_S))
            except WrongProcess:
                break
            except Unavailable as error:
                if isinstance(error, Refused):
                    await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            return list(made_by(nonce, listings).values())
        return []


async def sync_and_list(session: Session, shards: Sequence[str], deadline: Deadline) -> dict[str, list[str]]:
    """Return the names in each shard, up to date with the leader; none if there is no such shard.

    Raises:
        Unavailable: ZooKeeper is away, or did not answer by the deadline.
    """
    synced, listing = await session.send(requests.sync(shards[0]), requests.get_children_of(shards), deadline=deadline)
    await session.receive(synced, deadline)
    try:
        return requests.names_of(shards, await session.receive(listing, deadline))
    except NoNodeError:  # there is but one, and it is not there
        return {shards[0]: []}
