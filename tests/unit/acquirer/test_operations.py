"""The bank's use cases: what is in its log, whom it tells, and what goes wrong when it is to go wrong."""

from __future__ import annotations

import asyncio

import pytest

from services.acquirer.faults import Fault, FaultKind, Faults
from services.acquirer.model import RECEIVED, REFUSED, REPEATED, Charge, ChargeState, Payload
from services.acquirer.operations import AcquirerOperations
from services.kernel.clock import CallDeadline
from services.kernel.errors import InvalidArgument, KeyMismatch, NotFound, Unavailable
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.runtime.grpc.context import Call
from tests.fakes.charge_store import FakeChargeStore
from tests.fakes.clock import ManualClock
from tests.fakes.payment_ports import FakeFailpoints

PAYLOAD = Payload("tok-mei", Money(300, "CNY"), "pay_1")
HERE = "127.0.0.1:1"


class Notices:
    """Notices as they were sent."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, str, ChargeState]] = []

    def send(self, address: str, charge: Charge, *, times: int) -> None:
        self.notices += [(address, charge.key, charge.state)] * times


class Bank:
    """A bank with nothing but its memory."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = FakeChargeStore()
        self.told = Notices()
        self.faults = Faults()
        self.failpoints = FakeFailpoints()
        self.operations = AcquirerOperations(self.store, self.told, self.faults, self.failpoints, self.clock)
        self.call = Call("/x/y", Principal("payment-service", Role.SERVICE), CallDeadline.after(5, self.clock))

    async def charge(self, key: str = "k1", payload: Payload = PAYLOAD, address: str = HERE) -> Charge:
        return await self.operations.charge(self.call, key, payload, address)

    @property
    def words(self) -> list[tuple[str, str]]:
        return [(entry.request.method, entry.word) for entry in self.store.entries]


@pytest.fixture
def bank() -> Bank:
    return Bank()


class TestLog:
    """Every request as received, and every decision."""

    async def test_charge_has_two_entries(self, bank: Bank) -> None:
        """And passes its failpoints in their order, the second when it is committed."""

        async def look() -> None:
            assert bank.words == [("Charge", RECEIVED), ("Charge", "CHARGED")]

        bank.failpoints.at["charged"] = look
        assert (await bank.charge()).state is ChargeState.CHARGED
        assert bank.failpoints.passed == ["accepted", "charged"]
        assert "charged" not in bank.failpoints.at
        assert {entry.request.caller for entry in bank.store.entries} == {"payment-service"}

    async def test_repeats_mismatches_and_reversals_are_in_it(self, bank: Bank) -> None:
        await bank.charge()
        await bank.charge()
        with pytest.raises(KeyMismatch):
            await bank.charge(payload=Payload("tok-tom", Money(300, "CNY"), "pay_1"))
        await bank.operations.reverse(bank.call, "k1")
        await bank.operations.reverse(bank.call, "k2")
        decisions = [word for _, word in bank.words if word != RECEIVED]
        assert decisions == ["CHARGED", REPEATED, REFUSED, "REFUNDED", "TOMBSTONE"]

    async def test_query_is_logged_and_decides_nothing(self, bank: Bank) -> None:
        with pytest.raises(NotFound):
            await bank.operations.find(bank.call, "k1")
        await bank.charge()
        assert (await bank.operations.find(bank.call, "k1")).key == "k1"
        assert [word for method, word in bank.words if method == "GetCharge"] == [RECEIVED] * 2


class TestNotices:
    """The merchant is told after the commit, if it said where."""

    async def test_each_charge_is_notified_once(self, bank: Bank) -> None:
        """Also a decline, and again when it is asked again."""
        await bank.charge()
        await bank.charge("k2", Payload("tok-declined", Money(1, "CNY"), ""))
        await bank.charge("k3", address="")
        await bank.charge()
        charged, declined = (HERE, "k1", ChargeState.CHARGED), (HERE, "k2", ChargeState.DECLINED)
        assert bank.told.notices == [charged, declined, charged]

    async def test_notice_fault_sends_it_twice_or_never(self, bank: Bank) -> None:
        bank.faults.set([Fault(FaultKind.NOTICE_TWICE, subject="k1"), Fault(FaultKind.NOTICE_LOST, subject="k2")])
        for key in ("k1", "k2", "k3"):
            await bank.charge(key)
        assert [key for _, key, _ in bank.told.notices] == ["k1", "k1", "k3"]


class TestFaults:
    """What goes wrong on demand."""

    async def test_down_fault_executes_nothing(self, bank: Bank) -> None:
        """The request was received, and nothing was decided; every call of the key is refused."""
        bank.faults.set([Fault(FaultKind.DOWN)])
        for ask in (bank.charge(), bank.operations.reverse(bank.call, "k1"), bank.operations.find(bank.call, "k1")):
            with pytest.raises(Unavailable):
                await ask
        assert not bank.store.charges
        assert [word for _, word in bank.words] == [RECEIVED] * 3

    async def test_fault_fires_as_often_as_set_with_each_key(self, bank: Bank) -> None:
        """And then it is over; setting them again begins anew."""
        for _ in range(2):
            bank.faults.set([Fault(FaultKind.DOWN, times=2)])
            for key in ("k1", "k2"):
                for _ in range(2):
                    with pytest.raises(Unavailable):
                        await bank.charge(key)
                await bank.charge(key)
        bank.faults.set([])
        assert bank.faults.all == ()

    async def test_dropped_reply_is_of_a_committed_charge(self, bank: Bank) -> None:
        bank.faults.set([Fault(FaultKind.DROP_REPLY, "Charge", times=1)])
        await bank.charge()
        assert bank.call.reply_dropped
        assert bank.store.charges["k1"].state is ChargeState.CHARGED
        bank.call.reply_dropped = False
        await bank.charge()
        await bank.operations.reverse(bank.call, "k1")
        assert not bank.call.reply_dropped

    @pytest.mark.parametrize(("kind", "committed"), [(FaultKind.DELAY_BEFORE, False), (FaultKind.DELAY_AFTER, True)])
    async def test_delay_is_before_or_after_the_commit(self, bank: Bank, kind: FaultKind, committed: bool) -> None:
        """While it waits, the money has moved or not."""
        bank.faults.set([Fault(kind, delay_ms=60_000)])
        slow = asyncio.create_task(bank.charge())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not slow.done()
        assert ("k1" in bank.store.charges) is committed
        slow.cancel()

    @pytest.mark.parametrize("subject", ["k1", "pay_1", "tok-mei"])
    async def test_subject_is_a_key_a_reference_or_a_card(self, bank: Bank, subject: str) -> None:
        bank.faults.set([Fault(FaultKind.DOWN, subject=subject)])
        with pytest.raises(Unavailable):
            await bank.charge()
        await bank.charge("k2", Payload("tok-tom", Money(1, "CNY"), "pay_2"))

    @pytest.mark.parametrize("wrong", [{"method": "Steal"}, {"times": -1}, {"delay_ms": -1}, {"delay_ms": 600_001}])
    def test_invalid_fault_is_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(InvalidArgument):
            Fault(FaultKind.DOWN, **wrong)  # type: ignore[arg-type]

    def test_number_of_faults_is_limited(self, bank: Bank) -> None:
        with pytest.raises(InvalidArgument):
            bank.faults.set([Fault(FaultKind.DOWN)] * 101)
