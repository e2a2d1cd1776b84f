"""How rounds of `make bench-settle` become one line, and what its page makes of what it is given."""

from __future__ import annotations

import json

import pytest

from tests.bench.settles import report
from tests.bench.settles.results import CEILING, OURS_POSTGRESQL, PEER, Measurement, measured, ratio, summary
from tests.bench.settles.run import Outcome
from tests.bench.settles.systems import read_pgbench

_PGBENCH = """\
number of transactions actually processed: {done}/4
latency average = 2.000 ms
initial connection time = 17.853 ms
tps = 800.000000 (without initial connection time)
"""
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
