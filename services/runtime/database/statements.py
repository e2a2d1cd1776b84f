"""Statements of SQLAlchemy Core as text for a driver, each compiled once.

SQLAlchemy's own execution costs several times what a driver does for a statement of one row. So the backends take from
it only the text, the order of the parameters and the names of the columns. No value of our tables needs a conversion:
they are text, integers, booleans and bytes.

On PostgreSQL a statement is prepared once however many values it is given: a list is one array, and an INSERT of many
rows selects them from arrays, one for each column.

    WHERE account_id IN (…)            WHERE account_id = ANY ($1::VARCHAR[])
    INSERT INTO t (a, b) VALUES (…)    INSERT INTO t (a, b) SELECT … FROM unnest($1::VARCHAR[], $2::BIGINT[]) AS each …

An UPDATE of many rows is executed for each of them: a join would lock the rows in an order of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Executable, Insert, TextClause
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import Dialect, result_tuple
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.sqltypes import TupleType

from services.runtime.database.transaction import Parameters, Rows

#: More than all services have together.
_KNOWN_STATEMENTS = 512
#: A place of an argument in a statement for asyncpg, and its type.
_PLACE = re.compile(r"\$(\d+)::([A-Z]+)")


class CompiledStatement:
    """A statement as text, and how its parameters become the driver's arguments.

    Attributes:
        returns_rows: Whether it answers with rows.
    """

    def __init__(self, statement: Any, compiled: SQLCompiler) -> None:
        self._text = str(compiled)
        self._keys = () if isinstance(statement, TextClause) else tuple(statement.exported_columns.keys())
        self.returns_rows = _returns_rows(statement, self._text)
        if statement.is_dml and self.returns_rows and not self._keys and not compiled.implicit_returning:
            raise AssertionError("call returning() on a new statement: SQLAlchemy remembers that this one had none")
        self._row = result_tuple(self._keys)
        self._compiled = compiled
        self._names: tuple[str, ...] = tuple(compiled.positiontup or ())
        self._arrays: frozenset[str] = frozenset()
        self._is_insert = isinstance(statement, Insert)
        if isinstance(compiled.dialect, PGDialect):
            self._give_lists_as_arrays()
        self._has_lists = bool(compiled.post_compile_params) and not self._arrays
        self._expanded: dict[tuple[int, ...], tuple[str, tuple[str, ...], dict[str, list[str]]]] = {}
        self._fixed = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}

    @cached_property
    def insert_many(self) -> str | None:
        """The text that inserts many rows on PostgreSQL, whose arguments are the columns, each as an array.

        None: it is no INSERT that gives each column by a parameter of a known type.
        """
        return _insert_many(self._text) if self._is_insert else None

    def with_values(self, parameters: Parameters) -> tuple[str, Sequence[Any]]:
        """Return the text and its arguments; with a list among them the text has a place for each of its values."""
        if self._has_lists:
            return self._with_lists(parameters)
        fixed = self._fixed
        values = [parameters[name] if name in parameters else fixed[name] for name in self._names]
        if self._arrays:
            values = [
                list(value) if name in self._arrays else value for name, value in zip(self._names, values, strict=True)
            ]
        return self._text, values

    def _give_lists_as_arrays(self) -> None:
        """Give each list of the statement one place; lists of tuples keep a place for each value."""
        types = {self._compiled.bind_names[bind]: bind.type for bind in self._compiled.post_compile_params}
        lists = {name: types[name] for name in self._names if name in types}
        if not lists or any(isinstance(type_, TupleType) for type_ in lists.values()):
            return
        self._names = (*(name for name in self._names if name not in lists), *lists)
        for place, (name, type_) in enumerate(lists.items(), len(self._names) - len(lists) + 1):
            scalar = type_.compile(self._compiled.dialect).partition("(")[0]
            self._text = self._text.replace(f"IN (__[POSTCOMPILE_{name}])", f"= ANY (${place}::{scalar}[])")
        self._arrays = frozenset(lists)

    def _with_lists(self, parameters: Parameters) -> tuple[str, Sequence[Any]]:
        """Return as `with_values`; the text depends on how long the lists are, and is made once for each length."""
        lengths = tuple(len(value) for value in parameters.values() if isinstance(value, (list, tuple, set, frozenset)))
        known = self._expanded.get(lengths)
        if known is None:
            state = self._compiled.construct_expanded_state(dict(parameters))
            known = state.statement, tuple(state.positiontup or ()), dict(state.parameter_expansion)
            if len(self._expanded) < _KNOWN_STATEMENTS:
                self._expanded[lengths] = known
        text, names, expansion = known
        values = {**self._fixed, **parameters}
        for name, places in expansion.items():
            values.update(zip(places, _flat(values[name]), strict=True))
        return text, [values[name] for name in names]

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


def _insert_many(text: str) -> str | None:
    """Return the text that inserts the rows of some arrays, made of the text that inserts one row."""
    head, _, rest = text.partition(" VALUES (")
    values, _, tail = rest.partition(")")
    places = _PLACE.findall(values)
    if not places or ", ".join(f"${number}::{type_}" for number, type_ in places) != values or "$" in tail:
        return None
    columns = ", ".join(f"each.p{number}" for number, _ in places)
    arrays = ", ".join(f"${number}::{type_}[]" for number, type_ in places)
    names = ", ".join(f"p{number}" for number, _ in places)
    return f"{head} SELECT {columns} FROM unnest({arrays}) AS each ({names}){tail}"  # noqa: S608  made of a statement's text


def _flat(values: Sequence[Any]) -> Iterable[Any]:
    """Return the values of a list, of a list of tuples one after the other."""
    return chain.from_iterable(values) if values and isinstance(values[0], tuple) else values


def _returns_rows(statement: Any, compiled: str) -> bool:
    """Return whether a statement answers with rows; of plain text what does not write is taken to do so."""
    if isinstance(statement, TextClause):
        return not compiled.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "SET"))
    return bool(statement.is_select or " RETURNING " in compiled)
