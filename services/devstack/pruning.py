"""Old requests and tickets are removed once a day, by `main prune` of each service under the owner of its tables.

See `runtime/database/retention.py`. Why a run failed is in its log, `<data>/logs/<service>-prune.log`; the next run
makes up for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.devstack.child import Child, Command

#: Not at once, so that it does not slow down the start of a stack.
_FIRST_S = 600.0
_INTERVAL_S = 24 * 3600.0


async def prune_daily(commands: Iterable[Command]) -> None:
    """Run each command once a day, one after the other; ends only when cancelled."""
    every = list(commands)
    await asyncio.sleep(_FIRST_S)
    while True:
        for command in every:
            await _run(command)
        await asyncio.sleep(_INTERVAL_S)


async def _run(command: Command) -> None:
    try:
        child = Child.spawn(command)
    except OSError:  # a full disk has no room for its log
        return
    try:
        await child.wait()
    finally:
        await child.stop(0)
