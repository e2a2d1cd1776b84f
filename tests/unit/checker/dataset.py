"""A builder of legal datasets: what databases, callers and acquirer would hold. Tests then corrupt what they are about.

`rows.py` writes the rows of all three services; here are the calls around them as their callers recorded them, and the
acquirer's own log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace

from services.checker.acquirer_log import AcquirerLog, AcquirerRecord
from services.checker.history import Answer, Arguments, History, Outcome, RecordedCall, outcome_of
from services.checker.snapshot import Snapshot
from tests.unit.checker.rows import CURRENCY, Row, ServiceRows, role_of


@dataclass
class DatasetBuilder(ServiceRows):
    """The books being written, call by call. `snapshot()` is what the checker reads of them."""

    calls: list[RecordedCall] = field(default_factory=list)
    charges: list[AcquirerRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.account(f"drawer:{CURRENCY}", "ASSET")
        self.account(f"bank:{CURRENCY}", "ASSET")
        self.account(f"sales:{CURRENCY}", "REVENUE")

    # Whole calls, from the press to the reply

    def wallet(self, customer: str, *, overdraft: int = 0) -> str:
        """Opens a wallet, by request; its account id."""
        account_id = f"wallet:{customer}:{CURRENCY}"
        self.account(account_id, "LIABILITY", overdraft=overdraft)
        self.request("ops", "OpenAccount", f"open-{customer}", rows=self.ledger_requests)
        self.answer("ops", "OpenAccount", f"open-{customer}")
        return account_id

    def new_order(self, order_id: str, amount: int = 1250, *, clerk: str = "li") -> Row:
        began_ms, key = self.now_ms(), f"make-{order_id}"
        row, body = self.open_order(order_id, amount, key=key, clerk=clerk)
        asked = Arguments(order_id=order_id, key=key, clerk=clerk, amount_minor=amount, currency=CURRENCY)
        self.call("CreateOrder", asked, replace(self.seen_order(row), sha256=digest(body)), began_ms)
        return row

    def open_order(self, order_id: str, amount: int, *, key: str, clerk: str) -> tuple[Row, bytes]:
        """Makes an order, and does not say that somebody heard of it; the row, and what was answered."""
        self.request(clerk, "CreateOrder", key, rows=self.order_requests)
        row: Row = {
            "seq": len(self.orders) + 1,
            "order_id": order_id,
            "customer_id": "mei",
            "state": "UNPAID",
            "amount_minor_units": amount,
            "currency_code": CURRENCY,
            "line_count": 0,
            "version": 0,
            "round": 1,
            "payment_id": "",
            "settled_by_name": "",
            "settled_by_role": "",
            "settled_at_ms": 0,
            "fence_generation": 0,
            "fence_token": 0,
            "created_at_ms": self._now_ms,
            "updated_at_ms": self._now_ms,
        }
        self.orders.append(row)
        self._orders[order_id] = row
        self.move_order(order_id, "UNPAID", 0)
        return row, self.answer(clerk, "CreateOrder", key)

    def settle(self, order_id: str, *, clerk: str = "li", key: str = "", source: str = "drawer") -> Row:
        """Settles an order, from the press to the reply; the payment."""
        order, fence, began_ms = self.order(order_id), self.fence(), self._now_ms
        payment = self.accept(order_id, "Settle", key or f"settle-{order_id}-{order['round']}", clerk)
        self.move_order(order_id, "PAYING", fence, payment["payment_id"])
        self.charge(payment, fence, source, f"settle:{order_id}:{order['round']}", order["amount_minor_units"])
        body = self.answer(clerk, "Settle", payment["request_key"])
        answer = self.seen_payment(payment, body)
        self.move_order(order_id, "PAID", fence, payment["payment_id"])
        self.deliver(payment, "COMPLETE")
        asked = Arguments(order_id=order_id, key=payment["request_key"], clerk=clerk, source=source.upper())
        self.call("Settle", asked, answer, began_ms)
        return payment

    def decline(self, order_id: str, *, clerk: str = "wu", key: str) -> Row:
        """Somebody comes too late; their payment."""
        began_ms = self._now_ms
        payment = self.accept(order_id, "Settle", key, clerk)
        self.move_payment(payment, "DECLINED", self.fence())
        payment["decline_reason"] = reason = "ORDER_ALREADY_PAID"
        body = self.answer(clerk, "Settle", key, ok=False)
        settled = self.order(order_id)
        told = {"payment_id": settled["payment_id"], "clerk": settled["settled_by_name"], "sha256": digest(body)}
        asked = Arguments(order_id=order_id, key=key, clerk=clerk, source="BANK")
        self.call("Settle", asked, Answer("ALREADY_EXISTS", reason, **told), began_ms)
        return payment

    def reverse(self, payment: Row, *, clerk: str = "wu") -> Row:
        """Undoes a payment, and opens its order's next round; the opposite journal."""
        fence, key, began_ms = self.fence(), f"reverse-{payment['payment_id']}", self._now_ms
        self.request(clerk, "Reverse", key)
        payment.update(reversal_caller=clerk, reversal_role=role_of(clerk), reversal_key=key)
        self.move_payment(payment, "REVERSING", fence)
        journal = self.undo(payment, fence)
        payment["reversal_journal_id"] = journal["journal_id"]
        self.move_payment(payment, "REVERSED", fence)
        answer = self.seen_payment(payment, self.answer(clerk, "Reverse", key))
        if payment["order_id"]:
            self.move_order(payment["order_id"], "UNPAID", fence, payment["payment_id"])
            self.deliver(payment, "REOPEN")
        asked = Arguments(payment_id=payment["payment_id"], key=key, clerk=clerk)
        self.call("Reverse", asked, answer, began_ms)
        return journal

    def park(self, order_id: str, amount: int, *, clerk: str = "li", by: str = "wu", reversing: bool = False) -> Row:
        """A card payment of an order that is never answered, and then parked: the order is free again.

        Args:
            reversing: Whether somebody had begun to reverse it.
        """
        began_ms = self._now_ms
        payment = self.accept(order_id, "Settle", f"card-{order_id}", clerk)
        payment.update(asks=0, attention="")
        fence = self.fence()
        self.move_order(order_id, "PAYING", fence, payment["payment_id"])
        self.submit(payment, fence, "acquirer", amount)
        self.move_payment(payment, "UNKNOWN", fence)
        if reversing:
            self.request(by, "Reverse", f"reverse-{order_id}")
            payment.update(reversal_caller=by, reversal_role=role_of(by), reversal_key=f"reverse-{order_id}")
            self.move_payment(payment, "REVERSING", fence)
            body = self.answer(by, "Reverse", f"reverse-{order_id}", ok=False)
            undoing = Arguments(payment_id=payment["payment_id"], key=f"reverse-{order_id}", clerk=by)
            parked = Answer("FAILED_PRECONDITION", "PAYMENT_PARKED", payment_id=payment["payment_id"])
            self.call("Reverse", undoing, replace(parked, sha256=digest(body)), began_ms)
        self.request(by, "Park", f"park-{order_id}")
        payment.update(parking_caller=by, parking_role="accountant", parking_key=f"park-{order_id}", parking_reason="x")
        self.move_payment(payment, "PARKED", fence)
        answer = self.seen_payment(payment, self.answer(by, "Park", f"park-{order_id}"))
        refused = self.answer(clerk, "Settle", f"card-{order_id}", ok=False)
        self.move_order(order_id, "UNPAID", fence, payment["payment_id"])
        self.deliver(payment, "RELEASE")
        asked = Arguments(order_id=order_id, key=f"card-{order_id}", clerk=clerk, source="CARD")
        told = Answer("FAILED_PRECONDITION", "PAYMENT_PARKED", payment_id=payment["payment_id"], sha256=digest(refused))
        self.call("Settle", asked, told, began_ms)
        parking = Arguments(payment_id=payment["payment_id"], key=f"park-{order_id}", clerk=by)
        self.call("Park", parking, answer, began_ms)
        return payment

    def pay(self, ticket: str, amount: int, *, payee: str = f"sales:{CURRENCY}", payer: str = "drawer") -> Row:
        """A direct payment with a ticket; the payment."""
        began_ms = self._now_ms
        payment = self.accept("", "Pay", ticket, "li")
        self.charge(payment, 0, payer, f"pay:{payment['payment_id']}", amount, payee)
        body = self.answer("li", "Pay", ticket)
        asked = Arguments(key=ticket, clerk="li", amount_minor=amount, currency=CURRENCY, payee_account_id=payee)
        self.call("Pay", asked, self.seen_payment(payment, body), began_ms)
        return payment

    def ticket(self, ask: str, ticket: str, *, clerk: str = "li") -> None:
        began_ms = self._now_ms
        self.request(clerk, "IssueTicket", ask)
        body = self.answer(clerk, "IssueTicket", ask)
        self.request(clerk, "Pay", ticket, state="ISSUED")
        asked = Arguments(key=ask, clerk=clerk)
        self.call("IssueTicket", asked, Answer(ticket=ticket, state="ISSUED", sha256=digest(body)), began_ms)

    # What callers record, and the acquirer

    def call(
        self,
        kind: str,
        arguments: Arguments,
        answer: Answer,
        began_ms: int,
        *,
        outcome: Outcome | None = None,
        ended_ms: int = 0,
    ) -> RecordedCall:
        """A call as its caller recorded it; it ends now, if nothing else is said."""
        arguments = replace(arguments, role=arguments.role or role_of(arguments.clerk))
        call = RecordedCall(
            op=len(self.calls) + 1,
            process=f"{arguments.clerk or 'somebody'}-1",
            kind=kind,
            arguments=arguments,
            invoked_ns=began_ms * 1_000_000,
            outcome=outcome or outcome_of(kind, answer),
            answer=answer,
            answered_ns=(ended_ms or self.now_ms()) * 1_000_000,
        )
        self.calls.append(call)
        return call

    def look(self, order_id: str) -> RecordedCall:
        """Somebody reads an order."""
        began_ms = self.now_ms()
        return self.call("GetOrder", Arguments(order_id=order_id), self.seen_order(self.order(order_id)), began_ms)

    def look_at_payment(self, payment: Row) -> RecordedCall:
        """Somebody reads a payment."""
        began_ms = self.now_ms()
        return self.call(
            "GetPayment", Arguments(payment_id=payment["payment_id"]), self.seen_payment(payment), began_ms
        )

    def call_of(self, key: str) -> RecordedCall:
        """The first call under a request id or ticket."""
        return next(call for call in self.calls if call.arguments.key == key)

    def seen_order(self, order: Row) -> Answer:
        """An order as a caller is told of it."""
        return Answer(
            state=order["state"],
            order_id=order["order_id"],
            payment_id=order["payment_id"],
            round=order["round"],
            version=order["version"],
            amount_minor=order["amount_minor_units"],
            currency=order["currency_code"],
            clerk=order["settled_by_name"],
        )

    def seen_payment(self, payment: Row, body: bytes = b"") -> Answer:
        """A payment as a caller is told of it."""
        return Answer(
            state=payment["state"],
            order_id=payment["order_id"],
            payment_id=payment["payment_id"],
            round=payment["round"],
            version=payment["version"],
            amount_minor=payment["amount_minor"],
            currency=payment["currency"],
            clerk=payment["clerk_name"],
            sha256=digest(body),
        )

    def at_acquirer(self, payment: Row, decision: str, *, attempt: int = 1, amount: int | None = None) -> None:
        """The acquirer receives a request about a payment, and decides."""
        kind = "charge" if decision in ("CHARGED", "DECLINED") else "reverse"
        minor = payment["amount_minor"] if amount is None else amount
        for word in ("RECEIVED", decision):
            place = len(self.charges) + 1
            key = f"{payment['payment_id']}:{attempt}"
            self.charges.append(AcquirerRecord(place, key, kind, minor, CURRENCY, word))

    # Parts of calls

    def charge(
        self, payment: Row, fence: int, source: str, business_key: str, amount: int, payee: str = f"sales:{CURRENCY}"
    ) -> Row:
        """A claimed payment is submitted, posted and recorded; the journal."""
        self.submit(payment, fence, source, amount, payee)
        journal = self.post(payment, fence, business_key)
        self.move_payment(payment, "SUCCEEDED", fence)
        return journal

    # What the checker reads

    def snapshot(self) -> Snapshot:
        names = {part.name for part in fields(Snapshot)} - {"charges", "acquirer_log", "order_removals"}
        rows = {name: tuple(getattr(self, name)) for name in names}
        return Snapshot(**rows, order_removals=tuple(self.removals))

    def history(self) -> History:
        return History(tuple(sorted(self.calls, key=lambda call: (call.invoked_ns, call.op))))

    def acquirer_log(self) -> AcquirerLog:
        return tuple(self.charges)


