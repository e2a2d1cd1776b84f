"""Guards are on unless they are named."""

from __future__ import annotations

import pytest

from services.kernel.errors import InvalidArgument
from services.kernel.guards import NAMES, Guards


def test_all_guards_are_on() -> None:
    """By default none is off."""
    assert Guards().off == ()
    assert Guards.without([]) == Guards.without(["", " "]) == Guards()


def test_names_are_those_of_the_design() -> None:
    """`--guards-off` takes exactly these."""
    assert set(NAMES) == {"ticket", "lock", "fence", "state", "unique", "recovery", "acquirer-key"}


@pytest.mark.parametrize("name", NAMES)
def test_each_guard_is_switched_off_alone(name: str) -> None:
    """And only that one."""
    guards = Guards.without([f" {name} "])
    assert guards.off == (name,)
    assert [getattr(guards, other.replace("-", "_")) for other in NAMES] == [other != name for other in NAMES]


def test_guard_that_does_not_exist_is_refused() -> None:
    """A typo must not leave the guard on in silence; the message lists those there are."""
    with pytest.raises(InvalidArgument, match="ticket") as refusal:
        Guards.without(["fence", "fense"])
    assert refusal.value.reason == "GUARD_UNKNOWN"
