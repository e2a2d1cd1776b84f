"""CSV files of orders, as people have them: every order is read once, and every bad line is named by its number."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.order_file import BadLine, OrderFile, OrderLine
from services.kernel.errors import InvalidArgument

CARD = "4111111111111111"


def read(tmp_path: Path, content: str | bytes) -> list[OrderLine | BadLine]:
    path = tmp_path / "orders.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(OrderFile(path))


def ids(rows: list[OrderLine | BadLine]) -> list[tuple[int, str]]:
    """Return number and order of each line; a bad line has no order."""
    return [(row.number, row.order_id if isinstance(row, OrderLine) else "") for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        "order_id,customer\no1,mei\no2,li\n",
        "\ufefforder_id,customer\no1,mei\no2,li\n",
        "order_id;customer\r\no1;mei, the tall\r\no2;li\r\n",
        "customer\torder_id\nmei\to1\nli\to2",
        '"Order ID","customer"\n"o1","mei"\n"o2","li"\n',
        "ORDER,note\no1,\no2,x\n",
        "customer,order-id,\nmei, o1 ,\nli,o2,\n",
        "orderId\no1\no2\n",
        "order_id\ro1\ro2\r",
        'order_id,note\no1,"says ""hi"", and 5\' 3"\no2,5" screen\n',
    ],
)
def test_file_of_any_dialect_has_its_orders(tmp_path: Path, content: str) -> None:
    assert ids(read(tmp_path, content)) == [(2, "o1"), (3, "o2")]


def test_line_that_names_the_delimiter_is_obeyed(tmp_path: Path) -> None:
    """A spreadsheet writes it above the header."""
    assert ids(read(tmp_path, "sep=;\r\na,b;order\r\nx;o1\r\n")) == [(3, "o1")]


def test_blank_lines_are_counted_and_ignored(tmp_path: Path) -> None:
    assert ids(read(tmp_path, "\n;;\norder;note\n\no1;a\n ; \n;\no2;b\n")) == [(5, "o1"), (8, "o2")]


def test_field_of_several_lines_is_one_record(tmp_path: Path) -> None:
    """It has the number of its first line."""
    assert ids(read(tmp_path, 'order,note\no1,"two\nlines"\no2,x\n')) == [(2, "o1"), (4, "o2")]


def test_amount_and_currency_are_read_as_written(tmp_path: Path) -> None:
    rows = read(tmp_path, "order_id;Amount;Currency\no1;12,50;cny\no2;;\n")
    assert rows == [OrderLine(2, "o1", "12,50", "CNY"), OrderLine(3, "o2", "", "")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b",x", "order_id is required"),
        (b"o 1,x", "A-Z a-z 0-9"),
        (b"o\x001,x", "A-Z a-z 0-9"),
        (b"o" * 65 + b",x", "1 to 64 characters"),
        (b"o1", "it has 1 field, and the header has 2"),
        (b"o1,x,y", "it has 3 fields, and the header has 2"),
        (b"o1,\xff", "it is not UTF-8"),
        (b'"o1,x', "its quotes do not match"),
        (b'o1,"x', "its quotes do not match"),
        (b'"o1"x,y', "its quotes do not match"),
        (b"o1," + b"x" * 70_000, "it is longer than 65536 characters"),
        (CARD.encode() + b",x", "card number"),
        (b"4111 1111 1111 1111,x", "card number"),
        ("o1\u202e,x".encode(), "A-Z a-z 0-9"),
    ],
)
def test_bad_line_is_named_by_its_number_and_the_rest_goes_on(tmp_path: Path, line: bytes, says: str) -> None:
    """An order after it is not hidden, also if a later line has quotes."""
    rows = read(tmp_path, b"order_id,note\no0,x\n" + line + b'\no2,"y"\no3,z\n')
    assert ids(rows) == [(2, "o0"), (3, ""), (4, "o2"), (5, "o3")]
    bad = rows[1]
    assert isinstance(bad, BadLine)
    assert says in bad.reason
    assert CARD[:4] not in bad.reason


def test_amount_that_is_a_card_number_is_a_bad_line(tmp_path: Path) -> None:
    (row,) = read(tmp_path, f"order,amount\no1,{CARD}\n")
    assert isinstance(row, BadLine)
    assert CARD not in row.reason


def test_quote_that_never_ends_hides_no_order(tmp_path: Path) -> None:
    lines = [f"o{number},x\n" for number in range(200)]
    rows = read(tmp_path, 'order,note\nbad,"x\n' + "".join(lines))
    assert len(rows) == 201
    assert [row for row in rows if isinstance(row, BadLine)] == [BadLine(2, "its quotes do not match")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b"customer,amount\nmei,5\n", "names no column order_id"),
        (b"o1\no2\n", "names no column order_id"),
        (b"order_id,Order-ID\no1,o2\n", "more than one column orderid"),
        ("order_id\no1\n".encode("utf-16"), "UTF-16"),
        (b"order_id,\xff\no1,x\n", "it is not UTF-8"),
    ],
)
def test_file_without_a_column_of_orders_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        read(tmp_path, content)


def test_file_of_a_hundred_thousand_lines_is_read_record_by_record(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "orders.csv"
    path.write_text("order_id,customer\n" + "".join(f"order-{number:06d},mei\n" for number in range(100_000)))
    orders = OrderFile(path)
    tracemalloc.start()
    try:
        assert sum(isinstance(row, OrderLine) for row in orders) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    read(tmp_path, "order\no1\n")
    first = OrderFile(tmp_path / "orders.csv").digest()
    assert OrderFile(tmp_path / "orders.csv").digest() == first
    read(tmp_path, "order\no2\n")
    assert OrderFile(tmp_path / "orders.csv").digest() != first
