"""`make bench-faults` brings its faults about: every system charges a card once without one, and ours with one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.devstack.components import postgresql
from services.devstack.components.postgresql import PostgresqlMissing
from tests.bench.faults.__main__ import run
from tests.bench.faults.faults import FAULTS
from tests.bench.faults.outcomes import NEVER, ONCE
from tests.bench.faults.systems import OURS, SYSTEMS

pytestmark = pytest.mark.long
_LATE_CHARGE = "reversal against a late charge"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that PostgreSQL's user may pass through; skips who asks for it if there is no PostgreSQL."""
    try:
        postgresql.find(os.environ)
    except PostgresqlMissing as missing:
        pytest.skip(missing.message)
    with tempfile.TemporaryDirectory(prefix="countinghouse-faults-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


async def test_double_click_charges_once_with_every_system(folder: Path) -> None:
    cells, skipped = await run(folder, SYSTEMS, ("double click",))

    outcomes = cells["double click"]
    assert {*outcomes, *skipped} == {*SYSTEMS}
    assert {name: (one.charged, one.order) for name, one in outcomes.items()} == dict.fromkeys(outcomes, (ONCE, "PAID"))


async def test_no_fault_has_ours_charge_twice(folder: Path) -> None:
    cells, _ = await run(folder, (OURS,), tuple(FAULTS))

    charged = {fault: row[OURS].charged for fault, row in cells.items()}
    assert charged == dict.fromkeys(FAULTS, ONCE) | {_LATE_CHARGE: NEVER}
    assert all(row[OURS].agrees for row in cells.values())
