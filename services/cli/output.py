"""What a command prints: tables on a terminal, plain lines elsewhere, one JSON document if asked.

Cells, values and JSON have everything escaped that others could deceive readers with; sentences with others' words in
them take `escape`, or at least what the stream itself does (`streams.py`). JSON keeps minor units, as the wire does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.kernel.clock import rfc3339
from services.kernel.currency import format_amount
from services.kernel.printable import escape, escape_json

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.table import Table

Row = Sequence[str]
#: The year 10000.
_END_OF_TIME_MS = 253_402_300_800_000


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it: fields as in the proto, numbers as numbers, enums by name.

    Unlike `MessageToDict`, which writes an int64 as a string; what reads this is no JavaScript. Credentials are left
    out, as the proto marks them (`debug_redact`); nothing else is.
    """
    fields = message.DESCRIPTOR.fields
    return {each.name: _field(message, each) for each in fields if not each.GetOptions().debug_redact}


def print_json(document: object) -> None:
    """Print one document."""
    print(escape_json(json.dumps(document, ensure_ascii=False, indent=2)))


def print_json_line(document: object) -> None:
    """Print one document of many, on a line of its own, at once."""
    print(escape_json(json.dumps(document, ensure_ascii=False)), flush=True)


def print_line(text: str, *, flush: bool = False) -> None:
    """Print one line that may hold others' words."""
    print(escape(text), flush=flush)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows: in a frame on a terminal, aligned under their heads elsewhere."""
    if sys.stdout.isatty():
        _print_framed(title, columns, rows)
        return
    lines = [columns, *(tuple(escape(cell) for cell in row) for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for cells in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def print_page(as_json: bool, page: dict[str, Any], title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print one page of a list, and how to get the next one."""
    if as_json:
        print_json(page)
        return
    print_table(title, columns, rows)
    if page["next_page_token"]:
        print_line(f"more: --page {page['next_page_token']}")


def framed(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """Return a table for a terminal."""
    from rich.table import Table  # noqa: PLC0415  only a terminal needs it
    from rich.text import Text  # noqa: PLC0415

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    return table


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print one thing's properties, one a line; those without a value are left out."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        if value:
            print(f"{name.ljust(width)}  {escape(value)}")


def short(enum_name: str | int, prefix: str) -> str:
    """Return an enum's name for people: ORDER_STATE_PAID is PAID; an unknown number stays a number."""
    return str(enum_name).removeprefix(prefix)


def money(amount: dict[str, Any] | None) -> str:
    """Return an amount of the wire as people write it: 12.50 CNY; empty if unset."""
    return format_amount(amount["minor_units"], amount["currency_code"]) if amount and amount["currency_code"] else ""


def clerk(who: dict[str, Any] | None) -> str:
    """Return a name and a role; empty if unset."""
    return f"{who['name']} ({short(who['role'], 'ROLE_').lower()})" if who and who["name"] else ""


def moment(unix_ms: int) -> str:
    """Return a time as RFC 3339 in UTC; empty for 0.

    Where the calendar ends it is a number of milliseconds.
    """
    if not unix_ms:
        return ""
    if not 0 < unix_ms < _END_OF_TIME_MS:
        return f"{unix_ms} ms"
    return rfc3339(unix_ms)


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(part, field) for part in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return as_dict(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value


def _print_framed(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it

    Console().print(framed(title, columns, rows))
