"""A ZooKeeper server for the embedded stack: where this machine has one, how it is started, when it is ready.

Looked for in this order
1. COUNTINGHOUSE_ZOOKEEPER_CLASSPATH, a Java class path, with Java
2. Debian's package: /usr/share/java/zookeeper.jar, whose manifest names the rest, with Java
3. the same jars in the user's cache, where deploy/setup-zookeeper.sh puts them without root, with Java
4. the jars beside a zkServer.sh on PATH, with Java
5. the Docker image zookeeper:3.9, if a Docker daemon answers

It listens on 127.0.0.1 only, over TLS unless the stack is in plain text; services are users of their own
(`zookeeper_tree.py`). Memory: 70 MB resident with these flags on OpenJDK 17. fsync stays on: a lock's token is a zxid,
and zxids that fell after a power cut would make new holders look stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coordination.errors import Refused
from coordination.files import write_whole
from coordination.session import ServerAddress
from services.devstack.child import Child, Command
from services.devstack.components.component import Component, Context
from services.devstack.files import SUPERUSER
from services.devstack.keys import ZOOKEEPER, Keys
from services.devstack.managed_process import ManagedProcess
from services.devstack.ports import HOST
from services.devstack.state import StackFailed, StackRefused
from services.runtime.zookeeper_paths import SERVER_NAME

#: Sessions last 2 to 20 ticks: 1 to 10 s.
TICK_MS = 500
DOCKER_IMAGE = "zookeeper:3.9"

_DEBIAN_JAR = Path("usr/share/java/zookeeper.jar")
_NEEDED = ("zookeeper.jar", "zookeeper-jute.jar", "slf4j-api.jar")
#: What Debian's class path lacks: a logger that needs no configuration file, and parts of Netty.
_BESIDES = ("slf4j-simple.jar", "netty-codec.jar", "netty-resolver.jar")
_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
_DOCKER_TIMEOUT_S = 3.0
_PROBE_TIMEOUT_S = 1.0
_POLL_S, _GRACE_S = 0.03, 3.0
_FOUR_LETTERS = "srvr,mntr,ruok"

_CONFIGURATION = """\
tickTime={tick_ms}
initLimit=10
syncLimit=5
dataDir={data}
{client_port}={port}
{client_port}Address={host}
maxClientCnxns=0
4lw.commands.whitelist={four_letters}
admin.enableServer=false
preAllocSize=4096
snapCount=20000
autopurge.snapRetainCount=3
autopurge.purgeInterval=1
"""

#: ZooKeeper takes TLS with Netty alone. Clients are known by a user's password, not by a certificate. From 3.8.2 on it
#: reads a renewed certificate by itself.
_TLS = """\
serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory
ssl.protocol=TLSv1.3
ssl.enabledProtocols=TLSv1.3,TLSv1.2
ssl.keyStore.location={identity}
ssl.keyStore.type=PEM
ssl.trustStore.location={authorities}
ssl.trustStore.type=PEM
ssl.clientAuth=none
client.certReload=true
"""

#: Lists of an earlier start over TLS have no users in plain text, who could not do anything.
_WITHOUT_LISTS = "skipACL=yes\n"

_LOGBACK = """\
<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="out"/></root>
</configuration>
"""

_JAVA_FLAGS = (
    "-Xms16m",
    "-Xmx64m",
    "-Xss256k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xshare:auto",
    "-Djava.net.preferIPv4Stack=true",
    # Netty, which TLS needs: fewer threads and buffers than it would have for thousands of connections.
    "-Dio.netty.eventLoopThreads=2",
    "-Dio.netty.allocator.type=unpooled",
    "-Dio.netty.noPreferDirect=true",
    "-Dzookeeper.admin.enableServer=false",
    "-Dzookeeper.jmx.log4j.disable=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)


class ZooKeeperMissing(StackRefused):
    """This machine has nothing from which a ZooKeeper could be started."""


@dataclass(frozen=True, slots=True)
class JavaInstallation:
    """Jars, and the Java to run them."""

    java: Path
    class_path: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.class_path[0]} with {self.java}"


@dataclass(frozen=True, slots=True)
class DockerInstallation:
    """A Docker daemon that answers."""

    docker: Path

    def __str__(self) -> str:
        return f"Docker image {DOCKER_IMAGE}"


Installation = JavaInstallation | DockerInstallation


def find(environment: Mapping[str, str], root: Path = Path("/")) -> Installation:
    """Return what a ZooKeeper can be started from, the first of the module's list.

    Args:
        root: Where Debian's package is installed.

    Raises:
        ZooKeeperMissing: ZOOKEEPER_MISSING, naming what to install.
    """
    java = find_java(environment)
    class_path = find_class_path(environment, root)
    if java is not None and class_path:
        return JavaInstallation(java, class_path)
    docker = _which("docker", environment)
    if docker is not None and _docker_answers(docker):
        return DockerInstallation(docker)
    if java is not None:
        what = "Java is here, and no ZooKeeper"
        remedy = "`apt install zookeeper`, run `make setup`"
    elif class_path:
        what = "ZooKeeper's jars are here, and no Java"
        remedy = "install a Java runtime (`apt install default-jre-headless`)"
    else:
        what = "there is neither Java with ZooKeeper nor a Docker daemon here"
        remedy = "`apt install zookeeper default-jre-headless`, run `make setup`"
    raise ZooKeeperMissing(
        "ZOOKEEPER_MISSING",
        f"no ZooKeeper can be started: {what}; {remedy}, start Docker, or name one by --zookeeper host:port",
    )


def find_java(environment: Mapping[str, str]) -> Path | None:
    """Return the java on PATH, else JAVA_HOME's."""
    if found := _which("java", environment):
        return found
    home = environment.get("JAVA_HOME", "")
    candidate = Path(home, "bin", "java")
    return candidate if home and os.access(candidate, os.X_OK) else None


