"""The acquirer in memory, as the payment service sees it: the bank's own rules on a dictionary."""

from __future__ import annotations

from collections.abc import Callable

from services.acquirer import model
from services.kernel.clock import CallDeadline, Clock
from services.kernel.errors import KeyMismatch, OutcomeUnknown
from services.kernel.money import Money
from services.payment.model import Payment
from services.payment.ports import Acquirer, ChargeStatus, ChargeTerms, KeyState


class FakeAcquirer(Acquirer):
    """Silent only when told; else a test cuts the wire to it.

    Attributes:
        drops_first: It acts, and does not answer, the first time that a method is called for a key.
        says: Tells of a charge; a test lets it tell something else.
        refuses_to_reverse: It answers ReverseByKey with the charge as it stands.
        tells_nothing: It does not answer GetCharge.
        knows_nothing: It answers Charge as if it had never seen the key.
    """

    def __init__(self, clock: Clock) -> None:
        self.present = True
        self.drops_first = False
        self.says: Callable[[model.Charge], ChargeStatus] = _says
        self.refuses_to_reverse = False
        self.knows_nothing = False
        self.tells_nothing = False
        self._dropped: set[tuple[str, str]] = set()
        self.charges: dict[str, model.Charge] = {}
        self._clock = clock

    async def charge(self, key: str, payment: Payment, amount: Money, deadline: CallDeadline) -> ChargeStatus:
        if self.knows_nothing:
            return ChargeStatus(KeyState.UNSEEN)
        payload = model.Payload(payment.card, amount, payment.payment_id)
        said = self._decide(key, lambda standing: model.charge(standing, key, payload, self._clock.now_ms()))
        return self._answered("charge", key, said)

    async def query(self, key: str, deadline: CallDeadline) -> ChargeStatus:
        if self.tells_nothing:
            raise OutcomeUnknown("ACQUIRER_SILENT", "no answer")
        standing = self.charges.get(key)
        return ChargeStatus(KeyState.UNSEEN) if standing is None else self.says(standing)

    async def reverse_by_key(self, key: str, deadline: CallDeadline) -> ChargeStatus:
        if self.refuses_to_reverse:
            return self.says(self.charges[key])
        said = self._decide(key, lambda standing: model.reverse(standing, key, self._clock.now_ms()))
        return self._answered("reverse_by_key", key, said)

    def _answered(self, method: str, key: str, said: ChargeStatus) -> ChargeStatus:
        if self.drops_first and (method, key) not in self._dropped:
            self._dropped.add((method, key))
            raise OutcomeUnknown("ACQUIRER_SILENT", "it has acted, and does not say so")
        return said

    def _decide(self, key: str, decide: Callable[[model.Charge | None], model.Charge]) -> ChargeStatus:
        try:
            self.charges[key] = decide(self.charges.get(key))
        except KeyMismatch as mismatch:
            raise OutcomeUnknown(mismatch.reason, mismatch.message) from mismatch
        return self.says(self.charges[key])


def _says(charge: model.Charge) -> ChargeStatus:
    payload = charge.payload
    terms = None
    if payload is not None:
        terms = ChargeTerms(payload.amount.minor_units, payload.amount.currency, payload.card, payload.reference)
    return ChargeStatus(KeyState(charge.state), charge.decline_reason, charge.key, terms)
