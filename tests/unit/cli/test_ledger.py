"""What the names of accounts say, on the command line as in the ledger."""

from __future__ import annotations

from services.cli.ledger import _KIND_OF_NAME
from services.ledger.model import _NAMED_KINDS


def test_kinds_of_names_are_those_that_the_ledger_demands() -> None:
    assert {name: kind.name for name, kind in _KIND_OF_NAME.items()} == {
        name: kind.name for name, kind in _NAMED_KINDS.items()
    }