def find_class_path(environment: Mapping[str, str], root: Path = Path("/")) -> tuple[str, ...]:
    """ZooKeeper's class path on this machine; empty if there is none."""
    if configured := environment.get("COUNTINGHOUSE_ZOOKEEPER_CLASSPATH", ""):
        return tuple(configured.split(os.pathsep))
    return _debian_class_path(root) or _debian_class_path(cache(environment)) or _beside_script(environment)


def cache(environment: Mapping[str, str]) -> Path:
    """Return where deploy/setup-zookeeper.sh unpacks Debian's packages if it is not root."""
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME") or "~").expanduser() / ".cache")
    return Path(base, "countinghouse", "zookeeper")


@dataclass(frozen=True, slots=True)
class Member:
    """One server's place in an ensemble.

    Args:
        number: Its id, from 1.
        peers: Every member's `host:quorum port:election port`, in the order of their ids.
    """

    number: int
    peers: tuple[str, ...]

    @property
    def lines(self) -> str:
        """Return the lines of its configuration about the ensemble."""
        return "".join(f"server.{number}={peer}\n" for number, peer in enumerate(self.peers, start=1))


@dataclass(frozen=True, slots=True)
class Secured:
    """How a server is secured.

    Args:
        authorities: File of those that are believed, PEM.
        identity: File of its key and certificate, PEM.
        superuser: By what it knows its superuser, `super:<digest>`.
    """

    authorities: Path
    identity: Path
    superuser: str

    @property
    def lines(self) -> str:
        """Return the lines of its configuration about TLS."""
        return _TLS.format(identity=self.identity, authorities=self.authorities)

    @property
    def flag(self) -> str:
        """Return the argument of Java that names its superuser."""
        return f"-Dzookeeper.DigestAuthenticationProvider.superDigest={self.superuser}"


