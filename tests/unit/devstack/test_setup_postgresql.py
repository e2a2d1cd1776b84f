"""deploy/setup-postgresql.sh: quiet when there is nothing to do, clear when nothing can be done."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "setup-postgresql.sh"


def run(tmp_path: Path, *programs: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it on a machine that has only these programs on its path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in programs:
        (folder / program).write_text("#!/bin/sh\nexit 0\n")
        (folder / program).chmod(0o755)
    for needed in ("sh", "dirname", "readlink"):
        (folder / needed).symlink_to(str(shutil.which(needed)))
    script = SCRIPT.read_text().replace("/usr/lib/postgresql", str(tmp_path / "packages"))
    return subprocess.run(
        [str(shutil.which("sh")), "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={"PATH": str(folder)} | environment,
    )


@pytest.mark.parametrize("programs", [("initdb", "postgres")])
def test_programs_on_the_path_are_enough(tmp_path: Path, programs: tuple[str, ...]) -> None:
    done = run(tmp_path, *programs)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_debians_programs_are_enough(tmp_path: Path) -> None:
    folder = tmp_path / "packages/15/bin"
    folder.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        (folder / program).touch(mode=0o755)
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_running_server_is_enough(tmp_path: Path) -> None:
    done = run(tmp_path, COUNTINGHOUSE_TEST_POSTGRES="postgresql://postgres@127.0.0.1/postgres")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("programs", [(), ("initdb",)])
def test_setup_without_apt_names_what_to_install(tmp_path: Path, programs: tuple[str, ...]) -> None:
    """The client's half of it is not enough."""
    done = run(tmp_path, *programs)
    assert done.returncode == 1
    assert "apt install postgresql" in done.stderr
    assert "COUNTINGHOUSE_TEST_POSTGRES" in done.stderr
