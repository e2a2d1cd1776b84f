"""The public images by their digests: every one of the deployment, or none, and nothing else of the file is changed.

A stand-in for the program `docker` answers from files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from deploy import pin_images

FOLDER = Path(__file__).parents[3] / "deploy"
NEW, OLD = f"@sha256:{'a' * 64}", f"@sha256:{'b' * 64}"
STAND_IN = """#!/bin/sh
cd "$(dirname "$0")"
case "$1" in
  pull) [ "$3" != "$(cat missing)" ] || { echo "Error response from daemon: no such host" >&2; exit 1; } ;;
  image) cat digests ;;
esac
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in's answers are; the file to be written is beside them."""
    program = tmp_path / "docker"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (tmp_path / "missing").write_text("none")
    (tmp_path / "digests").write_text(f'["registry.example/any{NEW}"]')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(pin_images, "FILE", tmp_path / ".env")
    return tmp_path


def test_every_image_is_pinned_and_other_lines_stay(registry: Path) -> None:
    file = registry / ".env"
    file.write_text(f"COUNTINGHOUSE_PORTS=219\nCOUNTINGHOUSE_POSTGRES_IMAGE=postgres:17{OLD}\n")
    assert pin_images.main() == 0
    assert file.read_text().splitlines() == [
        "COUNTINGHOUSE_PORTS=219",
        f"COUNTINGHOUSE_PYTHON_IMAGE=python:3.13-slim{NEW}",
        f"COUNTINGHOUSE_ZOOKEEPER_IMAGE=zookeeper:3.9{NEW}",
        f"COUNTINGHOUSE_POSTGRES_IMAGE=postgres:17{NEW}",
    ]


def test_nothing_is_written_if_one_image_cannot_be_pulled(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (registry / "missing").write_text("postgres:17")
    assert pin_images.main() == 1
    assert "docker pull postgres:17 failed: Error response from daemon: no such host" in capsys.readouterr().err
    assert not (registry / ".env").exists()


@pytest.mark.parametrize("found", ["null", "[]", f'["a{NEW}", "b{OLD}"]'])
def test_image_without_one_digest_is_refused(registry: Path, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was built here has none."""
    (registry / "digests").write_text(found)
    assert pin_images.main() == 1
    assert re.search(r"python:3.13-slim has [02] digests", capsys.readouterr().err)
    assert not (registry / ".env").exists()


def test_deployment_takes_every_public_image_from_its_variable() -> None:
    named = {
        (variable, image)
        for file in ("docker-compose.yml", "docker-compose.chaos.yml")
        for variable, image in re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", (FOLDER / file).read_text())
    }
    assert named == set(pin_images.IMAGES.items())
