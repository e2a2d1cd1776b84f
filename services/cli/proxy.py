"""`countinghouse chaos proxy`: a TCP proxy with toxiproxy's HTTP API."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import output
from services.cli.arguments import AsJson, run

if TYPE_CHECKING:
    from services.chaos.faultproxy.proxies import Proxies, ProxyFields


def proxy(
    listen: Annotated[
        str, typer.Option("--listen", help="Address of the API, as address:port; port 0 takes a free one.")
    ] = "127.0.0.1:8474",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="File with the first proxies, in toxiproxy's form: a list of name, listen, upstream, enabled.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve toxiproxy's HTTP API for proxies that delay, cut and drop connections. Ctrl-C stops it.

    It has no authentication: it and its proxies listen on loopback addresses only, unless --listen names another one.

    Example: countinghouse chaos proxy --listen 127.0.0.1:8474 --config proxies.json
    """
    from services.chaos.faultproxy.proxies import is_loopback  # noqa: PLC0415  `--help` does without

    host, port = _address(listen)
    wanted = _read(config) if config else []
    if not is_loopback(host):
        print(
            f"{host} is open to others: any caller that reaches it can connect to whatever this machine reaches",
            file=sys.stderr,
            flush=True,
        )
    run(_serve(host, port, wanted, as_json=as_json))


def _address(listen: str) -> tuple[str, int]:
    import ipaddress  # noqa: PLC0415

    from services.chaos.faultproxy.proxy import HOST, split_address  # noqa: PLC0415
    from services.kernel.errors import InvalidArgument  # noqa: PLC0415

    try:
        host, port = split_address(listen)
        host = {"": HOST, "localhost": HOST}.get(host, host)
        ipaddress.ip_address(host)
    except (InvalidArgument, ValueError) as error:
        raise typer.BadParameter(f"{listen!r} is not like 127.0.0.1:8474", param_hint="--listen") from error
    return host, port


def _read(config: Path) -> list[ProxyFields]:
    from services.chaos.faultproxy.proxy_api import parse_proxies  # noqa: PLC0415
    from services.kernel.errors import InvalidArgument  # noqa: PLC0415

    try:
        return parse_proxies(config.read_bytes())
    except InvalidArgument as error:
        raise typer.BadParameter(f"{config} is no list of proxies: {error.message}", param_hint="--config") from error


async def _serve(host: str, port: int, wanted: list[ProxyFields], *, as_json: bool) -> None:
    from services.chaos.faultproxy.proxies import Proxies  # noqa: PLC0415
    from services.chaos.faultproxy.proxy_api import serve  # noqa: PLC0415

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    proxies = Proxies(host)
    with _listening(host, port) as listening:
        try:
            await proxies.populate(wanted, [])
            _show(listening, proxies, as_json=as_json)
            await serve(proxies, listening, stop)
        finally:
            await proxies.close()


def _listening(host: str, port: int) -> socket.socket:
    from services.chaos.faultproxy.proxy import bound, join_address  # noqa: PLC0415
    from services.kernel.errors import Unavailable  # noqa: PLC0415

    try:
        listening = bound(host, port)
        listening.listen()
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise Unavailable("PORT_BUSY", f"cannot listen on {join_address(host, port)}: {why}") from error
    return listening


def _show(listening: socket.socket, proxies: Proxies, *, as_json: bool) -> None:
    from services.chaos.faultproxy.proxy import join_address  # noqa: PLC0415

    address = join_address(*listening.getsockname()[:2])
    if as_json:
        shown = [
            {"name": one.name, "listen": one.listen, "upstream": one.upstream, "enabled": one.enabled}
            for one in proxies
        ]
        output.print_json({"listen": address, "proxies": shown})
    else:
        print(f"toxiproxy's API is at http://{address}; Ctrl-C stops it")
        for one in proxies:
            print(f"{one.name}: {one.listen} -> {one.upstream}{'' if one.enabled else ' (disabled)'}")
    sys.stdout.flush()
