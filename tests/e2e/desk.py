"""Somebody at their desk: the real stubs of a running stack, called under one person's token.

A call goes to one instance, straight to its address, so that a test decides which of them it meets.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from countinghouse.acquirer.v1 import acquirer_pb2_grpc
from countinghouse.debug.v1 import failpoint_pb2_grpc
from countinghouse.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from countinghouse.order.v1 import order_pb2, order_pb2_grpc
from countinghouse.payment.v1 import payment_pb2, payment_pb2_grpc
from countinghouse.type.v1 import money_pb2
from services.devstack.stack import Stack
from services.kernel.errors import CountinghouseError
from services.kernel.ids import RandomIds
from services.kernel.principal import Role
from services.runtime.grpc import status
from tests.e2e import databases

_IDS = RandomIds()
TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 60.0


def new_id(prefix: str = "req") -> str:
    """A request id or order id nobody has used."""
    return _IDS.new(prefix)


def money(minor_units: int, currency: str = "CNY") -> money_pb2.Money:
    return money_pb2.Money(minor_units=minor_units, currency_code=currency)


class Desk:
    """One person's way to the services.

    Args:
        token: What they call with; empty: nothing.
    """

    def __init__(self, stack: Stack, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._stack = stack
        self._token = token
        self._timeout_s = timeout_s
        self._channels: dict[str, grpc.aio.Channel] = {}

    @classmethod
    def of(cls, stack: Stack, name: str, role: Role, *, timeout_s: float = TIMEOUT_S) -> Desk:
        """The desk of `name`, who acts as `role`."""
        return cls(stack, stack.token(name, role), timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    @property
    def order(self) -> Any:
        """Stub of the order service."""
        return order_pb2_grpc.OrderServiceStub(self._channel("order-1"))

    @property
    def ledger(self) -> Any:
        """Stub of the ledger service."""
        return ledger_pb2_grpc.LedgerServiceStub(self._channel("ledger-1"))

    @property
    def payment(self) -> Any:
        """Stub of the first payment instance."""
        return self.payment_at("payment-1")

    def payment_at(self, instance: str) -> Any:
        """Stub of one payment instance."""
        return payment_pb2_grpc.PaymentServiceStub(self._channel(instance))

    @property
    def acquirer(self) -> Any:
        """Stub of the outside bank."""
        return acquirer_pb2_grpc.AcquirerServiceStub(self._channel("acquirer-1"))

    @property
    def faults(self) -> Any:
        """Stub of what is to go wrong with it."""
        return acquirer_pb2_grpc.FaultServiceStub(self._channel("acquirer-1"))

    def failpoints_at(self, instance: str) -> Any:
        """Stub of one instance's failpoints."""
        return failpoint_pb2_grpc.FailpointServiceStub(self._channel(instance))

    async def ask(self, method: Any, request: Any, *, timeout_s: float | None = None) -> Any:
        """Calls a stub's method.

        Raises:
            grpc.aio.AioRpcError: What it was answered with.
        """
        metadata = (("authorization", f"Bearer {self._token}"),) if self._token else ()
        return await method(request, timeout=timeout_s or self._timeout_s, metadata=metadata)

    async def ask_with_trailers(self, method: Any, request: Any) -> tuple[Any, dict[str, Any]]:
        """As `ask`; also returns the trailing metadata."""
        call = method(request, timeout=self._timeout_s, metadata=(("authorization", f"Bearer {self._token}"),))
        response = await call
        return response, dict(await call.trailing_metadata() or ())

    async def new_order(self, amount: int = 1250, customer: str = "mei", currency: str = "CNY") -> str:
        """Makes an order; returns its id."""
        request = order_pb2.CreateOrderRequest(
            request_id=new_id(), customer_id=customer, amount=money(amount, currency)
        )
        return str((await self.ask(self.order.CreateOrder, request)).order.order_id)

    async def settle(
        self,
        order_id: str,
        source: payment_pb2.Source.ValueType = payment_pb2.SOURCE_DRAWER,
        *,
        request_id: str = "",
        instance: str = "payment-1",
        card: str = "",
        timeout_s: float | None = None,
    ) -> payment_pb2.Payment:
        """Settles an order."""
        request = payment_pb2.SettleRequest(
            request_id=request_id or new_id(), order_id=order_id, source=source, card=card
        )
        response = await self.ask(self.payment_at(instance).Settle, request, timeout_s=timeout_s)
        payment: payment_pb2.Payment = response.payment
        return payment

    async def ticket(self, order_id: str = "", ttl_s: int = 0) -> str:
        """Fetches a ticket; returns its id."""
        request = payment_pb2.IssueTicketRequest(request_id=new_id(), order_id=order_id, ttl_s=ttl_s)
        return str((await self.ask(self.payment.IssueTicket, request)).ticket.ticket_id)

    async def order_state(self, order_id: str) -> str:
        """Where an order stands, like PAID."""
        order = (await self.ask(self.order.GetOrder, order_pb2.GetOrderRequest(order_id=order_id))).order
        return order_pb2.OrderState.Name(order.state).removeprefix("ORDER_STATE_")

    async def journals(self, order_id: str) -> list[ledger_pb2.Journal]:
        """The journals of an order, newest first."""
        response = await self.ask(self.ledger.ListJournals, ledger_pb2.ListJournalsRequest(order_id=order_id))
        return list(response.journals)

    def _channel(self, instance: str) -> grpc.aio.Channel:
        address = self._stack.instance(instance).address
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address)
        return self._channels[address]


async def refusal(call: Awaitable[Any]) -> tuple[str, CountinghouseError]:
    """The status code and the error with which a call was refused; fails if it was not."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, status.from_rpc_error(error)
    raise AssertionError(f"this should have been refused, and was answered: {answer}")


async def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `countinghouse` with these arguments."""
    process = await start_command_line(*arguments, **environment)
    async with asyncio.timeout(_COMMAND_TIMEOUT_S):
        output, errors = await process.communicate()
    code = process.returncode
    assert code is not None
    return subprocess.CompletedProcess(arguments, code, output.decode(), errors.decode())


async def start_command_line(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    """Starts `countinghouse` with these arguments, apart from the terminal of the tests."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("COUNTINGHOUSE_")}
    if "--data" in arguments:
        settings["COUNTINGHOUSE_DATABASE"] = databases.of(Path(arguments[arguments.index("--data") + 1]))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=settings | environment,
        start_new_session=True,
    )


def processes_of(data: Path) -> list[int]:
    """Every process whose environment or command line names this data directory, zombies not counted."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(data) in word for word in words):
            found.append(process.pid)
    return found


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document a command printed."""
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)
