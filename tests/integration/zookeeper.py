"""A real ZooKeeper server process that can be frozen, stopped and started again, and sessions with it.

COUNTINGHOUSE_ZOOKEEPER_CLASSPATH says where its jars are; without it, where Debian's package puts them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kazoo.client import KazooClient

from coordination.session import Session

DEBIAN_CLASSPATH = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar"
CONFIGURATION = """\
tickTime=500
dataDir={data}
clientPort={port}
clientPortAddress=127.0.0.1
maxClientCnxns=0
4lw.commands.whitelist=srvr,mntr,ruok
admin.enableServer=false
"""
SESSION_TIMEOUT_S = 2.0
"""Short, so that expiry can be waited for; ZooKeeper allows 2 to 20 ticks, here 1 to 10 s."""


class ZooKeeper:
    """One standalone server on a port of its own; its data survive stop() and start()."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "zoo.cfg").write_text(CONFIGURATION.format(data=directory / "data", port=self._port))

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self, timeout_s: float = 20.0) -> None:
        """Start the server and wait until it serves. `ruok` would be answered earlier; `srvr` is the truth."""
        classpath = os.environ.get("COUNTINGHOUSE_ZOOKEEPER_CLASSPATH", DEBIAN_CLASSPATH)
        with (self._directory / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    "java",
                    "-Xmx128m",
                    "-XX:TieredStopAtLevel=1",
                    "-Dzookeeper.root.logger=WARN,CONSOLE",
                    "-Dzookeeper.DigestAuthenticationProvider.enabled=false",
                    "-cp",
                    classpath,
                    "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                    str(self._directory / "zoo.cfg"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + timeout_s
        while "Mode:" not in self.four_letters("srvr"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ZooKeeper did not start: {(self._directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered. Returns when every thread of it stands."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def four_letters(self, command: str) -> str:
        """Return the answer to a four-letter command; empty if there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
                connection.sendall(command.encode())
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
                return answer.decode()
        except OSError:
            return ""

    def metric(self, name: str) -> int:
        """Return one number of `mntr`."""
        for line in self.four_letters("mntr").splitlines():
            key, _, value = line.partition("\t")
            if key == name:
                return int(float(value))
        raise KeyError(name)


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 15.0) -> None:
    """Wait for something of which no event tells, such as another process's node in ZooKeeper."""
    async with asyncio.timeout(timeout_s):
        while True:
            so = condition()
            if so is True or (so is not False and await so):
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def connected(zookeeper: ZooKeeper, name: str = "test") -> AsyncIterator[Session]:
    """A connected session of our own, closed at the end."""
    async with Session(zookeeper.hosts, timeout_s=SESSION_TIMEOUT_S, name=name) as session:
        await session.wait_connected(10.0)
        yield session


async def expire(session: Session) -> None:
    """Have ZooKeeper end a session, as its expiry would: another connection of the same session closes it."""
    assert session._client is not None
    twin = KazooClient(hosts=session._hosts, timeout=SESSION_TIMEOUT_S, client_id=session._client.client_id)
    await asyncio.to_thread(twin.start)
    await asyncio.to_thread(twin.stop)
    twin.close()
