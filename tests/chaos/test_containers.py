"""Chaos on the deployment of deploy/docker-compose.yml: containers die, stand still, are cut off.

`make test-compose` runs this; it needs a Docker daemon with compose.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

#: One of each kind that only containers have, and those that need a holder to be met at a certain step.
FAULTS = ("disconnect", "freeze-at", "kill-at", "leader-kill", "postgresql-kill")


def left_behind() -> set[str]:
    """Every container, volume and network of chaos runs that is there."""
    found: set[str] = set()
    for kind, column in (("container", "Names"), ("volume", "Name"), ("network", "Name")):
        listed = subprocess.run(
            ["docker", kind, "ls", *(("--all",) if kind == "container" else ()), "--format", f"{{{{.{column}}}}}"],
            capture_output=True,
            text=True,
            check=True,
        )
        found |= {f"{kind} {name}" for name in listed.stdout.split() if name.startswith("countinghouse-chaos-")}
    return found


@pytest.fixture
def docker() -> None:
    """Skips where no daemon answers."""
    program = shutil.which("docker")
    if program is None or subprocess.run([program, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker daemon answers here")


def command(data: Path, minutes: str) -> list[str]:
    """A run of `FAULTS` on containers."""
    return [
        *(sys.executable, "-m", "services.cli.main", "chaos", "run", "--stack", "compose", "--seed", "7"),
        *("--minutes", minutes, "--faults", ",".join(FAULTS), "--data", str(data), "--json"),
    ]


@pytest.mark.usefixtures("docker")
def test_run_whose_containers_die_settles_each_order_once(tmp_path: Path) -> None:
    """The books are right, every planned fault was injected, and nothing of the deployment is left but its words."""
    before = left_behind()
    ended = subprocess.run(command(tmp_path, "0.4"), capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["verdict"], told["reasons"]) == (0, "ok", []), ended.stderr
    assert set(told["fired"]) == set(FAULTS)
    assert "payment-2-1" in (tmp_path / "containers.log").read_text(encoding="utf-8")
    assert left_behind() <= before


@pytest.mark.usefixtures("docker")
def test_run_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM while the deployment starts, as a build server's patience has it."""
    before = left_behind()
    with subprocess.Popen(command(tmp_path, "5"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        while running.poll() is None and not any("container" in each for each in left_behind() - before):
            time.sleep(0.2)
        running.terminate()
        _, errors = running.communicate()
    assert running.returncode == 130, errors
    assert left_behind() <= before
