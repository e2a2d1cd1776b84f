"""`countinghouse registry watch` where its output is no terminal."""

from __future__ import annotations

import json

import pytest

from services.cli.watching import ProviderRow, _print_json_lines, _print_lines

ROW = ProviderRow("countinghouse.order.v1.OrderService", "127.0.0.1:5001", "order-1", 100, "live", "")


def test_line_of_a_new_provider_begins_with_registered(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON line keeps the name of the event that its callers know."""
    _print_lines({}, {(ROW.interface, ROW.address): ROW})
    assert capsys.readouterr().out.split()[1:4] == ["registered", ROW.interface, ROW.address]
    _print_json_lines({}, {(ROW.interface, ROW.address): ROW})
    assert json.loads(capsys.readouterr().out)["event"] == "there"
