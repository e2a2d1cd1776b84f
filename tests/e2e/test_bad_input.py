"""Bad input, through the real stubs of a running stack: each case has its code and its reason, and no effect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.kernel.ids import RandomIds
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tokens import TokenSigner
from services.testkit.client import RecordingClient, money, new_id
from services.testkit.harness import open_client
from tests.e2e.as_service import open_service
from tests.e2e.checked import refusal
from tests.fakes.clock import ManualClock

LONG = "x" * 65
MALFORMED = ("", LONG, "a b", "a/b", "梅", "a\n", "a'; DROP TABLE orders; --")
AMOUNTS = (0, -1, -(2**63), 10**15 + 1, 2**63 - 1)
CURRENCIES = ("", "cny", "CN", "CNYY", "C1Y", "¥")


def create(**changes: Any) -> order_pb2.CreateOrderRequest:
    fields: dict[str, Any] = {"request_id": new_id(), "customer_id": "mei", "amount": money(100)}
    return order_pb2.CreateOrderRequest(**(fields | changes))


def settle(**changes: Any) -> payment_pb2.SettleRequest:
    fields: dict[str, Any] = {"request_id": new_id(), "order_id": "o", "source": payment_pb2.SOURCE_DRAWER}
    return payment_pb2.SettleRequest(**(fields | changes))


def pay(ticket_id: str, **changes: Any) -> payment_pb2.PayRequest:
    fields: dict[str, Any] = {
        "ticket_id": ticket_id,
        "source": payment_pb2.SOURCE_DRAWER,
        "amount": money(100),
        "payee_account_id": "sales:CNY",
    }
    return payment_pb2.PayRequest(**(fields | changes))


def open_account(**changes: Any) -> ledger_pb2.OpenAccountRequest:
    fields: dict[str, Any] = {
        "request_id": new_id(),
        "account_id": new_id("merchant"),
        "kind": ledger_pb2.ACCOUNT_KIND_LIABILITY,
        "currency_code": "CNY",
    }
    return ledger_pb2.OpenAccountRequest(**(fields | changes))


async def assert_refused(call: Any, code: str, reason: str, field: str = "") -> Any:
    found_code, error = await refusal(call)
    assert (found_code, error.reason) == (code, reason), error.message
    if field:
        assert field in [name for name, _ in error.fields]
    assert error.message
    assert "Traceback" not in error.message
    return error


class TestUnknown:
    """What is not there is NOT_FOUND, and says what."""

    async def test_unknown_order_is_not_found(self, cashier: RecordingClient) -> None:
        await assert_refused(
            cashier.call(order_pb2.GetOrderRequest(order_id="nope")),
            "NOT_FOUND",
            "ORDER_NOT_FOUND",
        )
        await assert_refused(
            cashier.call(order_pb2.CancelOrderRequest(request_id=new_id(), order_id="nope", reason="late")),
            "NOT_FOUND",
            "ORDER_NOT_FOUND",
        )
        await assert_refused(cashier.settle_once("nope"), "NOT_FOUND", "ORDER_NOT_FOUND")

    async def test_unknown_payment_is_not_found(self, cashier: RecordingClient, accountant: RecordingClient) -> None:
        await assert_refused(
            cashier.call(payment_pb2.GetPaymentRequest(payment_id="nope")),
            "NOT_FOUND",
            "PAYMENT_NOT_FOUND",
        )
        request = payment_pb2.ReverseRequest(request_id=new_id(), payment_id="nope", reason="why not")
        await assert_refused(accountant.call(request), "NOT_FOUND", "PAYMENT_NOT_FOUND")

    async def test_unknown_ticket_is_not_found(self, cashier: RecordingClient) -> None:
        await assert_refused(cashier.call(pay("nope")), "NOT_FOUND", "TICKET_NOT_FOUND")

    async def test_ticket_of_another_caller_is_not_found(
        self, cashier: RecordingClient, accountant: RecordingClient
    ) -> None:
        ticket = await cashier.ticket()
        request = pay(ticket, source=payment_pb2.SOURCE_BANK)
        await assert_refused(accountant.call(request), "NOT_FOUND", "TICKET_NOT_FOUND")

    async def test_unknown_account_is_refused(self, cashier: RecordingClient) -> None:
        await assert_refused(
            cashier.call(ledger_pb2.GetAccountRequest(account_id="nope")),
            "NOT_FOUND",
            "ACCOUNT_NOT_FOUND",
        )
        ticket = await cashier.ticket()
        await assert_refused(
            cashier.call(pay(ticket, payee_account_id="nope")),
            "FAILED_PRECONDITION",
            "ACCOUNT_NOT_FOUND",
        )

    async def test_unknown_journal_is_not_found(self, cashier: RecordingClient) -> None:
        await assert_refused(
            cashier.call(ledger_pb2.GetJournalRequest(journal_id="nope")),
            "NOT_FOUND",
            "JOURNAL_NOT_FOUND",
        )

    async def test_unknown_failpoint_is_refused(self, operator: RecordingClient) -> None:
        from countinghouse.debug.v1 import failpoint_pb2 as debug

        request = debug.ArmFailpointRequest(name="nope", action=debug.FAILPOINT_ACTION_DELAY)
        await assert_refused(operator.call(request, at="payment-1"), "INVALID_ARGUMENT", "FAILPOINT_UNKNOWN")


class TestMalformed:
    """Ids and texts keep to the limits of the proto comments; the field at fault is named."""

    @pytest.mark.parametrize("value", MALFORMED)
    @pytest.mark.parametrize(
        ("field", "build"),
        [
            ("request_id", lambda value: create(request_id=value)),
            ("customer_id", lambda value: create(customer_id=value)),
            ("order_id", lambda value: order_pb2.GetOrderRequest(order_id=value)),
            ("request_id", lambda value: settle(request_id=value)),
            ("order_id", lambda value: settle(order_id=value)),
            ("ticket_id", pay),
            ("request_id", lambda value: payment_pb2.IssueTicketRequest(request_id=value)),
            ("payment_id", lambda value: payment_pb2.GetPaymentRequest(payment_id=value)),
        ],
    )
    async def test_malformed_id_is_refused(
        self, cashier: RecordingClient, value: str, field: str, build: Callable[[str], Any]
    ) -> None:
        call = cashier.call(build(value))
        reason = "FIELD_MALFORMED" if value else "FIELD_REQUIRED"
        await assert_refused(call, "INVALID_ARGUMENT", reason, field)

    @pytest.mark.parametrize("value", ["", "x" * 101, "a b", "wallet/mei"])
    async def test_malformed_account_id_is_refused(self, operator: RecordingClient, value: str) -> None:
        reason = "FIELD_MALFORMED" if value else "FIELD_REQUIRED"
        await assert_refused(
            operator.call(open_account(account_id=value)),
            "INVALID_ARGUMENT",
            reason,
            "account_id",
        )

    @pytest.mark.parametrize(("memo", "reason"), [("x" * 201, "FIELD_TOO_LONG"), ("a\x00b", "FIELD_MALFORMED")])
    async def test_malformed_memo_is_refused(self, cashier: RecordingClient, memo: str, reason: str) -> None:
        await assert_refused(cashier.call(settle(memo=memo)), "INVALID_ARGUMENT", reason, "memo")

    async def test_memo_of_200_characters_is_taken(self, cashier: RecordingClient) -> None:
        order_id = await cashier.new_order()
        response = await cashier.ask(settle(order_id=order_id, memo="梅" * 200))
        assert response.payment.memo == "梅" * 200

    async def test_reversal_needs_a_reason(self, accountant: RecordingClient) -> None:
        request = payment_pb2.ReverseRequest(request_id=new_id(), payment_id="p")
        await assert_refused(accountant.call(request), "INVALID_ARGUMENT", "FIELD_REQUIRED", "reason")

    async def test_malformed_line_is_refused(self, cashier: RecordingClient) -> None:
        line = order_pb2.OrderLine(description="tea", quantity=1, unit_price=money(1))
        for lines in (
            [line] * 101,
            [order_pb2.OrderLine(description="", quantity=1, unit_price=money(1))],
            [order_pb2.OrderLine(description="x" * 201, quantity=1, unit_price=money(1))],
            [order_pb2.OrderLine(description="tea", quantity=0, unit_price=money(1))],
            [order_pb2.OrderLine(description="tea", quantity=1_000_001, unit_price=money(1))],
            [line, order_pb2.OrderLine(description="tea", quantity=1, unit_price=money(1, "EUR"))],
        ):
            request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id="mei", lines=lines)
            code, _ = await refusal(cashier.call(request))
            assert code == "INVALID_ARGUMENT"

    async def test_amount_must_be_the_sum_of_its_lines(self, cashier: RecordingClient) -> None:
        line = order_pb2.OrderLine(description="tea", quantity=2, unit_price=money(300))
        await assert_refused(
            cashier.call(create(amount=money(601), lines=[line])),
            "INVALID_ARGUMENT",
            "AMOUNT_MISMATCH",
        )

    async def test_order_without_amount_or_lines_is_refused(self, cashier: RecordingClient) -> None:
        request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id="mei")
        await assert_refused(cashier.call(request), "INVALID_ARGUMENT", "AMOUNT_REQUIRED")

    @pytest.mark.parametrize(
        ("source", "card", "reason"),
        [
            (payment_pb2.SOURCE_CARD, "", "FIELD_REQUIRED"),
            (payment_pb2.SOURCE_CARD, "tok mei", "FIELD_MALFORMED"),
            (payment_pb2.SOURCE_CARD, "x" * 65, "FIELD_MALFORMED"),
            (payment_pb2.SOURCE_CARD, "4242424242424242", "CARD_NUMBER_REFUSED"),
            (payment_pb2.SOURCE_CARD, "4242-4242-4242-4242", "CARD_NUMBER_REFUSED"),
            (payment_pb2.SOURCE_CARD, "pan:4242424242424242", "CARD_NUMBER_REFUSED"),
            (payment_pb2.SOURCE_DRAWER, "tok-mei", "CARD_NOT_WANTED"),
        ],
    )
    async def test_malformed_card_is_refused(
        self, cashier: RecordingClient, source: Any, card: str, reason: str
    ) -> None:
        """A token where one is wanted, and only there; never a card's number."""
        for request in (
            settle(source=source, card=card),
            pay(await cashier.ticket(), source=source, card=card),
        ):
            await assert_refused(cashier.call(request), "INVALID_ARGUMENT", reason, "card")

    async def test_notice_needs_a_key(self, accountant: RecordingClient) -> None:
        request = payment_pb2.NotifyAcquirerRequest()
        await assert_refused(accountant.call(request), "INVALID_ARGUMENT", "FIELD_REQUIRED", "key")

    @pytest.mark.parametrize("key", ["", "k" * 65, "a b"])
    async def test_malformed_key_is_refused_by_the_acquirer(self, accountant: RecordingClient, key: str) -> None:
        reason = "FIELD_MALFORMED" if key else "FIELD_REQUIRED"
        for request in (
            acquirer_pb2.ChargeRequest(key=key, card="tok-mei", amount=money(1)),
            acquirer_pb2.GetChargeRequest(key=key),
            acquirer_pb2.ReverseByKeyRequest(key=key),
        ):
            await assert_refused(accountant.call(request), "INVALID_ARGUMENT", reason, "key")

    async def test_malformed_charge_is_refused_by_the_acquirer(self, accountant: RecordingClient) -> None:
        """A card, a payable amount, a reference that can be one."""
        for request in (
            acquirer_pb2.ChargeRequest(key=new_id(), amount=money(1)),
            acquirer_pb2.ChargeRequest(key=new_id(), card="tok-mei", amount=money(0)),
            acquirer_pb2.ChargeRequest(key=new_id(), card="tok-mei"),
            acquirer_pb2.ChargeRequest(key=new_id(), card="tok-mei", amount=money(1), reference="a b"),
        ):
            code, _ = await refusal(accountant.call(request))
            assert code == "INVALID_ARGUMENT"

    async def test_malformed_fault_is_refused_by_the_acquirer(self, operator: RecordingClient) -> None:
        """Of a known kind, with a known method, within bounds; only operators set them."""
        for fault in (
            acquirer_pb2.Fault(),
            acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DOWN, method="Steal"),
            acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DOWN, times=-1),
            acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DELAY_AFTER, delay_ms=600_001),
        ):
            request = acquirer_pb2.SetFaultsRequest(faults=[fault])
            code, _ = await refusal(operator.call(request))
            assert code == "INVALID_ARGUMENT"

    @pytest.mark.parametrize("source", [0, 99])
    async def test_payment_without_a_source_is_refused(self, cashier: RecordingClient, source: Any) -> None:
        await assert_refused(
            cashier.call(settle(source=source)),
            "INVALID_ARGUMENT",
            "FIELD_REQUIRED",
            "source",
        )

    @pytest.mark.parametrize("ttl_s", [-1, 86_401, 2**31 - 1])
    async def test_ticket_lives_a_day_at_most(self, cashier: RecordingClient, ttl_s: int) -> None:
        request = payment_pb2.IssueTicketRequest(request_id=new_id(), ttl_s=ttl_s)
        await assert_refused(cashier.call(request), "INVALID_ARGUMENT", "TTL_OUT_OF_RANGE", "ttl_s")

    @pytest.mark.parametrize("size", [-1, 1001])
    @pytest.mark.parametrize("token", ["not one of ours", "AAAA", "////"])
    async def test_malformed_page_is_refused(self, cashier: RecordingClient, size: int, token: str) -> None:
        for kind in (
            order_pb2.ListOrdersRequest,
            payment_pb2.ListPaymentsRequest,
            ledger_pb2.ListAccountsRequest,
            ledger_pb2.ListJournalsRequest,
        ):
            await assert_refused(
                cashier.call(kind(page_size=size)),
                "INVALID_ARGUMENT",
                "PAGE_SIZE_OUT_OF_RANGE",
            )
            code, _ = await refusal(cashier.call(kind(page_token=token)))
            assert code == "INVALID_ARGUMENT"

    async def test_message_too_large_is_not_read(self, cashier: RecordingClient) -> None:
        request = settle(memo="x" * (2 << 20))
        code, _ = await refusal(cashier.call(request))
        assert code == "RESOURCE_EXHAUSTED"