def command(
    installation: Installation,
    directory: Path,
    port: int,
    environment: Mapping[str, str],
    member: Member | None = None,
    *,
    secured: Secured | None = None,
) -> Command:
    """Return the command of a server that keeps its data under `directory` and listens on `port`.

    Args:
        member: Its place in an ensemble, which only Java can make; None: it stands alone.
        secured: None: in plain text.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = directory.parent / "logs" / f"{directory.name}.log"
    if isinstance(installation, DockerInstallation):
        return Command(_docker_arguments(installation, directory, port, secured), dict(environment), log)
    arguments = _java_arguments(installation, directory, port, member, secured)
    return Command(arguments, {**environment, "MALLOC_ARENA_MAX": "1"}, log)


def _java_arguments(
    installation: JavaInstallation, directory: Path, port: int, member: Member | None, secured: Secured | None
) -> tuple[str, ...]:
    configuration = directory / "zoo.cfg"
    text = _CONFIGURATION.format(
        tick_ms=TICK_MS,
        data=directory / "data",
        port=port,
        host=HOST,
        four_letters=_FOUR_LETTERS,
        client_port="secureClientPort" if secured else "clientPort",
    )
    text += secured.lines if secured is not None else _WITHOUT_LISTS
    if member is not None:
        text += member.lines
        (directory / "data").mkdir(mode=0o700, exist_ok=True)
        write_whole(directory / "data" / "myid", str(member.number).encode(), mode=0o600)
    write_whole(configuration, text.encode(), mode=0o600)
    logback = directory / "logback.xml"
    write_whole(logback, _LOGBACK.encode(), mode=0o600)
    return (
        str(installation.java),
        *_JAVA_FLAGS,
        *((secured.flag,) if secured else ()),
        f"-Dlogback.configurationFile={logback}",
        "-cp",
        os.pathsep.join(installation.class_path),
        _MAIN,
        str(configuration),
    )


def _docker_arguments(
    installation: DockerInstallation, directory: Path, port: int, secured: Secured | None
) -> tuple[str, ...]:
    for part in ("data", "datalog"):
        (directory / part).mkdir(exist_ok=True)
    settings = {
        "ZOO_TICK_TIME": str(TICK_MS),
        "ZOO_MAX_CLIENT_CNXNS": "0",
        "ZOO_4LW_COMMANDS_WHITELIST": _FOUR_LETTERS,
        "ZOO_ADMINSERVER_ENABLED": "false",
        "ZOO_AUTOPURGE_PURGEINTERVAL": "1",
        "JVMFLAGS": f"-Xmx64m -XX:+UseSerialGC{f' {secured.flag}' if secured else ''}",
    }
    files: list[str] = []
    if secured is not None:
        inside = replace(secured, authorities=Path("/tls/ca.pem"), identity=Path("/tls/server.pem"))
        settings |= {"ZOO_CFG_EXTRA": f"secureClientPort=2181\n{inside.lines}", "ZOO_STANDALONE_ENABLED": "true"}
        files = [f"--volume={secured.authorities}:/tls/ca.pem:ro", f"--volume={secured.identity}:/tls/server.pem:ro"]
    return (
        str(installation.docker),
        "run",
        "--rm",
        f"--name={container_name(directory)}",
        f"--publish={HOST}:{port}:2181",
        f"--user={os.getuid()}:{os.getgid()}",
        f"--volume={(directory / 'data').resolve()}:/data",
        f"--volume={(directory / 'datalog').resolve()}:/datalog",
        *files,
        *(f"--env={name}={value}" for name, value in settings.items()),
        DOCKER_IMAGE,
    )


def container_name(directory: Path) -> str:
    """Return the container's name: the same for the same data, so that one left behind is found again."""
    return f"countinghouse-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]}"


async def remove_container(installation: Installation, directory: Path) -> None:
    """Remove a container whose `docker run` was killed; Docker does not notice that by itself."""
    if isinstance(installation, DockerInstallation):
        arguments = [str(installation.docker), "rm", "--force", container_name(directory)]
        await asyncio.to_thread(subprocess.run, arguments, capture_output=True, check=False)


async def serves(address: str, ca_file: Path | None = None) -> bool:
    """Return whether a ZooKeeper answers at `address`. One that lacks a jar may answer `ruok`, but not `srvr`."""
    return bool(await mode(address, ca_file))


async def mode(address: str, ca_file: Path | None = None) -> str:
    """Return the mode of the server at `address`: `standalone`, `leader` or `follower`; empty if it does not serve.

    Args:
        ca_file: The authorities by which it is known; None: it is asked in plain text.
    """
    try:
        server = ServerAddress.parse(address)
        context = ssl.create_default_context(cafile=ca_file) if ca_file else None
        name = SERVER_NAME if ca_file else None
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context, server_hostname=name)
            try:
                writer.write(b"srvr")
                answer = await reader.read()
                return answer.partition(b"Mode: ")[2].partition(b"\n")[0].decode()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return ""


