"""Every test here plays in a counting house of its own."""

from __future__ import annotations

import pytest

from tests.unit.payment.house import House


@pytest.fixture
async def house() -> House:
    """All guards on, and one unpaid order `o1` of mei's."""
    house = House()
    await house.new_order()
    return house
