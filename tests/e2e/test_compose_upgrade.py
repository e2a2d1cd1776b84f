"""The deployment is brought from the version before to this one by deploy/upgrade.sh, while clients call it.

`make test-compose` runs this; it needs a Docker daemon with compose, and the version before in the history of git.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from services.chaos.targets.compose import DEPLOY, free_digits, named
from services.testkit.harness import Harness
from tests.e2e.clients import Clients
from tests.e2e.deployment import Deployment, compose, running, skip_without_docker
from tests.e2e.load import Load, told

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

#: The commit that was released before. A change that it cannot run beside names another here, and CHANGELOG says so.
BEFORE = "bde4002"
PROJECT = f"countinghouse-upgrade-{os.getpid()}"
OLD, NEW = f"before-{os.getpid()}", f"this-{os.getpid()}"
INSTANCES = tuple(f"{service}-{number}" for service in ("order", "ledger", "payment") for number in (1, 2))
#: 50 calls a second: the works below have 2.25 calls on average.
_RATE_PER_S = 50 / 2.25


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """In which docker compose means a deployment in production whose image is of the version before."""
    skip_without_docker()
    root = DEPLOY.parent
    archive = subprocess.run(["git", "-C", root, "archive", BEFORE], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the history of git does not have {BEFORE}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(tmp_path, filter="data")
    dockerfile = str(tmp_path / "deploy" / "Dockerfile")
    build = ["docker", "build", "--quiet", "-f", dockerfile, "-t", f"countinghouse:{OLD}", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    yield (
        os.environ
        | named(PROJECT, free_digits())
        | {
            "COMPOSE_FILE": str(DEPLOY / "docker-compose.yml"),
            "COUNTINGHOUSE_VERSION": OLD,
        }
    )
    subprocess.run(
        ["docker", "image", "rm", *(f"countinghouse:{each}" for each in (OLD, NEW))], capture_output=True, check=False
    )


async def test_upgrade_under_load_fails_no_call(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    load = Load()
    with running(environment) as deployment:
        async with Harness(cast(Any, deployment), discovers=True) as harness:
            directories = tuple(harness.connections.directories.values())
            clients = Clients(load, harness.cashier, harness.accountant, harness.customer, harness.cashier, directories)
            await clients.settle(await clients.new_order())
            async with load.offered(work_of(clients), rate_per_s=_RATE_PER_S):
                code, words = await upgraded(environment | {"COUNTINGHOUSE_VERSION": NEW})
        with capsys.disabled():
            print("\n" + load.summary())  # noqa: T201  a measurement, not a check
        assert code == 0, words
        assert load.failed() == [], told(load.failed())
        assert {image_of(deployment, name) for name in (*INSTANCES, "acquirer")} == {f"countinghouse:{NEW}"}
        assert (await deployment.json("check"))["verdict"] == "ok"


def work_of(clients: Clients) -> Any:
    """Settles, tickets and pays, and reads, in turn."""

    async def work(number: int) -> None:
        match number % 4:
            case 0:
                await clients.settle(await clients.new_order())
            case 1:
                await clients.look_at_an_order()
                await clients.look_at_a_payment()
            case 2:
                await clients.pay_an_order(await clients.ticket(await clients.new_order()))
            case 3:
                await clients.look_at_an_account()
                await clients.look_at_a_payment()

    return work


async def upgraded(environment: dict[str, str]) -> tuple[int | None, str]:
    """Runs the script; its exit code, and the end of what it said."""
    process = await asyncio.create_subprocess_exec(
        str(DEPLOY / "upgrade.sh"), env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    return process.returncode, errors.decode(errors="replace")[-3000:]


def image_of(deployment: Deployment, name: str) -> str:
    container = compose(deployment.environment, "ps", "--quiet", name).strip()
    inspected = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True)
    return str(json.loads(inspected.stdout)[0]["Config"]["Image"])
