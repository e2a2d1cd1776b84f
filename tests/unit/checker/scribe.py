"""A scribe who writes the rows of all three services by hand, lawfully; tests then spoil what they are about.

Hashes are made by the ledger's own model, so that the checker's second writing of the rule is held against the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.checker.books import Books
from services.checker.checks import Answered
from services.kernel.principal import Principal, Role
from services.ledger.model import NO_HASH, AccountKind, Journal, JournalDraft, Leg

Row = dict[str, Any]
CURRENCY = "CNY"
_ROLES = {"drawer": "cashier", "bank": "accountant", "wallet": "cashier"}


@dataclass
class Scribe:
    """The books being written. `books()` is what the checker reads of them."""

    orders: list[Row] = field(default_factory=list)
    order_events: list[Row] = field(default_factory=list)
    payments: list[Row] = field(default_factory=list)
    payment_events: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)
    outbox: list[Row] = field(default_factory=list)
    accounts: list[Row] = field(default_factory=list)
    journals: list[Row] = field(default_factory=list)
    postings: list[Row] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    _now_ms: int = 1_700_000_000_000
    _token: int = 100

    def __post_init__(self) -> None:
        self.account(f"drawer:{CURRENCY}", "ASSET")
        self.account(f"bank:{CURRENCY}", "ASSET")
        self.account(f"sales:{CURRENCY}", "REVENUE")

    # What the services write

    def account(self, account_id: str, kind: str, *, currency: str = CURRENCY, overdraft: int = 0) -> Row:
        """Opens an account."""
        row = {"account_id": account_id, "kind": kind, "currency_code": currency, "overdraft_limit": overdraft}
        self.accounts.append(row | {"balance": 0})
        return self.accounts[-1]

    def bill(self, order_id: str, amount: int = 1250) -> Row:
        """Makes a bill."""
        row: Row = {"order_id": order_id, "state": "UNPAID", "amount_minor_units": amount, "currency_code": CURRENCY}
        self.orders.append(row | {"version": 0, "round": 1, "payment_id": ""})
        self.move_order(order_id, "UNPAID", 0)
        return self.orders[-1]

    def settle(self, order_id: str, *, clerk: str = "li", key: str = "", source: str = "drawer") -> Row:
        """Settles a bill, from the press to the reply; the payment."""
        order, fence = self.order(order_id), self.fence()
        payment = self.accept(order_id, "Settle", key or f"settle-{order_id}-{order['round']}", clerk)
        self.move_order(order_id, "PAYING", fence, payment["payment_id"])
        self.charge(payment, fence, source, f"settle:{order_id}:{order['round']}", order["amount_minor_units"])
        self.answer(payment["request_caller"], "Settle", payment["request_key"])
        self.move_order(order_id, "PAID", fence, payment["payment_id"])
        self.deliver(payment, "COMPLETE")
        return payment

    def decline(self, order_id: str, *, clerk: str = "wu", key: str) -> Row:
        """Somebody comes too late; their payment."""
        payment = self.accept(order_id, "Settle", key, clerk)
        self.move_payment(payment, "DECLINED", self.fence())
        payment["decline_reason"] = "ORDER_ALREADY_PAID"
        self.answer(clerk, "Settle", key, ok=False)
        return payment

    def reverse(self, payment: Row, *, clerk: str = "wu") -> Row:
        """Undoes a payment, and opens its bill's next round; the opposite journal."""
        fence, key = self.fence(), f"reverse-{payment['payment_id']}"
        self.request(clerk, "Reverse", key)
        payment.update(reversal_caller=clerk, reversal_key=key)
        self.move_payment(payment, "REVERSING", fence)
        journal = self.undo(payment)
        payment["reversal_journal_id"] = journal["journal_id"]
        self.move_payment(payment, "REVERSED", fence)
        self.answer(clerk, "Reverse", key)
        if payment["order_id"]:
            order = self.order(payment["order_id"])
            order["round"] += 1
            self.move_order(payment["order_id"], "UNPAID", fence)
            self.deliver(payment, "REOPEN")
        return journal

    def pay(self, ticket: str, amount: int, *, payee: str = f"sales:{CURRENCY}", payer: str = "drawer") -> Row:
        """A direct payment with a ticket; the payment."""
        payment = self.accept("", "Pay", ticket, "li")
        self.charge(payment, 0, payer, f"pay:{payment['payment_id']}", amount, payee)
        self.answer("li", "Pay", ticket)
        return payment

    # The steps of it

    def accept(self, order_id: str, method: str, key: str, clerk: str) -> Row:
        """A request begins to run, and its payment is CREATED."""
        if not any((row["caller"], row["method"], row["key"]) == (clerk, method, key) for row in self.requests):
            self.request(clerk, method, key)
        row: Row = {
            "payment_id": f"pay_{len(self.payments) + 1:02d}",
            "request_caller": clerk,
            "request_method": method,
            "request_key": key,
            "order_id": order_id,
            "round": 0,
            "state": "CREATED",
            "amount_minor": 0,
            "currency": "",
            "clerk_name": clerk,
            "journal_id": "",
            "reversal_caller": "",
            "reversal_key": "",
            "reversal_journal_id": "",
            "decline_reason": "",
            "version": 0,
        }
        self.payments.append(row)
        self.move_payment(row, "CREATED", 0)
        row["created_at_ms"] = self._now_ms
        return row

    def charge(
        self, payment: Row, fence: int, source: str, business_key: str, amount: int, payee: str = f"sales:{CURRENCY}"
    ) -> Row:
        """A claimed payment is submitted, posted and recorded; the journal."""
        payer = source if ":" in source else f"{source}:{CURRENCY}"
        payment.update(amount_minor=amount, currency=CURRENCY)
        self.move_payment(payment, "SUBMITTED", fence)
        legs = [(payer, amount), (payee, -amount)]
        journal = self.journal(business_key, legs, order_id=payment["order_id"], payment_id=payment["payment_id"])
        payment["journal_id"] = journal["journal_id"]
        self.move_payment(payment, "SUCCEEDED", fence)
        return journal

    def undo(self, payment: Row) -> Row:
        """The opposite of a payment's journal."""
        undone = payment["journal_id"]
        legs = [(leg["account_id"], -leg["amount"]) for leg in self.legs(undone)]
        return self.journal(
            f"reverse:{undone}",
            legs,
            order_id=payment["order_id"],
            payment_id=payment["payment_id"],
            reversal_of=undone,
        )

    def journal(
        self,
        business_key: str,
        legs: list[tuple[str, int]],
        *,
        order_id: str = "",
        payment_id: str = "",
        reversal_of: str | None = None,
    ) -> Row:
        """A journal, not sealed yet."""
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
        return row

    def request(self, caller: str, method: str, key: str, state: str = "IN_PROGRESS") -> Row:
        """A ticket or request."""
        row: Row = {"caller": caller, "method": method, "key": key, "state": state}
        self.requests.append(row | {"response_ok": None, "response": None, "lease_until_ms": self.now_ms()})
        return self.requests[-1]

    def answer(self, caller: str, method: str, key: str, *, ok: bool = True) -> None:
        """A request is DONE, and its caller has heard."""
        body = f"{method} {key} {ok}".encode()
        self.request_of(caller, method, key).update(state="DONE", response_ok=ok, response=body)
        self.answers.append(Answered(key, ok, body))

    def deliver(self, payment: Row, purpose: str) -> Row:
        """The order service has been told."""
        row: Row = {"payment_id": payment["payment_id"], "order_id": payment["order_id"], "purpose": purpose}
        self.outbox.append(row | {"created_at_ms": self.now_ms(), "delivered_at_ms": self.now_ms()})
        return self.outbox[-1]

    def move_order(self, order_id: str, state: str, token: int, payment_id: str = "") -> None:
        """A bill changes its state."""
        order = self.order(order_id)
        before = order["state"] if order["version"] else ""
        order.update(state=state, version=order["version"] + 1, payment_id=payment_id)
        self.order_events.append(
            {
                "order_id": order_id,
                "version": order["version"],
                "from_state": before,
                "to_state": state,
                "payment_id": payment_id,
                "fence_generation": 1 if token else 0,
                "fence_token": token,
                "at_ms": self.now_ms(),
            }
        )

    def move_payment(self, payment: Row, state: str, token: int) -> None:
        """A payment changes its state."""
        payment.update(state=state, version=payment["version"] + 1)
        self.payment_events.append(
            {
                "payment_id": payment["payment_id"],
                "version": payment["version"],
                "state": state,
                "fence_generation": 1 if token else 0,
                "fence_token": token,
                "at_ms": self.now_ms(),
            }
        )

    # Looking things up, and taking them away

    def order(self, order_id: str) -> Row:
        """One bill."""
        return next(row for row in self.orders if row["order_id"] == order_id)

    def request_of(self, caller: str, method: str, key: str) -> Row:
        """One request."""
        return next(row for row in self.requests if (row["caller"], row["method"], row["key"]) == (caller, method, key))

    def of(self, rows: list[Row], payment: Row) -> list[Row]:
        """The rows that name a payment."""
        return [row for row in rows if row["payment_id"] == payment["payment_id"]]

    def legs(self, journal_id: str) -> list[Row]:
        """The postings of a journal."""
        return [row for row in self.postings if row["journal_id"] == journal_id]

    def remove_journal(self, journal_id: str) -> None:
        """Takes a journal and its postings out; those after it move up."""
        self.journals = [row for row in self.journals if row["journal_id"] != journal_id]
        self.postings = [row for row in self.postings if row["journal_id"] != journal_id]
        for place, row in enumerate(self.journals, start=1):
            row["sequence"] = place

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
        """Writes hashes and balances as the ledger would have for the journals as they are now."""
        previous = NO_HASH
        for row in self.journals:
            row["previous_hash"] = previous
            row["hash"] = previous = self.hash_of(row)
        signs = {row["account_id"]: AccountKind(row["kind"]).sign for row in self.accounts}
        for account in self.accounts:
            name = account["account_id"]
            standing = {row["journal_id"] for row in self.journals}
            account["balance"] = signs[name] * sum(
                leg["amount"] for leg in self.postings if leg["account_id"] == name and leg["journal_id"] in standing
            )

    def hash_of(self, row: Row) -> str:
        """A journal's hash, as the ledger computes it from the row as it is now."""
        draft = JournalDraft(
            business_key=row["business_key"],
            legs=tuple(Leg(leg["account_id"], leg["amount"]) for leg in self.legs(row["journal_id"])),
            currency=row["currency_code"],
            memo=row["memo"],
            order_id=row["order_id"],
            payment_id=row["payment_id"],
            clerk=Principal(row["clerk_name"], Role(row["clerk_role"])),
            reversal_of=row["reversal_of"] or "",
        )
        place = (row["posted_at_ms"], row["sequence"], row["previous_hash"])
        return Journal(draft, row["journal_id"], *place, hash="").recomputed_hash()

    def books(self) -> Books:
        """What the checker reads."""
        return Books(
            orders=tuple(self.orders),
            order_events=tuple(self.order_events),
            payments=tuple(self.payments),
            payment_events=tuple(self.payment_events),
            requests=tuple(self.requests),
            outbox=tuple(self.outbox),
            accounts=tuple(self.accounts),
            journals=tuple(self.journals),
            postings=tuple(self.postings),
            order_fences=(),
        )


def legal() -> Scribe:
    """An evening without a fault: a bill that was contested, one that was reversed and settled again, a top-up."""
    scribe = Scribe()
    scribe.bill("plain")
    scribe.settle("plain")
    scribe.decline("plain", key="too-late")
    scribe.bill("reversed", 500)
    scribe.reverse(scribe.settle("reversed"))
    scribe.settle("reversed", clerk="wu", source="bank")
    scribe.bill("open", 70)
    scribe.account("wallet:mei:CNY", "LIABILITY", overdraft=300)
    scribe.request("li", "IssueTicket", "ask-1")
    scribe.answer("li", "IssueTicket", "ask-1")
    scribe.pay("ticket-1", 1_000, payee="wallet:mei:CNY")
    scribe.request("li", "Pay", "ticket-unused", state="ISSUED")
    scribe.seal()
    return scribe
