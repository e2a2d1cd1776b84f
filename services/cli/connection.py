"""Which stack a command calls, and as which principal. Imports nothing heavy, for `countinghouse --help` imports it."""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass
from pathlib import Path

import typer

from services.kernel.card_numbers import refuse_card_number
from services.kernel.errors import InvalidArgument
from services.kernel.ids import check_name
from services.kernel.principal import Principal, Role


@dataclass(frozen=True, slots=True)
class Connection:
    """Which stack to call, as which principal.

    Args:
        zookeeper: `host:port`; empty: that of the stack on `data`.
        principal: The caller; None: the user, as `default_role`.
        token: Sent as it is, instead of one made here.
        timeout_s: For the whole command.
    """

    data: Path
    zookeeper: str
    principal: Principal | None
    default_role: Role
    token: str
    timeout_s: float
    as_json: bool


def parse_principal(text: str, option: str = "--as") -> Principal:
    """Read `role:name`, as an option gave it.

    Raises:
        typer.BadParameter: It is not like that.
    """
    role, _, name = text.partition(":")
    if role not in tuple(Role) or not name:
        raise typer.BadParameter(
            f"{text!r} is not role:name, like cashier:li; the roles are {', '.join(Role)}", param_hint=option
        )
    return named(name, Role(role), option)


def named(name: str, role: Role, option: str) -> Principal:
    """Return the principal of a name that an option gave.

    Raises:
        typer.BadParameter: It is not a name.
    """
    try:
        return Principal(refuse_card_number(check_name(name, "name"), "name"), role)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint=option) from error


def user_name() -> str:
    """Return the user's name, if it can be a principal's; else `local`."""
    try:
        name = re.sub(r"[^A-Za-z0-9_.:-]", "", getpass.getuser())[:64]
    except (KeyError, OSError):
        name = ""
    return name or "local"
