"""What `countinghouse doctor` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Args:
        detail: What is so; where it is not as it should be, also what to do.
    """

    name: str
    ok: bool
    detail: str
