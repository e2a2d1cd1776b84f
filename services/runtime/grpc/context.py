"""The call that is being served: its caller, its deadline, and what its reply must carry."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from services.kernel.clock import CallDeadline
from services.kernel.principal import Principal


@dataclass(slots=True)
class Call:
    """One call, handed from the servicer to operations and to peers.

    Args:
        method: `/package.Service/Method`.
        principal: Who is calling.
        deadline: By when the caller wants an answer.
        replayed: The answer is a stored one; the reply will say so in the trailer `x-replayed`.
        reply_dropped: A failpoint wants the reply to be lost.
        in_batch: It is one of a batch, whose caller waits for all of them.
    """

    method: str
    principal: Principal
    deadline: CallDeadline
    replayed: bool = False
    reply_dropped: bool = False
    in_batch: bool = False


_current: ContextVar[Call] = ContextVar("countinghouse_call")


def current_call() -> Call:
    """Return the call being served in this task. Only servicers ask; everything below is handed the call."""
    return _current.get()


def serving(call: Call) -> None:
    """Make `call` the one being served in this task."""
    _current.set(call)