def digest(body: bytes) -> str:
    """As a recorder writes it; of nothing, nothing."""
    return hashlib.sha256(body).hexdigest() if body else ""


def legal() -> DatasetBuilder:
    """Return a run without a fault: a contested order, one that was reversed and settled again, a top-up."""
    dataset = DatasetBuilder()
    dataset.new_order("plain")
    dataset.settle("plain")
    dataset.decline("plain", key="too-late")
    dataset.new_order("reversed", 500)
    dataset.reverse(dataset.settle("reversed"))
    dataset.settle("reversed", clerk="wu", source="bank")
    dataset.new_order("open", 70)
    dataset.wallet("mei", overdraft=300)
    dataset.ticket("ask-1", "ticket-1")
    dataset.pay("ticket-1", 1_000, payee="wallet:mei:CNY")
    dataset.ticket("ask-2", "ticket-unused")
    for order_id in ("plain", "reversed", "open"):
        dataset.look(order_id)
    dataset.seal()
    return dataset


def with_cards() -> DatasetBuilder:
    """Return the same, with an order that was paid by card, and one whose card payment was reversed and paid anew."""
    dataset = legal()
    dataset.account("acquirer:CNY", "ASSET")
    dataset.new_order("carded", 320)
    dataset.at_acquirer(dataset.settle("carded", source="acquirer"), "CHARGED")
    dataset.new_order("returned", 480)
    first = dataset.settle("returned", source="acquirer")
    dataset.at_acquirer(first, "CHARGED")
    dataset.reverse(first)
    dataset.at_acquirer(first, "REFUNDED")
    dataset.settle("returned")
    dataset.seal()
    return dataset
