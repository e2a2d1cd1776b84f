"""Wait, by polling, for states that no event announces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

#: A condition that does not hold within this time is not going to.
WITHIN_S: Final = 15.0
_POLL_S: Final = 0.02


class NotBroughtAbout(Exception):
    """A situation did not come about, so that nothing is shown about it."""


async def wait_until(condition: Callable[[], Awaitable[bool]], otherwise: str, within_s: float = WITHIN_S) -> None:
    """Poll a condition until it holds.

    Args:
        otherwise: The message if it does not.

    Raises:
        NotBroughtAbout: It does not hold within `within_s` seconds.
    """
    try:
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110  a condition of another process
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise NotBroughtAbout(otherwise) from None
