"""Delay Ctrl-C until the modules are imported.

Python raises KeyboardInterrupt wherever it is; inside the import machinery's own callbacks it is printed and lost.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """Let SIGINT wait until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
