"""How far a run is, on standard error: a bar with rate and time left on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from services.kernel.printable import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from services.kernel.clock import Clock

#: Between two lines, in seconds.
_LINE_EVERY_S: Final = 5.0


class RunProgress:
    """Shows how many of `total` lines have a result, while it is entered.

    Args:
        bar: Whether there may be a bar.
    """

    def __init__(self, total: int, clock: Clock, *, bar: bool = True) -> None:
        self.done = 0
        self._total = total
        self._clock = clock
        self._began_s = self._told_s = clock.monotonic_s()
        self._shows_bar = bar and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._shows_bar:
            self._bar = _bar()
            self._task = self._bar.add_task("", total=self._total, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return self._clock.monotonic_s() - self._began_s

    @property
    def rate(self) -> float:
        """Lines a second so far."""
        return self.done / max(self.elapsed_s, 0.001)

    def advance(self, lines: int) -> None:
        """Count lines that have a result."""
        self.done += lines
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self.rate:.0f}/s")
        elif self._is_time():
            left_s = (self._total - self.done) / max(self.rate, 0.001)
            _print(f"{self.done} of {self._total} lines, {self.rate:.0f}/s, {left_s:.0f} s left")

    def tell(self, sentence: str) -> None:
        """Show a sentence, unless there was a line a moment ago."""
        if self._is_time():
            _print(sentence)

    def _is_time(self) -> bool:
        """Return whether the last line is long ago; if so, this is one."""
        now_s = self._clock.monotonic_s()
        if now_s - self._told_s < _LINE_EVERY_S:
            return False
        self._told_s = now_s
        return True


def _print(sentence: str) -> None:
    print(escape(sentence), file=sys.stderr, flush=True)  # above the bar, if there is one


def _bar() -> Progress:
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    return Progress(
        TextColumn("settle-run"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
