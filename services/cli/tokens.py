"""`countinghouse token`: a token to call the services with."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data
from services.cli.connection import named, user_name
from services.devstack.keys import mint
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.runtime.grpc.tokens import MAX_TTL_S

_TTL_S = 3600


def token(
    role: Annotated[Role, typer.Option("--role", help="Role of the bearer.")],
    name: Annotated[
        str, typer.Option("--name", help="Name of the bearer; your user name by default.", show_default=False)
    ] = "",
    ttl: Annotated[
        int | None,
        typer.Option(
            "--ttl",
            help="Seconds for which the token is valid; an hour unless given, or as long as the role allows: 12 hours "
            "for people, an hour for an operator, 15 minutes for a service.",
            min=1,
            show_default=False,
        ),
    ] = None,
    outside: Annotated[
        bool,
        typer.Option("--acquirer", help="For the acquirer, as COUNTINGHOUSE_ACQUIRER_TOKEN; not for the services."),
    ] = False,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Print a token, signed with the stack's key, under which its bearer acts.

    Example: countinghouse token --role cashier --name li
    """
    clock = SystemClock()
    principal = named(name or user_name(), role, "--name")
    ttl_s = min(_TTL_S, MAX_TTL_S[role]) if ttl is None else ttl
    signed = mint(data, principal, ttl_s, clock, outside=outside)
    if as_json:
        expires_at_ms = clock.now_ms() + ttl_s * 1000
        output.print_json({"token": signed, "name": principal.name, "role": str(role), "expires_at_ms": expires_at_ms})
    else:
        print(signed)
