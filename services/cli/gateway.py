"""`countinghouse gateway`: HTTP and JSON in front of the services."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Final

import typer

from services.cli import output
from services.cli.arguments import calling
from services.cli.client import Client
from services.cli.connection import parse_principal
from services.devstack.keys import mint
from services.kernel.clock import SystemClock
from services.kernel.errors import Unavailable
from services.kernel.principal import Principal, Role

#: The token of a browser's session.
_SIGNED_S: Final = 3600
_DRAIN_S: Final = 10
_KEEP_ALIVE_S: Final = 30


@calling(Role.OPERATOR)
async def gateway(
    client: Client,
    listen: Annotated[
        str, typer.Option("--listen", help="Address, as address:port; port 0 takes a free one.")
    ] = "127.0.0.1:8080",
    people: Annotated[
        list[str] | None,
        typer.Option(
            "--sign-in",
            help="Whom a browser may sign in as without a token, like cashier:li; repeatable. For development.",
            show_default=False,
        ),
    ] = None,
    locks: Annotated[
        bool,
        typer.Option("--locks/--no-locks", help="Show the queues for locks, for which a user of ZooKeeper is needed."),
    ] = True,
    breakable: Annotated[
        bool,
        typer.Option("--break-it", help="Let operators kill and freeze the processes of the stack. For development."),
    ] = False,
) -> None:
    """Serve HTTP and JSON for the services, until interrupted.

    --timeout is for connecting only. Callers send what `countinghouse token` prints, as Authorization: Bearer; it goes
    to the services as it is. /openapi.json lists the paths. With OTEL_EXPORTER_OTLP_ENDPOINT it sends its spans there.

    Example: countinghouse gateway --listen 127.0.0.1:8080
    """
    from services.runtime import log  # noqa: PLC0415  `--help` does without
    from services.runtime.trace_export import exporting  # noqa: PLC0415

    wanted = [parse_principal(each, "--sign-in") for each in people or []]
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    instance = f"{socket.gethostname()}-{os.getpid()}"
    log.configure("gateway", instance, libraries=logging.WARNING)
    with exporting("gateway", instance):
        await _serve(client, listen, wanted, stop, locks=locks, breakable=breakable)


async def _serve(
    client: Client, listen: str, people: Sequence[Principal], stop: asyncio.Event, *, locks: bool, breakable: bool
) -> None:
    """Serve until `stop` is set."""
    from services.cli.breaking import OperatorCheck, StackProcesses  # noqa: PLC0415  `--help` does without
    from services.cli.runs import StackRuns  # noqa: PLC0415
    from services.gateway.app import MAX_REQUESTS  # noqa: PLC0415
    from services.gateway.composition import SERVICES, open_gateway  # noqa: PLC0415
    from services.runtime.http_server import serve_http  # noqa: PLC0415

    data = client.connection.data
    channels = {name: await client.channel(name) for name in SERVICES}
    opening = open_gateway(
        channels,
        client.dialer(),
        await client.session() if locks else None,
        people=people,
        sign=lambda person: mint(data, person, _SIGNED_S, SystemClock()),
        processes=StackProcesses(data) if breakable else None,
        check_operator=OperatorCheck(data) if breakable else None,
        runs=(runs := StackRuns(data / "runs", SystemClock()) if breakable else None),
    )
    async with AsyncExitStack() as stack:
        if runs is not None:
            stack.push_async_callback(runs.close)
        application = await stack.enter_async_context(opening)
        with _listening(listen) as listening:
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            if client.as_json:
                output.print_json({"listen": address})
            else:
                output.print_line(f"the gateway is at {address}; Ctrl-C stops it")
            sys.stdout.flush()
            await serve_http(
                application,
                listening,
                stop,
                max_requests=MAX_REQUESTS,
                drain_s=_DRAIN_S,
                keep_alive_s=_KEEP_ALIVE_S,
            )


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise typer.BadParameter(f"{listen!r} is not like 127.0.0.1:8080", param_hint="--listen")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family)
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise Unavailable("PORT_BUSY", f"cannot listen on {listen}: {why}") from error
