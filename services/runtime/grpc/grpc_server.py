"""The gRPC server of every process, with all its limits.

| bound | of | set by |
|---|---|---|
| size | a message | `max_message_bytes` |
| streams | a connection | `max_streams_per_connection` |
| time until the first frame | a new connection | `_HANDSHAKE_MS` |
| time without a call | a connection | `idle_connection_s` |
| time to answer a ping | a connection with calls | `_PING_TIMEOUT_MS` |
| time to send the request in | a call | `message_timeout_s` |
| calls at once | a caller, the server | `runtime/grpc/admission.py` |

grpc.aio's own limit of calls is not used: it counts what has no token and sends no request, and health as well.
"""

from __future__ import annotations

from typing import Final

import grpc

from coordination.grpc_channel import SERVER_PING_OPTIONS
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.runtime.grpc.admission import Admission
from services.runtime.grpc.credential_metrics import CredentialMetrics
from services.runtime.grpc.delegations import DelegationVerifier
from services.runtime.grpc.interceptors import CallInterceptor
from services.runtime.grpc.tls import TlsFiles
from services.runtime.grpc.tokens import TokenVerifier
from services.runtime.grpc.trust import TrustFiles
from services.runtime.metrics import CallMetrics
from services.runtime.settings import Settings

#: For the preface of HTTP/2 and the first SETTINGS.
_HANDSHAKE_MS: Final = 5_000
#: A connection is pinged when nothing was heard for this long, and closed if the ping is not answered.
_PING_MS: Final = 60_000
_PING_TIMEOUT_MS: Final = 20_000


def new_server(
    settings: Settings,
    clock: Clock,
    metrics: CallMetrics | None = None,
    *,
    audience: str,
    house: bool = True,
    tls: TlsFiles | None = None,
    credentials: CredentialMetrics | None = None,
) -> tuple[grpc.aio.Server, CallInterceptor]:
    """Return a server without services, and the interceptor through which its calls pass.

    Args:
        metrics: Counts the calls; None: they are not read.
        audience: Whose tokens of machines are good here.
        house: Whether it is one of the house: tokens of people are good here, and services show a certificate.
        tls: By which those are verified; None: in plain text they show none.
        credentials: Shows whether the keys and revocations can be read; None: they are not shown.

    Raises:
        CountinghouseError: VERIFY_KEY_MISSING, VERIFY_KEY_INVALID, REVOKED_INVALID.
    """
    trust = _trust(settings)
    if credentials is not None:
        credentials.show_trust(trust)
    interceptor = CallInterceptor(
        TokenVerifier(trust.current, audience, clock, house=house),
        clock,
        delegations=DelegationVerifier(trust.current, audience, clock),
        default_deadline_s=settings.default_deadline_s,
        max_deadline_s=settings.max_deadline_s,
        message_timeout_s=settings.message_timeout_s,
        admission=Admission(
            caller_budget=settings.caller_budget,
            service_budget=settings.service_budget,
            max_executions=settings.max_concurrent_calls,
        ),
        metrics=metrics,
        tls=tls if house else None,
    )
    return grpc.aio.server(interceptors=[interceptor], options=_options(settings)), interceptor


def _trust(settings: Settings) -> TrustFiles:
    try:
        return TrustFiles(settings.verify_key_file, settings.revoked_file)
    except OSError as error:
        raise CountinghouseError(
            "VERIFY_KEY_MISSING",
            f"{settings.verify_key_file} cannot be read: {error.strerror}; COUNTINGHOUSE_VERIFY_KEY_FILE names the key",
        ) from error


def _options(settings: Settings) -> list[tuple[str, int]]:
    """Return the bounds, and room for pings: our own clients' and those of idle Dubbo clients."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        # Else streams that ended count until gRPC has forgotten them, and a client that keeps the limit is refused.
        ("grpc.http.overload_protection", 0),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", int(settings.idle_connection_s * 1000)),
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        *SERVER_PING_OPTIONS,
        ("grpc.so_reuseport", 0),
    ]
