"""What the payment service may rely on at the acquirer. The fake and a real process run this suite as subclasses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from services.kernel.clock import CallDeadline, SystemClock
from services.kernel.errors import OutcomeUnknown
from services.kernel.idempotency import RequestKey
from services.kernel.ids import RandomIds
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment.model import SETTLE, Payment, Source
from services.payment.ports import Acquirer, ChargeStatus, ChargeTerms, KeyState

LI = Principal("li", Role.CASHIER)
AMOUNT = Money(300, "CNY")


@dataclass(frozen=True, slots=True)
class Key:
    """One key nobody has used, and what can be asked of it."""

    acquirer: Acquirer
    payment: Payment

    async def charge(self, amount: Money = AMOUNT, *, card: str = "tok-mei") -> ChargeStatus:
        payment = replace(self.payment, card=card)
        return await self.acquirer.charge(self.payment.acquirer_key, payment, amount, soon())

    def says(self, state: KeyState, reason: str = "", *, card: str = "tok-mei") -> ChargeStatus:
        """The whole answer about this key in `state`."""
        terms = ChargeTerms(AMOUNT.minor_units, AMOUNT.currency, card, self.payment.payment_id)
        return ChargeStatus(state, reason, self.payment.acquirer_key, None if state is KeyState.TOMBSTONE else terms)

    async def query(self) -> ChargeStatus:
        return await self.acquirer.query(self.payment.acquirer_key, soon())

    async def reverse(self) -> ChargeStatus:
        return await self.acquirer.reverse_by_key(self.payment.acquirer_key, soon())


def soon() -> CallDeadline:
    return CallDeadline.after(10, SystemClock())


def fresh(acquirer: Acquirer) -> Key:
    payment_id = RandomIds().new("pay")
    draft = Payment.created(payment_id, RequestKey(LI, SETTLE, payment_id), "o1", Source.CARD, LI, "", 1, "tok-mei")
    return Key(acquirer, replace(draft, acquirer_key=f"{payment_id}:1"))


class AcquirerContract:
    """Subclasses bring a fixture `acquirer`: the port."""

    async def test_repeated_charge_returns_the_same_charge(self, acquirer: Acquirer) -> None:
        """Asked about or asked for again, it is the same."""
        key = fresh(acquirer)
        assert await key.query() == ChargeStatus(KeyState.UNSEEN)
        assert await key.charge() == key.says(KeyState.CHARGED)
        assert await key.charge() == await key.query() == key.says(KeyState.CHARGED)

    async def test_repeated_charge_of_a_declined_key_is_declined(self, acquirer: Acquirer) -> None:
        """With its reason; a reversal finds nothing to undo."""
        key = fresh(acquirer)
        declined = key.says(KeyState.DECLINED, "CARD_EXPIRED", card="tok-expired")
        assert await key.charge(card="tok-expired") == declined
        assert await key.charge(card="tok-expired") == await key.query() == await key.reverse() == declined

    async def test_charge_with_another_payload_has_an_unknown_outcome(self, acquirer: Acquirer) -> None:
        """What stands under the key is not ours: nobody may take it for a success or a decline."""
        key = fresh(acquirer)
        await key.charge()
        with pytest.raises(OutcomeUnknown) as unknown:
            await key.charge(Money(301, "CNY"))
        assert unknown.value.reason == "IDEMPOTENCY_KEY_MISMATCH"
        assert await key.charge() == key.says(KeyState.CHARGED)

    async def test_charge_of_a_refunded_key_stays_refunded(self, acquirer: Acquirer) -> None:
        """Nothing is charged under the key any more, and it is not refunded twice."""
        key = fresh(acquirer)
        await key.charge()
        refunded = key.says(KeyState.REFUNDED)
        assert refunded.was_charged
        assert await key.reverse() == await key.reverse() == refunded
        assert await key.charge() == await key.query() == refunded

    async def test_tombstone_refuses_a_late_charge(self, acquirer: Acquirer) -> None:
        key = fresh(acquirer)
        stone = key.says(KeyState.TOMBSTONE)
        assert not stone.was_charged
        assert await key.reverse() == await key.reverse() == stone
        assert await key.charge() == await key.query() == stone

    async def test_concurrent_charge_and_reversal_have_one_outcome(self, acquirer: Acquirer) -> None:
        """Charges and a reversal of one key in a heap: in the end it is refunded or was never charged."""
        key = fresh(acquirer)
        said = await asyncio.gather(*(key.charge() for _ in range(5)), key.reverse(), *(key.charge() for _ in range(5)))
        ended = await key.query()
        assert ended == said[5]
        assert ended.state in (KeyState.REFUNDED, KeyState.TOMBSTONE)
        if ended.state is KeyState.TOMBSTONE:
            assert set(said) == {ended}

    async def test_keys_are_independent(self, acquirer: Acquirer) -> None:
        one, other = fresh(acquirer), fresh(acquirer)
        await one.charge()
        await other.reverse()
        assert (await one.query()).state is KeyState.CHARGED
        assert (await other.query()).state is KeyState.TOMBSTONE
