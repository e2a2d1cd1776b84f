"""An HTTP server for an ASGI application, on a socket that listens already."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp


async def serve_http(
    app: ASGIApp,
    listening: socket.socket,
    stop: asyncio.Event,
    *,
    max_requests: int,
    drain_s: int,
    keep_alive_s: int = 5,
) -> None:
    """Serve the application until `stop` is set; requests that have begun are answered.

    Args:
        listening: A socket that listens; it is closed at the end.
        max_requests: Requests at once; one more is answered 503.
        drain_s: How long requests that have begun have, once `stop` is set.
        keep_alive_s: How long a connection is kept without a request.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=max_requests,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=drain_s,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        server.should_exit = True
        await serving