class TestAmounts:
    """Zero, negative and overflowing amounts, and currencies that are none or another's."""

    @pytest.mark.parametrize("amount", AMOUNTS)
    async def test_amount_of_an_order_out_of_range_is_refused(self, cashier: RecordingClient, amount: int) -> None:
        await assert_refused(
            cashier.call(create(amount=money(amount))),
            "INVALID_ARGUMENT",
            "AMOUNT_OUT_OF_RANGE",
            "amount.minor_units",
        )

    @pytest.mark.parametrize("amount", AMOUNTS)
    async def test_amount_of_a_direct_payment_out_of_range_is_refused(
        self, cashier: RecordingClient, amount: int
    ) -> None:
        ticket = await cashier.ticket()
        await assert_refused(
            cashier.call(pay(ticket, amount=money(amount))),
            "INVALID_ARGUMENT",
            "AMOUNT_OUT_OF_RANGE",
        )
        assert (await cashier.ask(pay(ticket))).payment.state == (payment_pb2.PAYMENT_STATE_SUCCEEDED), (
            "the ticket was used up by a request that could never work"
        )

    async def test_lines_that_overflow_are_refused(self, cashier: RecordingClient) -> None:
        line = order_pb2.OrderLine(description="gold", quantity=1_000_000, unit_price=money(10**15))
        request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id="mei", lines=[line])
        await assert_refused(cashier.call(request), "INVALID_ARGUMENT", "AMOUNT_OUT_OF_RANGE")

    @pytest.mark.parametrize("currency", CURRENCIES)
    async def test_unknown_currency_is_refused(
        self, cashier: RecordingClient, operator: RecordingClient, currency: str
    ) -> None:
        await assert_refused(
            cashier.call(create(amount=money(1, currency))),
            "INVALID_ARGUMENT",
            "CURRENCY_INVALID",
        )
        await assert_refused(
            operator.call(open_account(currency_code=currency)),
            "INVALID_ARGUMENT",
            "CURRENCY_INVALID",
        )

    async def test_payee_of_another_currency_is_refused(self, cashier: RecordingClient) -> None:
        ticket = await cashier.ticket()
        await assert_refused(
            cashier.call(pay(ticket, payee_account_id="sales:EUR")),
            "FAILED_PRECONDITION",
            "CURRENCY_MISMATCH",
        )

    async def test_order_in_a_currency_without_accounts_is_not_settled(self, cashier: RecordingClient) -> None:
        order_id = await cashier.new_order(currency="GBP")
        await assert_refused(cashier.settle_once(order_id), "FAILED_PRECONDITION", "ACCOUNT_NOT_FOUND")
        assert await cashier.order_state(order_id) == "UNPAID"

    @pytest.mark.parametrize("limit", [-1, 10**15 + 1])
    async def test_overdraft_out_of_range_is_refused(self, operator: RecordingClient, limit: int) -> None:
        await assert_refused(
            operator.call(open_account(overdraft_limit=limit)),
            "INVALID_ARGUMENT",
            "OVERDRAFT_OUT_OF_RANGE",
        )


