"""All commands, put together.

Each module keeps what it needs heavily inside its commands: `countinghouse --help` must not wait for gRPC.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from services.cli import acquirer, chaos, exit_codes, ledger, locks, orders, payments, registry
from services.cli.arguments import Where
from services.cli.doctor import doctor
from services.cli.metrics import metrics
from services.cli.reconcile import reconcile
from services.cli.renamed import RenamedOptions
from services.cli.stack import down, status, up
from services.cli.tokens import token

PROGRAM = "countinghouse"

app = typer.Typer(
    name=PROGRAM,
    help="A payment back office where an order is settled exactly once.",
    epilog=f"Exit codes\n\n{exit_codes.table()}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


#: They start and stop embedded stacks; a deployment is docker compose's.
_LOCAL_ONLY = ("up", "down", "demo")
#: Its stacks are its own, and it has a --stack that says which kind; the variable is not meant for it.
_CHAOS = "chaos"


@app.callback()
def choose(
    context: typer.Context,
    stack: Annotated[
        Where, typer.Option("--stack", envvar="COUNTINGHOUSE_STACK", help="local: by --data; compose: Docker's.")
    ] = Where.LOCAL,
) -> None:
    if stack is Where.LOCAL or "--help" in sys.argv:
        return
    if context.invoked_subcommand == _CHAOS:
        source = context.get_parameter_source("stack")
        if source is not None and source.name == "ENVIRONMENT":
            return
        raise typer.BadParameter("say `chaos run --stack compose`", param_hint="--stack")
    from services.devstack.deployment import open_deployment  # noqa: PLC0415  a local stack does without

    if context.invoked_subcommand in _LOCAL_ONLY:
        raise typer.BadParameter(
            f"{context.invoked_subcommand} is for embedded stacks; docker compose starts and stops a deployment",
            param_hint="--stack",
        )
    resources = ExitStack()
    context.call_on_close(resources.close)
    os.environ.update(open_deployment(os.environ, resources))


_STACK, _MONEY, _LOOK = "The stack", "Orders and money", "Looking closer"

app.command(rich_help_panel=_STACK, cls=RenamedOptions)(up)
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
app.add_typer(acquirer.app, name="acquirer", rich_help_panel=_LOOK)
app.add_typer(registry.app, name="registry", rich_help_panel=_LOOK)
app.add_typer(locks.app, name="locks", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(metrics)
app.command(rich_help_panel=_LOOK)(reconcile)
app.add_typer(chaos.app, name="chaos", rich_help_panel=_STACK)

#: For commands that read their own arguments once they are imported.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(rich_help_panel=_LOOK, context_settings=_PASSED_ON, add_help_option=False)
def check(context: typer.Context) -> None:
    """Reads the databases and proves that every order was settled exactly once."""
    _pass_on("services.cli.check", "check", context.args)


@app.command(rich_help_panel=_STACK, context_settings=_PASSED_ON, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Settles orders on a stack of its own while things go wrong, and checks the result."""
    _pass_on("services.cli.demo", "demo", context.args)


def _pass_on(module: str, name: str, arguments: list[str]) -> None:
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(name, cls=RenamedOptions)(getattr(importlib.import_module(module), name))
    command(args=arguments, prog_name=f"{PROGRAM} {name}")
