"""How much of a server its callers may have at once.

    headers ──▶ token ──▶ the caller's budget ──▶ the request ──▶ the server's limit ──▶ execution ──▶ given back

A method has a cost: about how long it occupies the event loop, in reads of one row. A caller (role and name)
has a budget of cost that may be in use at once; the server has a limit of executions. Beyond either a call is refused
with RESOURCE_EXHAUSTED before it is worked on. Health and reflection are outside both (`runtime/grpc/public.py`).

Invariants
1. A caller's cost is in use from the headers until the call and its execution have ended: one that hangs up, sends no
   request or does not read the answer gets no more than others.
2. An execution counts against the server's limit until it has ended, whether or not its caller still listens.
3. While half of the limit is in use, what costs more than a change is refused: payments and reads of one thing go on.
4. Services have a budget of their own, since they carry the calls of many.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pool

from services.kernel.errors import ResourceExhausted
from services.kernel.principal import Principal, Role
from services.runtime.grpc import methods

READ_COST: Final = 1
CHANGE_COST: Final = 4
LIST_COST: Final = 32
#: A stream costs its caller so much for as long as it is open; and so many are open at once, of all callers.
STREAM_COST: Final = 8
_STREAMS: Final = 128
#: Of methods that look at a whole table, or change many orders.
_COSTS: Final = {
    "/countinghouse.payment.v1.PaymentService/SettleBatch": 64,
    "/countinghouse.ledger.v1.LedgerService/TrialBalance": 64,
    "/countinghouse.ledger.v1.LedgerService/VerifyJournal": 64,
}
#: When to try again, in milliseconds.
_CALLER_RETRY_MS: Final = 250
_SERVER_RETRY_MS: Final = 500


@cache
def cost_of(method: str) -> int:
    """Return what a call of `/package.Service/Method` costs; a method whose request has a page_size is a list."""
    if method in _COSTS:
        return _COSTS[method]
    if methods.is_stream(method):
        return STREAM_COST
    service, _, name = method.strip("/").partition("/")
    try:
        request = descriptor_pool.Default().FindMethodByName(f"{service}.{name}").input_type
    except KeyError:
        return CHANGE_COST
    if "page_size" in request.fields_by_name:
        return LIST_COST
    return READ_COST if methods.is_read(method) else CHANGE_COST


class AdmittedCall:
    """One call's part of its caller's budget. Made by `Admission.admit`; given back when all its tasks have ended."""

    def __init__(self, admission: Admission, principal: Principal, method: str) -> None:
        self.cost = cost_of(method)
        self.is_stream = methods.is_stream(method)
        self.principal = principal
        self._admission = admission
        self._tasks = 0

    def hold_until_done(self, task: asyncio.Task[Any]) -> None:
        """Count the call until `task`, too, has ended."""
        self._tasks += 1
        task.add_done_callback(self._done)

    def _done(self, _task: asyncio.Task[Any]) -> None:
        self._tasks -= 1
        if not self._tasks:
            self._admission.give_back(self)


class Admission:
    """The budgets and the limit of one server.

    Args:
        caller_budget: What the calls of one caller may cost at once.
        service_budget: The same for a caller with the role of a service.
        max_executions: How many calls are executed at once, of all callers.
    """

    def __init__(self, *, caller_budget: int, service_budget: int, max_executions: int) -> None:
        self._caller_budget = caller_budget
        self._service_budget = service_budget
        self._max_executions = max_executions
        self._in_use: Counter[Principal] = Counter()
        self._executions = 0
        self._streams = 0

    def admit(self, method: str, principal: Principal) -> AdmittedCall:
        """Take what a call costs from its caller's budget, until the task that serves it, this one, has ended.

        A call that costs more than the whole budget is admitted when the caller has no other.

        Raises:
            ResourceExhausted: CALLER_LIMIT.
        """
        cost = cost_of(method)
        budget = self._service_budget if principal.role is Role.SERVICE else self._caller_budget
        in_use = self._in_use[principal]
        if in_use and in_use + cost > budget:
            raise ResourceExhausted(
                "CALLER_LIMIT",
                f"too many calls of {principal} are under way; wait for their answers, and try again",
                metadata={"cost": str(cost), "in_use": str(in_use), "budget": str(budget)},
                retry_after_ms=_CALLER_RETRY_MS,
            )
        call = asyncio.current_task()
        if call is None:
            raise AssertionError("a call is served in a task")
        self._in_use[principal] += cost
        admitted = AdmittedCall(self, principal, method)
        admitted.hold_until_done(call)
        return admitted

    @contextmanager
    def executing(self, admitted: AdmittedCall) -> Iterator[None]:
        """Count an execution while inside; an open stream is counted apart, for it waits most of the time.

        Raises:
            ResourceExhausted: SERVER_LIMIT, STREAM_LIMIT.
        """
        if admitted.is_stream:
            with self._streaming():
                yield
            return
        limit = self._max_executions if admitted.cost <= CHANGE_COST else max(1, self._max_executions // 2)
        if self._executions >= limit:
            raise ResourceExhausted(
                "SERVER_LIMIT", "this server has too much to do; try again", retry_after_ms=_SERVER_RETRY_MS
            )
        self._executions += 1
        try:
            yield
        finally:
            self._executions -= 1

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        if self._streams >= _STREAMS:
            raise ResourceExhausted(
                "STREAM_LIMIT", "this server has too many streams open; try again", retry_after_ms=_SERVER_RETRY_MS
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def give_back(self, admitted: AdmittedCall) -> None:
        """Return the cost of a call to its caller's budget. Called by the call itself."""
        self._in_use[admitted.principal] -= admitted.cost
        if not self._in_use[admitted.principal]:
            del self._in_use[admitted.principal]
