"""Settle orders by a durable workflow of DBOS Transact: three steps, each a transaction with its checkpoint.

workflow id = request id:   claim: OPEN → PAYING ▸ post: two postings, two balances ▸ complete: PAYING → PAID ▸ answer

python -m tests.bench.peers.dbos.service postgresql://…      prints its port; ends when its input is closed
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from dbos import DBOS, SetWorkflowID, SQLAlchemyDatasource
from sqlalchemy import text

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.serving import DRAWER, SALES, Refused, Settle, response, serve

#: Connections to each of its two uses of the database; SQLAlchemy's default is 15.
_POOL = 16
#: Workflows at once.
_THREADS = 32
#: A row of `orders` and two of `accounts` are changed by conditional or relative updates, which this level keeps right.
#: At the default, SERIALIZABLE, concurrent settles fail on the two balances and are tried again.
_ISOLATION = "READ COMMITTED"

_CLAIM = text("""
    UPDATE orders SET state = 'PAYING', payment_id = :payment WHERE order_id = :id AND state = 'OPEN'
    RETURNING amount_minor
""")
_SELECT_ORDER = text("SELECT payment_id FROM orders WHERE order_id = :id")
_INSERT_POSTINGS = text(f"""
    INSERT INTO postings (payment_id, account_id, order_id, amount)
    VALUES (:payment, '{DRAWER}', :id, :amount), (:payment, '{SALES}', :id, -:amount)
""")  # noqa: S608  constants
_ADD_TO_ACCOUNT = text("UPDATE accounts SET balance = balance + :amount WHERE account_id = :account")
_COMPLETE = text("""
    UPDATE orders SET state = 'PAID', paid_at_ms = :now WHERE order_id = :id AND payment_id = :payment
""")


class Steps:
    """The steps of a settle, each one transaction in which DBOS also records that it is done."""

    def __init__(self, source: Any) -> None:
        self._source = source
        step: Callable[..., Any] = source.transaction(isolation_level=_ISOLATION)
        self.claim = step(self._claim)
        self.post = step(self._post)
        self.complete = step(self._complete)

    def _claim(self, order_id: str, payment_id: str) -> int:
        session = self._source.sql_session()
        order = session.execute(_CLAIM, {"id": order_id, "payment": payment_id}).first()
        if order is None:
            found = session.execute(_SELECT_ORDER, {"id": order_id}).first()
            if found is None:
                raise Refused("NOT_FOUND", "there is no such order")
            raise Refused("ALREADY_EXISTS", f"the order is paid by {found.payment_id}")
        return int(order.amount_minor)

    def _post(self, order_id: str, payment_id: str, amount_minor: int) -> None:
        session = self._source.sql_session()
        session.execute(_INSERT_POSTINGS, {"payment": payment_id, "id": order_id, "amount": amount_minor})
        session.execute(_ADD_TO_ACCOUNT, {"amount": amount_minor, "account": DRAWER})
        session.execute(_ADD_TO_ACCOUNT, {"amount": -amount_minor, "account": SALES})

    def _complete(self, order_id: str, payment_id: str) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._source.sql_session().execute(_COMPLETE, {"id": order_id, "payment": payment_id, "now": now_ms})


#: Charges a card: key, card, amount in minor units.
Charge = Callable[[str, str, int], None]


def settling(steps: Steps, charge: Charge | None) -> Settle:
    """Register the workflow; return what runs it under the request id.

    Args:
        charge: A further step, after the claim; None: no card is charged.
    """

    def settle_order(order_id: str, source: payment_pb2.Source.ValueType, card: str) -> str:
        payment_id = DBOS.workflow_id
        amount_minor = steps.claim(order_id, payment_id)
        if charge is not None:
            charge(payment_id, card, amount_minor)
        steps.post(order_id, payment_id, amount_minor)
        steps.complete(order_id, payment_id)
        return base64.b64encode(response(order_id, source, payment_id, amount_minor)).decode()

    workflow: Callable[..., Any] = DBOS.workflow(name="settle")(settle_order)
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="workflow")

    def run(request: payment_pb2.SettleRequest) -> bytes:
        with SetWorkflowID(request.request_id):
            return base64.b64decode(workflow(request.order_id, request.source, request.card))

    async def settle(request: payment_pb2.SettleRequest) -> bytes:
        answer = await asyncio.get_running_loop().run_in_executor(threads, run, request)
        if payment_pb2.SettleResponse.FromString(answer).payment.order_id != request.order_id:
            raise Refused("INVALID_ARGUMENT", "this request_id was used for another order")
        return answer

    return settle


@asynccontextmanager
async def running(database: str, *, executor: str = "", charge: Charge | None = None) -> AsyncIterator[Settle]:
    """Launch DBOS; return what settles an order.

    Args:
        executor: The process's id at DBOS; empty: its default.
        charge: As `settling` has it.
    """
    named = {"executor_id": executor} if executor else {}
    DBOS(
        config={
            "name": "settling",
            "system_database_url": database,
            "sys_db_pool_size": _POOL,
            "log_level": "ERROR",
            **named,
        }
    )
    source = SQLAlchemyDatasource.create(database, {"pool_size": _POOL, "max_overflow": 0})
    settle = settling(Steps(source), charge)
    DBOS.launch()
    try:
        yield settle
    finally:
        await asyncio.to_thread(DBOS.destroy)


async def _serve(database: str) -> None:
    async with running(database) as settle:
        await serve(settle)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
