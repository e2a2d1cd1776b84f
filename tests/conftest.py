"""Before anything is imported: what services/devstack asks of gRPC, and signals as a terminal has them.

Tests that start processes run first: a long file that begins last would keep one process of pytest-xdist busy alone.
"""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A shell starts its background jobs with SIGINT ignored, and every child inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FIRST = ("e2e", "chaos", "integration", "mutation", "contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders of `_FIRST` before the others, in its order."""
    places = {folder: place for place, folder in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(Path(__file__).parent).parts[0], len(places)))
