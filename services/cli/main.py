"""The `countinghouse` command.

Errors are one sentence on standard error that says what to do; with --json also a document on standard output.
Exit codes: 0 done; 1 refused or failed; 2 not to be had as asked (usage, no stack, nothing to start one
from); 130 interrupted.

Everything heavy is imported inside the commands: `countinghouse --help` must not wait for gRPC.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer

from services.cli import ledger, orders, output, payments
from services.cli.doctor import doctor
from services.cli.locks import locks
from services.cli.registry import registry
from services.cli.stack import down, status, up
from services.cli.tokens import token
from services.kernel.errors import CountinghouseError

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130
_PROGRAM = "countinghouse"

app = typer.Typer(
    name=_PROGRAM,
    help="A payment back office where a bill is settled exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_STACK, _MONEY, _LOOK = "The stack", "Bills and money", "Looking closer"

app.command(rich_help_panel=_STACK)(up)
app.command(rich_help_panel=_STACK)(status)
app.command(rich_help_panel=_STACK)(down)
app.command(rich_help_panel=_STACK)(doctor)
app.command(rich_help_panel=_STACK)(token)
app.add_typer(orders.app, name="order", rich_help_panel=_MONEY)
app.command(rich_help_panel=_MONEY)(payments.ticket)
app.command(rich_help_panel=_MONEY)(payments.pay)
app.command(rich_help_panel=_MONEY)(payments.settle)
app.command(rich_help_panel=_MONEY)(payments.reverse)
app.add_typer(payments.app, name="payment", rich_help_panel=_MONEY)
app.add_typer(ledger.app, name="ledger", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(registry)
app.command(rich_help_panel=_LOOK)(locks)

#: For commands that read their own arguments once they are imported.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(rich_help_panel=_LOOK, context_settings=_PASSED_ON, add_help_option=False)
def check(context: typer.Context) -> None:
    """Reads the databases and proves that every bill was settled exactly once."""
    _pass_on("services.cli.check", "check", context.args)


@app.command(rich_help_panel=_STACK, context_settings=_PASSED_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Settles bills on a stack of its own while things go wrong, and checks the result."""
    _pass_on("services.cli.demo", "demo", context.args)


def main() -> None:
    """The program."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own words are not for the terminal
    try:
        app(prog_name=_PROGRAM)
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except CountinghouseError as error:
        _end_with(error)
    except Exception as error:
        translated = _translated(error)
        if translated is None:
            raise
        _end_with(translated)


def _pass_on(module: str, name: str, arguments: list[str]) -> None:
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(name)(getattr(importlib.import_module(module), name))
    command(args=arguments, prog_name=f"{_PROGRAM} {name}")


def _end_with(error: CountinghouseError) -> None:
    from services.devstack.state import StackRefused  # noqa: PLC0415  only needed here

    if "--json" in sys.argv and not isinstance(error, StackRefused):
        about: dict[str, Any] = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        output.print_json({"error": about})
    print(f"{_PROGRAM}: {error.message}", file=sys.stderr)
    raise SystemExit(_REFUSED if isinstance(error, StackRefused) else _FAILED) from error


def _translated(error: Exception) -> CountinghouseError | None:
    """ZooKeeper's and gRPC's errors as ours; None for what nobody expected."""
    from coordination.errors import CoordinationError  # noqa: PLC0415
    from services.kernel.errors import Unavailable  # noqa: PLC0415

    if isinstance(error, CoordinationError):
        return Unavailable("ZOOKEEPER_UNAVAILABLE", f"ZooKeeper did not answer as it should: {error}; try again")
    return None


if __name__ == "__main__":
    main()
