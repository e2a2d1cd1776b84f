"""What every payment store does with a guard off."""

from __future__ import annotations

import pytest

from services.kernel.errors import (
    RequestInProgress,
)
from services.kernel.fence import NO_FENCE
from services.kernel.guards import Guards
from services.payment.model import (
    Accepted,
    Payment,
    PaymentState,
)
from tests.contract.payment.subject import (
    DAY_MS,
    FENCE,
    NEWER,
    T0,
    Made,
    Make,
    accepted,
    draft,
    everything,
    issued,
    lease,
    settle_key,
)


class GuardsContract:
    """Each shows the harm that the guard prevents."""

    async def test_without_the_ticket_every_call_pays(self, make: Make) -> None:
        """What the guard stops: the same ticket makes one payment after another."""
        subject = await make(Guards.without(["ticket"]))
        ticket = await issued(subject)
        for n in range(3):
            outcome = await subject.store.accept(draft(f"p{n}", ticket, ""), "f", lease())
            assert isinstance(outcome, Accepted)
            await Made(subject, f"p{n}").submit(NO_FENCE)
            await Made(subject, f"p{n}").record(NO_FENCE)
        assert [payment.state for payment in await everything(subject)] == [PaymentState.SUCCEEDED] * 3

    async def test_without_the_ticket_nothing_is_answered_from_the_store(self, make: Make) -> None:
        """The repeat runs anew, under the rules of today."""
        subject = await make(Guards.without(["ticket"]))
        await (await accepted(subject)).decline()
        assert await subject.requests.answered(settle_key(), "f", now_ms=T0) is None

    async def test_without_the_fence_a_stale_holder_writes(self, make: Make) -> None:
        """What the guard stops; the fence that is kept does not fall even so."""
        subject = await make(Guards.without(["fence"]))
        made = await accepted(subject)
        await made.submit(NEWER)
        recorded = await made.record(FENCE)
        assert (recorded.state, recorded.fence) == (PaymentState.SUCCEEDED, NEWER)

    async def test_without_the_unique_index_two_payments_are_active(self, make: Make) -> None:
        """What the guard stops."""
        subject = await make(Guards.without(["unique"]))
        for n in range(2):
            made = await accepted(subject, draft(f"p{n}", settle_key(f"s{n}")))
            assert isinstance(await made.submit(), Payment)

    async def test_without_recovery_a_dead_execution_keeps_its_request(self, make: Make) -> None:
        """What the guard does: nobody carries it on."""
        subject = await make(Guards.without(["recovery"]))
        await accepted(subject)
        with pytest.raises(RequestInProgress):
            await subject.store.accept(draft("p2"), "f", lease(T0 + DAY_MS))
