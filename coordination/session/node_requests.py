"""The requests that read and write nodes, one await each; they build on what a session can send."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

from kazoo.exceptions import KazooException, NoAuthError, NodeExistsError, NoNodeError
from kazoo.protocol.states import ZnodeStat

from coordination.deadline import Deadline
from coordination.errors import Forbidden, Refused, Unavailable
from coordination.session import requests
from coordination.session.error_codes import outcome
from coordination.session.in_flight import Reply, done_by
from coordination.session.requests import Create, Operation
from coordination.session.watches import Watch, Watches

MAX_BATCH = 64
DEFAULT_TIMEOUT_S = 5.0


class NodeRequests(abc.ABC):
    """Requests with a timeout or a deadline.

    Each raises Unavailable when ZooKeeper is away or does not answer within `timeout_s` (seconds), and kazoo's
    NoNodeError, NodeExistsError, BadVersionError or NotEmptyError when that is ZooKeeper's answer.

    Attributes:
        watches: the callbacks for changes of nodes.
    """

    watches: Watches

    @property
    @abc.abstractmethod
    def chroot(self) -> str:
        """The node under which all paths of the session lie; "" for the root."""

    @abc.abstractmethod
    async def wait_connected(self, timeout_s: float | None) -> None:
        """Return as soon as requests can be sent."""

    @abc.abstractmethod
    async def send(self, *batch: Operation, deadline: Deadline) -> tuple[Reply, ...]:
        """Send 1 to MAX_BATCH requests; return a future for each reply."""

    async def create(
        self,
        path: str,
        data: bytes = b"",
        *,
        ephemeral: bool = False,
        sequence: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> tuple[str, ZnodeStat]:
        """Create a node; return its path (with the number if `sequence`) and its stat."""
        made: tuple[str, ZnodeStat] = await self._ask(
            requests.create(path, data, ephemeral=ephemeral, sequence=sequence), timeout_s
        )
        return made

    async def get(
        self, path: str, *, watch: Watch | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> tuple[bytes, ZnodeStat]:
        """Read a node's data and stat. No watch is left behind if the node is missing."""
        found: tuple[bytes, ZnodeStat] = await self._watched(requests.get, path, watch, timeout_s)
        return found

    async def exists(
        self, path: str, *, watch: Watch | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ZnodeStat | None:
        """Read a node's stat; None if it is missing, and then `watch` waits for its creation."""
        return await self._watched(requests.exists, path, watch, timeout_s)

    async def get_children(
        self, path: str, *, watch: Watch | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[str]:
        """List a node's children, in no order. No watch is left behind if the node is missing."""
        names: list[str] = await self._watched(requests.get_children, path, watch, timeout_s)
        return names

    async def set(
        self, path: str, data: bytes, *, version: int = -1, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ZnodeStat:
        """Replace a node's data if its version is `version` (−1: any)."""
        return await self._ask(requests.replace(path, data, version), timeout_s)

    async def delete(self, path: str, *, version: int = -1, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Delete a node if its version is `version` (−1: any)."""
        await self._ask(requests.delete(path, version), timeout_s)

    async def create_all(self, paths: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Create empty persistent nodes, all or none; False if one of them is there already.

        For thousands of nodes call it with some 128 at a time: a request must stay under ZooKeeper's 1 MB.
        """
        results = await self._ask(requests.transaction([Create(path) for path in paths]), timeout_s)
        refusal = requests.refusal(results)
        if refusal is None or isinstance(refusal, NodeExistsError):
            return refusal is None
        raise outcome(refusal)

    async def ensure_path(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Create a persistent node and its missing parents, those of the chroot included. Idempotent.

        A parent that may not be created is no error if the node exists in the end.

        Raises:
            Forbidden: a node is missing, and ZooKeeper does not let us create it.
        """
        deadline = Deadline.after(timeout_s)
        await self.wait_connected(deadline.remaining_s())
        parts = [part for part in (self.chroot + path).split("/") if part]
        batch = [requests.create_outside_chroot("/" + "/".join(parts[: depth + 1])) for depth in range(len(parts))]
        refusal: Refused | None = None
        for reply in await self.send_all(batch, deadline):
            try:
                await self.receive(reply, deadline)
            except (NodeExistsError, NoNodeError):
                continue
            except Refused as error:
                refusal = error
        if refusal is not None and await self.ask(requests.exists(path), deadline) is None:
            raise Forbidden(self.chroot + path) if isinstance(refusal.__cause__, NoAuthError) else refusal

    async def receive(self, reply: Reply, deadline: Deadline) -> Any:
        """Wait for one reply of `send`.

        Raises:
            Unavailable: the connection dropped, or no reply by the deadline; `maybe_done` is set.
            Refused: ZooKeeper did not carry it out.
            KazooException: ZooKeeper's answer about the node (`error_codes.ABOUT_NODE`).
        """
        if not reply.done() and not await done_by(reply, deadline):
            raise Unavailable("ZooKeeper did not reply in time", maybe_done=True)
        try:
            return reply.result()
        except KazooException as error:
            meant = outcome(error)
            if meant is error:
                raise
            raise meant from error

    async def ask(self, operation: Operation, deadline: Deadline) -> Any:
        """Send one request and wait for its reply. Raises as `send` and `receive`."""
        (reply,) = await self.send(operation, deadline=deadline)
        return await self.receive(reply, deadline)

    async def send_all(self, batch: Sequence[Operation], deadline: Deadline) -> list[Reply]:
        """Send any number of requests, in order, without waiting for replies as long as there are slots."""
        replies: list[Reply] = []
        for start in range(0, len(batch), MAX_BATCH):
            replies += await self.send(*batch[start : start + MAX_BATCH], deadline=deadline)
        return replies

    async def ask_all(self, batch: Sequence[Operation], deadline: Deadline) -> list[Any]:
        """Send any number of requests, and wait for their replies; None stands for a missing node."""
        return [await self._if_there(reply, deadline) for reply in await self.send_all(batch, deadline)]

    async def _ask(self, operation: Operation, timeout_s: float) -> Any:
        return await self.ask(operation, Deadline.after(timeout_s))

    async def _if_there(self, reply: Reply, deadline: Deadline) -> Any:
        try:
            return await self.receive(reply, deadline)
        except NoNodeError:
            return None

    async def _watched(
        self, operation: Callable[..., Operation], path: str, watch: Watch | None, timeout_s: float
    ) -> Any:
        if watch is None:
            return await self._ask(operation(path), timeout_s)
        self.watches.add(path, watch)
        try:
            return await self._ask(operation(path, watch=True), timeout_s)
        except BaseException:
            self.watches.remove(path, watch)
            raise