class TestCaller:
    """Nobody acts without a good token, and nobody beyond their role."""

    async def test_call_without_a_token_is_refused(self, stack: Stack) -> None:
        async with open_client(stack, "li", Role.CASHIER, token="") as nobody:
            await assert_refused(nobody.settle_once("o"), "UNAUTHENTICATED", "TOKEN_REQUIRED")

    @pytest.mark.parametrize(
        "token", ["nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJsaSIsInJvbGUiOiJjYXNoaWVyIn0."]
    )
    async def test_malformed_token_is_refused(self, stack: Stack, token: str) -> None:
        async with open_client(stack, "li", Role.CASHIER, token=token) as somebody:
            await assert_refused(somebody.settle_once("o"), "UNAUTHENTICATED", "TOKEN_INVALID")

    async def test_expired_token_is_refused(self, stack: Stack) -> None:
        clock = ManualClock(SystemClock().now_ms() - 3_600_000)
        signer = TokenSigner.from_file(stack.data / "keys" / "signing.key", clock)
        async with open_client(stack, "li", Role.CASHIER, token=signer.sign(Principal("li", Role.CASHIER), 60)) as late:
            await assert_refused(late.settle_once("o"), "UNAUTHENTICATED", "TOKEN_EXPIRED")

    async def test_token_of_another_stack_is_refused(self, stack: Stack, tmp_path: Any) -> None:
        signer = TokenSigner.from_file(tmp_path / "signing.key", SystemClock())
        async with open_client(
            stack, "li", Role.CASHIER, token=signer.sign(Principal("li", Role.CASHIER), 60)
        ) as stranger:
            await assert_refused(stranger.settle_once("o"), "UNAUTHENTICATED", "TOKEN_INVALID")

    @pytest.mark.parametrize("role", [Role.AUDITOR, Role.OPERATOR])
    async def test_role_that_may_not_settle_is_refused(self, stack: Stack, role: Role) -> None:
        async with open_client(stack, "x", role) as somebody:
            await assert_refused(somebody.settle_once("o"), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")

    async def test_service_may_not_settle(self, stack: Stack) -> None:
        async with open_service(stack) as service:
            await assert_refused(service.settle_once("o"), "PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")

    @pytest.mark.parametrize("name", ["payment-service", "order-service", "x"])
    async def test_service_without_a_certificate_is_refused(self, stack: Stack, name: str) -> None:
        async with open_client(stack, name, Role.SERVICE) as service:
            await assert_refused(service.settle_once("o"), "UNAUTHENTICATED", "CERTIFICATE_REQUIRED")

    async def test_only_accountants_reverse(self, cashier: RecordingClient) -> None:
        request = payment_pb2.ReverseRequest(request_id=new_id(), payment_id="p", reason="r")
        await assert_refused(cashier.call(request), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")

    async def test_only_services_write_journals_and_move_orders(self, accountant: RecordingClient) -> None:
        await assert_refused(accountant.call(ledger_pb2.PostRequest()), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
        await assert_refused(
            accountant.call(order_pb2.CompleteOrderRequest()),
            "PERMISSION_DENIED",
            "ROLE_NOT_ALLOWED",
        )

    async def test_only_operators_arm_failpoints(self, cashier: RecordingClient) -> None:
        from countinghouse.debug.v1 import failpoint_pb2 as debug

        call = cashier.call(debug.ArmFailpointRequest(name="posted"), at="payment-1")
        await assert_refused(call, "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")

    async def test_source_of_another_role_is_refused(
        self, cashier: RecordingClient, accountant: RecordingClient
    ) -> None:
        order_id = await cashier.new_order()
        await assert_refused(
            cashier.settle_once(order_id, source=payment_pb2.SOURCE_BANK), "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"
        )
        await assert_refused(
            accountant.settle_once(order_id, source=payment_pb2.SOURCE_DRAWER),
            "PERMISSION_DENIED",
            "SOURCE_NOT_ALLOWED",
        )
        assert await cashier.order_state(order_id) == "UNPAID"

    async def test_customer_sees_and_pays_only_what_is_theirs(
        self, cashier: RecordingClient, customer: RecordingClient
    ) -> None:
        order_id = await cashier.new_order(customer="somebody-else")
        await assert_refused(
            customer.call(order_pb2.GetOrderRequest(order_id=order_id)),
            "NOT_FOUND",
            "ORDER_NOT_FOUND",
        )
        await assert_refused(
            customer.settle_once(order_id, source=payment_pb2.SOURCE_WALLET), "NOT_FOUND", "ORDER_NOT_FOUND"
        )
        assert await cashier.order_state(order_id) == "UNPAID"

    async def test_customer_pays_from_no_other_wallet(self, customer: RecordingClient) -> None:
        ticket = await customer.ticket()
        request = pay(ticket, source=payment_pb2.SOURCE_WALLET, customer_id="somebody-else")
        await assert_refused(customer.call(request), "PERMISSION_DENIED", "NOT_YOUR_WALLET")


class TestState:
    """What was possible once and is not any more, or not with what is there."""

    async def test_cancelled_order_is_not_settled(self, cashier: RecordingClient) -> None:
        order_id = await cashier.new_order()
        await cashier.ask(order_pb2.CancelOrderRequest(request_id=new_id(), order_id=order_id, reason="late"))
        await assert_refused(cashier.settle_once(order_id), "FAILED_PRECONDITION", "ORDER_NOT_PAYABLE")
        await assert_refused(
            cashier.call(order_pb2.CancelOrderRequest(request_id=new_id(), order_id=order_id, reason="late")),
            "FAILED_PRECONDITION",
            "ILLEGAL_STATE",
        )
        assert await cashier.journals(order_id) == []

    async def test_settle_of_a_paid_order_is_refused_with_the_clerk_who_settled_it(
        self, cashier: RecordingClient, accountant: RecordingClient
    ) -> None:
        order_id = await cashier.new_order()
        payment = await cashier.settle_ok(order_id)
        error = await assert_refused(
            accountant.settle_once(order_id, source=payment_pb2.SOURCE_BANK), "ALREADY_EXISTS", "ORDER_ALREADY_PAID"
        )
        assert error.metadata["payment_id"] == payment.payment_id
        assert error.metadata["clerk"] == "li"
        assert int(error.metadata["settled_at_ms"]) == payment.settled_at_ms
        assert len(await cashier.journals(order_id)) == 1

    async def test_paid_order_is_not_cancelled(self, cashier: RecordingClient) -> None:
        order_id = await cashier.new_order()
        await cashier.settle_ok(order_id)
        request = order_pb2.CancelOrderRequest(request_id=new_id(), order_id=order_id, reason="late")
        await assert_refused(cashier.call(request), "FAILED_PRECONDITION", "ILLEGAL_STATE")

    async def test_stale_version_is_refused(self, cashier: RecordingClient) -> None:
        order_id = await cashier.new_order()
        request = order_pb2.CancelOrderRequest(
            request_id=new_id(), order_id=order_id, expected_version=7, reason="late"
        )
        await assert_refused(cashier.call(request), "ABORTED", "STALE_VERSION")

    async def test_wallet_with_too_little_is_declined(
        self, stack: Stack, cashier: RecordingClient, operator: RecordingClient
    ) -> None:
        buyer = new_id("buyer")
        await operator.ask(open_account(account_id=f"wallet:{buyer}:CNY"))
        order_id = await cashier.new_order(customer=buyer)
        async with open_client(stack, buyer, Role.CUSTOMER) as owner:
            await assert_refused(
                owner.settle_once(order_id, source=payment_pb2.SOURCE_WALLET),
                "FAILED_PRECONDITION",
                "INSUFFICIENT_FUNDS",
            )
        assert await cashier.order_state(order_id) == "UNPAID"
        assert (await cashier.settle_ok(order_id)).state == payment_pb2.PAYMENT_STATE_SUCCEEDED

    async def test_wallet_is_emptied_by_no_clerk_without_its_owners_ticket(
        self, stack: Stack, cashier: RecordingClient, operator: RecordingClient
    ) -> None:
        """Neither into the clerk's own wallet nor for an order; the ticket pays the order, and no other payee."""
        buyer = new_id("buyer")
        wallet = f"wallet:{buyer}:CNY"
        await operator.ask(open_account(account_id=wallet))
        await cashier.ask(pay(await cashier.ticket(), amount=money(1250), payee_account_id=wallet))
        order_id = await cashier.new_order(customer=buyer)
        from_wallet: Any = {"source": payment_pb2.SOURCE_WALLET, "customer_id": buyer}
        theft = pay(await cashier.ticket(), amount=money(1250), payee_account_id="sales:CNY", **from_wallet)
        await assert_refused(cashier.call(theft), "PERMISSION_DENIED", "NOT_YOUR_WALLET")
        await assert_refused(
            cashier.settle_once(order_id, source=payment_pb2.SOURCE_WALLET), "PERMISSION_DENIED", "NOT_YOUR_WALLET"
        )
        async with open_client(stack, buyer, Role.CUSTOMER) as owner:
            issue = payment_pb2.IssueTicketRequest(request_id=new_id(), order_id=order_id)
            ticket = (await owner.ask(issue)).ticket.ticket_id
        request = payment_pb2.PayRequest(ticket_id=ticket, **from_wallet)
        payment = (await cashier.ask(request)).payment
        assert (payment.state, payment.payer_account_id) == (payment_pb2.PAYMENT_STATE_SUCCEEDED, wallet)
        assert payment.clerk.name == "li"
        assert await cashier.order_state(order_id) == "PAID"

    async def test_refusal_is_replayed_as_it_was(
        self, stack: Stack, cashier: RecordingClient, operator: RecordingClient
    ) -> None:
        """Also when the wallet has been filled since: the request id stands for the answer it got."""
        buyer = new_id("buyer")
        await operator.ask(open_account(account_id=f"wallet:{buyer}:CNY"))
        order_id = await cashier.new_order(customer=buyer)
        request_id = new_id()
        async with open_client(stack, buyer, Role.CUSTOMER) as owner:
            first = await refusal(owner.settle_once(order_id, request_id, source=payment_pb2.SOURCE_WALLET))
            again = await refusal(owner.settle_once(order_id, request_id, source=payment_pb2.SOURCE_WALLET))
        assert (first[0], first[1].reason, first[1].message) == (again[0], again[1].reason, again[1].message)

    async def test_expired_ticket_is_refused(self, cashier: RecordingClient) -> None:
        ticket = await cashier.ticket(ttl_s=1)
        await asyncio.sleep(1.1)
        await assert_refused(cashier.call(pay(ticket)), "FAILED_PRECONDITION", "TICKET_EXPIRED")

    async def test_payment_is_reversed_once(self, cashier: RecordingClient, accountant: RecordingClient) -> None:
        order_id = await cashier.new_order()
        payment = await cashier.settle_ok(order_id)
        request = payment_pb2.ReverseRequest(request_id=new_id(), payment_id=payment.payment_id, reason="wrong order")
        await accountant.ask(request)
        again = payment_pb2.ReverseRequest(request_id=new_id(), payment_id=payment.payment_id, reason="again")
        await assert_refused(accountant.call(again), "FAILED_PRECONDITION", "ILLEGAL_STATE")
        assert len(await cashier.journals(order_id)) == 2

    async def test_taken_order_id_is_refused(self, cashier: RecordingClient) -> None:
        order_id = await cashier.new_order()
        await assert_refused(cashier.call(create(order_id=order_id)), "ALREADY_EXISTS", "ORDER_EXISTS")

    async def test_account_with_other_terms_is_refused(self, operator: RecordingClient) -> None:
        request = open_account()
        await operator.ask(request)
        other = open_account(account_id=request.account_id, currency_code="EUR")
        await assert_refused(operator.call(other), "ALREADY_EXISTS", "ACCOUNT_EXISTS")


class TestSameKey:
    """A key stands for one payload; another under it is refused, the same is answered as before."""

    async def test_repeated_create_is_replayed(self, cashier: RecordingClient) -> None:
        request = create()
        first = await cashier.ask(request)
        again = await cashier.call(request)
        assert again.response.SerializeToString() == first.SerializeToString()
        assert again.replayed
        other = create(request_id=request.request_id, amount=money(101))
        await assert_refused(cashier.call(other), "INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH")

    async def test_repeated_settle_is_replayed(self, cashier: RecordingClient) -> None:
        request = settle(order_id=await cashier.new_order())
        first = await cashier.ask(request)
        again = await cashier.call(request, at="payment-2")
        assert again.response.SerializeToString() == first.SerializeToString()
        assert again.replayed
        other = settle(request_id=request.request_id, order_id=await cashier.new_order())
        await assert_refused(cashier.call(other, at="payment-2"), "INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH")

    async def test_repeated_pay_is_replayed(self, cashier: RecordingClient) -> None:
        request = pay(await cashier.ticket())
        first = await cashier.ask(request)
        again = await cashier.call(request, at="payment-2")
        assert again.response.SerializeToString() == first.SerializeToString()
        assert again.replayed
        other = pay(request.ticket_id, amount=money(101))
        await assert_refused(cashier.call(other), "INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISMATCH")

    async def test_equal_keys_of_two_callers_are_two_requests(
        self, cashier: RecordingClient, accountant: RecordingClient
    ) -> None:
        request_id = RandomIds().new("req")
        first = await cashier.ask(create(request_id=request_id))
        second = await accountant.ask(create(request_id=request_id, amount=money(7)))
        assert first.order.order_id != second.order.order_id
