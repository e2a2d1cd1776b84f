"""Sending the spans of a process to a collector, if the settings name one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from services.kernel.errors import CountinghouseError
from services.runtime import tracing
from services.runtime.settings import TracingSettings


@contextmanager
def exporting(service: str, instance: str) -> Iterator[None]:
    """Make spans while inside, and send them; off if no collector is set.

    Args:
        service: The name of this service.
        instance: The name of this process among the service's instances.

    Raises:
        CountinghouseError: TRACING_SETTINGS: a variable of OpenTelemetry cannot be used.
    """
    try:
        endpoint = TracingSettings().endpoint
    except ValidationError as error:
        problems = "; ".join(part["msg"] for part in error.errors())
        raise CountinghouseError("TRACING_SETTINGS", f"tracing cannot begin: {problems}") from None
    if not endpoint:
        yield
        return
    from services.runtime.opentelemetry_tracer import open_tracer  # noqa: PLC0415  a process without tracing does without

    tracer = open_tracer(endpoint, service, instance)
    tracing.use(tracer)
    try:
        yield
    finally:
        tracing.use(None)
        tracer.close()