class ZooKeeper(Component):
    """A server of the stack's own, or the address of one that runs elsewhere.

    Attributes:
        address: `host:port`; empty before a server of its own was started.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.address = context.options.zookeeper
        self._ca_file: Path | None = None
        self._awaited = False  # one elsewhere, to prepare it

    async def start(self) -> None:
        """Start a server, unless there is one elsewhere.

        Raises:
            ZooKeeperMissing: There is none to start.
        """
        plaintext = self._context.options.plaintext or self._context.options.zookeeper_plaintext
        if self.address:
            if not plaintext:
                await self._use_elsewhere()
            return
        environment, keys = self._context.environment, self._context.keys
        installation = find(environment)
        directory = self._context.data / ZOOKEEPER
        directory.mkdir(mode=0o700, exist_ok=True)
        secured = None if plaintext else secured_by(keys, ZOOKEEPER, self._start_again)
        if secured is not None:
            self._ca_file = secured.authorities
        reservation = self._reserve_port(directory)
        self.address = f"{HOST}:{reservation.port}"
        if isinstance(installation, DockerInstallation):
            reservation.close()  # Docker's own proxy may not share it
            await remove_container(installation, directory)
            self._resources.push_async_callback(remove_container, installation, directory)
        self._run(
            ManagedProcess(
                self._supervision,
                ZOOKEEPER,
                service=ZOOKEEPER,
                interface="",
                command=command(installation, directory, reservation.port, environment, secured=secured),
                ready=self._ready,
                grace_s=_GRACE_S,
            )
        )

    def describe(self) -> dict[str, Any]:
        """Return its address, and the process of a server of its own."""
        return {"zookeeper": self.address, "zookeeper_pid": sum(process.pid for process in self.processes)}

    def explain(self) -> str:
        """Return which of its processes are not SERVING; or that a server elsewhere is not prepared."""
        if not self._awaited:
            return super().explain()
        authorities = self._context.keys.ca_file(ZOOKEEPER)
        return (
            f"ZooKeeper at {self.address} does not answer with a certificate of {authorities}; "
            "one without takes --zookeeper-plaintext"
        )

    async def _use_elsewhere(self) -> None:
        from services.devstack.zookeeper_tree import prepare_as_superuser  # noqa: PLC0415  kazoo takes 0.1 s

        keys, timeout_s = self._context.keys, self._context.options.start_timeout_s
        self._awaited = True
        try:
            await prepare_as_superuser(self.address, keys.ca_file(ZOOKEEPER), keys.zookeeper_user, timeout_s)
        except Refused as error:
            raise StackFailed(
                "ZOOKEEPER_FORBIDDEN",
                f"ZooKeeper at {self.address} knows no superuser of {keys.zookeeper_user(SUPERUSER)} ({error})",
            ) from error
        self._awaited = False

    def _start_again(self, _identity_file: Path) -> None:
        for process in self.processes:
            process.signal(signal.SIGTERM)

    async def _ready(self, _child: Child) -> str:
        while not await serves(self.address, self._ca_file):  # noqa: ASYNC110  another process
            await asyncio.sleep(_POLL_S)
        if self._ca_file is not None:
            from services.devstack.zookeeper_tree import prepare_as_superuser  # noqa: PLC0415  kazoo takes 0.1 s

            keys = self._context.keys
            await prepare_as_superuser(self.address, keys.ca_file(ZOOKEEPER), keys.zookeeper_user)
        return self.address


def secured_by(keys: Keys, instance: str, renewed: Callable[[Path], None] | None = None) -> Secured:
    """Return how a server of the stack's own is secured by its keys.

    Args:
        renewed: Called when it has a new certificate, which a server reads at its start.
    """
    from services.devstack.zookeeper_tree import digest  # noqa: PLC0415  kazoo takes 0.1 s

    identity = keys.certify(ZOOKEEPER, instance, renewed)
    return Secured(keys.ca_file(ZOOKEEPER), identity, digest(keys.zookeeper_user(SUPERUSER).read_text()))


def _which(name: str, environment: Mapping[str, str]) -> Path | None:
    found = shutil.which(name, path=environment.get("PATH", ""))
    return Path(found) if found else None


def _docker_answers(docker: Path) -> bool:
    try:
        answer = subprocess.run([docker, "info"], capture_output=True, check=False, timeout=_DOCKER_TIMEOUT_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def _debian_class_path(root: Path) -> tuple[str, ...]:
    """Debian's jars under `root`. The manifest names absolute paths, right only where root is `/`."""
    jar = root / _DEBIAN_JAR
    folder = jar.parent
    if not all((folder / name).exists() for name in _NEEDED):
        return ()
    jars = [
        jar,
        *(root / entry.lstrip("/") for entry in _manifest_class_path(jar)),
        *(folder / name for name in _BESIDES),
    ]
    return tuple(str(path) for path in jars if path.exists())


def _manifest_class_path(jar: Path) -> list[str]:
    try:
        with zipfile.ZipFile(jar) as archive:
            manifest = archive.read("META-INF/MANIFEST.MF").decode()
    except (OSError, KeyError, zipfile.BadZipFile):
        return []
    unfolded = manifest.replace("\r\n", "\n").replace("\n ", "")  # lines are folded at 72 bytes
    for line in unfolded.splitlines():
        name, _, value = line.partition(":")
        if name == "Class-Path":
            return value.split()
    return []


def _beside_script(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the jars of Apache's own archive, whose bin/ is on PATH."""
    script = _which("zkServer.sh", environment)
    if script is None:
        return ()
    home = script.resolve().parent.parent
    jars = sorted({*home.glob("lib/*.jar"), *home.glob("*.jar")})
    return tuple(map(str, jars)) if any(path.name.startswith("zookeeper") for path in jars) else ()
