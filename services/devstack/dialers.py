"""How programs outside the services connect to a stack: by the authorities in its data directory, or as told.

| environment | what for | default |
|---|---|---|
| COUNTINGHOUSE_CA_FILE | the services, and ZooKeeper | `<data>/keys/ca.pem` |
| COUNTINGHOUSE_ACQUIRER_CA_FILE | the acquirer | `<data>/keys/acquirer/ca.pem` |
| COUNTINGHOUSE_PLAINTEXT | `true`: all three are called without TLS | as the stack that is called was started |
| COUNTINGHOUSE_ZOOKEEPER_USER_FILE | a user of ZooKeeper | `super` of `<data>` for its own ZooKeeper; or none |
| COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT | `true`: ZooKeeper alone is called without TLS | as the stack was started |

Nothing of this comes from ZooKeeper: what is written there cannot have a client call in plain text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.devstack import state
from services.devstack.files import SUPERUSER, ca_file, zookeeper_user_file
from services.devstack.state import StackRefused
from services.kernel.errors import CountinghouseError

if TYPE_CHECKING:
    from coordination.session.security import Security
    from services.runtime.grpc.tls import Dialer

CA_FILE, OUTSIDE_CA_FILE = "COUNTINGHOUSE_CA_FILE", "COUNTINGHOUSE_ACQUIRER_CA_FILE"
#: What to do with a file of authorities that cannot be used.
CA_FILE_REMEDY = "write to it what `countinghouse key ca` prints at the stack"
_PLAINTEXT, _ZOOKEEPER_PLAINTEXT = "COUNTINGHOUSE_PLAINTEXT", "COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT"
_ZOOKEEPER_USER_FILE = "COUNTINGHOUSE_ZOOKEEPER_USER_FILE"
_TRUE = frozenset({"1", "true", "yes", "on"})


def of_stack(data: Path, *, plaintext: bool, outside: bool = False) -> Dialer:
    """Return what connects to the services of the stack on a data directory, or to its acquirer.

    Raises:
        CountinghouseError: TLS_FILE_MISSING, TLS_FILE_INVALID.
    """
    from services.runtime.grpc.tls import Dialer, TlsFiles  # noqa: PLC0415  gRPC takes 0.1 s

    return Dialer(None if plaintext else TlsFiles(ca_file(data, outside=outside)), outside=outside)


def of_command(data: Path, environment: Mapping[str, str], *, outside: bool = False, elsewhere: bool = False) -> Dialer:
    """Return what a command connects with; raises as `of_stack`.

    Args:
        elsewhere: Whether it calls another stack than the one on the data directory, at an address that was named.

    Raises:
        StackRefused: CA_FILE_MISSING: neither the environment nor the data directory has one. PLAINTEXT_AMBIGUOUS.
            TLS_FILE_MISSING, TLS_FILE_INVALID: it cannot be used.
    """
    from services.runtime.grpc.tls import Dialer, TlsFiles  # noqa: PLC0415

    file = believed_file(data, environment, outside=outside, elsewhere=elsewhere)
    if file is None:
        return Dialer(None)
    with _naming_the_remedy():
        return Dialer(TlsFiles(file), outside=outside)


def zookeeper_of_stack(data: Path, *, plaintext: bool) -> Security:
    """Return how the operator's session connects to the ZooKeeper of a stack; raises as `of_stack`."""
    from coordination.session.security import OPEN  # noqa: PLC0415  kazoo takes 0.1 s
    from services.runtime.zookeeper_security import secured_for_operator  # noqa: PLC0415

    if plaintext:
        return OPEN
    user = zookeeper_user_file(data, SUPERUSER)
    return secured_for_operator(ca_file(data), user if user.exists() else None)


def zookeeper_of_command(data: Path, environment: Mapping[str, str], *, elsewhere: bool = False) -> Security:
    """Return how the session of a command connects to ZooKeeper; arguments and exceptions as `of_command`.

    Raises:
        StackRefused: As `of_command`. ZOOKEEPER_USER_MISSING: the environment names a file that is not there.
    """
    from coordination.session.security import OPEN  # noqa: PLC0415
    from services.runtime.zookeeper_security import secured_for_operator  # noqa: PLC0415

    told = environment.get(_ZOOKEEPER_PLAINTEXT, "").lower()
    running = None if elsewhere else state.read(data)
    if told in _TRUE or (not told and running is not None and running.zookeeper_plaintext):
        return OPEN
    file = believed_file(data, environment, outside=False, elsewhere=elsewhere)
    if file is None:
        return OPEN
    user = _zookeeper_user(data, environment, file)
    with _naming_the_remedy():
        return secured_for_operator(file, user)


@contextmanager
def _naming_the_remedy() -> Iterator[None]:
    try:
        yield
    except CountinghouseError as error:
        raise StackRefused(error.reason, f"{error.message}; {CA_FILE_REMEDY}") from error


def _zookeeper_user(data: Path, environment: Mapping[str, str], believed: Path) -> Path | None:
    if given := environment.get(_ZOOKEEPER_USER_FILE):
        if not Path(given).exists():
            raise StackRefused("ZOOKEEPER_USER_MISSING", f"{given} is missing; {_ZOOKEEPER_USER_FILE} names it")
        return Path(given)
    user = zookeeper_user_file(data, SUPERUSER)
    ours = believed.absolute() == ca_file(data).absolute()  # another house's server is not told our password
    return user if ours and user.exists() else None


def believed_file(data: Path, environment: Mapping[str, str], *, outside: bool, elsewhere: bool) -> Path | None:
    """Return the file of the authorities by which a server is known; None: it is called in plain text."""
    variable = OUTSIDE_CA_FILE if outside else CA_FILE
    given, plaintext = environment.get(variable, ""), environment.get(_PLAINTEXT, "").lower() in _TRUE
    if given and plaintext:
        raise StackRefused("PLAINTEXT_AMBIGUOUS", f"{variable} and {_PLAINTEXT} contradict each other; unset one")
    running = state.read(data)
    if plaintext or (not given and not elsewhere and running is not None and running.plaintext):
        return None
    file = Path(given) if given else ca_file(data, outside=outside)
    if not file.exists() and running is not None and not given:
        raise StackRefused(
            "CA_FILE_MISSING",
            f"the stack on {data} was started by an earlier version; `countinghouse down`, and then `countinghouse up`",
        )
    if not file.exists():
        raise StackRefused(
            "CA_FILE_MISSING",
            f"{file} is missing, by which a service is known; name the --data of the stack, or set {variable} to what "
            "`countinghouse key ca` prints there",
        )
    return file
