"""What a step may do inside its transaction: the same on SQLite and on PostgreSQL.

Statements are built by SQLAlchemy Core and executed by the driver. A statement that is made once and executed often, a
constant of a module, is compiled once; one that is built anew at each call is compiled at each call. What varies in a
constant is a `bindparam`, and a list that never changes is written as `in_([literal(value), …])`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import Executable

#: A row: its columns by name, by place and in order.
Row = Any
Parameters = Mapping[str, Any]


class Rows:
    """What a statement answered.

    Args:
        rowcount: How many rows were written or returned.
    """

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: Sequence[Row], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def all(self) -> list[Row]:
        """Return all rows."""
        return list(self._rows)

    def first(self) -> Row | None:
        """Return the first row; None: there is none."""
        return self._rows[0] if self._rows else None

    def one_or_none(self) -> Row | None:
        """Return the only row; None: there is none.

        Raises:
            ValueError: There are several.
        """
        if len(self._rows) > 1:
            raise ValueError(f"{len(self._rows)} rows where at most one was expected")
        return self.first()

    def one(self) -> Row:
        """Return the only row.

        Raises:
            ValueError: There is none, or there are several.
        """
        if len(self._rows) != 1:
            raise ValueError(f"{len(self._rows)} rows where one was expected")
        return self._rows[0]

    def mappings(self) -> list[dict[str, Any]]:
        """Return all rows as dictionaries, by column."""
        return [dict(row._mapping) for row in self._rows]

    def scalars(self) -> list[Any]:
        """Return the first column of all rows."""
        return [row[0] for row in self._rows]

    def scalar_one(self) -> Any:
        """Return the first column of the only row. Raises as `one`."""
        return self.one()[0]

    def scalar_one_or_none(self) -> Any | None:
        """Return the first column of the only row; None: there is none. Raises as `one_or_none`."""
        row = self.one_or_none()
        return None if row is None else row[0]


class Transaction(Protocol):
    """The transaction of a step."""

    #: Whether the database is a PostgreSQL; otherwise it is SQLite.
    is_postgresql: bool

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> Rows:
        """Execute a statement once."""
        ...

    async def execute_each(self, statement: Executable, rows: Sequence[Parameters]) -> Rows:
        """Execute a statement once for each of some parameters, in one round trip.

        All of `rows` have the same keys. A statement without RETURNING returns no rows, and no row count to rely on.
        """
        ...
