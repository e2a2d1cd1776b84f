"""A teller's window onto a running stack: faults are armed here, people insist until they are answered, and in the end
the books are read and checked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from google.protobuf.message import Message

from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.checker.evidence import Answered
from services.checker.history import HistoryWriter
from services.checker.registry import run_checks
from services.checker.snapshot import Reading, Snapshot, settled_snapshot
from services.demo.people import Person, Seen, Telephone
from services.demo.stage import Stage
from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.kernel.guards import Guards
from services.kernel.principal import Role
from tests.e2e.desk import new_id
from tests.e2e.recorder import NotingTelephone

#: What is left between two commits has to be finished in this time, on a machine that others use too.
QUIET_S = 15.0
#: How long somebody asks on under one key.
PATIENCE_S = 25.0
_PAUSE_S = 0.1
_LOOK_S = 0.02
_PENDING = (pb.PAYMENT_STATE_CREATED, pb.PAYMENT_STATE_SUBMITTED, pb.PAYMENT_STATE_UNKNOWN, pb.PAYMENT_STATE_REVERSING)


class Teller(Stage):
    """The stage of the demonstration, for tests."""

    async def until_answered(self, person: Person, instance: str, method: str, request: Message, key: str) -> Seen:
        """Asks again and again under the same key, until the answer is definitive and the payment not pending."""
        clock = self.telephone.clock
        until_s = clock.monotonic_s() + PATIENCE_S
        while True:
            seen = await person.ask(self.address(instance), method, request, timeout_s=8.0)
            if not seen.open and not (seen.error is None and payment_in(seen).state in _PENDING):
                self.telephone.answers.append(Answered(key, seen.error is None, seen.body))
                return seen
            assert clock.monotonic_s() < until_s, f"{method} {key} was never answered: {seen.error}"
            await asyncio.sleep((seen.error.retry_after_ms or 0) / 1000 if seen.error else _PAUSE_S)

    async def settle_at(self, person: Person, instance: str, order_id: str, key: str = "") -> Seen:
        """Presses Settle until there is an answer for good."""
        key = key or new_id("settle")
        return await self.until_answered(person, instance, "Settle", settle_request(person, order_id, key), key)

    async def disarm(self, instance: str, point: str) -> None:
        """Takes a failpoint away again."""
        await self.arm(instance, point, failpoint_pb2.FAILPOINT_ACTION_UNSPECIFIED, "")

    async def failpoints(self, instance: str) -> dict[str, failpoint_pb2.Failpoint]:
        """How often an instance has passed each failpoint, and how often that did something; empty: nobody answers."""
        request = failpoint_pb2.ListFailpointsRequest()
        seen = await self.telephone.call(
            self.address(instance),
            "/countinghouse.debug.v1.FailpointService/ListFailpoints",
            request,
            self.operator.token,
            2.0,
        )
        if seen.error is not None:
            return {}
        listed = failpoint_pb2.ListFailpointsResponse.FromString(seen.body)
        return {found.name: found for found in listed.failpoints}

    async def failpoint(self, instance: str, point: str) -> failpoint_pb2.Failpoint | None:
        """One of them; None: nobody answers."""
        return (await self.failpoints(instance)).get(point)

    async def until_passed(self, instance: str, point: str, times: int) -> None:
        """Waits until an instance has passed a failpoint so often."""
        async with asyncio.timeout(QUIET_S):
            while (found := await self.failpoint(instance, point)) is None or found.passed < times:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)

    async def until_closed(self, instance: str) -> None:
        """Waits until an instance takes no new calls."""
        async with asyncio.timeout(QUIET_S):
            while await self.failpoint(instance, "accepted") is not None:  # noqa: ASYNC110  another process
                await asyncio.sleep(_LOOK_S)

    async def reading(self, within_s: float) -> Reading:
        """The books once they are at rest, or at the latest after `within_s` seconds."""
        return await settled_snapshot(self.databases, within_s, self.telephone.clock)

    async def checked_books(self) -> Snapshot:
        """The books, once nothing is under way any more; fails if that takes too long or a check finds something."""
        books = await self.quiet_books(within_s=QUIET_S)
        assert books.unfinished() == []
        broken = [check for check in run_checks(books, self.telephone.answers) if not check.ok]
        assert broken == []
        return books


def settle_request(person: Person, order_id: str, key: str) -> pb.SettleRequest:
    """A clerk settles from the source that is theirs."""
    source = pb.SOURCE_DRAWER if person.role is Role.CASHIER else pb.SOURCE_BANK
    return pb.SettleRequest(request_id=key, order_id=order_id, source=source)


def settle_by_card(order_id: str, key: str, card: str = "tok-mei") -> pb.SettleRequest:
    """A clerk settles by a customer's card."""
    return pb.SettleRequest(request_id=key, order_id=order_id, source=pb.SOURCE_CARD, card=card)


def payment_in(seen: Seen) -> pb.Payment:
    """The payment in an answer that says OK: PayResponse, SettleResponse and ReverseResponse have it in one place."""
    assert seen.error is None, seen.error
    return pb.SettleResponse.FromString(seen.body).payment


def charges(books: Snapshot, order_id: str) -> list[str]:
    """The payments that charged an order, reversals not counted."""
    return [str(row["payment_id"]) for row in books.journals if row["order_id"] == order_id and not row["reversal_of"]]


def at_bank(books: Snapshot, payment_id: str) -> list[str]:
    """Where the keys of a payment stand at the acquirer."""
    return [str(row["state"]) for row in books.charges or () if str(row["key"]).startswith(f"{payment_id}:")]


def states(books: Snapshot, payment_ids: Iterable[str]) -> list[str]:
    """Where payments stand."""
    found = {str(row["payment_id"]): str(row["state"]) for row in books.payments}
    return [found[payment_id] for payment_id in payment_ids]


@asynccontextmanager
async def teller_at(stack: Stack, history: HistoryWriter | None = None) -> AsyncIterator[Teller]:
    """Opens the window of a running stack.

    Args:
        history: Where every call about orders and payments is written down; None: nowhere.
    """
    clock = SystemClock()
    telephone = Telephone(clock) if history is None else NotingTelephone(clock, history)

    def person(name: str, role: Role) -> Person:
        return Person(name, role, stack.token(name, role), telephone)

    try:
        yield Teller(
            stack=stack,
            telephone=telephone,
            rng=random.Random(7),
            guards=Guards(),
            cashier=person("li", Role.CASHIER),
            accountant=person("wang", Role.ACCOUNTANT),
            customer=person("mei", Role.CUSTOMER),
            operator=person("ops", Role.OPERATOR),
        )
    finally:
        await telephone.close()
