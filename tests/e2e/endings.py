"""How the processes of a stack end, as its supervisor says it."""

from __future__ import annotations

import re

from services.devstack.stack import Stack


class Endings:
    """What the supervisor has said of processes that ended: `Stack(…, tell=endings.hear)`."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], str] = {}

    def hear(self, sentence: str) -> None:
        """Keeps what is about an end."""
        found = re.match(r"(\S+) \(pid (\d+)\) ended with (.+); starting it again", sentence)
        if found is not None:
            self._ends[found[1], int(found[2])] = found[3]

    async def of(self, stack: Stack, instance: str, pid: int, within_s: float) -> str:
        """Waits for the end of a process; `exit code 0`, or `signal SIGKILL`.

        Raises:
            TimeoutError: It has not come.
        """
        await stack.wait_until(lambda: (instance, pid) in self._ends, within_s)
        return self._ends[instance, pid]
