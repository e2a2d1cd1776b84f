"""The fence: the number that grows with every holder of an order's lock.

A lock proves nothing at the moment of a write: its holder may have been paused past the end of its session. So every
write carries the fence of the lock it was made under, and the row it changes refuses a smaller one than it has seen.
Ownership is proved inside the write, not before it.

The token is the lock node's czxid: 64 bits, ensemble-wide, never falls. A wiped ensemble counts from the start again;
hence the generation in front.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Fence:
    """Compared as the pair (generation, token)."""

    generation: int
    token: int

    def __bool__(self) -> bool:
        return self.token > 0

    def __str__(self) -> str:
        return f"{self.generation}.{self.token:x}"


#: Smaller than every real fence: what a row has seen before its first holder.
NO_FENCE = Fence(0, 0)
