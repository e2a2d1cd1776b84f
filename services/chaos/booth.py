"""The booth: a small stack of its own with some guards off, two clerks and a customer, and levers for single faults.

    make an order ──▶ arm a failpoint ──▶ clerks press, and a process dies, freezes or loses a reply ──▶ rest ──▶ judge

All that is asked here is in one history, and the verdict is the checker's alone, from that history, the databases and
the bank's own log. A booth may see one scene after the other as long as its books are right.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a scene can be repeated
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from coordination.grpc_channel import open_channel
from countinghouse.debug.v1 import failpoint_pb2, failpoint_pb2_grpc
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.chaos.acquirer_log import read_acquirer_log
from services.chaos.calls import Caller, Heard, Person
from services.chaos.targets.target import NotBroughtAbout
from services.chaos.workload import CURRENCY
from services.checker.findings import Check, Findings
from services.checker.history import Arguments, HistoryWriter, Outcome, RecordedCall, read_history
from services.checker.registry import run_checks
from services.checker.snapshot import ACQUIRER, SERVICES, Snapshot, read_snapshot, settled_snapshot
from services.devstack.files import database_url
from services.devstack.stack import ACQUIRER_INSTANCE, Stack, StackOptions
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.kernel.guards import Guards
from services.kernel.principal import Role

#: Nothing may stay unresolved longer than this.
REST_WITHIN_S: Final = 15.0
#: So long that a busy machine loses no session by chance; who waits for the end of one need not wait long.
_SESSION_TIMEOUT_S: Final = 4.0
_SETTINGS: Final[Mapping[str, object]] = {
    "lease_s": 2.0,
    "recovery_interval_s": 0.3,
    "drain_s": 1.0,
    "currencies": CURRENCY,
    # How long the bank may take before its silence counts as one.
    "acquirer_timeout_s": 1.0,
}
_START_WITHIN_S: Final = 90.0
#: What a scene waits for comes within this, or the scene was not brought about.
_WITHIN_S: Final = 15.0
_LOOK_S: Final = 0.02
_ASK_AGAIN_S: Final = 0.1
#: Codes after which the same call may yet be answered otherwise.
_PASSING: Final = ("ABORTED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNKNOWN", "CANCELLED")

KILL = failpoint_pb2.FAILPOINT_ACTION_KILL
STOP = failpoint_pb2.FAILPOINT_ACTION_STOP
DELAY = failpoint_pb2.FAILPOINT_ACTION_DELAY
DROP_REPLY = failpoint_pb2.FAILPOINT_ACTION_DROP_REPLY
DISARM = failpoint_pb2.FAILPOINT_ACTION_UNSPECIFIED


@dataclass(slots=True)
class Booth:
    """What a scene has at hand. `open_booth` opens one.

    Args:
        cashier: Sits at `payment-1`; the accountant at `payment-2`.
        orders: The orders made here.
    """

    stack: Stack
    caller: Caller
    guards: Guards
    history: HistoryWriter
    path: Path
    clock: Clock
    rng: random.Random
    cashier: Person
    accountant: Person
    customer: Person
    operator: Person
    orders: list[str] = field(default_factory=list)
    _number: int = 0

    # ---- what people ask ---------------------------------------------------------------------------------

    def new_id(self, what: str) -> str:
        """An id the same seed gives again."""
        self._number += 1
        return f"{what}-{self._number}-{self.rng.randrange(16**6):06x}"

    async def new_order(self) -> str:
        """Makes an order; its order id."""
        order_id = self.new_id("order")
        amount = self.rng.randrange(100, 100_000)
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{order_id}",
            order_id=order_id,
            customer_id=self.customer.name,
            amount=money_pb2.Money(minor_units=amount, currency_code=CURRENCY),
        )
        told = self._arguments(
            self.cashier, order_id=order_id, key=request.request_id, amount_minor=amount, currency=CURRENCY
        )
        await self.sure(self.cashier, "CreateOrder", request, told)
        self.orders.append(order_id)
        return order_id

    async def settle(
        self, clerk: Person, order_id: str, *, at: str, timeout_s: float = 5.0, card: str = "", insist: bool = False
    ) -> Heard:
        """A clerk settles an order at one certain instance.

        Args:
            card: Empty: from the source that is the clerk's.
            insist: Whether they ask again until there is a definitive answer.
        """
        source = "CARD" if card else "DRAWER" if clerk.role is Role.CASHIER else "BANK"
        request = payment_pb2.SettleRequest(
            request_id=self.new_id("settle"),
            order_id=order_id,
            source=payment_pb2.Source.Value(f"SOURCE_{source}"),
            card=card,
        )
        told = self._arguments(clerk, order_id=order_id, key=request.request_id, source=source)
        asking = self.sure if insist else self.ask
        return await asking(clerk, "Settle", request, told, at=at, timeout_s=timeout_s)

    async def reverse(self, order_id: str, payment_id: str) -> Heard:
        """The accountant undoes a payment."""
        request = payment_pb2.ReverseRequest(
            request_id=self.new_id("reverse"), payment_id=payment_id, reason="wrong order"
        )
        told = self._arguments(self.accountant, order_id=order_id, payment_id=payment_id, key=request.request_id)
        return await self.sure(self.accountant, "Reverse", request, told, at="payment-2")

    async def cancel(self, order_id: str) -> Heard:
        """The customer cancels an order."""
        request = order_pb2.CancelOrderRequest(
            request_id=self.new_id("cancel"), order_id=order_id, reason="nobody wants it"
        )
        told = self._arguments(self.customer, order_id=order_id, key=request.request_id)
        return await self.sure(self.customer, "CancelOrder", request, told)

    async def ticket(self) -> str:
        """The cashier fetches a ticket for a payment that is no order."""
        request = payment_pb2.IssueTicketRequest(request_id=self.new_id("ticket"))
        told = self._arguments(self.cashier, key=request.request_id)
        return (await self.sure(self.cashier, "IssueTicket", request, told)).answer.ticket

    async def pay(self, ticket: str, amount: int, *, at: str, timeout_s: float = 5.0, insist: bool = False) -> Heard:
        """The cashier pays with a ticket."""
        payee = f"sales:{CURRENCY}"
        request = payment_pb2.PayRequest(
            ticket_id=ticket,
            source=payment_pb2.SOURCE_DRAWER,
            amount=money_pb2.Money(minor_units=amount, currency_code=CURRENCY),
            payee_account_id=payee,
        )
        told = self._arguments(
            self.cashier,
            key=ticket,
            source="DRAWER",
            amount_minor=amount,
            currency=CURRENCY,
            payee_account_id=payee,
        )
        asking = self.sure if insist else self.ask
        return await asking(self.cashier, "Pay", request, told, at=at, timeout_s=timeout_s)

    async def ask(
        self, person: Person, kind: str, request: Any, arguments: Arguments, *, at: str = "", timeout_s: float = 5.0
    ) -> Heard:
        """Asks once, at one certain instance or at any."""
        address = self.stack.instance(at).address if at else ""
        return await self.caller.ask(
            person.name, person, kind, request, arguments, timeout_s=timeout_s, address=address
        )

    async def sure(
        self, person: Person, kind: str, request: Any, arguments: Arguments, *, at: str = "", timeout_s: float = 5.0
    ) -> Heard:
        """Asks until there is a definitive answer.

        Raises:
            NotBroughtAbout: There was none in time.
        """
        heard: Heard | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(_WITHIN_S):
                while True:
                    heard = await self.ask(person, kind, request, arguments, at=at, timeout_s=timeout_s)
                    if heard.outcome is not Outcome.INFO and heard.answer.code not in _PASSING:
                        return heard
                    await asyncio.sleep(_ASK_AGAIN_S)
        told = heard.answer if heard else None
        raise NotBroughtAbout(f"{kind} was never answered for good; the last word was {told}")

    @staticmethod
    def _arguments(person: Person, **told: Any) -> Arguments:
        return Arguments(clerk=person.name, role=person.role.value, **told)

    # ---- levers ------------------------------------------------------------------------------------------

    async def arm(
        self,
        instance: str,
        point: str,
        action: failpoint_pb2.FailpointAction.ValueType,
        subject: str = "",
        delay_s: float = 0.0,
    ) -> int:
        """Arms a failpoint of one instance, for one order or card; returns its process.

        Raises:
            NotBroughtAbout: It cannot be armed.
        """
        address = self.stack.acquirer if instance == ACQUIRER_INSTANCE else self.stack.instance(instance).address
        request = failpoint_pb2.ArmFailpointRequest(
            name=point, action=action, subject=subject, delay_ms=round(delay_s * 1000)
        )
        metadata = (("authorization", f"Bearer {self.operator.token}"),)
        async with open_channel(address) as channel:
            stub: Any = failpoint_pb2_grpc.FailpointServiceStub(channel)
            try:
                return int((await stub.ArmFailpoint(request, timeout=_WITHIN_S, metadata=metadata)).pid)
            except grpc.aio.AioRpcError as error:
                raise NotBroughtAbout(f"{instance} cannot be armed: {error.details()}") from error

    async def died_at(self, instance: str, point: str, pid: int) -> bool:
        """Whether the process that was armed to die at a failpoint has; otherwise it is armed no more.

        A process that dies closes its connections before it is gone, so it is asked: one that dies does not answer.
        """
        try:
            return await self.arm(instance, point, DISARM) != pid
        except NotBroughtAbout:
            return True

    def is_frozen(self, instance: str) -> bool:
        """Whether it stands still."""
        with suppress(psutil.NoSuchProcess, ValueError):
            return psutil.Process(self.stack.instance(instance).pid).status() == psutil.STATUS_STOPPED
        return False

    def thaw(self, instance: str) -> None:
        """Lets a frozen instance go on."""
        self.stack.kill(instance, signal.SIGCONT)

    async def until(
        self, condition: Callable[[], Awaitable[bool]], otherwise: str, within_s: float = _WITHIN_S
    ) -> None:
        """Waits for something of which no event tells.

        Raises:
            NotBroughtAbout: It did not come in time.
        """
        try:
            async with asyncio.timeout(within_s):
                while not await condition():  # noqa: ASYNC110  another process
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise NotBroughtAbout(otherwise) from None

    async def until_frozen(self, *instances: str) -> str:
        """Waits until one of these has stopped itself; which.

        Raises:
            NotBroughtAbout: None did.
        """

        async def frozen() -> bool:
            return any(map(self.is_frozen, instances))

        await self.until(frozen, f"{' and '.join(instances)} did not freeze")
        return next(filter(self.is_frozen, instances))

    async def until_died(self, instance: str, pid: int) -> None:
        """Waits until the process `pid` of an instance is gone.

        Raises:
            NotBroughtAbout: It is not.
        """

        async def died() -> bool:
            return self.stack.instance(instance).pid != pid

        await self.until(died, f"{instance} did not die")

    async def order_state(self, order_id: str) -> str:
        """Where an order stands, by the books."""
        return next(str(row["state"]) for row in (await self.books()).orders if row["order_id"] == order_id)

    async def books(self) -> Snapshot:
        """What the databases hold now."""
        return await read_snapshot(self._databases)

    # ---- judging -----------------------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """How many calls were made here."""
        return len(self._recorded())

    async def judge(self, *, calm_since: int | None) -> list[Check]:
        """Lets everything come to rest, in the time it may take, and has it checked.

        Args:
            calm_since: Since so many calls nobody has died or frozen, so that nobody may be thrown off an order either;
                None: somebody has.
        """
        reading = await settled_snapshot(self._databases, REST_WITHIN_S, self.clock)
        left = reading.snapshot.unfinished()
        if not left and not reading.at_rest:
            left = ["the books still changed"]
        await self._last_looks()
        log = await read_acquirer_log(self.stack.acquirer, self.operator.token)
        self.history.flush()
        # All calls are answered and this is their recorder: nothing is missing at the end.
        history = replace(read_history(self.path), whole=True)
        checks = [Findings(len(reading.snapshot.payments), left).check(f"at rest within {REST_WITHIN_S:g} s")]
        if calm_since is not None:
            checks.append(nobody_thrown_off(history.calls[calm_since:]).check("nobody is thrown off an order"))
        checks += await asyncio.to_thread(
            run_checks, reading.snapshot, history=history, acquirer=log, now_ms=reading.at_ms
        )
        return checks

    async def _last_looks(self) -> None:
        for order_id in self.orders:
            request = order_pb2.GetOrderRequest(order_id=order_id)
            await self.ask(self.accountant, "GetOrder", request, self._arguments(self.accountant, order_id=order_id))

    def _recorded(self) -> tuple[RecordedCall, ...]:
        self.history.flush()
        return read_history(self.path).calls

    @property
    def _databases(self) -> dict[str, str]:
        return {service: database_url(self.stack.data, service) for service in (*SERVICES, ACQUIRER)}


def nobody_thrown_off(operations: tuple[RecordedCall, ...]) -> Findings:
    """While nobody dies or freezes, whoever has begun with an order ends with it: others wait, or go away.

    That is what the order's lock promises. The fence, too, keeps an order from being settled twice, but by refusing the
    clerk who was there first.
    """
    pressed = [operation for operation in operations if operation.kind in ("Settle", "Pay", "Reverse")]
    lost = ("STALE_FENCE", "ORDER_LOCK_LOST")
    return Findings(
        len(pressed),
        (
            f"{operation.process} was thrown off {operation.arguments.order_id} ({operation.answer.reason}), "
            "and had neither died nor frozen"
            for operation in pressed
            if operation.answer.reason in lost
        ),
    )


@asynccontextmanager
async def open_booth(
    folder: Path, guards_off: tuple[str, ...], replicas: Mapping[str, int], seed: int, clock: Clock
) -> AsyncIterator[Booth]:
    """A running booth; taken down afterwards, whatever happened.

    Args:
        folder: Where its data and its history go; it is there, and empty.
        replicas: Instances of each service; 1 unless named.

    Raises:
        CountinghouseError: The stack does not start.
    """
    options = StackOptions(
        data=folder / "data",
        replicas=replicas,
        guards_off=guards_off,
        failpoints=True,
        session_timeout_s=_SESSION_TIMEOUT_S,
        settings=_SETTINGS,
        start_timeout_s=_START_WITHIN_S,
    )
    path = folder / "history.jsonl"
    async with Stack(options, clock=clock) as stack:

        def person(name: str, role: Role) -> Person:
            return Person(name, role, stack.token(name, role))

        try:
            with HistoryWriter(path, clock, seed=seed, facts={"guards_off": ",".join(guards_off)}) as history:
                async with Caller(stack.zookeeper, history, random.Random(f"{seed}/calls")) as caller:  # noqa: S311
                    yield Booth(
                        stack=stack,
                        caller=caller,
                        guards=Guards.without(guards_off),
                        history=history,
                        path=path,
                        clock=clock,
                        rng=random.Random(f"{seed}/booth"),  # noqa: S311
                        cashier=person("li", Role.CASHIER),
                        accountant=person("wu", Role.ACCOUNTANT),
                        customer=person("mei", Role.CUSTOMER),
                        operator=person("ops", Role.OPERATOR),
                    )
        finally:
            for instance in stack.instances:
                with suppress(CountinghouseError, ProcessLookupError):
                    stack.kill(instance.name, signal.SIGCONT)
