"""Logs: one JSON object a line, on standard error.

A line of ours has the ids of the trace, the order and the payment that are known where it is written. No line has a
token, a ticket or a card. Lines of libraries have no such ids: some of their tasks serve one call after the other.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import structlog

from services.runtime import tracing
from services.runtime.grpc.context import current_ids


def configure(service: str, instance: str, *, libraries: int = logging.INFO) -> None:
    """Send all log records of this process, those of its libraries included, to standard error as JSON.

    Our own do not pass through `logging`: that costs more than to write the line, and there is one for each call.

    Args:
        libraries: The least level of the records of libraries.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, add_ids, structlog.processors.JSONRenderer()],
        logger_factory=lambda *_: structlog.WriteLogger(_StandardError()),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=libraries, force=True)
    for chatty in ("kazoo", "alembic", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(service=service, instance=instance)


def add_ids(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the ids that are known to a line, but for those that it names itself. A processor of structlog's."""
    for name, value in (*tracing.ids().items(), *current_ids().items()):
        line.setdefault(name, value)
    return line


class _StandardError:
    """Standard error, for lines that are dropped where they cannot be written: no call fails for its log line."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
