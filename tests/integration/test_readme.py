"""The examples of coordination/README.md, run as a reader would run them."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.integration.zookeeper import ZooKeeper

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 60.0


def example(name: str) -> str:
    """Return the fenced block after the marker."""
    readme = (_ROOT / "coordination" / "README.md").read_text()
    found = re.search(rf"^<!-- script: {re.escape(name)} -->\n```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found, f"coordination/README.md has no example {name}"
    return found[1]


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("lock.py", r"order-17 is locked, fencing token \d+\n"),
        ("discovery.py", r"status: SERVING\n\n"),
        ("fence.py", r"written\nrefused: a newer holder has written\n"),
    ],
)
async def test_example_runs_as_it_stands(zookeeper: ZooKeeper, tmp_path: Path, name: str, printed: str) -> None:
    script = tmp_path / name
    script.write_text(example(name))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), zookeeper.hosts),
        cwd=tmp_path,
        env={"PYTHONPATH": str(_ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_TIMEOUT_S):
        output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    assert re.fullmatch(printed, output.decode())
