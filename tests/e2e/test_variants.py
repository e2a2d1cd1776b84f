"""The variants of ours that `make bench-settle` measures: the part is replaced, and each order is settled once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.devstack.options import SQLITE
from tests.bench.settles.load import Job, run
from tests.bench.settles.results import OURS_KAZOO, OURS_SINGLY
from tests.bench.settles.systems import VARIANTS, decoded, ours, variant

_REPLACED = {
    OURS_KAZOO: ("coordination.locks.lock", "ResourceLocks.acquire"),
    OURS_SINGLY: ("services.runtime.database.group_commit", "GroupCommit.run_all"),
}
_ORDERS, _CALLERS = 12, 4


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_replaces_the_part_before_a_program_starts(name: str) -> None:
    module, method = _REPLACED[name]
    program = f"import {module}; print({module}.{method}.__module__)"

    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=os.environ | {"PYTHONPATH": str(VARIANTS[name])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "sitecustomize"


@pytest.mark.parametrize("name", VARIANTS)
async def test_variant_settles_each_order_once(name: str, tmp_path: Path) -> None:
    async with variant(name, tmp_path, SQLITE) as stack, ours(name, stack) as system:
        orders = await system.make_orders(_ORDERS)

        load = await asyncio.wait_for(run(Job(system.addresses, system.tokens(_CALLERS), orders)), 60)

        assert load.problems == []
        assert await system.problems(orders, decoded(load.responses)) == []
