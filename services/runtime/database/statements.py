"""Statements of SQLAlchemy Core as text for a driver, each compiled once.

SQLAlchemy's own execution costs several times what a driver does for a statement of one row. So the backends take from
it only the text, the order of the parameters and the names of the columns. No value of our tables needs a conversion:
they are text, integers, booleans and bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Executable, TextClause
from sqlalchemy.engine import Dialect, result_tuple
from sqlalchemy.sql.compiler import SQLCompiler

from services.runtime.database.transaction import Parameters, Rows

#: More than all services have together.
_KNOWN_STATEMENTS = 512


class CompiledStatement:
    """A statement as text, and how its parameters become the driver's arguments."""

    def __init__(self, statement: Any, compiled: SQLCompiler) -> None:
        self._text = str(compiled)
        self._keys = () if isinstance(statement, TextClause) else tuple(statement.exported_columns.keys())
        self.returns_rows = _returns_rows(statement, self._text)
        if statement.is_dml and self.returns_rows and not self._keys and not compiled.implicit_returning:
            raise AssertionError("call returning() on a new statement: SQLAlchemy remembers that this one had none")
        self._row = result_tuple(self._keys)
        self._compiled = compiled
        self._has_lists = bool(compiled.post_compile_params)
        self._names: tuple[str, ...] = tuple(compiled.positiontup or ())
        self._fixed = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}

    def with_values(self, parameters: Parameters) -> tuple[str, Sequence[Any]]:
        """Return the text and its arguments; with a list among them the text has a place for each of its values."""
        if self._has_lists:
            expanded = self._compiled.construct_expanded_state(dict(parameters))
            return expanded.statement, expanded.positional_parameters
        fixed = self._fixed
        return self._text, [parameters[name] if name in parameters else fixed[name] for name in self._names]

    def rows_of(self, records: Sequence[Any], names: tuple[str, ...]) -> Rows:
        """Return the driver's records as rows whose columns are named as in the statement.

        Args:
            names: What the driver calls the columns, which counts for plain text; empty: it gave no rows.
        """
        if names and len(names) != len(self._keys):
            self._row = result_tuple(names)  # before the names: another thread may be here
            self._keys = names
        row = self._row
        return Rows([row(tuple(record)) for record in records], len(records))


class Statements:
    """The compiled forms of the statements executed last, by statement object and parameter names."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._compiled = lru_cache(maxsize=_KNOWN_STATEMENTS)(self._compile)

    def compiled(self, statement: Executable, names: Iterable[str]) -> CompiledStatement:
        """Return the compiled form of a statement.

        Args:
            names: The parameters it is executed with: the columns of an INSERT.
        """
        return self._compiled(statement, tuple(names))

    def _compile(self, statement: Any, names: tuple[str, ...]) -> CompiledStatement:
        return CompiledStatement(statement, statement.compile(dialect=self._dialect, column_keys=list(names)))


def _returns_rows(statement: Any, compiled: str) -> bool:
    """Return whether a statement answers with rows; of plain text what does not write is taken to do so."""
    if isinstance(statement, TextClause):
        return not compiled.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "SET"))
    return bool(statement.is_select or " RETURNING " in compiled)
