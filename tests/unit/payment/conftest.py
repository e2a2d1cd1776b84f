"""Every test here has an in-memory cluster of its own."""

from __future__ import annotations

import pytest

from tests.unit.payment.cluster import InMemoryCluster


@pytest.fixture
async def cluster() -> InMemoryCluster:
    """All guards on, and one unpaid order `o1` of mei's."""
    cluster = InMemoryCluster()
    await cluster.new_order()
    return cluster
