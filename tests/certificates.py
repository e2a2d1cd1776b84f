"""Certificates for servers and clients of tests."""

from __future__ import annotations

from pathlib import Path

from services.devstack.authority import Authority
from services.devstack.state import ACQUIRER
from services.kernel.clock import Clock, SystemClock
from services.runtime.grpc.identity import Identity, server_name
from services.runtime.grpc.tls import TlsFiles


class CertificateIssuer:
    """An authority, and the processes that it certifies, in a folder of their own."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.authority = Authority(folder, "test", clock or SystemClock())

    def certify(self, service: str, instance: str = "") -> Path:
        """The file with the key and the certificate of a process; written anew each time."""
        identity = Identity(service, instance or f"{service}-1")
        file = self.folder / f"{identity.instance}.pem"
        outside = service == ACQUIRER  # known by its host
        file.write_bytes(self.authority.issue((server_name(service),), "" if outside else identity.spiffe_id))
        return file

    def files(self, service: str = "") -> TlsFiles:
        """What a process of a service uses; without one, what a client uses that has no certificate."""
        return TlsFiles(self.authority.file, self.certify(service) if service else None)
