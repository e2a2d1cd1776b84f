"""What every memory of the bank does. Each adapter, the fake included, runs this suite as a subclass."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from services.acquirer import model
from services.acquirer.model import RECEIVED, REFUSED, REPEATED, Charge, ChargeState, LoggedRequest, Payload
from services.acquirer.ports import ChargeStore
from services.kernel.errors import KeyMismatch
from services.kernel.money import Money

Make = Callable[[], Awaitable[ChargeStore]]
PAYLOAD = Payload("tok-mei", Money(300, "CNY"), "pay_1")
T0 = 10_000


def asked(
    key: str = "k1", payload: Payload | None = PAYLOAD, *, method: str = "Charge", at_ms: int = T0
) -> LoggedRequest:
    return LoggedRequest(method, "payment-service", key, payload, at_ms)


async def charge(store: ChargeStore, key: str = "k1", payload: Payload = PAYLOAD, *, at_ms: int = T0) -> Charge:
    return await store.decide(
        asked(key, payload, at_ms=at_ms), lambda standing: model.charge(standing, key, payload, at_ms)
    )


async def reverse(store: ChargeStore, key: str = "k1", *, at_ms: int = T0 + 1) -> Charge:
    request = asked(key, None, method="ReverseByKey", at_ms=at_ms)
    return await store.decide(request, lambda standing: model.reverse(standing, key, at_ms))


async def words(store: ChargeStore, key: str = "") -> list[str]:
    return [entry.word for entry in await store.log(after=0, limit=99, key=key)]


class ChargeStoreContract:
    """Subclasses bring a fixture `make`: an async callable that gives an empty store."""

    async def test_charge_is_kept_as_it_was_decided(self, make: Make) -> None:
        """With its number, which is that of its entry in the log."""
        store = await make()
        decided = await charge(store)
        assert (decided.state, decided.payload, decided.decided_at_ms) == (ChargeState.CHARGED, PAYLOAD, T0)
        assert await store.find("k1") == decided
        (entry,) = await store.log(after=0, limit=9, key="")
        assert (entry.number, entry.request, entry.word) == (decided.number, asked(), "CHARGED")

    async def test_key_that_was_never_decided_is_not_found(self, make: Make) -> None:
        store = await make()
        await store.receive(asked())
        assert await store.find("k1") is None

    async def test_repeated_charge_returns_the_same_state(self, make: Make) -> None:
        """Nothing of it changes, not even its dates; the log has both."""
        store = await make()
        first = await charge(store)
        assert await charge(store, at_ms=T0 + 9) == first
        assert await words(store) == ["CHARGED", REPEATED]

    async def test_another_payload_is_refused_and_that_is_in_the_log(self, make: Make) -> None:
        store = await make()
        first = await charge(store)
        other = Payload("tok-mei", Money(301, "CNY"), "pay_1")
        with pytest.raises(KeyMismatch):
            await charge(store, payload=other)
        assert await store.find("k1") == first
        entries = await store.log(after=0, limit=9, key="k1")
        assert [(entry.word, entry.request.payload) for entry in entries] == [("CHARGED", PAYLOAD), (REFUSED, other)]

    async def test_refund_changes_the_state_and_one_date(self, make: Make) -> None:
        store = await make()
        first = await charge(store)
        back = await reverse(store)
        assert (back.state, back.refunded_at_ms) == (ChargeState.REFUNDED, T0 + 1)
        assert (back.payload, back.number, back.decided_at_ms) == (first.payload, first.number, first.decided_at_ms)
        assert await reverse(store, at_ms=T0 + 99) == back
        assert await words(store) == ["CHARGED", "REFUNDED", REPEATED]
        entries = await store.log(after=0, limit=9, key="")
        assert [entry.request.payload for entry in entries] == [PAYLOAD, PAYLOAD, None], "a refund says what it moved"

    async def test_tombstone_refuses_a_late_charge(self, make: Make) -> None:
        """It has no payload, so any payload is answered with it."""
        store = await make()
        stone = await reverse(store)
        assert (stone.state, stone.payload) == (ChargeState.TOMBSTONE, None)
        assert await charge(store) == stone
        assert await words(store) == ["TOMBSTONE", REPEATED]

    async def test_decline_keeps_its_reason(self, make: Make) -> None:
        store = await make()
        payload = Payload("tok-declined", Money(300, "CNY"), "")
        await charge(store, payload=payload)
        found = await store.find("k1")
        assert found is not None
        assert (found.state, found.decline_reason, found.payload) == (ChargeState.DECLINED, "CARD_DECLINED", payload)

    async def test_ten_charges_at_once_charge_once(self, make: Make) -> None:
        """And a reversal among them leaves one of two ends, the same for everybody from then on."""
        store = await make()
        outcomes = await asyncio.gather(*(charge(store) for _ in range(10)))
        assert len({outcome.number for outcome in outcomes}) == 1
        assert sorted(await words(store)) == ["CHARGED"] + [REPEATED] * 9
        await asyncio.gather(*(charge(store, "k2") for _ in range(5)), reverse(store, "k2"))
        found = await store.find("k2")
        assert found is not None
        assert found.state in (ChargeState.REFUNDED, ChargeState.TOMBSTONE)

    async def test_numbers_have_no_gap(self, make: Make) -> None:
        """However many write at once."""
        store = await make()
        await asyncio.gather(*(store.receive(asked(f"k{n}")) for n in range(6)), *(charge(store) for _ in range(6)))
        assert [entry.number for entry in await store.log(after=0, limit=99, key="")] == list(range(1, 13))
        assert sorted(await words(store)) == ["CHARGED"] + [RECEIVED] * 6 + [REPEATED] * 5

    async def test_two_hundred_charges_at_once_fail_alone(self, make: Make) -> None:
        """Charges, a repetition, a reversal, one that is refused: each has its own outcome, and its own entry."""
        store = await make()
        first = await charge(store, "k0")
        other = Payload("tok-mei", Money(301, "CNY"), "pay_1")
        outcomes = await asyncio.gather(
            *(charge(store, f"k{n}") for n in range(1, 198)),
            charge(store, "k0", other),
            charge(store, "k0"),
            reverse(store, "new"),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [Charge] * 197 + [KeyMismatch] + [Charge] * 2
        assert outcomes[-2] == first
        assert outcomes[:197] == [await store.find(f"k{n}") for n in range(1, 198)]
        entries = await store.log(after=0, limit=999, key="")
        assert [entry.number for entry in entries] == list(range(1, 202))
        assert Counter(entry.word for entry in entries) == {"CHARGED": 198, REFUSED: 1, REPEATED: 1, "TOMBSTONE": 1}

    async def test_log_newest_first_misses_nothing(self, make: Make) -> None:
        """Two at a time; of all keys and of one."""
        store = await make()
        for key in ("k1", "k2", "k1", "k3", "k1"):
            await charge(store, key)
        for key, numbers in (("", [5, 4, 3, 2, 1]), ("k1", [5, 3, 1])):
            read: list[int] = []
            after: int | None = None
            while page := await store.log(after=after, limit=2, key=key, newest_first=True):
                assert len(page) <= 2
                read += [entry.number for entry in page]
                after = read[-1]
            assert read == numbers

    async def test_pages_miss_nothing(self, make: Make) -> None:
        """The statement and the log, two at a time, oldest first; a key that changes keeps its place."""
        store = await make()
        keys = [f"k{n}" for n in (3, 1, 2, 5, 4)]
        for key in keys:
            await charge(store, key)
        await reverse(store, "k1")
        read, after = [], 0
        while page := await store.statement(after=after, limit=2):
            assert len(page) <= 2
            read += [charge.key for charge in page]
            after = page[-1].number
        assert read == keys
        logged, after = [], 0
        while entries := await store.log(after=after, limit=2, key=""):
            logged += [entry.request.key for entry in entries]
            after = entries[-1].number
        assert logged == [*keys, "k1"]
        assert await words(store, "k1") == ["CHARGED", "REFUNDED"]
