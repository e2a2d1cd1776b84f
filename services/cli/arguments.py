"""The options that commands share, and how a command gets its connection.

A command that calls the services is an async function whose first parameter is a `Client`; `calling` turns it into a
typer command: the same function without that parameter and with the shared options.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from coordination.errors import BadAddress
from services.cli import streams
from services.cli.connection import Connection, parse_principal
from services.cli.flags import told_by_flags
from services.kernel.currency import format_amount
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.guards import Guards
from services.kernel.money import MAX_MINOR_UNITS, check_currency, parse_amount
from services.kernel.principal import Role

if TYPE_CHECKING:
    from services.cli.client import Client

_P = ParamSpec("_P")
_T = TypeVar("_T")

DEFAULT_DATA = Path(".countinghouse")
DEFAULT_TIMEOUT_S = 10.0
MAX_INT64 = 2**63 - 1


def _understood(address: str) -> str:
    from coordination.session import EnsembleAddress  # noqa: PLC0415  kazoo, which `--help` can do without

    try:
        return str(EnsembleAddress.parse(address)) if address else ""
    except BadAddress as error:
        raise typer.BadParameter(str(error)) from error


def _known_currency(code: str) -> str:
    """Check a code where an option is read, so that a refusal names that option; empty: none was given."""
    try:
        return check_currency(code) if code else ""
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from error


def _not_empty(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """Refuse an empty value that was given: a script with an unset variable means something else."""
    source = context.get_parameter_source(str(parameter.name))
    if not value and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("it is empty; leave the option out for a new id")
    return value


class Where(StrEnum):
    """Where a stack runs: on processes of this machine, or on containers."""

    LOCAL = "local"
    COMPOSE = "compose"


def refuse_deployment(command: str) -> None:
    """Refuse a command that starts, stops or changes embedded stacks, for a deployment; it names who does that there.

    Raises:
        typer.BadParameter: Always.
    """
    raise typer.BadParameter(
        f"{command} is for embedded stacks; docker compose runs a deployment (deploy/README.md)", param_hint="--stack"
    )


Data = Annotated[Path, typer.Option("--data", envvar="COUNTINGHOUSE_DATA", help="Directory of the stack's data.")]
ZooKeeper = Annotated[
    str,
    typer.Option(
        "--zookeeper",
        envvar="COUNTINGHOUSE_ZOOKEEPER",
        help="ZooKeeper, as host:port,host:port.",
        show_default=False,
        callback=_understood,
    ),
]
ZooKeeperPlaintext = Annotated[
    bool,
    typer.Option(
        "--zookeeper-plaintext",
        envvar="COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT",
        help="ZooKeeper alone has no TLS and no users, for clients of Dubbo: others can change what is in it.",
    ),
]
Database = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="COUNTINGHOUSE_DATABASE",
        help="sqlite; postgresql, a server of the stack's own; or postgresql://superuser@host/countinghouse.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="COUNTINGHOUSE_TOKEN",
        help="Call with this token instead of one made here.",
        show_default=False,
    ),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", help="Seconds for the whole command, retries included.", min=0.1, max=86_400),
]
RequestId = Annotated[
    str,
    typer.Option(
        "--request-id",
        help="Id of this operation; repeat it with the same one.",
        show_default=False,
        callback=_not_empty,
    ),
]
GuardsOff = Annotated[
    list[str] | None,
    typer.Option(
        "--guards-off",
        metavar="GUARD[,GUARD]",
        help="Guards to switch off; repeatable.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", help="Most rows to show.", min=1, max=1000)]
Page = Annotated[str, typer.Option("--page", help="The next_page_token of the page before.", show_default=False)]
Amount = Annotated[
    str | None, typer.Option("--amount", help="In major units: 12.50 of CNY, 1250 of JPY.", show_default=False)
]
AmountMinor = Annotated[
    int | None,
    typer.Option("--amount-minor", help="The same in minor units: 1250 of CNY are 12.50.", show_default=False),
]
Currency = Annotated[str, typer.Option("--currency", help="ISO 4217 code, like CNY.", callback=_known_currency)]
CurrencyOfAmount = Annotated[
    str,
    typer.Option(
        "--currency", help="ISO 4217 code of the amount; omit it for a ticket of an order.", callback=_known_currency
    ),
]


def calling(
    role: Role, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Callable[[Callable[Concatenate[Client, _P], Awaitable[None]]], Callable[..., None]]:
    """Make a typer command of an async function that wants a `Client`.

    Args:
        role: The default role.
        timeout_s: The default timeout of the command.
    """

    def decorate(function: Callable[Concatenate[Client, _P], Awaitable[None]]) -> Callable[..., None]:
        own = _parameters_after_client(function)
        acting_as = Annotated[
            str,
            typer.Option("--as", help=f"Act as role:name. [default: {role}:<your user name>]", show_default=False),
        ]
        shared = [
            _option("data", Data, DEFAULT_DATA),
            _option("zookeeper", ZooKeeper, ""),
            _option("acting_as", acting_as, ""),
            _option("token", Token, ""),
            _option("timeout", Timeout, timeout_s),
            _option("as_json", AsJson, False),
        ]

        contexts = [parameter.name for parameter in own if parameter.annotation is typer.Context]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            context = values[contexts[0]] if contexts else values.pop("context")
            given = {parameter.name: values.pop(parameter.name) for parameter in shared}
            if given["acting_as"] and given["token"]:
                raise _two_callers(context)
            connection = Connection(
                data=given["data"],
                zookeeper=given["zookeeper"],
                principal=parse_principal(given["acting_as"]) if given["acting_as"] else None,
                default_role=role,
                token=given["token"],
                timeout_s=given["timeout"],
                as_json=given["as_json"],
            )
            run(_talk(function, connection, context, values))

        parameters = [*own, *shared, *([] if contexts else [_CONTEXT])]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's work; return its result. Libraries' logs do not go to the terminal: an error is one sentence."""
    logging.getLogger().addHandler(logging.NullHandler())
    return asyncio.run(_interruptible(work))


