"""What commands print."""

from __future__ import annotations

import json

import pytest

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2, money_pb2
from services.cli import output
from services.kernel.clock import rfc3339


def test_json_keeps_the_protos_names_and_its_numbers_are_numbers() -> None:
    """MessageToDict would write int64 as strings; a sum in jq or Python would then concatenate."""
    order = order_pb2.Order(
        order_id="o1",
        state=order_pb2.ORDER_STATE_PAID,
        amount=money_pb2.Money(minor_units=1250, currency_code="CNY"),
        lines=[order_pb2.OrderLine(description="tea", quantity=2)],
        settled_by=clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER),
        created_at_ms=1_700_000_000_000,
    )
    found = output.as_dict(order)
    assert found["state"] == "ORDER_STATE_PAID"
    assert found["amount"] == {"minor_units": 1250, "currency_code": "CNY"}
    assert found["lines"] == [{"description": "tea", "quantity": 2, "unit_price": None}]
    assert found["created_at_ms"] == 1_700_000_000_000
    assert found["payment_id"] == ""
    json.dumps(found)


def test_credential_is_left_out() -> None:
    """What lets a service act for the clerk (`debug_redact` in the proto)."""
    clerk = clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER, delegation="secret")
    assert output.as_dict(clerk) == {"name": "li", "role": "ROLE_CASHIER"}


def test_enum_of_a_newer_version_stays_a_number() -> None:
    payment = payment_pb2.Payment(state=99)  # type: ignore[arg-type]
    assert output.as_dict(payment)["state"] == 99


def test_lines_are_aligned_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table("orders", ("order", "state"), [("o1", "PAID"), ("order-22", "UNPAID")])
    assert capsys.readouterr().out == "order     state\no1        PAID\norder-22  UNPAID\n"


def test_table_of_nothing_has_its_heads(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table("orders", ("order", "state"), [])
    assert capsys.readouterr().out == "order  state\n"


def test_terminal_gets_a_frame_and_no_markup_is_read_into_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.print_table("orders", ("order",), [("[red]o1[/red]",)])
    assert "[red]o1[/red]" in capsys.readouterr().out


def test_facts_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts([("order", "o1"), ("payment", ""), ("memo", "x")])
    assert capsys.readouterr().out == "order    o1\nmemo     x\n"


def test_money_people_and_times_read_well() -> None:
    assert output.money({"minor_units": 1250, "currency_code": "CNY"}) == "12.50 CNY"
    assert output.money(None) == ""
    assert output.clerk({"name": "li", "role": "ROLE_CASHIER"}) == "li (cashier)"
    assert output.clerk(None) == ""
    assert output.moment(1_700_000_000_123) == "2023-11-14T22:13:20.123Z" == rfc3339(1_700_000_000_123)
    assert output.moment(0) == ""
