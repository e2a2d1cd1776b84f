"""The metrics of the files by which a process is known and knows others: certificates, keys, revocations.

Each value is that of the moment at which the page is read: the page's thread looks at the files as a connection would.
A process in plain text shows nothing of certificates.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from services.runtime.grpc.tls import TlsFiles
from services.runtime.grpc.trust import TrustFiles


class CredentialMetrics:
    """The gauges.

    Args:
        collected_by: The Prometheus registry to appear in; None: none, for tests.
    """

    def __init__(self, collected_by: CollectorRegistry | None = None) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"countinghouse_{name}", text, labels, registry=collected_by)

        self._certificate_expiry = gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate of this process expires, by the authority that signed it.",
            "authority",
        )
        self._authority_expiry = gauge(
            "authority_expiry_timestamp_seconds",
            "Unix time at which the newest of the authorities that this process believes expires.",
            "authority",
        )
        self._tls_files_unusable = gauge(
            "tls_files_unusable",
            "1 if the files of certificates have changed and cannot be used, so that those from before hold.",
            "authority",
        )
        self._trust_files_unusable = gauge(
            "trust_files_unusable",
            "1 if the files of keys and revocations have changed and cannot be read, so that those from before hold.",
        )

    def show_tls(self, authority: str, files: TlsFiles | None) -> None:
        """Show the state of certificates from now on.

        Args:
            authority: Whose they are: `house` or `acquirer`.
            files: None: in plain text; nothing is shown.
        """
        if files is None:
            return
        status = files.status
        self._authority_expiry.labels(authority).set_function(lambda: status().authority_expires_s)
        self._tls_files_unusable.labels(authority).set_function(lambda: not status().usable)
        if status().certificate_expires_s is not None:
            self._certificate_expiry.labels(authority).set_function(lambda: status().certificate_expires_s or 0.0)

    def show_trust(self, files: TrustFiles) -> None:
        """Show the state of the keys and revocations from now on."""
        self._trust_files_unusable.set_function(lambda: not files.usable())
