"""All commands. A command's module is imported when it is called, so that `countinghouse --help` waits for none."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import ExitStack
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from services.cli import exit_codes
from services.cli.arguments import Where, refuse_deployment
from services.cli.interruption import held_back
from services.cli.renamed import RenamedOptions

PROGRAM = "countinghouse"

#: By the heading under which `--help` shows them: each command, its module and attribute (a function, or the
#: `typer.Typer` of a group), and the first sentences of its own help.
_PANELS: dict[str, dict[str, tuple[str, str, str]]] = {
    "The stack": {
        "up": (
            "stack",
            "up",
            "Start ZooKeeper and the services, and show their addresses once all are ready. Ctrl-C stops them.",
        ),
        "status": (
            "stack",
            "status",
            "Show every process of the stack and its readiness.",
        ),
        "down": ("stack", "down", "Stop the stack, and return when no process of it is left."),
        "doctor": (
            "doctor",
            "doctor",
            "Check this machine, the data directory, the databases and ZooKeeper. Exits with 1 on a fault.",
        ),
        "backup": (
            "backup",
            "backup",
            "Copy the books of order, payment and ledger into a new folder, all of one moment, also while "
            "they are written.",
        ),
        "restore": (
            "backup",
            "restore",
            "Put a backup in the place of the books. No stack may run; what was there is renamed, not removed.",
        ),
        "token": ("tokens", "token", "Print a token, signed with the stack's key, under which its bearer acts."),
        "key": ("keys", "app", "Show and rotate what signs tokens and certificates."),
        "revoke": (
            "keys",
            "revoke",
            "Revoke a token, all tokens of a caller, or the certificate of a process, within half a minute; without "
            "any of them show what is revoked.",
        ),
        "demo": ("demo", "demo", "Settle orders on a new stack while faults happen, and check the result."),
        "trigger": (
            "trigger",
            "trigger",
            "Bring a fault about on the running stack, and show what came of it.",
        ),
        "chaos": ("chaos", "app", "Inject faults, and check the books."),
    },
    "Orders and money": {
        "ticket": ("payments", "ticket", "Fetch a ticket: the permission to pay once."),
        "pay": ("payments", "pay", "Pay with a ticket, and use it up. Repeating it pays once."),
        "settle": ("payments", "settle", "Settle an order, under its lock. Repeating it settles once."),
        "settle-run": (
            "settle_run",
            "settle_run",
            "Settle the orders of a CSV file, each once. Starting it again goes on where it was.",
        ),
        "reverse": (
            "payments",
            "reverse",
            "Undo a payment by an opposite journal; its order can then be settled again.",
        ),
        "order": ("orders", "app", "Create, show and cancel orders."),
        "payment": ("payments", "app", "Show and park payments."),
    },
    "Looking closer": {
        "top": (
            "top",
            "top",
            "Show a running stack until interrupted: instances, calls, locks, orders and payments.",
        ),
        "gateway": ("gateway", "gateway", "Serve HTTP and JSON for the services, until interrupted."),
        "metrics": ("metrics", "metrics", "Print the metrics of an instance, found through the registry."),
        "reconcile": (
            "reconcile",
            "reconcile",
            "Compare the acquirer's charges with our payments, books and orders, and name each repair.",
        ),
        "check": (
            "check",
            "check",
            "Read the databases, and name every order that was settled twice or by halves, and all that disagrees.",
        ),
        "ledger": ("ledger", "app", "Show the books, and open and close accounts."),
        "acquirer": ("acquirer", "app", "Show the acquirer's log, and inject faults into it."),
        "registry": ("registry", "app", "Show providers and consumers; take a provider out of the traffic."),
        "locks": ("locks", "app", "Show the queue of every order that is being settled now."),
    },
}

#: They start, stop or change embedded stacks; a deployment is docker compose's.
_LOCAL_ONLY = ("up", "down", "demo", "trigger", "backup", "restore", "revoke")
#: Its stacks are its own, and it has a --stack that names the kind; the variable is not meant for it.
_CHAOS = "chaos"


def load(name: str) -> Any:
    """Import a command of the table and return it as `typer` runs it."""
    module, attribute, _ = next(panel[name] for panel in _PANELS.values() if name in panel)
    with held_back():
        found = getattr(importlib.import_module(f"services.cli.{module}"), attribute)
    loaded = typer.Typer(add_completion=False, callback=lambda: None)
    if isinstance(found, typer.Typer):
        loaded.add_typer(found, name=name)
    else:
        loaded.command(name, cls=RenamedOptions)(found)
    return typer.main.get_group(loaded).commands[name]


class _LazyGroup(TyperGroup):
    """A group whose commands are summaries until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of a command, the command itself, and the arguments after it.

        A shell that completes a line is told of an unknown command by None; elsewhere it is refused.
        """
        name, summary, rest = super().resolve_command(ctx, args)
        return (name, None, rest) if summary is None else (name, load(str(name)), rest)


app = typer.Typer(
    name=PROGRAM,
    cls=_LazyGroup,
    help="A payment back office where an order is settled exactly once.",
    epilog=f"Exit codes\n\n{exit_codes.table()}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _panel, _commands in _PANELS.items():
    for _name, (_, _, _summary) in _commands.items():
        app.command(_name, help=_summary, rich_help_panel=_panel)(lambda: None)


def _show_version(wanted: bool) -> None:
    if wanted:
        from services.kernel.release import release  # noqa: PLC0415  other commands do without

        print(f"{PROGRAM} {release() or 'not installed'}")
        raise typer.Exit


@app.callback()
def choose(
    context: typer.Context,
    stack: Annotated[
        Where,
        typer.Option(
            "--stack", envvar="COUNTINGHOUSE_STACK", help="local: the one in --data; compose: the one on Docker."
        ),
    ] = Where.LOCAL,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    if stack is Where.LOCAL or "--help" in sys.argv:
        return
    if context.invoked_subcommand == _CHAOS:
        source = context.get_parameter_source("stack")
        if source is not None and source.name == "ENVIRONMENT":
            return
        raise typer.BadParameter("use `chaos run --stack compose`", param_hint="--stack")
    if context.invoked_subcommand in _LOCAL_ONLY:
        refuse_deployment(str(context.invoked_subcommand))
    from services.devstack.deployment import open_deployment  # noqa: PLC0415  a local stack does without

    resources = ExitStack()
    context.call_on_close(resources.close)
    os.environ.update(open_deployment(os.environ, resources))
