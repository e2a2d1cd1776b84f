"""Lock each order by kazoo's own `Lock` recipe, on a client of its own.

Python imports `sitecustomize` before it starts a program, so that no service has to know of it.

The recipe blocks, so it runs on threads, and the client's session is its own: the service's takes no blocking calls.
It does not return the czxid that our fence is made of: that is one read more. Releasing delays no reply, as with ours.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import LockTimeout as KazooLockTimeout
from kazoo.recipe.lock import Lock

from coordination.locks import lock as ours
from coordination.locks.errors import LockLost, LockTimeout

#: As many as callers may wait at once: a thread waits with each.
_THREADS = ThreadPoolExecutor(256, thread_name_prefix="kazoo-lock")
_ROOT = "/kazoo-locks"


@functools.cache
def _client(hosts: str) -> Any:
    client = KazooClient(hosts)
    client.start()
    return client


class _Lease:
    """What `payment/locks.py` uses of a `ResourceLease`.

    Attributes:
        session_id: The service's own, for which it knows the generation.
        waited_s: For traces, which are off.
    """

    waited_s = 0.0

    def __init__(self, resource_id: str, recipe: Any, token: int, session_id: int) -> None:
        self.resource_id = resource_id
        self.token = token
        self.session_id = session_id
        self._recipe = recipe

    def ensure(self) -> None:
        if not self._recipe.client.connected:
            raise LockLost(self.resource_id)

    def release(self) -> None:
        _THREADS.submit(self._recipe.release)


async def _acquire(self: ours.ResourceLocks, resource_id: str, holder: ours.Holder, *, timeout_s: float) -> Any:
    session = self._session

    def take() -> tuple[Any, int]:
        recipe = Lock(_client(session._hosts), f"{_ROOT}/{resource_id}", holder.to_json().decode())
        recipe.acquire(timeout=timeout_s)
        return recipe, recipe.client.exists(f"{recipe.path}/{recipe.node}").czxid

    try:
        recipe, token = await asyncio.get_running_loop().run_in_executor(_THREADS, take)
    except KazooLockTimeout:
        raise LockTimeout(resource_id, None, timeout_s) from None
    return _Lease(resource_id, recipe, token, session.session_id or 0)


ours.ResourceLocks.acquire = _acquire  # type: ignore[method-assign]
