"""What an error of the database means, and what callers are told of it.

    from SQLite                      from PostgreSQL (SQLSTATE)      to callers
    BUSY, LOCKED                     40001, 40P01, 55P03             the step runs again; then DATABASE_UNAVAILABLE
    FULL                             53100                           DATABASE_FULL
    READONLY                         25006                           DATABASE_READ_ONLY
    IOERR, CANTOPEN, NOMEM, PROTOCOL 58…                             DATABASE_IO_ERROR
                                     53…, 57014, 57P…, no answer     DATABASE_UNAVAILABLE
    (its file is another one)                                        DATABASE_LOST, `runtime/database/sqlite.py`
    CORRUPT, NOTADB                  XX001, XX002                    refused: DATABASE_CORRUPT
                                     28…, 3D…, 42501                 refused: its operator has to repair it

Each of the five is UNAVAILABLE and says that nothing was done, which holds until COMMIT is sent. A COMMIT that fails is
the same only where the database is certain: SQLite after FULL or READONLY, for then the frame that would make
the transaction stand was not written; after IOERR it may be in the file, and a restart would find it. PostgreSQL's
refusal of a COMMIT always means that nothing stands.

No value of a caller's is in an error or its chain: parameters are hidden, and of PostgreSQL's words only those remain
that hold no values (its DETAIL and HINT quote rows, and the messages of class 22 what was wrong).
"""

from __future__ import annotations

import sqlite3
from typing import Final

import asyncpg
from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from services.kernel.errors import CountinghouseError, Unavailable

FULL: Final = "DATABASE_FULL"
READ_ONLY: Final = "DATABASE_READ_ONLY"
IO_ERROR: Final = "DATABASE_IO_ERROR"
AWAY: Final = "DATABASE_UNAVAILABLE"
LOST: Final = "DATABASE_LOST"

#: After these no write works until an operator has acted.
WRITES_FAIL: Final = frozenset({FULL, READ_ONLY, IO_ERROR})

_SENTENCES: Final = {
    FULL: "the disk of the database is full; nothing was done, try again once there is space",
    READ_ONLY: "the database can only be read at present; nothing was done, try again once it can be written",
    IO_ERROR: "the database cannot read or write its files; nothing was done, try again once it can",
    LOST: "the file of the database was removed or replaced; nothing was done, put the file back, or stop "
    "the service and put a backup in its place",
}
_PASSING_SQLITE: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_IOERR: IO_ERROR,
    sqlite3.SQLITE_CANTOPEN: IO_ERROR,
    sqlite3.SQLITE_NOMEM: IO_ERROR,
    sqlite3.SQLITE_PROTOCOL: IO_ERROR,
}
#: serialization_failure, deadlock_detected, lock_not_available.
_PASSING_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03"})
#: query_canceled (statement_timeout), lock_not_available.
_TIMEOUTS: Final = frozenset({"57014", "55P03"})
#: The class of SQLSTATEs of the constraints.
_INTEGRITY_VIOLATION: Final = "23"
#: The class of SQLSTATEs by which the driver says that the connection broke.
_CONNECTION_BROKE: Final = "08"
#: What is no answer to COMMIT: class 08; and class 57P, the server is being shut down or is crashing, and may have
#: committed before this error.
_NO_ANSWERS: Final = (_CONNECTION_BROKE, "57P")
#: By the beginning of the SQLSTATE, the longest first: disk_full, read_only_sql_transaction, system_error; then
#: insufficient_resources, query_canceled (statement_timeout), operator_intervention (shutdown, crash, starting up).
_SQLSTATES: Final = {"53100": FULL, "25006": READ_ONLY, "58": IO_ERROR, "53": AWAY, "57014": AWAY, "57P": AWAY}
#: What its operator has to repair, by the beginning of the SQLSTATE.
_REFUSED: Final = {
    "28": ("DATABASE_LOGIN", "see that its URL names the right role, and its passfile that role's password"),
    "3D": ("DATABASE_MISSING", "make it (services/runtime/database/postgres_roles.py), or name another"),
    "42501": ("DATABASE_FORBIDDEN", "its role may not do this; only the owner of the tables may change the schema"),
    "XX001": ("DATABASE_CORRUPT", "it is damaged; restore a backup"),
    "XX002": ("DATABASE_CORRUPT", "an index of it is damaged; rebuild it or restore a backup"),
}
#: SQLSTATEs whose messages quote the value that was wrong.
_DATA_EXCEPTION: Final = "22"
_WITHHELD: Final = "the message is withheld, for it quotes a value"
#: Parts of an error of asyncpg's that quote rows and statements.
_QUOTING: Final = ("detail", "hint", "where", "query", "internal_query")


class CommitUnanswered(Exception):
    """COMMIT was sent, and it is not known whether the step stands."""


class StatementTimeout(Unavailable):
    """The server ended a statement that took too long or waited too long for a lock; nothing was done."""


class DatabaseRefused(CountinghouseError):
    """The database cannot be used as it is; the message says which one and what to do."""


def lost() -> Unavailable:
    """Return what callers are told of a database whose file is not the one that was opened."""
    return Unavailable(LOST, _SENTENCES[LOST])


