"""TLS to a PostgreSQL server, as a URL asks for it in libpq's words.

| parameter | what it does |
|---|---|
| `sslrootcert=FILE` | the server must have a certificate for its host of an authority in FILE, PEM |
| `sslmode=verify-full` | the same; the only mode that is taken, and FILE is needed with it |

Without them the driver's own rule holds: TLS if the server offers it, and no proof of which server it is. FILE is read
again when it has changed, for the connections after that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event

from services.kernel.errors import CountinghouseError, Unavailable
from services.runtime.authority_file import AuthorityFile

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

_ROOT, _MODE = "sslrootcert", "sslmode"
_VERIFIED: Final = "verify-full"


def parse_url(text: str) -> URL:
    """Return a database URL of SQLAlchemy.

    SQLAlchemy leaves out a parameter without a value. A variable that is not set would leave a connection unsecured.

    Raises:
        CountinghouseError: DATABASE_URL: a parameter of the module has no value.
    """
    from sqlalchemy import make_url  # noqa: PLC0415  0.1 s

    _, _, query = text.partition("?")
    if any(part.partition("=")[0] in (_ROOT, _MODE) and not part.partition("=")[2] for part in query.split("&")):
        raise _refused()
    return make_url(text)


class ServerTls:
    """How connections under a URL are secured.

    Args:
        url: Of SQLAlchemy.

    Attributes:
        url: Without the parameters of the module, which the driver does not know.

    Raises:
        CountinghouseError: DATABASE_URL: another mode, or no file.
    """

    def __init__(self, url: URL) -> None:
        mode, file = url.query.get(_MODE, _VERIFIED), url.query.get(_ROOT, "")
        if mode != _VERIFIED or (_MODE in url.query and not file):
            raise _refused()
        self.url = url.difference_update_query((_MODE, _ROOT))
        self._authorities = AuthorityFile(Path(str(file))) if file else None

    def connect_args(self) -> dict[str, Any]:
        """Return what the next connection is opened with besides the URL.

        Raises:
            Unavailable: TLS_FILE_MISSING, TLS_FILE_INVALID: FILE cannot be used, and never could.
        """
        if self._authorities is None:
            return {}
        try:
            return {"ssl": self._authorities.context()}
        except CountinghouseError as error:
            raise Unavailable(error.reason, error.message) from error

    def secure(self, engine: Engine) -> None:
        """Have every connection that an engine of SQLAlchemy opens use what `connect_args` then returns."""

        @event.listens_for(engine, "do_connect")
        def _connecting(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
            options.update(self.connect_args())


def libpq_parameters(url: URL) -> dict[str, str]:
    """Return the same for libpq's own programs, and for URLs that are made of this one; the file's path is absolute."""
    file = str(url.query.get(_ROOT, ""))
    return {_MODE: _VERIFIED, _ROOT: str(Path(file).absolute())} if file else {}


def _refused() -> CountinghouseError:
    return CountinghouseError(
        "DATABASE_URL", f"a database URL has sslmode={_VERIFIED} and sslrootcert=FILE, or neither"
    )
