"""Ports of 127.0.0.1 that stay the same over restarts, so that clients find a server again."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

from coordination.files import write_whole

HOST = "127.0.0.1"


class PortReservation:
    """A port that stays ours while its server starts, dies and starts again.

    A socket that is bound and does not listen keeps others from being given the port, while a server that
    sets SO_REUSEADDR, as Java's do, can still listen on it.
    """

    def __init__(self, wanted: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, wanted))
        except OSError:
            self._socket.bind((HOST, 0))
        self.port = int(self._socket.getsockname()[1])

    @classmethod
    def remembered(cls, directory: Path) -> Self:
        """Reserve the port that the server of `directory` had before, or a free one."""
        file = directory / "port"
        try:
            wanted = int(file.read_text())
        except (OSError, ValueError):
            wanted = 0
        reservation = cls(wanted)
        write_whole(file, str(reservation.port).encode(), mode=0o600)
        return reservation

    def close(self) -> None:
        """Give the port up. Idempotent."""
        self._socket.close()
