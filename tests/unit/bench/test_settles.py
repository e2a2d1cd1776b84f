"""How rounds of `make bench-settle` become one line, and what its page makes of what it is given."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.settles import report
from tests.bench.settles.peers import Kind, read_pgbench
from tests.bench.settles.results import (
    CASHIERS,
    CASHIERS_BESIDE,
    CEILING,
    OURS_BATCH,
    OURS_POSTGRESQL,
    PEER,
    Measurement,
    measured,
    ratio,
    summary,
)
from tests.bench.settles.run import Outcome

_PGBENCH = """\
number of transactions actually processed: {done}/4
latency average = 2.000 ms
initial connection time = 17.853 ms
tps = 800.000000 (without initial connection time)
"""
_ROOT = Path(__file__).parents[3]
_LOG = ["0 1 1000 0 1 1", "0 2 2000 0 1 2", "1 1 3000 0 1 3", "1 2 2000 0 1 4"]


def _one(system: str, number: int, per_s: float, callers: int = 8) -> Measurement:
    return Measurement(system, callers, number, orders=10, retries=1, per_s=per_s, p50_ms=1000 / per_s, p99_ms=9.0)


def test_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_the_medians() -> None:
    ours = [_one(OURS_POSTGRESQL, number, per_s) for number, per_s in ((1, 10.0), (2, 90.0), (3, 80.0))]
    peers = [_one(PEER, number, per_s) for number, per_s in ((3, 100.0), (1, 100.0), (2, 300.0))]

    assert ratio(ours, peers, lambda one: one.per_s) == pytest.approx(0.3)  # of 0.1, 0.3, 0.8; that of medians is 0.8


def test_ratio_leaves_out_a_round_that_only_one_of_them_has() -> None:
    ours = [_one(OURS_POSTGRESQL, 1, 50.0), _one(OURS_POSTGRESQL, 2, 1.0)]

    assert ratio(ours, [_one(PEER, 1, 100.0)], lambda one: one.per_s) == pytest.approx(0.5)
    assert ratio(ours, [_one(PEER, 3, 100.0)], lambda one: one.per_s) is None


def test_summary_compares_with_the_peer_of_as_many_callers() -> None:
    lines = summary(
        [
            _one(PEER, 1, 400.0, callers=32),
            _one(OURS_POSTGRESQL, 1, 200.0, callers=32),
            _one(OURS_POSTGRESQL, 2, 300.0, callers=32),
            _one(CEILING, 1, 1600.0),
            _one(PEER, 1, 800.0),
            _one(OURS_POSTGRESQL, 1, 80.0, callers=1),
        ]
    )

    assert [(line.callers, line.system, line.rate_ratio) for line in lines] == [
        (1, OURS_POSTGRESQL, None),
        (8, PEER, 1.0),
        (8, CEILING, 2.0),
        (32, OURS_POSTGRESQL, 0.5),
        (32, PEER, 1.0),
    ]
    ours = lines[3]
    assert (ours.per_s.least, ours.per_s.median, ours.per_s.greatest) == (200.0, 250.0, 300.0)
    assert (ours.orders, ours.retries, ours.p50_ratio) == (20, 2, 2.0)


def test_measured_is_the_rate_and_the_percentiles() -> None:
    one = measured(PEER, 1, 1, elapsed_s=2.0, lasted_s=[number / 1000 for number in range(101)])

    assert (one.orders, one.per_s, one.p50_ms, one.p99_ms) == pytest.approx((101, 50.5, 50.0, 99.0))
    assert measured(PEER, 1, 1, elapsed_s=2.0, lasted_s=[0.5]).p99_ms == 500.0


def test_pgbench_is_read_from_what_it_prints_and_its_log() -> None:
    one = read_pgbench(_PGBENCH.format(done=4), _LOG, 2)

    assert (one.system, one.round, one.orders) == (CEILING, 2, 4)
    assert (one.per_s, one.p50_ms) == pytest.approx((800.0, 2.0))


@pytest.mark.parametrize("said", [_PGBENCH.format(done=3), "", "transactions actually processed: 0/0"])
def test_pgbench_that_did_not_run_every_transaction_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="did not run every transaction"):
        read_pgbench(said, _LOG, 1)


def test_page_escapes_what_it_is_given() -> None:
    hostile = "<script>alert(1)</script>"
    outcome = Outcome(measurements=[_one(PEER, 1, 100.0)], problems=[hostile])

    page = report.html(outcome, {hostile: hostile}, hostile)

    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4
    assert "violated" in page


def test_bar_escapes_the_name_of_its_system() -> None:
    line = summary([_one(PEER, 1, 100.0)])[0]
    hostile = type(line)(**{field: getattr(line, field) for field in line.__slots__} | {"system": "<b>&"})

    drawn = report.bars([hostile], lambda line: line.per_s, "<i>", one_scale=True)

    assert "&lt;b&gt;&amp;" in drawn
    assert "<b>" not in drawn
    assert "<i>" not in drawn


def test_page_needs_no_other_file() -> None:
    page = report.html(Outcome(measurements=[_one(PEER, 1, 100.0), _one(CEILING, 1, 200.0)]), {"date": "today"}, "make")

    assert not [sign for sign in ("http:", "https:", "src=", "<link", "@import", "url(") if sign in page]
    assert page.count("<svg") == 3


def test_document_is_json_with_every_measurement() -> None:
    outcome = Outcome(measurements=[_one(PEER, 1, 100.0), _one(CEILING, 1, 200.0)])

    document = json.loads(json.dumps(report.document(outcome, {"date": "today"})))

    assert document["ok"] is True
    assert document["against_ceiling"] == {PEER: 0.5}
    assert [one["system"] for one in document["measurements"]] == [PEER, CEILING]


def test_ours_is_compared_with_each_other_system_with_as_many_callers() -> None:
    measurements = [
        _one(OURS_POSTGRESQL, 1, 300.0, callers=32),
        _one(PEER, 1, 600.0, callers=32),
        _one("another", 1, 100.0, callers=32),
        _one("another", 1, 1.0, callers=8),
    ]

    assert report.ours_against(Outcome(measurements=measurements)) == {PEER: 0.5, "another": 3.0}
    assert report.ours_against(Outcome(measurements=measurements[1:])) == {}


def test_document_is_rounded() -> None:
    document = report.document(Outcome(measurements=[_one(PEER, 1, 123.456789)]), {})

    assert document["measurements"][0]["per_s"] == 123.5
    assert document["measurements"][0]["p50_ms"] == 8.1
    assert document["measurements"][0]["callers"] == 8


def test_markdown_has_a_line_for_each_system_and_says_when_and_where_and_what_was_skipped() -> None:
    measurements = [
        *(_one(OURS_POSTGRESQL, 1, 200.0, callers=callers) for callers in (1, 8, 32)),
        *(_one(PEER, 1, 400.0, callers=callers) for callers in (1, 8, 32)),
        _one(CEILING, 1, 1600.0),
    ]
    facts = {
        "date": "2026-01-02T03:04:05Z",
        "machine": "2 cores",
        "PostgreSQL": "server_version 15.1 (x)",
        "command": "make it",
    }
    outcome = Outcome(measurements=measurements, skipped={"another": "not installed"})

    table = report.markdown(report.document(outcome, facts)).splitlines()

    assert table[2:] == [
        "| ours, PostgreSQL | 5.00 ms | 200 /s | 200 /s | 5.00, 9.00 ms |  | 0.50 / 0.50 / – |",
        "| one service, asyncpg | 2.50 ms | 400 /s | 400 /s | 2.50, 9.00 ms |  | 1.00 / 1.00 / – |",
        "| pgbench, the same transaction |  | 1,600 /s |  |  |  |  |",
        "",
        "2026-01-02, 2 cores, PostgreSQL 15.1, fsync on; `make it`; another: not installed.",
    ]
    assert {line.count("|") for line in table[:5]} == {8}


def test_markdown_has_a_batch_run_in_one_cell_and_cashiers_only_in_the_whole_table() -> None:
    measurements = [
        _one(OURS_POSTGRESQL, 1, 200.0),
        _one(OURS_BATCH, 1, 1000.0),
        _one(CASHIERS, 1, 50.0),
        replace(_one(CASHIERS_BESIDE, 1, 50.0), p99_ms=18.0),
    ]
    facts = {"date": "2026-01-02", "machine": "2 cores", "PostgreSQL": "server_version 15.1", "command": "make it"}
    document = report.document(Outcome(measurements=measurements), facts)

    short, whole = report.markdown(document, short=True), report.markdown(document)

    assert f"| {OURS_BATCH} |  | 1,000 /s; 1.00, 9.00 ms |  |  |  |  |" in short.splitlines()
    assert f"| {CASHIERS} |" not in short
    assert f"| {CASHIERS} |  | 50.0 /s; 20.0, 9.00 ms |  |  |  |  |" in whole.splitlines()
    assert "cashiers' p99 beside a batch run: 2.00 × without." in short
    assert report.against_ceiling(Outcome(measurements=[*measurements, _one(CEILING, 1, 100.0)])) == {
        OURS_POSTGRESQL: 2.0,
        OURS_BATCH: 10.0,
    }


def test_page_and_document_name_a_system_that_was_skipped() -> None:
    outcome = Outcome(measurements=[_one(PEER, 1, 100.0)], skipped={"another": "not installed"})

    assert "not installed" in report.html(outcome, {}, "make")
    assert report.document(outcome, {})["skipped"] == {"another": "not installed"}


def test_peer_that_lacks_a_package_or_a_program_says_which() -> None:
    kind = Kind("one", "one", packages=("json", "no_such_package"), programs=("sh", "no-such-program"))

    assert "no_such_package, no-such-program" in kind.lacking()
    assert Kind("one", "one", packages=("json",), programs=("sh",)).lacking() == ""


@pytest.mark.parametrize(("readme", "short"), [("README.md", True), ("tests/bench/settles/README.md", False)])
def test_readme_shows_the_table_of_the_run_that_is_kept(readme: str, short: bool) -> None:
    kept = _ROOT / "tests/bench/results/settles.json"
    shown = re.search(r"^<!-- table: settles -->\n(.*?)\n\n## ", (_ROOT / readme).read_text(), re.M | re.S)

    assert shown, f"{readme} has no table after <!-- table: settles -->"
    assert shown[1] == report.markdown(json.loads(kept.read_text()), short=short)
    assert kept.stat().st_size < 100_000
