"""A subscriber as Dubbo describes it: what rules compare with, and what is registered under ``consumers/``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from coordination.registry.service_key import Service
from coordination.registry.url import ProviderURL
from coordination.rules.patterns import ANY_HOST


@dataclass(frozen=True, slots=True)
class Consumer:
    """A subscriber: what rules compare with, and what operators see under ``consumers/``.

    Attributes:
        application: its name.
        host: its address; empty if it has none for others, and then it is not registered.
        timestamp_ms: when it started, Unix milliseconds.
        instance: which of its application's instances.
        tag: the default tag of its calls (``dubbo.tag``).
    """

    application: str
    host: str = ""
    timestamp_ms: int = 0
    instance: str = ""
    tag: str = ""

    def url(self, service: Service) -> ProviderURL:
        """Return the URL of this consumer of a service. The process id keeps two of one host apart."""
        more = {
            "group": service.group,
            "version": service.version,
            "dubbo.tag": self.tag,
            "instance": self.instance,
            "pid": str(os.getpid()),
        }
        return ProviderURL.consumer(
            service.interface,
            self.host or ANY_HOST,
            application=self.application,
            timestamp_ms=self.timestamp_ms,
            **{key: value for key, value in more.items() if value},
        )


#: A consumer without host or application: rules for either do not apply to it.
ANY_CONSUMER = Consumer("")
