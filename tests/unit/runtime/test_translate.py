"""The shared messages, in and out."""

from __future__ import annotations

import pytest

from countinghouse.type.v1 import clerk_pb2, fence_pb2, money_pb2
from services.kernel.errors import InvalidArgument
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.runtime.grpc import translate


@pytest.mark.parametrize("role", Role)
def test_clerks_come_back(role: Role) -> None:
    """Every role has a number."""
    assert translate.clerk_in(translate.clerk_out(Principal("li", role))) == Principal("li", role)


def test_money_and_fences_come_back() -> None:
    """To the last bit."""
    assert translate.money_in(translate.money_out(Money(10**15, "CNY"))) == Money(10**15, "CNY")
    large = Fence(2**62, 2**63 - 1)
    assert translate.fence_in(translate.fence_out(large), required=True) == large


@pytest.mark.parametrize(
    "clerk",
    [
        clerk_pb2.Clerk(role=clerk_pb2.ROLE_CASHIER),
        clerk_pb2.Clerk(name="li"),
        clerk_pb2.Clerk(name="li", role=99),  # type: ignore[arg-type]
        clerk_pb2.Clerk(name="two words", role=clerk_pb2.ROLE_CASHIER),
    ],
)
def test_half_a_clerk_is_refused(clerk: clerk_pb2.Clerk) -> None:
    """A name and a known role are needed."""
    with pytest.raises(InvalidArgument):
        translate.clerk_in(clerk)


def test_no_money_is_refused() -> None:
    """An empty message is no amount."""
    with pytest.raises(InvalidArgument):
        translate.money_in(money_pb2.Money())


def test_fence_is_whole_or_left_out() -> None:
    """Left out only where it may be; half a fence or a negative one never."""
    assert translate.fence_in(fence_pb2.Fence(), required=False) == NO_FENCE
    with pytest.raises(InvalidArgument):
        translate.fence_in(fence_pb2.Fence(), required=True)
    for half in (
        fence_pb2.Fence(generation=1),
        fence_pb2.Fence(token=1),
        fence_pb2.Fence(generation=-1, token=5),
        fence_pb2.Fence(generation=1, token=-5),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            translate.fence_in(half, required=False)
        assert refusal.value.reason == "FENCE_REQUIRED"
