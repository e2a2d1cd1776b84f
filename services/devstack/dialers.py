"""How programs outside the services connect to a stack: by the authorities in its data directory, or as told.

| environment | what for | default |
|---|---|---|
| COUNTINGHOUSE_CA_FILE | the services | `<data>/keys/ca.pem` |
| COUNTINGHOUSE_ACQUIRER_CA_FILE | the acquirer | `<data>/keys/acquirer/ca.pem` |
| COUNTINGHOUSE_PLAINTEXT | `true`: both are called without TLS | as the stack that is called was started |

Nothing of this comes from ZooKeeper: what is written there cannot have a client call in plain text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from services.devstack import state
from services.devstack.files import ca_file
from services.devstack.state import StackRefused

if TYPE_CHECKING:
    from services.runtime.grpc.tls import Dialer

_CA_FILE, _OUTSIDE_CA_FILE = "COUNTINGHOUSE_CA_FILE", "COUNTINGHOUSE_ACQUIRER_CA_FILE"
_PLAINTEXT = "COUNTINGHOUSE_PLAINTEXT"
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
    """
    from services.runtime.grpc.tls import Dialer, TlsFiles  # noqa: PLC0415

    variable = _OUTSIDE_CA_FILE if outside else _CA_FILE
    given, plaintext = environment.get(variable, ""), environment.get(_PLAINTEXT, "").lower() in _TRUE
    if given and plaintext:
        raise StackRefused("PLAINTEXT_AMBIGUOUS", f"{variable} and {_PLAINTEXT} contradict each other; unset one")
    running = state.read(data)
    if plaintext or (not given and not elsewhere and running is not None and running.plaintext):
        return Dialer(None)
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
    return Dialer(TlsFiles(file), outside=outside)
