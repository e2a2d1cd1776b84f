"""What counts as a sign that ZooKeeper keeps a session alive."""

from __future__ import annotations

import pytest
from kazoo.protocol.connection import AUTH_XID
from kazoo.protocol.serialization import Auth

from coordination.session.liveness import AcknowledgedConnection
from coordination.session.pipeline import PipelinedConnection


def test_answer_to_a_users_password_is_no_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZooKeeper answers it before it touches the session, whose time goes on from the connect."""
    monkeypatch.setattr(PipelinedConnection, "_submit", lambda *_: None)
    connection = AcknowledgedConnection.__new__(AcknowledgedConnection)
    connection._sent_at = {}
    connection._submit(Auth(0, "digest", "order:secret"), 1.0, AUTH_XID)
    assert connection._sent_at == {}
    connection._submit(object(), 1.0, 7)
    assert list(connection._sent_at) == [7]
