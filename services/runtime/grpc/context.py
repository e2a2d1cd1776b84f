"""The call that is being served: its caller, its deadline, what it is about, and what its reply must carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from services.kernel.card_numbers import has_card_number
from services.kernel.clock import CallDeadline
from services.kernel.principal import Principal
from services.runtime import tracing

#: The fewest digits of a card number. An order that is asked about may be named by one.
_CARD_DIGITS: Final = 13


def _itself(_named: Principal, caller: Principal) -> Principal:
    return caller


def _uncounted(_reason: str, _replayed: bool) -> None:
    return None


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
        represented: Returns for whom a caller acts that names a person; see `DelegationVerifier.represented`.
        decided: Is told of each request, the one of the call or each of its batch, why it was refused (empty: it was
            not), and whether its answer is a stored one.
        order_id: The order that it is about, for logs and traces; empty: none, or it is not known yet.
        payment_id: The payment that it is about, likewise.
    """

    method: str
    principal: Principal
    deadline: CallDeadline
    replayed: bool = False
    reply_dropped: bool = False
    in_batch: bool = False
    represented: Callable[[Principal, Principal], Principal] = _itself
    decided: Callable[[str, bool], None] = _uncounted
    order_id: str = ""
    payment_id: str = ""

    def concerns(self, *, order_id: str = "", payment_id: str = "") -> None:
        """Note what the call is about, for logs and traces; what was noted before stays where nothing is given.

        Args:
            order_id: A checked id. One that has a card number in it is not noted.
            payment_id: A checked id, likewise.
        """
        if order_id and order_id != self.order_id and (shown := loggable(order_id)):
            self.order_id = shown
            tracing.annotate(order_id=shown)
        if payment_id and payment_id != self.payment_id and (shown := loggable(payment_id)):
            self.payment_id = shown
            tracing.annotate(payment_id=shown)

    def on_behalf_of(self, named: Principal) -> Principal:
        """Return for whom the caller acts: the person whom it names, if it may; otherwise itself.

        Raises:
            PermissionDenied: DELEGATION_FOR_ANOTHER.
        """
        return self.represented(named, self.principal)


_current: ContextVar[Call] = ContextVar("countinghouse_call")


def current_ids() -> Mapping[str, str]:
    """Return what the call being served in this task is about, for a log line: `order_id`, `payment_id`, as known."""
    call = _current.get(None)
    if call is None:
        return {}
    known = (("order_id", call.order_id), ("payment_id", call.payment_id))
    return {name: value for name, value in known if value}


def current_call() -> Call:
    """Return the call being served in this task. Only servicers ask; everything below is handed the call."""
    return _current.get()


def serving(call: Call) -> None:
    """Make `call` the one being served in this task."""
    _current.set(call)


def loggable(name: str) -> str:
    """Return a checked id as logs and traces may have it: empty if it has a card number in it."""
    digits = len(name) - len(name.encode("ascii", "replace").translate(None, b"0123456789"))  # a tenth of the check
    return name if digits < _CARD_DIGITS or not has_card_number(name) else ""
