"""TLS between the processes of the house, from two files that are renewed in place.

    ca_file         the certificates of the authorities that are believed
    identity_file   who this process is: a private key, and the certificate for
                    `spiffe://countinghouse/<service>/<instance>`. In one file, so that they are renewed together

A server listens on two ports. Python's gRPC cannot ask for a client's certificate without demanding one.

| port | who calls it | the client shows |
|---|---|---|
| public | people, scripts, the acquirer | a token |
| internal, registered as `internal-port` | the services of the house | a certificate, and a token |

Invariants
1. A client connects to the service whose interface it calls, whatever address the registry gives: the server must have
   a certificate for `<service>.countinghouse`.
2. New files hold for the next connection, without a restart. Files that cannot be used change nothing.
3. Nothing of a call is sent before the server's certificate was verified.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from coordination.grpc_channel import Credentials, Option, open_channel
from coordination.registry.endpoint import Endpoint
from coordination.session.address import ServerAddress
from services.kernel.errors import CountinghouseError
from services.runtime.file_stamp import file_stamp
from services.runtime.grpc.identity import Identity, server_name

#: Parameter of a provider's URL: the port on which it demands a certificate.
INTERNAL_PORT: Final = "internal-port"
#: How often the files are looked at.
_LOOK_S = 1.0
#: How long the calls on a channel that was opened anew may still take.
_CALLS_END_S = 60.0

log = structlog.get_logger()


def internal_address(endpoint: Endpoint) -> str:
    """Return where an endpoint is called with a certificate: its internal port, or its address if it registers none."""
    registered = endpoint.registered
    port = registered.parameters.get(INTERNAL_PORT, "")
    if len(port) <= 5 and port.isascii() and port.isdecimal() and 0 < int(port) <= 65_535:
        return str(ServerAddress(registered.host, int(port)))
    return endpoint.address


@dataclass(frozen=True, slots=True)
class TlsStatus:
    """How long what a process has loaded is good, and whether its files have been loaded.

    Args:
        usable: False: the files have changed and cannot be used; those from before hold.
        authority_expires_s: When the last of the authorities that are believed expires, Unix seconds.
        certificate_expires_s: When the process's own certificate expires; None: of a client without one.
    """

    usable: bool
    authority_expires_s: float
    certificate_expires_s: float | None


@dataclass(frozen=True)
class _Loaded:
    """The files as they were read: all PEM.

    Args:
        authority_expires_s: As in `TlsStatus`.
        certificate: With those that lead to an authority; empty: of a client without one.
        certificate_expires_s: As in `TlsStatus`.
    """

    authorities: bytes
    authority_expires_s: float
    key: bytes = b""
    certificate: bytes = b""
    certificate_expires_s: float | None = None

    @cached_property
    def client(self) -> grpc.ChannelCredentials:
        """What a client connects with."""
        return grpc.ssl_channel_credentials(self.authorities, self.key or None, self.certificate or None)

    @cached_property
    def server(self) -> grpc.ServerCertificateConfiguration:
        """What a port listens with."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.authorities)


