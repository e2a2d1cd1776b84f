"""A builder of legal datasets: what databases, callers and acquirer would hold. Tests then corrupt what they are about.

The rows of all three services, the calls as their callers recorded them, the acquirer's own log. Hashes are made by the
ledger's own model, so that the checker's second writing of the rule is held against the first.
Rows have every column that the services' tables have, so that they can be put into real databases (`archive.py`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from typing import Any

from services.checker.acquirer_log import AcquirerLog, AcquirerRecord
from services.checker.evidence import Answered
from services.checker.history import Answer, Arguments, History, Outcome, RecordedCall, outcome_of
from services.checker.snapshot import Snapshot
from services.kernel.principal import Principal, Role
from services.ledger.model import NO_HASH, AccountKind, Journal, JournalDraft, Leg

Row = dict[str, Any]
CURRENCY = "CNY"
LEASE_MS = 5_000
_HELD = ("PAYING", "PAID")


def role_of(clerk: str) -> str:
    """Under which role somebody acts; of nobody none."""
    return {"": "", "wu": "accountant", "mei": "customer", "ops": "operator"}.get(clerk, "cashier")


@dataclass
class DatasetBuilder:
    """The books being written. `snapshot()` is what the checker reads of them."""

    orders: list[Row] = field(default_factory=list)
    order_events: list[Row] = field(default_factory=list)
    payments: list[Row] = field(default_factory=list)
    payment_events: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)
    outbox: list[Row] = field(default_factory=list)
    accounts: list[Row] = field(default_factory=list)
    journals: list[Row] = field(default_factory=list)
    postings: list[Row] = field(default_factory=list)
    order_fences: list[Row] = field(default_factory=list)
    refusals: list[Row] = field(default_factory=list)
    chain_head: list[Row] = field(default_factory=list)
    order_requests: list[Row] = field(default_factory=list)
    ledger_requests: list[Row] = field(default_factory=list)
    removals: list[Row] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    calls: list[RecordedCall] = field(default_factory=list)
    charges: list[AcquirerRecord] = field(default_factory=list)
    _orders: dict[str, Row] = field(default_factory=dict)
    _payments: dict[str, Row] = field(default_factory=dict)
    _requests: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    _legs: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    _fences: dict[str, Row] = field(default_factory=dict)
    _now_ms: int = 1_700_000_000_000
    _token: int = 100

    def __post_init__(self) -> None:
        self.account(f"drawer:{CURRENCY}", "ASSET")
        self.account(f"bank:{CURRENCY}", "ASSET")
        self.account(f"sales:{CURRENCY}", "REVENUE")

    # What the services write

    def account(self, account_id: str, kind: str, *, currency: str = CURRENCY, overdraft: int = 0) -> Row:
        row: Row = {"account_id": account_id, "kind": kind, "currency_code": currency, "overdraft_limit": overdraft}
        self.accounts.append(row | {"balance": 0, "version": 1, "created_at_ms": self._now_ms})
        return self.accounts[-1]

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

    # The steps of it

    def accept(self, order_id: str, method: str, key: str, clerk: str) -> Row:
        """A request begins to run, and its payment is CREATED."""
        if (clerk, method, key) not in self._requests:
            self.request(clerk, method, key)
        row: Row = {
            "payment_id": f"pay_{len(self.payments) + 1:02d}",
            "request_caller": clerk,
            "request_role": role_of(clerk),
            "request_method": method,
            "request_key": key,
            "order_id": order_id,
            "round": 0,
            "state": "CREATED",
            "source": "DRAWER",
            "customer_id": "mei",
            "amount_minor": 0,
            "currency": "",
            "payer_account_id": "",
            "payee_account_id": "",
            "clerk_name": clerk,
            "clerk_role": role_of(clerk),
            "memo": "",
            "journal_id": "",
            "reversal_caller": "",
            "reversal_role": "",
            "reversal_key": "",
            "reversal_reason": "",
            "reversal_journal_id": "",
            "decline_reason": "",
            "fence_generation": 0,
            "fence_token": 0,
            "version": 0,
            "created_at_ms": 0,
            "updated_at_ms": 0,
            "settled_at_ms": 0,
        }
        self.payments.append(row)
        self._payments[row["payment_id"]] = row
        self.move_payment(row, "CREATED", 0)
        row["created_at_ms"] = self._now_ms
        return row

    def charge(
        self, payment: Row, fence: int, source: str, business_key: str, amount: int, payee: str = f"sales:{CURRENCY}"
    ) -> Row:
        """A claimed payment is submitted, posted and recorded; the journal."""
        self.submit(payment, fence, source, amount, payee)
        journal = self.post(payment, fence, business_key)
        self.move_payment(payment, "SUCCEEDED", fence)
        return journal

    def submit(self, payment: Row, fence: int, source: str, amount: int, payee: str = f"sales:{CURRENCY}") -> None:
        """It is committed that money may move."""
        payer = source if ":" in source else f"{source}:{CURRENCY}"
        payment.update(amount_minor=amount, currency=CURRENCY, payer_account_id=payer, payee_account_id=payee)
        payment["round"] = self._orders[payment["order_id"]]["round"] if payment["order_id"] else 0
        self.move_payment(payment, "SUBMITTED", fence)

    def post(self, payment: Row, fence: int, business_key: str) -> Row:
        """Money moves; the payment learns of it. The journal."""
        amount = payment["amount_minor"]
        legs = [(payment["payer_account_id"], amount), (payment["payee_account_id"], -amount)]
        names = {"order_id": payment["order_id"], "payment_id": payment["payment_id"]}
        journal = self.journal(business_key, legs, fence=fence, **names)
        payment["journal_id"] = journal["journal_id"]
        return journal

    def undo(self, payment: Row, fence: int = 0) -> Row:
        """The opposite of a payment's journal."""
        undone = payment["journal_id"]
        legs = [(leg["account_id"], -leg["amount"]) for leg in self._legs[undone]]
        return self.journal(
            f"reverse:{undone}",
            legs,
            order_id=payment["order_id"],
            payment_id=payment["payment_id"],
            reversal_of=undone,
            fence=fence,
        )

    def journal(
        self,
        business_key: str,
        legs: list[tuple[str, int]],
        *,
        order_id: str = "",
        payment_id: str = "",
        reversal_of: str | None = None,
        fence: int = 0,
    ) -> Row:
        """A journal, not sealed yet; the ledger has then seen the fence."""
        journal_id = f"jnl_{len(self.journals) + 1:02d}"
        row: Row = {
            "journal_id": journal_id,
            "sequence": len(self.journals) + 1,
            "business_key": business_key,
            "currency_code": CURRENCY,
            "memo": "茶, table 4",
            "order_id": order_id,
            "payment_id": payment_id,
            "reversal_of": reversal_of,
            "previous_hash": "",
            "hash": "",
            "posted_at_ms": self.now_ms(),
            "clerk_name": "li",
            "clerk_role": "cashier",
        }
        self.journals.append(row)
        for leg, (account_id, amount) in enumerate(legs):
            self.postings.append({"journal_id": journal_id, "leg": leg, "account_id": account_id, "amount": amount})
            self._legs[journal_id].append(self.postings[-1])
        if fence:
            self.see_fence(order_id, fence)
        return row

    def see_fence(self, order_id: str, fence: int) -> None:
        """The ledger has been asked about an order under this fence."""
        if order_id not in self._fences:
            self._fences[order_id] = {"order_id": order_id, "generation": 1, "token": fence}
            self.order_fences.append(self._fences[order_id])
        self._fences[order_id]["token"] = fence

    def request(
        self, caller: str, method: str, key: str, state: str = "IN_PROGRESS", rows: list[Row] | None = None
    ) -> Row:
        """A ticket or request, of the payment service unless other rows are named."""
        row: Row = {
            "caller": caller,
            "caller_role": role_of(caller),
            "method": method,
            "key": key,
            "state": state,
            "fingerprint": "f" * 64,
            "attempt": 1,
            "owner": "payment-1",
            "lease_until_ms": self.now_ms() + LEASE_MS,
            "expires_at_ms": self._now_ms + 86_400_000,
            "order_id": "",
            "response_ok": None,
            "response": None,
            "created_at_ms": self._now_ms,
            "updated_at_ms": self._now_ms,
        }
        (self.requests if rows is None else rows).append(row)
        self._requests[caller, method, key] = row
        return row

    def answer(self, caller: str, method: str, key: str, *, ok: bool = True) -> bytes:
        """A request is DONE, and its caller has heard; the response."""
        body = f"{method} {key} of {caller}: {ok}".encode()
        self.request_of(caller, method, key).update(state="DONE", response_ok=ok, response=body)
        self.answers.append(Answered(key, ok, body))
        return body

    def deliver(self, payment: Row, purpose: str, *, delivered: bool = True) -> Row:
        """The order service has been told, or is to be."""
        row: Row = {"payment_id": payment["payment_id"], "order_id": payment["order_id"], "purpose": purpose}
        row |= {"created_at_ms": self.now_ms(), "delivered_at_ms": self.now_ms() if delivered else None}
        self.outbox.append(row)
        return self.outbox[-1]

    def move_order(self, order_id: str, state: str, token: int, payment_id: str = "") -> None:
        """An order changes its state; the payment that moves it holds it while it is PAYING or PAID."""
        order = self.order(order_id)
        before = order["state"] if order["version"] else ""
        if (before, state) == ("PAID", "UNPAID"):
            order["round"] += 1
        held_by = payment_id if state in _HELD else ""
        order.update(state=state, version=order["version"] + 1, payment_id=held_by, settled_by_name="", settled_at_ms=0)
        if state == "PAID":
            payment = self._payments.get(payment_id, {"clerk_name": "li"})
            order.update(settled_by_name=payment["clerk_name"], settled_by_role="cashier", settled_at_ms=self._now_ms)
        if token:
            order.update(fence_generation=1, fence_token=token)
        self.order_events.append(
            {
                "order_id": order_id,
                "version": order["version"],
                "from_state": before,
                "to_state": state,
                "round": order["round"],
                "payment_id": payment_id,
                "fence_generation": 1 if token else 0,
                "fence_token": token,
                "actor_name": "li",
                "actor_role": "cashier",
                "at_ms": self.now_ms(),
                "reason": "",
            }
        )

    def move_payment(self, payment: Row, state: str, token: int) -> None:
        generation = 1 if token else 0
        payment.update(state=state, version=payment["version"] + 1, fence_generation=generation, fence_token=token)
        payment["updated_at_ms"] = self.now_ms()
        self.payment_events.append(
            {
                "payment_id": payment["payment_id"],
                "version": payment["version"],
                "state": state,
                "fence_generation": generation,
                "fence_token": token,
                "at_ms": self._now_ms,
                "actor_name": payment["reversal_caller"] or payment["clerk_name"],
                "actor_role": payment["reversal_role"] or payment["clerk_role"],
                "reason": "wrong order" if state in ("REVERSING", "REVERSED", "PARKED") else "",
            }
        )

    # Looking things up, and taking them away

    def has_order(self, order_id: str) -> bool:
        return order_id in self._orders

    def order(self, order_id: str) -> Row:
        return self._orders[order_id]

    def request_of(self, caller: str, method: str, key: str) -> Row:
        return self._requests[caller, method, key]

    def remove(self, caller: str, method: str, key: str) -> None:
        """A request is gone, as after its time to be kept."""
        self.requests.remove(self._requests.pop((caller, method, key)))

    def of(self, rows: list[Row], payment: Row) -> list[Row]:
        return [row for row in rows if row["payment_id"] == payment["payment_id"]]

    def legs(self, journal_id: str) -> list[Row]:
        return [row for row in self.postings if row["journal_id"] == journal_id]

    def remove_journal(self, journal_id: str) -> None:
        """Takes a journal and its postings out; those after it move up."""
        self.journals = [row for row in self.journals if row["journal_id"] != journal_id]
        self.postings = [row for row in self.postings if row["journal_id"] != journal_id]
        for place, row in enumerate(self.journals, start=1):
            row["sequence"] = place

    def remove_payment(self, payment: Row) -> None:
        self.payment_events = [row for row in self.payment_events if row["payment_id"] != payment["payment_id"]]
        self.payments.remove(payment)

    def fence(self) -> int:
        """The token of the next holder of a lock."""
        self._token += 2
        return self._token

    def now_ms(self) -> int:
        """Time goes on by 10 ms."""
        self._now_ms += 10
        return self._now_ms

    # The ledger's seal

    def seal(self) -> None:
        """Writes hashes, head, balances and versions as the ledger would have for the journals as they are now."""
        legs: defaultdict[str, list[Row]] = defaultdict(list)
        for leg in self.postings:
            legs[leg["journal_id"]].append(leg)
        previous = NO_HASH
        for row in self.journals:
            row["previous_hash"] = previous
            row["hash"] = previous = self.hash_of(row, legs[row["journal_id"]])
        self.chain_head = [{"id": 1, "sequence": len(self.journals), "hash": previous}]
        accounts = {row["account_id"]: row for row in self.accounts}
        for account in self.accounts:
            account.update(balance=0, version=1)
        for row in self.journals:
            for leg in legs[row["journal_id"]]:
                account = accounts.get(leg["account_id"], {"balance": 0, "version": 0, "kind": "ASSET"})
                account["balance"] += AccountKind(account["kind"]).sign * leg["amount"]
                account["version"] += 1

    def hash_of(self, row: Row, legs: list[Row] | None = None) -> str:
        """A journal's hash, as the ledger computes it from the row as it is now."""
        draft = JournalDraft(
            business_key=row["business_key"],
            legs=tuple(
                Leg(leg["account_id"], leg["amount"])
                for leg in (self.legs(row["journal_id"]) if legs is None else legs)
            ),
            currency=row["currency_code"],
            memo=row["memo"],
            order_id=row["order_id"],
            payment_id=row["payment_id"],
            clerk=Principal(row["clerk_name"], Role(row["clerk_role"])),
            reversal_of=row["reversal_of"] or "",
        )
        place = (row["posted_at_ms"], row["sequence"], row["previous_hash"])
        return Journal(draft, row["journal_id"], *place, hash="").recomputed_hash()

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
