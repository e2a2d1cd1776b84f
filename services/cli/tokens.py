"""`countinghouse token`: a token to call the services with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data
from services.cli.connection import user_name
from services.kernel.principal import Principal, Role

if TYPE_CHECKING:
    from services.kernel.clock import Clock


def token(
    role: Annotated[Role, typer.Option("--role", help="As what it acts.")],
    name: Annotated[str, typer.Option("--name", help="Who acts; your user name unless said.", show_default=False)] = "",
    ttl: Annotated[int, typer.Option("--ttl", help="Seconds it is good for.", min=1, max=31_536_000)] = 3600,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Prints a token, signed with the stack's key. It is all that one needs to be that clerk.

    Example: countinghouse token --role cashier --name li
    """
    from services.kernel.clock import SystemClock  # noqa: PLC0415  `--help` does without

    clock = SystemClock()
    principal = Principal(name or user_name(), role)
    signed = mint(data, principal, ttl, clock)
    if as_json:
        expires_at_ms = clock.now_ms() + ttl * 1000
        output.print_json({"token": signed, "name": principal.name, "role": str(role), "expires_at_ms": expires_at_ms})
    else:
        print(signed)


def mint(data: Path, principal: Principal, ttl_s: int, clock: Clock) -> str:
    """A token for `principal`, signed with the key of a data directory.

    Raises:
        Unauthenticated: SIGNING_KEY_MISSING: there is none here.
        InvalidArgument: FIELD_MALFORMED: it is not a name.
    """
    from services.devstack.files import signing_key  # noqa: PLC0415
    from services.kernel.errors import Unauthenticated  # noqa: PLC0415
    from services.runtime.tokens import TokenSigner  # noqa: PLC0415

    key = signing_key(data)
    if not key.exists():
        raise Unauthenticated(
            "SIGNING_KEY_MISSING",
            f"there is no signing key in {data}; name the stack's --data, or send a --token made there",
        )
    return TokenSigner.from_file(key, clock).sign(principal, ttl_s)