class TlsFiles:
    """The two files; looked at again when they are asked for, once a second at most. Threads may share them.

    Args:
        ca_file: PEM.
        identity_file: PEM; None: of a client without a certificate.

    Raises:
        CountinghouseError: TLS_FILE_MISSING, TLS_FILE_INVALID.
    """

    def __init__(self, ca_file: Path, identity_file: Path | None = None) -> None:
        self._files = (ca_file,) if identity_file is None else (ca_file, identity_file)
        self._looked_s = time.monotonic()
        self._seen = self._stamps()
        self._loaded = self._load()
        self._unusable = ""
        self._looking = threading.Lock()

    def status(self) -> TlsStatus:
        """Return the state of the files as they are now."""
        loaded = self._current()
        return TlsStatus(not self._unusable, loaded.authority_expires_s, loaded.certificate_expires_s)

    def client_credentials(self) -> grpc.ChannelCredentials:
        """Return what new connections use."""
        return self._current().client

    def server_credentials(self, *, demand_certificate: bool) -> grpc.ServerCredentials:
        """Return what a port listens with. It looks at the files at every connection.

        Args:
            demand_certificate: Whether clients must show a certificate of an authority that is believed.
        """
        served = self._current()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            current = self._current()
            if current is served:
                return None
            served = current
            return current.server

        # Its stub does not know that None means: as before.
        return grpc.dynamic_ssl_server_credentials(served.server, renewed, demand_certificate)  # type: ignore[arg-type]

    def identity_of(self, auth_context: Any, now_s: float) -> Identity | None:
        """Return who has called, by a certificate that is good now; None: the connection shows none that is.

        It was verified when the connection was made. Since then it may have expired, or its authority may have been
        replaced.

        Args:
            auth_context: gRPC's, of the call.
            now_s: Unix seconds.
        """
        shown, certificates = (list(auth_context.get(key, ())) for key in ("peer_spiffe_id", "x509_pem_cert"))
        if len(shown) != 1 or len(certificates) != 1:
            return None
        good_until_s = _good_until_s(certificates[0], self._current().authorities)
        return Identity.parse(shown[0].decode(errors="replace")) if now_s <= good_until_s else None

    def _current(self) -> _Loaded:
        if time.monotonic() - self._looked_s >= _LOOK_S:
            with self._looking:  # so that no thread sets what was read before another thread's
                self._look()
        return self._loaded

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return  # another thread has looked
        unusable, stamps = "", self._stamps()
        if stamps != self._seen:
            try:
                self._loaded, self._seen = self._load(), stamps
            except CountinghouseError as error:
                unusable = error.message
                if unusable != self._unusable:
                    log.error("the changed certificates cannot be used; those from before hold", why=unusable)
        self._unusable = unusable
        self._looked_s = now_s

    def _load(self) -> _Loaded:
        for file in self._files:
            try:
                content = file.read_bytes()
                if file is self._files[0]:
                    authorities = _certificates(content)
                    loaded = _Loaded(content, max(map(_expires_s, authorities)))
                else:
                    loaded = replace(loaded, **_identity(content))
            except OSError as error:
                raise CountinghouseError("TLS_FILE_MISSING", f"{file} cannot be read: {error.strerror}") from error
            except (ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise CountinghouseError("TLS_FILE_INVALID", f"{file} cannot be used: {error}") from error
        return loaded

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple(map(file_stamp, self._files))


class Dialer:
    """Opens channels to services, and to no other server.

    Args:
        files: None: in plain text, which proves nothing of the server.
        outside: Whether a server is known by the host of its address, as is usual, and not by its service.
    """

    def __init__(self, files: TlsFiles | None, *, outside: bool = False) -> None:
        self._files = files
        self._named = files is not None and not outside

    @property
    def credentials(self) -> Credentials | None:
        """What a `DiscoveredChannel` connects with."""
        return None if self._files is None else self._files.client_credentials

    def options(self, service: str) -> tuple[Option, ...]:
        """Return the options of a channel to a service."""
        return (("grpc.ssl_target_name_override", server_name(service)),) if self._named else ()

    def open(self, address: str, service: str, options: Iterable[Option] = ()) -> grpc.aio.Channel:
        """Return a channel to one instance of a service; arguments otherwise as `open_channel`."""
        credentials = None if self._files is None else self._files.client_credentials()
        return open_channel(address, (*options, *self.options(service)), credentials=credentials)


class RenewedChannel:
    """A channel to one address, which is opened anew when what it connects with has changed.

    Args:
        dialer: Connects to it.
        service: As `Dialer.open`.
    """

    def __init__(self, dialer: Dialer, address: str, service: str) -> None:
        self._dialer = dialer
        self._address = address
        self._service = service
        self._opened_with: object = None
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """Return the channel for the next call."""
        credentials = self._dialer.credentials
        wanted = credentials() if credentials else None
        if self._channel is None or wanted is not self._opened_with:
            if self._channel is not None:
                closing = asyncio.create_task(self._channel.close(_CALLS_END_S))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._channel = self._dialer.open(self._address, self._service)
            self._opened_with = wanted
        return self._channel

    async def close(self) -> None:
        """Close it, and those before it whose calls have not ended."""
        for closing in self._closing:
            closing.cancel()
        if self._channel is not None:
            await self._channel.close()


@lru_cache(maxsize=256)
def _good_until_s(certificate_pem: bytes, authorities_pem: bytes) -> float:
    """Return until when a certificate is good, Unix seconds; 0: no authority that is believed has signed it."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    for authority in x509.load_pem_x509_certificates(authorities_pem):
        with suppress(ValueError, TypeError, InvalidSignature):
            certificate.verify_directly_issued_by(authority)
            return _expires_s(certificate)
    return 0.0


def _certificates(content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ValueError("it is not made of certificates in PEM form") from error


def _expires_s(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _identity(content: bytes) -> dict[str, Any]:
    """Return the key and the certificates of an identity file, and when the first one expires.

    Raises:
        ValueError: It has none, or they do not belong together.
    """
    key = serialization.load_pem_private_key(content, password=None)
    certificates = x509.load_pem_x509_certificates(content)
    if key.public_key() != certificates[0].public_key():
        raise ValueError("key and certificate do not belong together")
    encoding = serialization.Encoding.PEM
    return {
        "key": key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        "certificate": b"".join(each.public_bytes(encoding) for each in certificates),
        "certificate_expires_s": _expires_s(certificates[0]),
    }
