"""Ids that the same seed gives again."""

from __future__ import annotations

import random

from services.kernel.ids import ALPHABET, LENGTH


class SeededIds:
    """The same ids for the same seed, so that a run can be repeated."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def new(self, prefix: str) -> str:
        return f"{prefix}_" + "".join(self._random.choice(ALPHABET) for _ in range(LENGTH))
