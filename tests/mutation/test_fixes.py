"""Each fault of ARCHITECTURE's table can be brought back. `make mutate-fixes` does so, and runs the tests of it."""

from __future__ import annotations

import pytest

from tests.mutation.fixes import ROOT, Case, applies, copied, fixes, rows, unnoticed

TEST = "tests/unit/payment/test_park.py::test_park"


def test_every_fault_of_the_table_has_a_patch() -> None:
    table = rows((ROOT / "ARCHITECTURE.md").read_text())
    assert len(table) > 100
    assert {fix.fault for fix in fixes()} == set(table)


def test_every_patch_takes_code_out_and_no_test() -> None:
    for fix in fixes():
        changed = [line.split(" b/")[1] for line in fix.file.read_text().splitlines() if line.startswith("diff --git")]
        assert changed, fix.name
        assert not [file for file in changed if file.startswith("tests/")], fix.name


def test_every_patch_fits_the_code() -> None:
    """Who changes the code around a fix writes its patch anew."""
    with copied() as tree:
        assert [fix.name for fix in fixes() if not applies(fix, tree)] == []


def test_every_test_of_a_patch_is_there() -> None:
    for test in {test for fix in fixes() for test in fix.tests}:
        file, *names = test.split("::")
        assert (ROOT / file).is_file(), test
        assert not names or names[0].partition("[")[0] in (ROOT / file).read_text(), test


@pytest.mark.parametrize(
    ("place", "outcome", "noticed"),
    [
        ("tests.unit.payment.test_park.test_park", "failure", True),
        ("tests.unit.payment.test_park.test_park[card]", "failure", True),
        ("tests.unit.payment.test_park.test_park", "passed", False),
        ("tests.unit.payment.test_park.test_park", "error", False),
        ("tests.unit.payment.test_park.test_park", "skipped", False),
        ("tests.unit.payment.test_park.test_park_twice", "failure", False),
        ("tests.unit.payment.test_pay.test_park", "failure", False),
    ],
)
def test_test_has_noticed_if_a_case_of_it_failed(place: str, outcome: str, noticed: bool) -> None:
    assert (unnoticed([TEST], [Case(place, outcome)]) == []) is noticed


@pytest.mark.parametrize("test", ["tests/unit/payment/test_park.py", "tests/unit/payment/test_park.py::TestParked"])
def test_file_or_class_has_noticed_if_one_of_its_tests_failed(test: str) -> None:
    failed = Case("tests.unit.payment.test_park.TestParked.test_park[card]", "failure")
    assert unnoticed([test], [failed]) == []


def test_tree_is_copied_whole_and_is_not_the_tree() -> None:
    with copied() as tree:
        assert (tree / "services" / "payment" / "saga.py").read_text() == (
            ROOT / "services/payment/saga.py"
        ).read_text()
        assert not (tree / ".git").exists()
    assert not tree.exists()
