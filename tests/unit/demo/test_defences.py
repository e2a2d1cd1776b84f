"""The table of the guards of each act: it is consistent, and services/demo/README.md shows it word by word.

tests/e2e/test_demo.py runs the acts with the guards off.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.checker.registry import run_checks
from services.demo.acts import ACTS
from services.demo.defences import DEFENCES, Defence, table
from services.kernel.guards import NAMES
from tests.unit.checker.dataset import legal

README = Path(__file__).parents[3] / "services/demo/README.md"
CHECKS = {check.name for check in run_checks(legal().snapshot())}


def test_readme_shows_the_table_of_the_code() -> None:
    found = re.search(
        r"^<!-- table: guards -->\n\n(.*?)\n\n", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found, "services/demo/README.md has no table after <!-- table: guards -->"
    assert found[1] == table()


def test_every_act_has_its_row_in_the_order_of_the_acts() -> None:
    assert list(DEFENCES) == list(ACTS)


@pytest.mark.parametrize("act", DEFENCES)
def test_entry_names_guards_and_checks_that_exist(act: str) -> None:
    defence = DEFENCES[act]
    assert {*defence.alone, *(guard for guards in defence.together for guard in guards)} <= set(NAMES)
    assert {*defence.alone.values(), *defence.together.values()} <= CHECKS


@pytest.mark.parametrize("act", DEFENCES)
def test_guards_that_are_together_are_the_fewest(act: str) -> None:
    """None of them is alone, and none of their sets contains another."""
    defence: Defence = DEFENCES[act]
    sets = [set(guards) for guards in defence.together]
    assert all(len(guards) > 1 and not guards & set(defence.alone) for guards in sets)
    assert not any(one < other for one in sets for other in sets)
