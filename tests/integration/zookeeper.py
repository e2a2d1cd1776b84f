"""A real ZooKeeper server process that can be frozen, stopped and started again, an ensemble of three, and sessions.

COUNTINGHOUSE_ZOOKEEPER_CLASSPATH says where its jars are; without it, where Debian's package puts them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from kazoo.client import KazooClient

from coordination.errors import Unavailable
from coordination.session import ServerAddress, Session
from coordination.session.kazoo_bridge import KazooBridge

#: In the certificate of every server.
SERVER_NAME = "zookeeper.countinghouse"
#: What Debian's class path lacks for TLS.
NETTY = "/usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar"
DEBIAN_CLASSPATH = "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar"
CONFIGURATION = """\
tickTime={tick_ms}
dataDir={data}
{client_port}={port}
{client_port}Address={host}
maxClientCnxns=0
4lw.commands.whitelist=srvr,mntr,ruok
admin.enableServer=false
"""
#: Over TLS: certificates are those of the server alone, clients are known by user and password.
SECURED = """\
serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory
ssl.keyStore.location={identity}
ssl.keyStore.type=PEM
ssl.trustStore.location={authority}
ssl.trustStore.type=PEM
ssl.clientAuth=none
"""
TICK_S = 0.5
SESSION_TIMEOUT_S = 2.0
"""Short, so that expiry can be waited for; ZooKeeper allows 2 to 20 ticks, here 1 to 10 s."""
MEMBERS = 3


class ZooKeeper:
    """One server on a port of its own; its data survive stop() and start().

    Args:
        port: of the clients; 0: a free one.
        membership: lines of its configuration that make it a member of an ensemble; none: it stands alone.
        host: the address it listens on.
        certified: the files of its authority, and of its key and certificate; None: it listens in plain text.
    """

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        membership: str = "",
        *,
        host: str = "127.0.0.1",
        certified: tuple[Path, Path] | None = None,
    ) -> None:
        self._port = port or _free_ports(1)[0]
        self._host = host
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._certified = certified
        configuration = CONFIGURATION.format(
            tick_ms=round(TICK_S * 1000),
            data=directory / "data",
            port=self._port,
            host=host,
            client_port="secureClientPort" if certified else "clientPort",
        )
        if certified:
            configuration += SECURED.format(authority=certified[0], identity=certified[1])
        (directory / "zoo.cfg").write_text(configuration + membership)

    @property
    def hosts(self) -> str:
        return str(ServerAddress(self._host, self._port))

    def start(self, timeout_s: float = 20.0) -> None:
        """Start the server and wait until it serves."""
        self.begin()
        self.wait_serving(timeout_s)

    def begin(self) -> None:
        """Start the process."""
        classpath = os.environ.get("COUNTINGHOUSE_ZOOKEEPER_CLASSPATH", DEBIAN_CLASSPATH)
        with (self._directory / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    "java",
                    "-Xmx128m",
                    "-XX:TieredStopAtLevel=1",
                    "-Dzookeeper.root.logger=WARN,CONSOLE",
                    *(() if self._certified else ("-Dzookeeper.DigestAuthenticationProvider.enabled=false",)),
                    "-cp",
                    f"{classpath}:{NETTY}" if self._certified else classpath,
                    "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                    str(self._directory / "zoo.cfg"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_serving(self, timeout_s: float) -> None:
        """Wait until it serves. `ruok` would be answered earlier; `srvr` is the truth."""
        assert self._process is not None
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
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def four_letters(self, command: str) -> str:
        """Return the answer to a four-letter command; empty if there is none."""
        try:
            with ExitStack() as open_:
                connection = open_.enter_context(socket.create_connection((self._host, self._port), timeout=1.0))
                if self._certified:
                    secured = ssl.create_default_context(cafile=self._certified[0])
                    connection = open_.enter_context(secured.wrap_socket(connection, server_hostname=SERVER_NAME))
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


class Ensemble:
    """Three servers that elect a leader."""

    def __init__(self, directory: Path) -> None:
        ports = _free_ports(3 * MEMBERS)
        clients, quorum, election = ports[:MEMBERS], ports[MEMBERS : 2 * MEMBERS], ports[2 * MEMBERS :]
        membership = "initLimit=20\nsyncLimit=10\n" + "".join(
            f"server.{n + 1}=127.0.0.1:{quorum[n]}:{election[n]}\n" for n in range(MEMBERS)
        )
        self.members: list[ZooKeeper] = []
        for n, port in enumerate(clients):
            home = directory / str(n + 1)
            (home / "data").mkdir(parents=True)
            (home / "data" / "myid").write_text(str(n + 1))
            self.members.append(ZooKeeper(home, port, membership))

    @property
    def hosts(self) -> str:
        return ",".join(member.hosts for member in self.members)

    def start(self, timeout_s: float = 30.0) -> None:
        """Start all of them and wait until each serves."""
        for member in self.members:
            member.begin()
        for member in self.members:
            member.wait_serving(timeout_s)

    def stop(self) -> None:
        for member in self.members:
            member.resume()
            member.stop()


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 15.0) -> None:
    """Wait for something of which no event tells, such as another process's node in ZooKeeper.

    On a busy machine the session may be away for a moment: what cannot be read then is read again.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            with suppress(Unavailable):
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


def bridge_of(session: Session) -> KazooBridge:
    """The kazoo side of a session that was started."""
    assert session._bridge is not None
    return session._bridge


async def expire(session: Session) -> None:
    """Have ZooKeeper end a session, as its expiry would: another connection of the same session closes it."""
    twin = KazooClient(hosts=session._hosts, timeout=SESSION_TIMEOUT_S, client_id=bridge_of(session).client.client_id)
    await asyncio.to_thread(twin.start)
    await asyncio.to_thread(twin.stop)
    twin.close()
