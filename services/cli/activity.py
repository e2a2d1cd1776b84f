"""What happens to orders and payments, counted from the watches of every instance of their services.

    instance ──WatchOrders, WatchPayments──▶ gateway.watching.Watch ──events──▶ Activity ──look──▶ the reader
                                                     │ begun, lost
                                                     ▼
                                              the open payments are listed

Rules
1. A payment is open until it has ended: SUCCEEDED, DECLINED or REVERSED.
2. The open payments are listed when a watch begins, and whenever changes of payments were lost; what changes
   meanwhile is newer than the list if its version is.
3. A watch that ends is begun again, from where it was, with a new token.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from services.cli import output
from services.gateway.sources import ORDERS, PAYMENTS
from services.gateway.watching import Event, Piece, Source, Watch, positions_in
from services.kernel.errors import CountinghouseError, InvalidArgument, PermissionDenied

#: States of a payment whose outcome is not known yet, or whose reversal is pending.
OPEN_STATES: Final = ("CREATED", "SUBMITTED", "UNKNOWN", "REVERSING", "PARKED")
_PREFIXES: Final = {ORDERS: "ORDER_STATE_", PAYMENTS: "PAYMENT_STATE_"}
_AGAIN_S: Final = 1.0
#: Refusals that another try does not change.
_FINAL: Final = (InvalidArgument, PermissionDenied)


@dataclass(frozen=True, slots=True)
class Payment:
    """As much of a payment as is counted.

    Args:
        state: Like `UNKNOWN`.
        attention: Why people have to look at it; empty: they need not.
    """

    payment_id: str
    version: int
    state: str
    attention: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The open payments, as a service has listed them.

    Args:
        whole: Whether these are all.
    """

    payments: Sequence[Payment]
    whole: bool


@dataclass(frozen=True, slots=True)
class ActivityLook:
    """What has happened since the look before.

    Args:
        changes: How often orders and payments have come into a state, by topic and state.
        open: How many payments are open, by state; None: they were not listed yet.
        whole: Whether there are no more open payments.
        attention: How many payments need people; None as `open`.
        lost: The topics of which changes were lost.
        problem: Why changes are not watched now; empty: they are.
    """

    changes: Mapping[str, Mapping[str, int]]
    open: Mapping[str, int] | None
    whole: bool
    attention: int | None
    lost: Sequence[str]
    problem: str


class Activity:
    """Counts what changes, and knows which payments are open."""

    def __init__(self) -> None:
        self.problem = ""
        self._changes: dict[str, Counter[str]] = {ORDERS: Counter(), PAYMENTS: Counter()}
        self._lost: set[str] = set()
        self._open: dict[str, Payment] = {}
        self._listed = False
        self._whole = True
        self._since: dict[str, Payment] | None = None  # what has changed since a listing began; None: there is none

    def take(self, topic: str, changed: Iterable[Mapping[str, Any]]) -> None:
        """Count the changes of an event.

        Args:
            changed: Orders or payments after the change, as `gateway.messages.to_json` has them.
        """
        for each in changed:
            state = output.short(each["state"], _PREFIXES[topic])
            self._changes[topic][state] += 1
            if topic == PAYMENTS:
                payment = Payment(each["paymentId"], int(each["version"]), state, each.get("attention", ""))
                self._keep(self._open, payment)
                if self._since is not None:
                    self._since[payment.payment_id] = payment

    def lose(self, topic: str) -> None:
        """Take note that changes were lost.

        Args:
            topic: Empty: of both.
        """
        self._lost |= {topic} if topic else {*self._changes}

    def begin_listing(self) -> None:
        """Remember what changes from now on, for the listing that follows."""
        self._since = {}

    def listed(self, listing: Listing) -> None:
        """Take a listing in the place of what was known, with what has changed since it began."""
        self._open = {payment.payment_id: payment for payment in listing.payments}
        for payment in (self._since or {}).values():
            known = self._open.get(payment.payment_id)
            if known is None or known.version < payment.version:
                self._keep(self._open, payment)
        self._since = None
        self._listed, self._whole = True, listing.whole

    def look(self) -> ActivityLook:
        """Return what has happened since the look before."""
        states = Counter(payment.state for payment in self._open.values())
        found = ActivityLook(
            {topic: dict(changes) for topic, changes in self._changes.items()},
            dict(states) if self._listed else None,
            self._whole,
            sum(bool(payment.attention) for payment in self._open.values()) if self._listed else None,
            sorted(self._lost),
            self.problem,
        )
        for changes in self._changes.values():
            changes.clear()
        self._lost.clear()
        return found

    @staticmethod
    def _keep(payments: dict[str, Payment], payment: Payment) -> None:
        """Keep a payment while it is open. A state that this version does not know may end either way."""
        if payment.state in OPEN_STATES or payment.state.isdecimal():
            payments[payment.payment_id] = payment
        else:
            payments.pop(payment.payment_id, None)


class CountedSource:
    """A source that counts its open watches, which the metrics of the instances count as calls in flight."""

    def __init__(self, source: Source) -> None:
        self.topic = source.topic
        self.open: Counter[str] = Counter()
        self._source = source

    def addresses(self) -> frozenset[str]:
        return self._source.addresses()

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._source.subscribe(changed)

    async def watch(self, address: str, position: str, order_id: str, authorization: str) -> AsyncIterator[Piece]:
        begun = False
        try:
            async for piece in self._source.watch(address, position, order_id, authorization):
                self.open[address] += not begun
                begun = True
                yield piece
        finally:
            self.open[address] -= begun


class ActivityWatch:
    """Feeds an `Activity` until cancelled.

    Args:
        token: Returns a token that is good now.
        list_open: Lists the open payments.
    """

    def __init__(
        self,
        activity: Activity,
        sources: Sequence[Source],
        token: Callable[[], str],
        list_open: Callable[[], Awaitable[Listing]],
    ) -> None:
        self._activity = activity
        self._sources = sources
        self._token = token
        self._list_open = list_open
        self._to_list = asyncio.Event()

    async def run(self) -> None:
        """Watch and list, again and again.

        Raises:
            PermissionDenied: The caller may not watch.
            InvalidArgument: The services do not know such a watch.
        """
        listing = asyncio.create_task(self._list_when_asked())
        try:
            await self._watch()
        finally:
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)

    async def _watch(self) -> None:
        positions: dict[str, str] | None = None
        while True:
            try:
                watch = Watch(self._sources, "", f"Bearer {self._token()}", positions)
                async with aclosing(watch.events()) as events:
                    async for event in events:
                        positions = positions_in(event.event_id)
                        self._take(event)
            except _FINAL:
                raise
            except CountinghouseError as error:
                self._activity.problem = error.message
            await asyncio.sleep(_AGAIN_S)

    def _take(self, event: Event) -> None:
        self._activity.problem = ""
        if event.name in (ORDERS, PAYMENTS):
            self._activity.take(event.name, event.data[event.name])
        elif event.name == "begun":
            self._to_list.set()
        elif event.name == "lost":
            topic = event.data["topic"]
            self._activity.lose(topic)
            if topic != ORDERS:
                self._to_list.set()

    async def _list_when_asked(self) -> None:
        while True:
            await self._to_list.wait()
            self._to_list.clear()
            self._activity.begin_listing()
            try:
                self._activity.listed(await self._list_open())
            except CountinghouseError as error:
                self._activity.problem = error.message
                self._to_list.set()
                await asyncio.sleep(_AGAIN_S)
