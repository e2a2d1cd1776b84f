"""Log lines, as a process writes them to standard error."""

from __future__ import annotations

import json
import subprocess
import sys

_SETTING_UP = """
import logging, sys, structlog
from services.runtime import log
log.configure("payment", "payment-1")
"""


def lines_of(program: str) -> list[dict[str, object]]:
    """Return the log lines of a program that has set up its log and ends without an error."""
    done = subprocess.run(
        [sys.executable, "-c", _SETTING_UP + program], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_lines_of_ours_and_of_libraries_have_the_same_fields() -> None:
    ours, library = lines_of(
        'structlog.get_logger("call").info("call", code="OK", ms=1.5)\nlogging.getLogger("grpc").warning("late %s", 2)'
    )
    assert (ours["event"], ours["code"], ours["ms"], ours["level"]) == ("call", "OK", 1.5, "info")
    assert (library["event"], library["level"]) == ("late 2", "warning")
    assert all((line["service"], line["instance"]) == ("payment", "payment-1") for line in (ours, library))
    assert all("timestamp" in line for line in (ours, library))


def test_line_of_ours_has_the_ids_of_its_call_and_trace() -> None:
    """A library's has none: its task may serve one call after the other. What the line says itself stays."""
    _, ours, own, library = lines_of(
        "from services.kernel.clock import CallDeadline, SystemClock\n"
        "from services.kernel.principal import Principal, Role\n"
        "from services.runtime import tracing\n"
        "from services.runtime.grpc.context import Call, serving\n"
        "class Made(tracing.Span):\n"
        "    trace_id, span_id = 'a' * 32, 'b' * 16\n"
        "class Tracer:\n"
        "    def begin(self, *_): return tracing._Continued(Made())\n"
        "tracing.use(Tracer())\n"
        "log = structlog.get_logger()\n"
        "log.info('no call')\n"
        "call = Call('/x/y', Principal('li', Role.CASHIER), CallDeadline.after(1, SystemClock()))\n"
        "serving(call)\n"
        "call.concerns(order_id='o1', payment_id='p1')\n"
        "with tracing.root('x'):\n"
        "    log.info('call')\n"
        "    log.info('call', order_id='o2')\n"
        "    logging.getLogger('grpc').warning('late')\n"
    )
    ids = {"order_id": "o1", "payment_id": "p1", "trace_id": "a" * 32, "span_id": "b" * 16}
    assert ids.items() <= ours.items()
    assert (ids | {"order_id": "o2"}).items() <= own.items()
    assert not set(ids) & (set(_) | set(library))


def test_line_break_in_a_value_does_not_begin_another_line() -> None:
    (line,) = lines_of('structlog.get_logger("x").info("a\\nb", caller="li\\n{}")')
    assert (line["event"], line["caller"]) == ("a\nb", "li\n{}")


def test_error_is_logged_with_its_traceback() -> None:
    (line,) = lines_of(
        'try:\n    1 / 0\nexcept ZeroDivisionError:\n    structlog.get_logger("x").exception("unexpected")'
    )
    assert "ZeroDivisionError: division by zero" in str(line["exception"])


def test_line_that_cannot_be_written_is_dropped() -> None:
    """On a full disk or a closed pipe: no call fails for its log line."""
    assert (
        lines_of('sys.stderr = open("/dev/full", "w")\nstructlog.get_logger("x").info("lost")\nsys.stderr = None') == []
    )
