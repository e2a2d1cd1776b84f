"""Whether this machine has IPv6, for the tests that need it."""

from __future__ import annotations

import socket

import pytest


def _loopback() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _loopback(), reason="this machine has no IPv6: ::1 cannot be listened on")
