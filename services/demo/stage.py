"""The stage: a fresh stack with two payment instances, the people, and the levers that make things go wrong."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from google.protobuf.message import Message

from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.checker.snapshot import ACQUIRER, SERVICES, Snapshot, read_snapshot, settled_snapshot
from services.demo.people import Person, Seen, Telephone
from services.devstack.files import database_url
from services.devstack.stack import Stack, StackOptions
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError
from services.kernel.guards import Guards
from services.kernel.principal import Role

#: Short, so that the acts in which somebody dies or freezes need not wait long for the end of a session.
SESSION_TIMEOUT_S = 2.0
LEASE_S = 2.0
#: How long the outside bank may take before its silence counts as one.
ACQUIRER_TIMEOUT_S = 1.0
CURRENCY = "CNY"
#: Where the cashier and the accountant sit.
CASHIERS, ACCOUNTANTS = "payment-1", "payment-2"
_LOOK_S = 0.02


class NotBroughtAbout(Exception):
    """The act's situation could not be brought about, so the act proves nothing."""


@dataclass(slots=True)
class Stage:
    """Everything an act needs."""

    stack: Stack
    telephone: Telephone
    rng: random.Random
    guards: Guards
    cashier: Person
    accountant: Person
    customer: Person
    operator: Person
    _number: int = 0

    def address(self, instance: str) -> str:
        """Where an instance listens."""
        return self.stack.instance(instance).address

    def new_id(self, what: str) -> str:
        """An id that the same seed gives again."""
        self._number += 1
        return f"{what}-{self._number:03d}-{self.rng.randrange(16**6):06x}"

    async def new_order(self, minor_units: int | None = None) -> str:
        """Makes an order; its order id."""
        order_id = self.new_id("order")
        amount = money_pb2.Money(minor_units=minor_units or self.rng.randrange(100, 100_000), currency_code=CURRENCY)
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{order_id}", order_id=order_id, customer_id=self.customer.name, amount=amount
        )
        await self.do(self.cashier, "order-1", "countinghouse.order.v1.OrderService/CreateOrder", request)
        return order_id

    async def open_wallet(self, name: str) -> str:
        """Opens a wallet; its account id."""
        account_id = f"wallet:{name}:{CURRENCY}"
        request = ledger_pb2.OpenAccountRequest(
            request_id=f"open-{name}",
            account_id=account_id,
            kind=ledger_pb2.ACCOUNT_KIND_LIABILITY,
            currency_code=CURRENCY,
        )
        await self.do(self.operator, "ledger-1", "countinghouse.ledger.v1.LedgerService/OpenAccount", request)
        return account_id

    async def ticket(self, person: Person, instance: str) -> str:
        """Fetches a ticket; its id."""
        request = payment_pb2.IssueTicketRequest(request_id=self.new_id("ask"))
        body = await self.do(person, instance, "countinghouse.payment.v1.PaymentService/IssueTicket", request)
        return payment_pb2.IssueTicketResponse.FromString(body).ticket.ticket_id

    async def do(self, person: Person, instance: str, method: str, request: Message) -> bytes:
        """A call that has to go well.

        Raises:
            NotBroughtAbout: It did not.
        """
        for _ in range(5):
            seen = await self.telephone.call(self.address(instance), f"/{method}", request, person.token, 5.0)
            if not seen.open:
                break
            await asyncio.sleep(0.1)
        if seen.error is not None:
            raise NotBroughtAbout(f"{method.rpartition('/')[2]}: {seen.error}") from seen.error
        return seen.body

    async def settle(self, person: Person, instance: str, order_id: str, key: str, **limits: float) -> Seen:
        """Presses Settle until there is a definitive answer."""
        request = settle_request(person, order_id, key)
        return await person.insist(self.address(instance), "Settle", request, key, **limits)

    async def arm(
        self, instance: str, point: str, action: failpoint_pb2.FailpointAction.ValueType, subject: str
    ) -> None:
        """Arms a failpoint of one instance for one order."""
        request = failpoint_pb2.ArmFailpointRequest(name=point, action=action, subject=subject)
        await self.do(self.operator, instance, "countinghouse.debug.v1.FailpointService/ArmFailpoint", request)

    async def wait_frozen(self, instance: str, within_s: float = 5.0) -> None:
        """Waits until an instance has stopped itself.

        Raises:
            NotBroughtAbout: It did not.
        """
        process = psutil.Process(self.stack.instance(instance).pid)
        try:
            async with asyncio.timeout(within_s):
                while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110  no event tells of it
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise NotBroughtAbout(f"{instance} did not freeze") from None

    async def wait_died(self, instance: str, pid: int, within_s: float = 5.0) -> None:
        """Waits until a process of an instance is gone.

        Raises:
            NotBroughtAbout: It is not.
        """
        try:
            await self.stack.wait_until(lambda: self.stack.instance(instance).pid != pid, within_s)
        except TimeoutError:
            raise NotBroughtAbout(f"{instance} did not die") from None

    def thaw(self, instance: str) -> None:
        """Lets a frozen instance go on."""
        self.stack.kill(instance, signal.SIGCONT)

    async def books(self) -> Snapshot:
        """What the three databases hold now."""
        return await read_snapshot(self.databases)

    async def quiet_books(self, within_s: float) -> Snapshot:
        """The books once nothing is under way any more, or at the latest after `within_s` seconds."""
        return (await settled_snapshot(self.databases, within_s, self.telephone.clock)).snapshot

    @property
    def databases(self) -> dict[str, str]:
        """SQLAlchemy URLs by service."""
        return {service: database_url(self.stack.data, service) for service in (*SERVICES, ACQUIRER)}


def settle_request(person: Person, order_id: str, key: str) -> payment_pb2.SettleRequest:
    """A clerk settles from the source that is theirs."""
    source = payment_pb2.SOURCE_DRAWER if person.role is Role.CASHIER else payment_pb2.SOURCE_BANK
    return payment_pb2.SettleRequest(request_id=key, order_id=order_id, source=source)


@asynccontextmanager
async def set_stage(data: Path, guards_off: tuple[str, ...], seed: int) -> AsyncIterator[Stage]:
    """A running stack with its people; taken down afterwards, whatever happened."""
    options = StackOptions(
        data=data,
        replicas={"payment": 2},
        guards_off=guards_off,
        failpoints=True,
        session_timeout_s=SESSION_TIMEOUT_S,
        settings={
            "lease_s": LEASE_S,
            "recovery_interval_s": 0.3,
            "currencies": CURRENCY,
            "acquirer_timeout_s": ACQUIRER_TIMEOUT_S,
        },
    )
    clock = SystemClock()
    async with Stack(options, clock=clock) as stack:
        telephone = Telephone(clock)

        def person(name: str, role: Role) -> Person:
            return Person(name, role, stack.token(name, role), telephone)

        try:
            yield Stage(
                stack=stack,
                telephone=telephone,
                rng=random.Random(seed),  # noqa: S311
                guards=Guards.without(guards_off),
                cashier=person("li", Role.CASHIER),
                accountant=person("wu", Role.ACCOUNTANT),
                customer=person("mei", Role.CUSTOMER),
                operator=person("stagehand", Role.OPERATOR),
            )
        finally:
            for instance in stack.instances:
                if instance.pid:
                    with suppress(CountinghouseError, ProcessLookupError):
                        stack.kill(instance.name, signal.SIGCONT)
            await telephone.close()
