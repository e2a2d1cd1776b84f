"""A ZooKeeper session for asyncio: requests with deadlines, and nodes that are read again at every change."""

from coordination.session.address import EnsembleAddress, ServerAddress
from coordination.session.session import Session, SessionChange, SessionState

__all__ = [
    "EnsembleAddress",
    "ServerAddress",
    "Session",
    "SessionChange",
    "SessionState",
]
