"""The release of this program, as its package names it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

_PACKAGE: Final = "countinghouse"


@cache
def release() -> str:
    """Return the version of the package; empty: this program runs without having been installed."""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return ""
