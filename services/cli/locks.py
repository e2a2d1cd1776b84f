"""`countinghouse locks`: which clerk holds which order, and which ones wait; now, or live."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer
from rich.live import Live
from rich.text import Text

from coordination.locks import Holder, Place, QueueWatch, ResourceLocks
from services.cli import output, streams
from services.cli.arguments import calling
from services.cli.client import Client
from services.kernel.principal import Role
from services.runtime.zookeeper_paths import LOCKS_ROOT

Queue = Sequence[Place]

TITLE: Final = "locks"
#: The details that the payment service writes beside a holder's name.
_DETAILS = ("role", "instance", "payment")
COLUMNS: Final = ("order", "", "clerk", "role", "instance", "payment", "since")
_AWAY = "ZooKeeper is away; this goes on when it is back"
NO_QUEUES: Final = "no order is being settled at this moment"
#: The eye follows no more; what happens in between is shown together.
_REDRAW_PAUSE_S = 0.1

app = typer.Typer(invoke_without_command=True)


@app.callback()
@calling(Role.AUDITOR)
async def locks(client: Client, context: typer.Context) -> None:
    """Show the queue of every order that is being settled now.

    Example: countinghouse locks
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context.invoked_subcommand, context)
        return
    queues = await ResourceLocks(await client.session(), root=LOCKS_ROOT).queues(timeout_s=client.remaining_s)
    if client.as_json:
        output.print_json({"queues": [queue_document(order_id, queue) for order_id, queue in queues.items()]})
    elif queues:
        output.print_table(TITLE, COLUMNS, queue_rows(queues))
    else:
        print(NO_QUEUES)


@app.command("watch")
@calling(Role.AUDITOR)
async def watch(client: Client) -> None:
    """Follow the queues until Ctrl-C: as a table on a terminal, elsewhere with a line for each change.

    With --json each line is a JSON document: an order and its queue after the change, empty when it has no holder. The
    timeout is for connecting.

    Example: countinghouse locks watch
    """
    async with QueueWatch(await client.session(), root=LOCKS_ROOT) as queues:
        if sys.stdout.isatty() and not client.as_json:
            await _draw(queues)
        else:
            await _tell(queues, as_json=client.as_json)


async def _draw(queues: QueueWatch) -> None:
    with Live(auto_refresh=False) as screen:
        async for _ in queues.changes():
            shown = queues.queues()
            table = output.framed(TITLE, COLUMNS, queue_rows(shown)) if shown else Text(NO_QUEUES)
            screen.update(table if queues.live else Text(_AWAY), refresh=True)
            await asyncio.sleep(_REDRAW_PAUSE_S)


async def _tell(queues: QueueWatch, *, as_json: bool) -> None:
    async for changes in queues.changes():
        for change in changes:
            if as_json:
                output.print_json_line(queue_document(change.resource_id, change.queue))
            else:
                output.print_line(f"{change.resource_id}: {_sentence(change.queue)}", flush=True)
        if streams.unread():
            return
        if not queues.live:
            print(_AWAY, file=sys.stderr, flush=True)


def _refuse_options_before(subcommand: str, context: typer.Context) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"options of `locks {subcommand}` go behind it")


def queue_document(order_id: str, queue: Queue) -> dict[str, Any]:
    """Return an order and its queue as JSON has them."""
    return {
        "order_id": order_id,
        "queue": [_place_document(place) for place in queue],
    }


def _place_document(place: Place) -> dict[str, Any]:
    holder = place.holder
    details = {name: holder.details.get(name, "?") for name in _DETAILS}
    return {
        "position": place.position,
        "token": place.token,
        "clerk": holder.owner,
        **details,
        "since_ms": holder.since_ms,
    }


def _name(holder: Holder) -> str:
    return f"{holder.owner} ({holder.details.get('role', '?')}, {holder.details.get('instance', '?')})"


def queue_rows(queues: Mapping[str, Queue]) -> list[tuple[str, ...]]:
    """Return a row of `COLUMNS` for each place in each queue."""
    return [
        (
            order_id,
            "holds" if place.position == 0 else f"waits, {place.position} ahead",
            place.holder.owner,
            *(place.holder.details.get(name, "?") for name in _DETAILS),
            output.moment(place.holder.since_ms),
        )
        for order_id, queue in queues.items()
        for place in queue
    ]


def _sentence(queue: Queue) -> str:
    if not queue:
        return "free"
    names = [_name(place.holder) for place in queue]
    return f"{names[0]} holds" + "".join(f"; {name} waits" for name in names[1:])
