"""A server names its fields; the command line tells them by the flags that were typed."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from services.cli.commands import load
from services.cli.exit_codes import ExitCode, WrongUsage
from services.cli.flags import told_by_flags
from services.cli.program import _end_with
from services.kernel.errors import (
    CountinghouseError,
    InvalidArgument,
    KeyMismatch,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from services.kernel.ids import check_name
from services.kernel.principal import Principal, Role
from services.payment.model import Source
from services.payment.operations import PayCommand, ticket_owner


def context_of(*words: str, **params: object) -> Any:
    """The context of a command, with what was given to it."""
    command: Any = load(words[0])
    for word in words[1:]:
        command = command.commands[word]
    context = typer.Context(command)
    context.params = dict(params)
    return context


def required(field: str) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refusal:
        check_name("", field)
    return refusal.value


@pytest.mark.parametrize(
    ("command", "field", "flag"),
    [
        ("settle", "card", "--card"),
        ("settle", "order_id", "ORDER"),
        ("settle", "source", "--source"),
        ("settle", "memo", "--memo"),
        ("settle", "request_id", "--request-id"),
        ("pay", "customer_id", "--customer"),
        ("pay", "payee_account_id", "--payee"),
        ("pay", "ticket_id", "TICKET"),
        ("pay", "amount", "--amount"),
        ("pay", "amount.minor_units", "--amount"),
        ("pay", "amount.currency_code", "--currency"),
        ("ticket", "ttl_s", "--ttl"),
        ("ticket", "order_id", "--order"),
        ("reverse", "payment_id", "PAYMENT"),
        ("reverse", "reason", "--reason"),
        ("order create", "customer_id", "--customer"),
        ("order create", "order_id", "--order-id"),
        ("order create", "lines[0].description", "--line"),
        ("order create", "lines[0].unit_price.minor_units", "--line"),
        ("order create", "lines", "--line"),
        ("order cancel", "expected_version", "--version"),
        ("order list", "page_token", "--page"),
        ("order list", "page_size", "--limit"),
        ("ledger open", "overdraft_limit", "--overdraft"),
        ("ledger open", "currency_code", "--currency"),
        ("ledger open", "account_id", "ACCOUNT"),
        ("ledger journals", "account_id", "--account"),
        ("ledger verify", "from_sequence", "--from"),
        ("ledger verify", "to_sequence", "--to"),
        ("acquirer log", "key", "--key"),
    ],
)
def test_field_that_a_server_refuses_is_named_by_its_flag(command: str, field: str, flag: str) -> None:
    """As wrong usage, which has an exit code of its own."""
    told = told_by_flags(required(field), context_of(*command.split()))
    assert told.message == f"{flag} is required"
    assert isinstance(told, WrongUsage)
    assert _end_with(told) == ExitCode.NOT_RUN


def test_field_inside_a_sentence_is_named_by_its_flag() -> None:
    """Those of other fields as well."""
    refusal = InvalidArgument.of_field(
        "TICKET_NAMES_ORDER", "amount", "the ticket pays o1; leave amount and payee_account_id out"
    )
    told = told_by_flags(refusal, context_of("pay"))
    assert told.message == "--amount: the ticket pays o1; leave amount and --payee out"


def test_wallet_without_a_customer_names_the_customer_flag() -> None:
    """A clerk pays from it, and did not say for whom."""
    with pytest.raises(InvalidArgument) as refusal:
        ticket_owner(Principal("li", Role.CASHIER), PayCommand("t1", Source.WALLET, None, "", "", "", "f"))
    told = told_by_flags(refusal.value, context_of("pay"))
    assert told.message == "--customer is required: whose wallet pays?"


def test_amount_given_in_minor_units_is_named_by_that_flag() -> None:
    """And not by the one that was not typed."""
    told = told_by_flags(required("amount.minor_units"), context_of("pay", amount_minor=5))
    assert told.message == "--amount-minor is required"


@pytest.mark.parametrize(
    "value", ["shop.source", "my.card", "host.memo:50051", "/tmp/request_id.data", "evening.order_id"]
)
def test_value_that_looks_like_a_field_stays_what_it_is(value: str) -> None:
    """An id that was typed may be named like anything."""
    refusal = InvalidArgument.of_field("FIELD_MALFORMED", "source", f"source is not known; see {value}")
    assert told_by_flags(refusal, context_of("settle")).message == f"--source is not known; see {value}"


@pytest.mark.parametrize(
    "error",
    [
        KeyMismatch("req_mine"),
        NotFound("ORDER_NOT_FOUND", "there is no order my_shop.source nor order_id"),
        Unavailable("AWAY", "nobody answered. To ask again, not twice, use --request-id shop.card"),
        PermissionDenied("NOT_ALLOWED", "role auditor may not call Settle"),
        InvalidArgument.of_field("FIELD_REQUIRED", "fence", "fence is required"),
    ],
    ids=lambda error: error.reason,
)
def test_refusal_of_no_flag_stays_what_it_is(error: CountinghouseError) -> None:
    """Another kind of refusal, or a field that no flag gives."""
    before = error.message
    assert told_by_flags(error, context_of("settle")) is error
    assert error.message == before
    assert _end_with(error) == ExitCode.FAILED
