"""deploy/setup-zookeeper.sh: quiet when there is nothing to do, clear when nothing can be done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "setup-zookeeper.sh"


def run(tmp_path: Path, *programs: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it on a machine that has only these programs; a program may be given with the script it stands for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in programs:
        name, _, body = program.partition("=")
        (folder / name).write_text(f"#!/bin/sh\n{body or 'exit 0'}\n")
        (folder / name).chmod(0o755)
    for needed in ("sh", "timeout"):
        (folder / needed).symlink_to(str(shutil.which(needed)))
    return subprocess.run(
        [str(shutil.which("sh")), str(SCRIPT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={"PATH": str(folder), "HOME": str(tmp_path)} | environment,
    )


@pytest.mark.parametrize(
    "environment",
    [{"COUNTINGHOUSE_ZOOKEEPER": "127.0.0.1:2181"}, {"COUNTINGHOUSE_ZOOKEEPER_CLASSPATH": "/opt/zookeeper/lib/*"}],
)
def test_setup_with_a_zookeeper_installs_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(tmp_path, "java", **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_jars_unpacked_before_are_enough(tmp_path: Path) -> None:
    jars = tmp_path / ".cache/countinghouse/zookeeper/usr/share/java"
    jars.mkdir(parents=True)
    for name in ("zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-simple", "metrics-core", "commons-cli"):
        (jars / f"{name}.jar").touch()
    done = run(tmp_path, "java")
    assert (done.returncode, done.stderr) == (0, "")


def test_setup_without_java_apt_and_docker_names_what_to_install(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert "apt install default-jre-headless" in done.stderr
    assert "COUNTINGHOUSE_ZOOKEEPER=host:port" in done.stderr


def test_setup_accepts_docker(tmp_path: Path) -> None:
    done = run(tmp_path, "docker")
    assert done.returncode == 0
    assert "Docker" in done.stderr


def test_setup_ignores_a_docker_that_does_not_answer(tmp_path: Path) -> None:
    assert run(tmp_path, "docker=exit 1").returncode == 1


def test_setup_of_python_prints_what_it_installs(tmp_path: Path) -> None:
    """It takes minutes on a slow machine."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(SCRIPT.parent / "setup-python.sh", tmp_path / "deploy")
    (tmp_path / "requirements.lock").write_text("typer==1.0 \\\n    --hash=sha256:0\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "Collecting typer==1.0 (from -r requirements.lock (line 1))"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "deploy" / "setup-python.sh", sys.executable],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert "1 packages of requirements.lock" in done.stdout
    assert "  typer==1.0\n" in done.stdout