def away(error: BaseException) -> Unavailable:
    """Return what callers are told of a database that does not answer."""
    return Unavailable(AWAY, f"the database is away or busy: {type(error).__name__}; try again")


def translated(error: DBAPIError, name: str, *, writing: bool) -> Exception:
    """Return the error of a step as our error; `error` itself if it is a defect of ours.

    Args:
        name: The database's, for the operator.
        writing: Whether the step was to write. One that only reads and tries to write is a mistake.
    """
    original = driver_error(error)
    reason = _reason(original)
    if reason == READ_ONLY and not writing:
        return error
    if reason in _SENTENCES:
        return Unavailable(reason, _SENTENCES[reason])
    if sqlstate_of(original) in _TIMEOUTS:
        return StatementTimeout(AWAY, away(error).message)
    if reason or error.connection_invalidated or is_passing(error):
        return away(error)
    state = sqlstate_of(original)
    for beginning, (refusal, remedy) in _REFUSED.items():
        if state.startswith(beginning):
            return DatabaseRefused(refusal, f"{name} refuses us ({original}); {remedy}")
    if isinstance(original, sqlite3.DatabaseError) and not isinstance(
        original, (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.ProgrammingError)
    ):
        return DatabaseRefused(
            "DATABASE_CORRUPT",
            f"{name} is damaged or no database of ours ({original}); restore a backup or move it away",
        )
    return error


def wrapped(error: Exception, *, invalidated: bool) -> DBAPIError:
    """Return a driver's error as SQLAlchemy's, without the values in it.

    Args:
        invalidated: Whether the connection is closed by now.
    """
    if isinstance(error, sqlite3.Error):
        return (IntegrityError if isinstance(error, sqlite3.IntegrityError) else DBAPIError)(None, None, error)
    state = sqlstate_of(error)
    _withhold(error, state)
    kind = IntegrityError if state.startswith(_INTEGRITY_VIOLATION) else DBAPIError
    broken = invalidated or state.startswith(_CONNECTION_BROKE)
    result: DBAPIError = kind(None, None, error, connection_invalidated=broken)
    result.args = (f"{type(error).__name__} {state}: {error}",)
    return result


def is_answered(error: BaseException) -> bool:
    """Return whether the server answered COMMIT with a refusal, after which nothing stands."""
    state = sqlstate_of(error)
    return bool(state) and not state.startswith(_NO_ANSWERS)


def is_passing(error: DBAPIError) -> bool:
    """Return whether the step lost against another, or its connection broke: as a whole it may be run again."""
    original = driver_error(error)
    if isinstance(original, sqlite3.OperationalError):
        return _sqlite_code(original) in _PASSING_SQLITE
    return error.connection_invalidated or sqlstate_of(original) in _PASSING_SQLSTATES


def is_undone(error: DBAPIError) -> bool:
    """Return whether SQLite's refusal of a COMMIT means that nothing stands, now and after a restart."""
    original = driver_error(error)
    if isinstance(original, sqlite3.IntegrityError):  # a constraint that is checked at the end
        return True
    return _reason(original) in (FULL, READ_ONLY) or is_passing(error)


def driver_error(error: DBAPIError) -> BaseException | None:
    """Return the driver's own exception, under whatever an async adapter wrapped around it."""
    original: BaseException | None = error.orig
    while original is not None and original.__cause__ is not None:
        original = original.__cause__
    return original


def sqlstate_of(error: BaseException | None) -> str:
    """Return what PostgreSQL called the error; empty: it is not one of its."""
    return str(getattr(error, "sqlstate", None) or "")


def said(error: BaseException) -> str:
    """Return what the driver said, without the statement: that may hold a password."""
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)


def keep_values_out(engine: Engine) -> None:
    """Have no error of this engine show a value, wherever it is logged."""
    event.listen(engine, "handle_error", _strip)


def _strip(context: ExceptionContext) -> None:
    words, error = "", context.original_exception.__cause__  # what the adapter wrapped; SQLite has none
    while error is not None:
        state = sqlstate_of(error)
        _withhold(error, state)
        words = words or f"{type(error).__name__} {state}: {error}"
        error = error.__cause__
    if words:
        context.original_exception.args = (words,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (words,)


def _withhold(error: BaseException, state: str) -> None:
    """Take out of an error of asyncpg's what quotes values."""
    if not state or state.startswith(_DATA_EXCEPTION):
        error.args = (_WITHHELD,)
    for part in _QUOTING:
        if getattr(error, part, None):
            setattr(error, part, None)


def _reason(original: BaseException | None) -> str:
    if isinstance(original, sqlite3.OperationalError):
        return _SQLITE.get(_sqlite_code(original), "")
    if isinstance(original, asyncpg.TargetServerAttributeNotMatched):
        return AWAY  # all servers that answer are replicas
    state = sqlstate_of(original)
    return next((reason for beginning, reason in _SQLSTATES.items() if state.startswith(beginning)), "")


def _sqlite_code(error: sqlite3.Error) -> int:
    """Return the primary result code; -1: the error is Python's own."""
    return getattr(error, "sqlite_errorcode", -1) & 0xFF
