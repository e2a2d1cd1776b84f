"""Finding a ZooKeeper on a machine, and how it is started."""

from __future__ import annotations

import asyncio
import os
import socket
import zipfile
from pathlib import Path

import pytest

from services.devstack.components import zookeeper
from services.devstack.components.zookeeper import DockerInstallation, JavaInstallation, ZooKeeperMissing
from services.devstack.ports import HOST, PortReservation

DEBIAN_JARS = ("zookeeper.jar", "zookeeper-jute.jar", "slf4j-api.jar", "slf4j-simple.jar", "netty-common.jar")


def executable(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def debian(root: Path) -> Path:
    """A root directory with Debian's package in it; returns where its jars are."""
    jars = root / "usr/share/java"
    jars.mkdir(parents=True)
    for name in DEBIAN_JARS:
        (jars / name).write_bytes(b"")
    with zipfile.ZipFile(jars / "zookeeper.jar", "w") as archive:
        archive.writestr(
            "META-INF/MANIFEST.MF",
            "Manifest-Version: 1.0\r\n"
            "Class-Path: /usr/share/java/netty-com\r\n mon.jar /usr/share/java/slf4j-api.jar /usr/share\r\n"
            " /java/absent.jar\r\n\r\n",
        )
    return jars


def environment(tmp_path: Path, *programs: str) -> dict[str, str]:
    """A machine with just these programs."""
    for program in programs:
        executable(tmp_path / "bin" / program)
    return {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home")}


def test_debians_package_gives_the_jars_its_manifest_names(tmp_path: Path) -> None:
    jars = debian(tmp_path / "root")
    found = zookeeper.find(environment(tmp_path, "java"), tmp_path / "root")
    assert found == JavaInstallation(
        tmp_path / "bin" / "java",
        tuple(str(jars / name) for name in ("zookeeper.jar", "netty-common.jar", "slf4j-api.jar", "slf4j-simple.jar")),
    )


def test_packages_unpacked_without_root_are_found_in_the_cache(tmp_path: Path) -> None:
    """The manifest's absolute paths are taken as relative to where the packages were unpacked."""
    machine = environment(tmp_path, "java")
    jars = debian(tmp_path / "home/.cache/countinghouse/zookeeper")
    found = zookeeper.find(machine, tmp_path / "nothing")
    assert isinstance(found, JavaInstallation)
    assert str(jars / "netty-common.jar") in found.class_path
    assert all(path.startswith(str(jars)) for path in found.class_path)


def test_package_without_its_parts_is_not_taken(tmp_path: Path) -> None:
    (debian(tmp_path / "root") / "zookeeper-jute.jar").unlink()
    assert zookeeper.find_class_path(environment(tmp_path), tmp_path / "root") == ()


def test_configured_class_path_comes_first(tmp_path: Path) -> None:
    debian(tmp_path / "root")
    machine = environment(tmp_path, "java") | {"COUNTINGHOUSE_ZOOKEEPER_CLASSPATH": "/a.jar:/b/*"}
    found = zookeeper.find(machine, tmp_path / "root")
    assert isinstance(found, JavaInstallation)
    assert found.class_path == ("/a.jar", "/b/*")


def test_apaches_own_archive_is_found_by_its_script(tmp_path: Path) -> None:
    home = tmp_path / "apache-zookeeper"
    executable(home / "bin" / "zkServer.sh")
    (home / "lib").mkdir()
    (home / "lib" / "zookeeper-3.9.3.jar").write_bytes(b"")
    machine = environment(tmp_path, "java")
    (tmp_path / "bin" / "zkServer.sh").symlink_to(home / "bin" / "zkServer.sh")
    assert zookeeper.find_class_path(machine, tmp_path / "nothing") == (str(home / "lib" / "zookeeper-3.9.3.jar"),)


def test_java_home_stands_in_for_path(tmp_path: Path) -> None:
    java = executable(tmp_path / "jdk" / "bin" / "java")
    machine = environment(tmp_path) | {"JAVA_HOME": str(tmp_path / "jdk")}
    assert zookeeper.find_java(machine) == java


def test_docker_is_taken_when_its_daemon_answers(tmp_path: Path) -> None:
    found = zookeeper.find(environment(tmp_path, "docker"), tmp_path / "nothing")
    assert found == DockerInstallation(tmp_path / "bin" / "docker")


def test_docker_without_a_daemon_is_none(tmp_path: Path) -> None:
    machine = environment(tmp_path)
    executable(tmp_path / "bin" / "docker", "exit 1")
    with pytest.raises(ZooKeeperMissing):
        zookeeper.find(machine, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("java", "jars", "says"),
    [
        (True, False, "apt install zookeeper"),
        (False, True, "apt install default-jre-headless"),
        (False, False, "apt install zookeeper default-jre-headless"),
    ],
)
def test_missing_part_is_named(tmp_path: Path, java: bool, jars: bool, says: str) -> None:
    machine = environment(tmp_path, *(["java"] if java else []))
    if jars:
        debian(tmp_path / "root")
    with pytest.raises(ZooKeeperMissing) as refusal:
        zookeeper.find(machine, tmp_path / "root")
    assert says in refusal.value.message
    assert "Docker" in refusal.value.message
    assert "--zookeeper" in refusal.value.message


def test_server_is_bound_to_this_machine_and_bounded(tmp_path: Path) -> None:
    installation = JavaInstallation(Path("/bin/java"), ("/a.jar", "/b.jar"))
    command = zookeeper.command(installation, tmp_path / "zookeeper", 2182, {"PATH": "/bin"})
    configuration = (tmp_path / "zookeeper" / "zoo.cfg").read_text().splitlines()
    assert {"clientPort=2182", "clientPortAddress=127.0.0.1", "tickTime=500", "admin.enableServer=false"} <= set(
        configuration
    )
    assert command.arguments[0] == "/bin/java"
    assert "-Xmx64m" in command.arguments
    assert "/a.jar:/b.jar" in command.arguments


def test_docker_publishes_on_this_machine_only(tmp_path: Path) -> None:
    command = zookeeper.command(DockerInstallation(Path("/bin/docker")), tmp_path / "zookeeper", 2182, {})
    assert "--publish=127.0.0.1:2182:2181" in command.arguments
    assert f"--name={zookeeper.container_name(tmp_path / 'zookeeper')}" in command.arguments


async def test_container_left_behind_is_removed_by_name(tmp_path: Path) -> None:
    docker = executable(tmp_path / "docker", f'echo "$@" > {tmp_path}/asked')
    await zookeeper.remove_container(DockerInstallation(docker), tmp_path / "zookeeper")
    assert (tmp_path / "asked").read_text().split() == [
        "rm",
        "--force",
        zookeeper.container_name(tmp_path / "zookeeper"),
    ]


def test_reserved_port_is_usable_by_its_server_only() -> None:
    """Others are refused it; a server that sets SO_REUSEADDR, as Java's do, can listen on it, again and again."""
    reservation = PortReservation()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, reservation.port))
    for _ in range(2):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((HOST, reservation.port))
            server.listen()
    reservation.close()


def test_wanted_port_that_is_taken_is_replaced() -> None:
    with socket.create_server((HOST, 0)) as taken:
        reservation = PortReservation(taken.getsockname()[1])
        assert reservation.port != taken.getsockname()[1]
        reservation.close()


@pytest.mark.parametrize(("answer", "serves"), [(b"Mode: standalone\n", True), (b"not running\n", False), (b"", False)])
async def test_only_srvr_with_a_mode_counts_as_serving(answer: bytes, serves: bool) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(4) == b"srvr"
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, HOST, 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await zookeeper.serves(f"{HOST}:{port}") is serves


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:x"])
async def test_closed_port_is_not_serving(address: str) -> None:
    assert not await zookeeper.serves(address)


def test_cache_follows_xdg() -> None:
    assert zookeeper.cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/countinghouse/zookeeper")
    assert zookeeper.cache({"HOME": "/h"}) == Path("/h/.cache/countinghouse/zookeeper")
    assert zookeeper.cache(dict(os.environ)).is_absolute()
