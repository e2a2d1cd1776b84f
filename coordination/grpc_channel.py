"""gRPC channels to one address: every one is opened here, with one set of options.

How a silent connection is noticed: while calls are outstanding, a ping is sent after
KEEPALIVE_MS without news, and the connection is given up if no answer comes within PING_TIMEOUT_MS; its calls
then fail UNAVAILABLE, and the next call connects anew. Measured with a server that was stopped (SIGSTOP): 1.1 to
2.1 s, also in the middle of a long call. It takes all three options: ``grpc.keepalive_timeout_ms`` alone is not
looked at before ``grpc.http2.ping_timeout_ms``, a minute, has passed; and without ``max_pings_without_data=0`` the
third ping of a silent call waits a minute, too.

The server must accept a ping a second: gRPC's own servers hang up at the fourth unless they are configured
otherwise (SERVER_PING_OPTIONS). For servers that cannot be configured, override the options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

KEEPALIVE_MS = 1_000
PING_TIMEOUT_MS = 1_000
#: How long one attempt to connect may take, with the handshake of TLS and the first frame of HTTP/2. Dubbo's default.
CONNECT_TIMEOUT_MS = 3_000
#: The largest message a client takes, which is gRPC's own default, and sends.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

Option = tuple[str, Any]
#: Returns the TLS credentials of new connections. Another object than the last time: those have been renewed.
Credentials = Callable[[], grpc.ChannelCredentials]

OPTIONS: Mapping[str, Any] = {
    # Addresses are those of providers, and of an acquirer that the settings name: an http_proxy of the environment,
    # meant for the web, is not for them.
    "grpc.enable_http_proxy": 0,
    # Else the channels of one process would share each other's reconnect back-off.
    "grpc.use_local_subchannel_pool": 1,
    # No DNS record may switch on gRPC's own retries.
    "grpc.service_config_disable_resolution": 1,
    # But a call that a closing connection provably left unseen is to be sent again (transparent retry).
    "grpc.enable_retries": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    # In spite of its name this is the timeout of an attempt, not a pause: MIN_CONNECT_TIMEOUT in gRPC's
    # doc/connection-backoff.md.
    "grpc.min_reconnect_backoff_ms": CONNECT_TIMEOUT_MS,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.keepalive_time_ms": KEEPALIVE_MS,
    "grpc.keepalive_timeout_ms": PING_TIMEOUT_MS,
    "grpc.http2.ping_timeout_ms": PING_TIMEOUT_MS,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
}

#: For a caller that waits for a server that was stopped (SIGSTOP) on purpose: no keepalive, so that the connection
#: outlives the pause, and no time-out of a ping that gRPC sent just before to estimate the bandwidth. Otherwise the
#: connection is given up, and the server, resumed, finds its call cancelled.
PATIENT: tuple[Option, ...] = (("grpc.keepalive_time_ms", 2**31 - 1), ("grpc.http2.ping_timeout_ms", 2**31 - 1))

#: What a server needs to accept these pings, and with those of idle Dubbo clients: Java's after 60 s, dubbo-go's
#: after 10 s.
SERVER_PING_OPTIONS: tuple[Option, ...] = (
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
)


def open_channel(
    address: str, options: Iterable[Option] = (), *, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """Return a channel to one address; it connects at the first call.

    Args:
        address: ``host:port``, IPv6 in brackets.
        options: over OPTIONS.
        credentials: for TLS; None for plain text.
    """
    merged = _merged(options)
    if credentials is None:
        return grpc.aio.insecure_channel(address, merged)
    return grpc.aio.secure_channel(address, credentials, merged)


def open_blocking_channel(
    address: str, options: Iterable[Option] = (), *, credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """Return a channel for a program without an event loop. Arguments as `open_channel`."""
    if credentials is None:
        return grpc.insecure_channel(address, _merged(options))
    return grpc.secure_channel(address, credentials, _merged(options))


def _merged(options: Iterable[Option]) -> list[Option]:
    return list({**OPTIONS, **dict(options)}.items())
