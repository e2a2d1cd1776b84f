"""The meaning of ZooKeeper's error codes for the sender of a request.

    about the node      no such node, it exists, another version …      kazoo's exception: a result like any other
    not done            throttled, over quota, not authorised …         Refused: nothing was changed
    outcome unknown     connection gone, timed out in the server …      Unavailable, with `maybe_done`

An unknown code says nothing about the node, so it is of the last kind.
Source: org.apache.zookeeper.KeeperException.Code; THROTTLEDOP is answered before a request is carried out
(ZOOKEEPER-3683).
"""

from __future__ import annotations

from kazoo.exceptions import (
    EXCEPTIONS,
    BadArgumentsError,
    BadVersionError,
    EphemeralOnLocalSessionError,
    InvalidACLError,
    MarshallingError,
    NoAuthError,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    NotReadOnlyCallError,
    NoWatcherError,
    QuotaExceededError,
    SessionClosedRequireSaslError,
    SystemZookeeperError,
    ThrottledOpError,
    UnimplementedError,
)

from coordination.errors import Refused, Unavailable

#: Answers that are results: about the node's state, or that the server is too old for the request.
ABOUT_NODE = (
    BadArgumentsError,
    BadVersionError,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    NoWatcherError,
    UnimplementedError,
)

#: Answers that the request was not carried out, for a reason other than the node.
NOT_DONE = (
    EphemeralOnLocalSessionError,
    InvalidACLError,
    MarshallingError,
    NoAuthError,
    NotReadOnlyCallError,
    QuotaExceededError,
    SessionClosedRequireSaslError,
    ThrottledOpError,
)


def outcome(error: Exception) -> Exception:
    """Return what a reply that failed means: `error` itself if it is about the node, else `Unavailable`."""
    name = type(error).__name__.removesuffix("Error")
    meant: Exception = Unavailable(f"ZooKeeper is away: {name}", maybe_done=True)
    if isinstance(error, ABOUT_NODE):
        meant = error
    elif isinstance(error, NOT_DONE):
        meant = Refused(f"ZooKeeper refused the request: {name}")
    return meant


def error_of(code: int) -> Exception:
    """Return the exception of an error code; one that kazoo does not know counts as an error of the server."""
    error: Exception = EXCEPTIONS.get(code, SystemZookeeperError)()
    return error
