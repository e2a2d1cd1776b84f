"""The certificate authorities by which a server of ours is known over TLS: PostgreSQL's, ZooKeeper's."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from services.kernel.errors import CountinghouseError
from services.runtime.file_stamp import file_stamp

log = structlog.get_logger()


class AuthorityFile:
    """Return TLS contexts that believe the authorities in a file, PEM.

    It is read at the first use, and again when it has changed. Where a changed file cannot be used, the authorities
    from before hold, and the next connection tries it again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = (0, 0)
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context of the next connection.

        Raises:
            CountinghouseError: TLS_FILE_MISSING, TLS_FILE_INVALID: the file cannot be used, and never could.
        """
        seen = file_stamp(self._file)
        if self._context is None or seen != self._seen:
            try:
                self._context, self._seen = self._read(), seen
            except CountinghouseError as error:
                if self._context is None:
                    raise
                log.error("the changed authorities cannot be used; those from before hold", why=error.message)
        return self._context

    def _read(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._file)
        except FileNotFoundError as error:
            raise CountinghouseError("TLS_FILE_MISSING", f"{self._file} cannot be read: {error.strerror}") from error
        except ssl.SSLError as error:
            words = f"{self._file} cannot be used: it is not made of certificates in PEM form"
            raise CountinghouseError("TLS_FILE_INVALID", words) from error
        except OSError as error:
            raise CountinghouseError("TLS_FILE_INVALID", f"{self._file} cannot be used: {error.strerror}") from error
