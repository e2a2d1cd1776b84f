"""Fences are ordered by generation first, then by token."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from services.kernel.fence import NO_FENCE, Fence

FENCES = st.builds(Fence, st.integers(1, 3), st.integers(1, 2**63 - 1))


@given(FENCES, FENCES)
def test_fences_are_ordered_as_pairs(left: Fence, right: Fence) -> None:
    """As pairs; a new generation beats every token of the old one."""
    assert (left < right) == ((left.generation, left.token) < (right.generation, right.token))
    if left.generation < right.generation:
        assert left < right


@given(FENCES)
def test_no_fence_is_smaller_than_every_fence(fence: Fence) -> None:
    """And false, where every real one is true."""
    assert fence > NO_FENCE
    assert fence
    assert not NO_FENCE


def test_fence_is_written_like_zookeeper_writes_czxids() -> None:
    """The generation, and the token in hexadecimal."""
    assert str(Fence(2, 0x1_0000_002A)) == "2.10000002a"
