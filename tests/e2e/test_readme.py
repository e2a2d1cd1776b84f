"""README's own script, run as a stranger would: outside the repository, with nothing of ours but the stubs."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.testkit.client import RecordingClient

_ROOT = Path(__file__).parents[2]
_STUBS = _ROOT / "protos" / "gen"
_MAX_LINES = 20
#: All that a stranger has installed: grpcio, protobuf and kazoo, and what grpcio needs itself.
_INSTALLED = ("grpcio", "typing_extensions", "protobuf", "kazoo")
_TIMEOUT_S = 30.0


def readme_script() -> str:
    """The fenced block after the marker."""
    readme = (_ROOT / "README.md").read_text()
    found = re.search(r"^<!-- script: pay\.py -->\n+```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found, "README.md has no Python block after <!-- script: pay.py -->"
    return found[1]


def link_modules(folder: Path) -> None:
    """Puts the modules of `_INSTALLED` into a folder, and no others."""
    for name in _INSTALLED:
        for file in distribution(name).files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                link = folder / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(file.locate())))


@pytest.fixture(scope="module")
def script() -> str:
    """README's script."""
    return readme_script()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the modules that a stranger has."""
    folder = tmp_path_factory.mktemp("bare")
    link_modules(folder)
    return folder


async def run(bare: Path, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Runs a Python that sees only `bare` and the stubs: -S leaves out everything installed beside it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-S", *arguments),
        cwd=folder,
        env={"PYTHONPATH": f"{bare}{os.pathsep}{_STUBS}", "PATH": os.environ["PATH"], **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_TIMEOUT_S):
        output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


def test_readme_script_is_short_and_imports_only_the_stubs(script: str) -> None:
    assert len(script.strip().splitlines()) <= _MAX_LINES
    assert not re.search(r"^\s*(from|import)\b.*\b(services|coordination)\b", script, re.MULTILINE)


@pytest.mark.parametrize("package", ["services", "coordination", "sqlalchemy"])
async def test_readme_script_has_only_the_stubs_on_its_path(bare: Path, tmp_path: Path, package: str) -> None:
    """Otherwise the next test would prove nothing."""
    code, _, errors = await run(bare, tmp_path, "-c", f"import {package}")
    assert code == 1
    assert f"No module named '{package}'" in errors


async def test_readme_script_finds_the_service_and_settles_an_order(
    script: str, bare: Path, tmp_path: Path, stack: Stack, cashier: RecordingClient
) -> None:
    """It exits with 0, and the order is paid by the payment whose id it prints; run again, it prints the refusal."""
    order_id = await cashier.new_order()
    (tmp_path / "pay.py").write_text(script)
    (tmp_path / "ca.pem").write_bytes((stack.data / "keys" / "ca.pem").read_bytes())
    environment = {
        "COUNTINGHOUSE_ZOOKEEPER": stack.zookeeper,
        "COUNTINGHOUSE_TOKEN": stack.token("li", Role.CASHIER),
    }
    code, output, errors = await run(bare, tmp_path, "pay.py", order_id, **environment)
    assert (code, errors) == (0, "")
    printed = re.search(r"\bpay_\w+", output)
    assert printed, output
    request = payment_pb2.GetPaymentRequest(payment_id=printed[0])
    payment = (await cashier.ask(request)).payment
    assert (payment.state, payment.order_id) == (payment_pb2.PAYMENT_STATE_SUCCEEDED, order_id)
    assert await cashier.order_state(order_id) == "PAID"
    assert payment.clerk.name == "li"
    assert payment.ticket_id
    code, again, errors = await run(bare, tmp_path, "pay.py", order_id, **environment)
    assert (code, again) == (1, "")
    assert re.fullmatch(rf"ALREADY_EXISTS: .*{printed[0]}.*\n", errors)
