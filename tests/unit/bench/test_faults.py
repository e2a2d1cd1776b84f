"""What the acquirer's log says of a card, and how `make bench-faults` shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench.faults import report
from tests.bench.faults.outcomes import NEVER, ONCE, TWICE, UNKNOWN, Outcome, charged
from tests.bench.faults.systems import SYSTEMS

_BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ([], NEVER),
        ([("a", "RECEIVED"), ("a", "CHARGED")], ONCE),
        ([("a", "RECEIVED"), ("a", "CHARGED"), ("a", "RECEIVED"), ("a", "REPEATED")], ONCE),
        ([("a", "CHARGED"), ("b", "CHARGED")], TWICE),
        ([("a", "CHARGED"), ("b", "CHARGED"), ("b", "REFUNDED")], ONCE),
        ([("a", "CHARGED"), ("a", "REFUNDED")], NEVER),
        ([("a", "RECEIVED"), ("a", "DECLINED")], NEVER),
        ([("a", "RECEIVED"), ("a", "TOMBSTONE"), ("a", "REPEATED")], NEVER),
        ([("a", "RECEIVED")], UNKNOWN),
    ],
)
def test_charged_counts_what_the_log_says(log: list[tuple[str, str]], expected: str) -> None:
    assert charged(log) == expected


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (Outcome(ONCE, "PAID"), "once"),
        (Outcome(NEVER, "UNPAID"), "never"),
        (Outcome(ONCE, "PAYING"), "**once**, order PAYING"),
        (Outcome(NEVER, "PAID"), "**never**, order PAID"),
        (Outcome(TWICE, "PAID"), "**twice**, order PAID"),
        (Outcome(UNKNOWN, "PAYING"), "**unknown**, order PAYING"),
        (Outcome("", "", "it has no reversal"), "–"),
    ],
)
def test_cell_names_the_order_if_it_contradicts_the_charge(outcome: Outcome, shown: str) -> None:
    assert outcome.shown() == shown


def test_table_has_a_line_for_each_fault_and_a_column_for_each_system() -> None:
    cells = {"double click": {"ours": Outcome(ONCE, "PAID"), "another": Outcome(TWICE, "PAID")}, "silence": {}}

    table = report.markdown(cells, ["ours", "another"]).splitlines()

    assert table == [
        "| how often the acquirer charged | ours | another |",
        "|---|---|---|",
        "| double click | once | **twice**, order PAID |",
        "| silence | – | – |",
    ]


def test_document_is_json_and_says_what_agrees_and_what_was_skipped() -> None:
    cells = {"double click": {"ours": Outcome(ONCE, "PAID", "li: SUCCEEDED")}}

    document = json.loads(json.dumps(report.document(cells, {"date": "today"}, {"another": "not installed"})))

    assert document["outcomes"]["double click"]["ours"] == {
        "charged": ONCE,
        "order": "PAID",
        "detail": "li: SUCCEEDED",
        "agrees": True,
    }
    assert document["skipped"] == {"another": "not installed"}


def test_readme_shows_the_table_of_the_run_that_is_kept() -> None:
    kept = json.loads((_BENCH / "results/faults.json").read_text())
    readme = (_BENCH / "faults/README.md").read_text()

    shown = re.search(r"^<!-- table: faults -->\n\n(.*?)\n\n", readme, re.M | re.S)

    assert shown, "tests/bench/faults/README.md has no table after <!-- table: faults -->"
    assert shown[1] == report.markdown(report.cells_of(kept), SYSTEMS)
