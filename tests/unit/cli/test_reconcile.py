"""`countinghouse reconcile`: what its JSON says of a difference."""

from __future__ import annotations

from services.cli.reconcile import _row
from services.reconcile.matching import Action, Amount, Discrepancy, DiscrepancyKind


def test_amounts_in_json_name_their_minor_units() -> None:
    """`1250 CNY` would be read as the amount that people write so."""
    row = _row(Discrepancy(DiscrepancyKind.ONLY_THEIRS, Action.NAME, key="k", theirs=Amount(1250, "CNY")))
    assert (row["theirs"], row["ours"]) == ({"minor_units": 1250, "currency_code": "CNY"}, None)
