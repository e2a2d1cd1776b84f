"""`countinghouse chaos proxy` as a process: where it says it is, it is; and Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import command_line, start_command_line

_READY_S = 30.0
_END_S = 10.0


def get(address: str, path: str) -> Any:
    connection = http.client.HTTPConnection(address, timeout=_END_S)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def put_config(folder: Path, document: object) -> Path:
    config = folder / "proxies.json"
    config.write_text(json.dumps(document))
    return config


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command on a free port; it is gone at the end."""
    process = await start_command_line("chaos", "proxy", "--listen", "127.0.0.1:0", *arguments)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, end: bytes) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(_READY_S):
        return await process.stdout.readuntil(end)


async def end(process: asyncio.subprocess.Process, number: signal.Signals) -> tuple[int | None, bytes]:
    """Sends the signal; returns the exit code and what was said on standard error."""
    process.send_signal(number)
    async with asyncio.timeout(_END_S):
        _, errors = await process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_proxy_serves_its_file_until_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """It says where its API and its proxies are, once they are there. A client in mid-sentence does not hold it up."""
    on = {"name": "on", "listen": "127.0.0.1:0", "upstream": "127.0.0.1:1", "enabled": True}
    config = put_config(tmp_path, [on, {**on, "name": "off", "enabled": False}])
    async with running("--config", str(config), "--json") as process:
        told = json.loads(await read_until(process, b"\n}\n"))
        proxies = await asyncio.to_thread(get, told["listen"], "/proxies")
        assert [(proxy["name"], proxy["enabled"]) for proxy in told["proxies"]] == [("on", True), ("off", False)]
        assert [{**proxy, "toxics": []} for proxy in told["proxies"]] == list(proxies.values())
        host, _, port = told["listen"].rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /proxies HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            await asyncio.to_thread(get, told["listen"], "/version")  # by now it has been heard
            assert await end(process, number) == (0, b"")


async def test_proxy_without_json_prints_one_sentence() -> None:
    async with running() as process:
        line = (await read_until(process, b"\n")).decode()
        address = line.split("http://")[1].split(";")[0]
        assert await asyncio.to_thread(get, address, "/proxies") == {}
        assert await end(process, signal.SIGINT) == (0, b"")


async def test_proxy_that_cannot_be_served_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """A port that is taken ends with 1; an address or a file that is none with 2; nothing is left listening."""
    outside = {"name": "b", "listen": "192.0.2.1:0", "upstream": "127.0.0.1:1"}
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        cases = [
            (("--listen", taken), 1, "address already in use"),
            (("--listen", "example.com:80"), 2, "is not like 127.0.0.1:8474"),
            (("--listen", "127.0.0.1:0", "--config", str(put_config(tmp_path, [outside]))), 1, "not on 192.0.2.1"),
        ]
        for arguments, code, words in cases:
            done = await command_line("chaos", "proxy", *arguments, COLUMNS="300")
            assert (done.returncode, done.stdout) == (code, ""), done.stderr
            assert words in done.stderr
            assert "Traceback" not in done.stderr
    done = await command_line("chaos", "proxy", "--config", str(put_config(tmp_path, {"name": "b"})), COLUMNS="300")
    assert done.returncode == 2
    assert "is no list of proxies" in done.stderr