def amount_of(
    amount: str | None, amount_minor: int | None, currency: str, *, option: str = "--amount", least: int = 1
) -> int | None:
    """Read an amount that is given in major or in minor units; return minor units, or None if neither is given.

    Args:
        currency: Of ISO 4217, as the options for one check.
        least: The smallest amount that may be given, in minor units.

    Raises:
        typer.BadParameter: Both are given, it is no amount of the currency, or it is out of range.
    """
    if amount is not None and amount_minor is not None:
        raise typer.BadParameter(f"{option} and {option}-minor both give the amount; use one of them")
    given = option if amount_minor is None else f"{option}-minor"
    try:
        minor_units = parse_amount(amount, currency) if amount is not None else amount_minor
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint=given) from error
    if minor_units is not None and not least <= minor_units <= MAX_MINOR_UNITS:
        limits = " to ".join(format_amount(limit, currency) for limit in (least, MAX_MINOR_UNITS))
        raise typer.BadParameter(
            f"{format_amount(minor_units, currency)} is out of range; it is {limits}", param_hint=given
        )
    return minor_units


def parse_pairs(values: list[str], example: str) -> dict[str, int]:
    """Read options like `payment=2`.

    Raises:
        typer.BadParameter: One is not like that.
    """
    pairs: dict[str, int] = {}
    for value in values:
        match = re.fullmatch(r"([a-z]+)=(\d{1,5})", value)
        if match is None:
            raise typer.BadParameter(f"{value!r} is not like {example}")
        pairs[match[1]] = int(match[2])
    return pairs


def names_of(given: list[str] | None) -> tuple[str, ...]:
    """Return the names of a repeatable option like `lock,fence`."""
    return tuple(name.strip() for part in given or () for name in part.split(",") if name.strip())


def parse_guards_off(given: list[str] | None) -> tuple[str, ...]:
    """Return the guards that `--guards-off` names.

    Raises:
        typer.BadParameter: One does not exist.
    """
    try:
        return Guards.without(names_of(given)).off
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--guards-off") from error


def _two_callers(context: typer.Context) -> typer.BadParameter:
    """Return the refusal of --as beside a token, by the name under which the token was given."""
    source = context.get_parameter_source("token")
    if source is not None and source.name == "ENVIRONMENT":
        return typer.BadParameter(
            "--as and the variable COUNTINGHOUSE_TOKEN both name the caller; leave out --as, or unset the variable"
        )
    return typer.BadParameter("--as and --token both name the caller; use one of them")


async def _interruptible(work: Coroutine[Any, Any, _T]) -> _T:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does; commands that have to stop something register how."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, signal.raise_signal, signal.SIGINT)
    return await work


async def _talk(
    function: Callable[..., Awaitable[None]], connection: Connection, context: typer.Context, values: dict[str, Any]
) -> None:
    from services.cli.client import Client  # noqa: PLC0415  gRPC and kazoo, which `up` imports later

    async with Client(connection) as client:
        try:
            await function(client, **values)
        except asyncio.CancelledError:  # Ctrl-C
            if client.interrupted is None:
                raise
            raise client.interrupted from None
        except CountinghouseError as error:
            told = told_by_flags(error, context)
            if told is error:
                raise
            raise told from error
        finally:
            if client.again and not streams.written():
                print(f"countinghouse: it was answered; {client.again}", file=sys.stderr)


#: The command as it was typed.
_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _parameters_after_client(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Return the parameters typer is to see."""
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
