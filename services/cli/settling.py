"""What a run asks the services about a batch of orders: to settle them, or what would become of them.

Each order is settled under a request id made of the run's id and the order's, so that the same run, started again,
gets the stored answers of what it has settled.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.cli import exit_codes, output
from services.cli.exit_codes import ExitCode
from services.cli.order_file import OrderLine
from services.cli.result_file import Outcome, Result
from services.kernel.currency import format_amount
from services.kernel.errors import CountinghouseError, InvalidArgument, NotFound, OutcomeUnknown, may_come_right
from services.kernel.money import parse_amount
from services.runtime.grpc import status
from services.runtime.grpc.enum_names import name_of

#: How long one call may take, in seconds.
_TRY_S: Final = 15.0
_LONGEST_REQUEST_ID: Final = 64
_HASH_LENGTH: Final = 24
#: Refusals by what the order is. Any other definitive one is about the caller, an account or the request.
_OF_THE_ORDER: Final = ("ORDER_ALREADY_PAID", "ORDER_NOT_PAYABLE", "ORDER_NOT_FOUND")
#: A decimal comma; with three digits behind it, it might separate thousands.
_DECIMAL_COMMA: Final = re.compile(r"\A([0-9]+),([0-9]{1,2})\Z")


class Sends(Protocol):
    """`client.Client`."""

    async def send(self, service: str, method: str, request: Message, within_s: float) -> Any:
        """Send a request once; see `Client.send`."""
        ...


def request_id_of(run_id: str, order_id: str) -> str:
    """Return the request id under which a run settles an order; the same for ever.

    Args:
        run_id: At most 32 characters, none of them a colon.
    """
    whole = f"{run_id}:{order_id}"
    if len(whole) <= _LONGEST_REQUEST_ID:
        return whole
    return f"{run_id}:{hashlib.sha256(order_id.encode()).hexdigest()[:_HASH_LENGTH]}"


class Settling:
    """Settles batches of orders from the bank account.

    Args:
        run_id: As for `request_id_of`.
    """

    def __init__(self, client: Sends, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    async def __call__(self, lines: Sequence[OrderLine], /) -> list[Result]:
        """Settle some orders; return what became of each. One whose amount or currency is not the line's is skipped.

        Raises:
            CountinghouseError: The batch was refused or not answered as a whole.
        """
        found = await _amounts_that_differ(self._client, [line for line in lines if line.amount or line.currency])
        asked = [line for line in lines if line not in found]
        if asked:
            outcomes = await self._settle(asked)
            found |= {line: self._result(line, each) for line, each in zip(asked, outcomes, strict=True)}
        return [found[line] for line in lines]

    async def _settle(self, lines: Sequence[OrderLine]) -> Sequence[payment_pb2.SettleOutcome]:
        requests = [
            payment_pb2.SettleRequest(
                request_id=request_id_of(self._run_id, line.order_id),
                order_id=line.order_id,
                source=payment_pb2.SOURCE_BANK,
                memo=_memo(self._run_id),
            )
            for line in lines
        ]
        batch = payment_pb2.SettleBatchRequest(requests=requests)
        outcomes: Sequence[payment_pb2.SettleOutcome] = (
            await self._client.send("payment", "SettleBatch", batch, _TRY_S)
        ).outcomes
        if len(outcomes) != len(lines):
            raise OutcomeUnknown("BATCH_MISMATCH", f"{len(outcomes)} answers came to {len(lines)} orders")
        return outcomes

    def _result(self, line: OrderLine, outcome: payment_pb2.SettleOutcome) -> Result:
        if outcome.HasField("response"):
            return _of_payment(line, outcome.response.payment, replayed=outcome.replayed)
        error = status.from_bytes(outcome.error)
        reason = error.message
        if may_come_right(error):
            return Result(line.number, line.order_id, Outcome.OPEN, reason)
        if outcome.replayed:
            reason = f"{reason.removesuffix('.')}. This is the stored answer to run {self._run_id}."
        kind = Outcome.SKIPPED if error.reason in _OF_THE_ORDER else Outcome.REFUSED
        return Result(line.number, line.order_id, kind, reason, error.metadata.get("payment_id", ""))


class Preview:
    """Says what a run would do with batches of orders. It changes nothing.

    Args:
        run_id: As for `request_id_of`.
    """

    def __init__(self, client: Sends, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    async def __call__(self, lines: Sequence[OrderLine], /) -> list[Result]:
        """Return what would become of each order as it stands."""
        answers = await _orders(self._client, lines)
        return await asyncio.gather(*map(self._result, lines, answers))

    async def _result(self, line: OrderLine, answer: order_pb2.Order | CountinghouseError) -> Result:
        if isinstance(answer, NotFound):
            return Result(line.number, line.order_id, Outcome.WOULD_BE_SKIPPED, answer.message)
        if isinstance(answer, CountinghouseError):
            return _not_read(line, answer)
        state = name_of(order_pb2.OrderState, answer.state, "ORDER_STATE_")
        if state == "PAID":
            return await self._of_paid(line, answer)
        reason = _difference(line, answer) if state == "UNPAID" else f"it is {state}"
        kind = Outcome.WOULD_BE_SKIPPED if reason else Outcome.WOULD_BE_SETTLED
        return Result(line.number, line.order_id, kind, reason)

    async def _of_paid(self, line: OrderLine, order: order_pb2.Order) -> Result:
        """Return the result of an order that is PAID, by this run or otherwise."""
        request = payment_pb2.GetPaymentRequest(payment_id=order.payment_id)
        try:
            payment = (await self._client.send("payment", "GetPayment", request, _TRY_S)).payment
        except CountinghouseError as error:
            return _not_read(line, error)
        if payment.memo == _memo(self._run_id):
            return Result(line.number, line.order_id, Outcome.REPLAYED, "", order.payment_id)
        who = output.clerk(output.as_dict(order.settled_by))
        reason = f"it is PAID since {output.moment(order.settled_at_ms)}, by {who}"
        return Result(line.number, line.order_id, Outcome.WOULD_BE_SKIPPED, reason, order.payment_id)


def _memo(run_id: str) -> str:
    """Return the note in the journal of each order that a run settles."""
    return f"run {run_id}"


def _of_payment(line: OrderLine, payment: payment_pb2.Payment, *, replayed: bool) -> Result:
    """Return the result of an order whose settle was served."""
    state = name_of(payment_pb2.PaymentState, payment.state, "PAYMENT_STATE_")
    match exit_codes.of_payment(state, "SUCCEEDED"):
        case ExitCode.DONE:
            kind, reason = Outcome.REPLAYED if replayed else Outcome.SETTLED, ""
        case ExitCode.OUTCOME_UNKNOWN:
            kind, reason = Outcome.OPEN, f"its payment is {state}: not known yet"
        case _:
            kind, reason = Outcome.REFUSED, f"its payment is {state}"
    return Result(line.number, line.order_id, kind, reason, payment.payment_id)


async def _orders(client: Sends, lines: Sequence[OrderLine]) -> list[order_pb2.Order | CountinghouseError]:
    """Read the orders of some lines; return each, or why it was not read."""

    async def read(line: OrderLine) -> order_pb2.Order | CountinghouseError:
        try:
            response = await client.send("order", "GetOrder", order_pb2.GetOrderRequest(order_id=line.order_id), _TRY_S)
        except CountinghouseError as error:
            return error
        order: order_pb2.Order = response.order
        return order

    return await asyncio.gather(*map(read, lines))


async def _amounts_that_differ(client: Sends, lines: Sequence[OrderLine]) -> dict[OrderLine, Result]:
    """Return the result of each line whose amount or currency is not its order's, or could not be compared."""
    results = {}
    for line, answer in zip(lines, await _orders(client, lines), strict=True):
        if isinstance(answer, order_pb2.Order):
            if reason := _difference(line, answer):
                results[line] = Result(line.number, line.order_id, Outcome.SKIPPED, reason)
        elif not isinstance(answer, NotFound):  # the settle says that
            results[line] = _not_read(line, answer)
    return results


def _not_read(line: OrderLine, error: CountinghouseError) -> Result:
    kind = Outcome.OPEN if may_come_right(error) else Outcome.REFUSED
    return Result(line.number, line.order_id, kind, error.message)


def _difference(line: OrderLine, order: order_pb2.Order) -> str:
    """Return how the amount or currency of a line, where it has one, differs from its order's; empty: it does not."""
    code = order.amount.currency_code
    shown = format_amount(order.amount.minor_units, code)
    if line.currency and line.currency != code:
        return f"the order is {shown}, and the line is in another currency"
    if not line.amount:
        return ""
    try:
        amount = parse_amount(_DECIMAL_COMMA.sub(r"\1.\2", line.amount), code)
    except InvalidArgument as error:
        return error.message
    return (
        ""
        if amount == order.amount.minor_units
        else f"the order is {shown}, and the line {format_amount(amount, code)}"
    )
