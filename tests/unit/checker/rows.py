"""The rows of all three services, written step by step, and taken away again by tests that corrupt them.

Rows have every column that the services' tables have, so that they can be put into real databases (`archive.py`).
Hashes are made by the ledger's own model, so that the checker's second writing of the rule is held against the first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from services.checker.evidence import Answered
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
class ServiceRows:
    """What the services have written; each method is one step of theirs."""

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
    _orders: dict[str, Row] = field(default_factory=dict)
    _payments: dict[str, Row] = field(default_factory=dict)
    _requests: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    _legs: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    _fences: dict[str, Row] = field(default_factory=dict)
    _now_ms: int = 1_700_000_000_000
    _token: int = 100

    # Requests and messages

    def account(self, account_id: str, kind: str, *, currency: str = CURRENCY, overdraft: int = 0) -> Row:
        row: Row = {"account_id": account_id, "kind": kind, "currency_code": currency, "overdraft_limit": overdraft}
        self.accounts.append(row | {"balance": 0, "version": 1, "created_at_ms": self._now_ms})
        return self.accounts[-1]

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

    def request_of(self, caller: str, method: str, key: str) -> Row:
        return self._requests[caller, method, key]

    def remove(self, caller: str, method: str, key: str) -> None:
        """A request is gone, as after its time to be kept."""
        self.requests.remove(self._requests.pop((caller, method, key)))

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

    # Orders and payments

    def order(self, order_id: str) -> Row:
        return self._orders[order_id]

    def has_order(self, order_id: str) -> bool:
        return order_id in self._orders

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

    def of(self, rows: list[Row], payment: Row) -> list[Row]:
        return [row for row in rows if row["payment_id"] == payment["payment_id"]]

    def remove_payment(self, payment: Row) -> None:
        self.payment_events = [row for row in self.payment_events if row["payment_id"] != payment["payment_id"]]
        self.payments.remove(payment)

    # The ledger

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

    def legs(self, journal_id: str) -> list[Row]:
        return [row for row in self.postings if row["journal_id"] == journal_id]

    def remove_journal(self, journal_id: str) -> None:
        """Takes a journal and its postings out; those after it move up."""
        self.journals = [row for row in self.journals if row["journal_id"] != journal_id]
        self.postings = [row for row in self.postings if row["journal_id"] != journal_id]
        for place, row in enumerate(self.journals, start=1):
            row["sequence"] = place

    def seal(self) -> None:
        """Writes hashes, head, balances and versions as the ledger would have for the journals as they are now."""
        legs: defaultdict[str, list[Row]] = defaultdict(list)
        for leg in self.postings:
            legs[leg["journal_id"]].append(leg)
        previous = NO_HASH
        for row in self.journals:
            row["previous_hash"] = previous
            row["hash"] = previous = hash_of(row, legs[row["journal_id"]])
        self.chain_head = [{"id": 1, "sequence": len(self.journals), "hash": previous}]
        accounts = {row["account_id"]: row for row in self.accounts}
        for account in self.accounts:
            account.update(balance=0, version=1)
        for row in self.journals:
            for leg in legs[row["journal_id"]]:
                account = accounts.get(leg["account_id"], {"balance": 0, "version": 0, "kind": "ASSET"})
                account["balance"] += AccountKind(account["kind"]).sign * leg["amount"]
                account["version"] += 1

    # Time and fences

    def fence(self) -> int:
        """The token of the next holder of a lock."""
        self._token += 2
        return self._token

    def now_ms(self) -> int:
        """Time goes on by 10 ms."""
        self._now_ms += 10
        return self._now_ms


def hash_of(row: Row, legs: list[Row]) -> str:
    """A journal's hash, as the ledger computes it from the row as it is now."""
    draft = JournalDraft(
        business_key=row["business_key"],
        legs=tuple(Leg(leg["account_id"], leg["amount"]) for leg in legs),
        currency=row["currency_code"],
        memo=row["memo"],
        order_id=row["order_id"],
        payment_id=row["payment_id"],
        clerk=Principal(row["clerk_name"], Role(row["clerk_role"])),
        reversal_of=row["reversal_of"] or "",
    )
    place = (row["posted_at_ms"], row["sequence"], row["previous_hash"])
    return Journal(draft, row["journal_id"], *place, hash="").recomputed_hash()
