"""What a session may be told of ZooKeeper's security."""

from __future__ import annotations

import ssl

import pytest

from coordination.session.security import OPEN, Security


def test_user_without_tls_is_refused() -> None:
    """The password could be read on its way."""
    with pytest.raises(ValueError, match="without TLS"):
        Security(user=lambda: "payment:secret")


def test_user_over_tls_is_taken() -> None:
    assert Security(ssl.create_default_context, user=lambda: "payment:secret").user is not None
    assert OPEN.user is None
