"""Many payments by card that all sides agree about, for counting and for measuring."""

from __future__ import annotations

from services.reconcile.matching import Amount, ControlAccount, Journal, Ours, PaidOrder, Sides, Theirs

_MONEY = Amount(1250, "CNY")


def agreeing(count: int) -> Sides:
    """So many settled orders, a millisecond apart."""
    names = [f"{number:06d}" for number in range(1, count + 1)]
    return Sides(
        tuple(Theirs(f"p{name}:1", "CHARGED", _MONEY, f"p{name}", at_ms) for at_ms, name in enumerate(names)),
        tuple(
            Ours(f"p{name}", f"o{name}", "SUCCEEDED", True, f"p{name}:1", _MONEY, f"j{name}", at_ms)
            for at_ms, name in enumerate(names)
        ),
        tuple(
            Journal(f"j{name}", f"p{name}", f"o{name}", sequence, sequence, _MONEY, _MONEY.minor_units)
            for sequence, name in enumerate(names, start=1)
        ),
        tuple(PaidOrder(f"o{name}", f"p{name}", _MONEY, at_ms) for at_ms, name in enumerate(names)),
        (ControlAccount("acquirer:CNY", "CNY", count * _MONEY.minor_units, count),),
    )
