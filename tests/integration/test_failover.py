"""What is sent again and what is not, within which time, and what the error then tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError

from coordination.channel import Failover
from coordination.channel.channel import DiscoveredChannel, maybe_sent_before, never_sent, sends
from coordination.channel.outcomes import DETAILS_KEY
from coordination.deadline import Deadline
from coordination.discovery import Directory
from coordination.grpc_channel import PATIENT
from coordination.registry import Endpoint
from services.testkit.fair_clock import fair_s
from tests.integration.echo import Cable, Context, Echo, InTurn, Stub, channel_to, dead_port, directory_of
from tests.integration.provider import started

NOTICED_S = 2.5
"""Within which a connection that fell silent is noticed by its pings: 1 s of silence, 1 s for the answer, and what a
busy machine adds."""


@dataclass(slots=True)
class Pair:
    """Two servers, the first behind a cable; calls go to the first one first."""

    first: Echo
    second: Echo
    cable: Cable
    channel: DiscoveredChannel
    stub: Stub

    def lose_replies(self) -> None:
        """From now on the first carries out what it gets, and every connection to it breaks before it can answer."""

        async def cut(_: Context) -> None:
            self.cable.cut()

        self.first.before_answer = cut

    def fall_silent(self) -> None:
        """From now on the first carries out what it gets, and nothing more comes through to or from it."""

        async def hush(_: Context) -> None:
            self.cable.fall_silent()

        self.first.before_answer = hush


@asynccontextmanager
async def a_pair(**settings: Any) -> AsyncIterator[Pair]:
    """Serve both; connected."""
    first, second = Echo(), Echo()
    async with first.serving() as far, second.serving() as port:
        cable = Cable(far)
        async with cable.laid() as near, channel_to(directory_of(near, port), near, port, **settings) as channel:
            stub = Stub(channel)
            await stub.look(b"warm", timeout=5.0)
            first.carried_out = 0
            yield Pair(first, second, cable, channel, stub)


def answer(code: grpc.StatusCode, *, with_details: bool = False) -> Any:
    """Return what makes a server answer with an error; with details of its own, or as the transport would."""

    async def refuse(context: Context) -> None:
        await context.abort(code, "by the server", ((DETAILS_KEY, b"more"),) if with_details else ())

    return refuse


async def test_lost_reply_is_repeated_within_the_same_deadline() -> None:
    """The connection breaks before the reply: what may be repeated is carried out again, by the other endpoint,
    which is given the rest of the deadline and no more."""
    async with a_pair() as pair:

        async def cut_later(_: Context) -> None:
            await asyncio.sleep(0.5)
            pair.cable.cut()

        pair.first.before_answer = cut_later
        assert await pair.stub.put(b"hi", timeout=5.0) == b"hi"
        assert (pair.first.carried_out, pair.second.carried_out) == (1, 1)
        assert pair.second.seen["left_s"] <= 4.51


async def test_lost_reply_is_not_repeated_otherwise() -> None:
    """The connection breaks before the reply: what may not be repeated was sent exactly once, and the error says
    that it may have been carried out."""
    async with a_pair() as pair:
        pair.lose_replies()
        with pytest.raises(AioRpcError) as caught:
            await pair.stub.charge(b"hi", timeout=5.0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not never_sent(caught.value)
        assert sends(caught.value) == 1
        assert (pair.first.carried_out, pair.second.carried_out) == (1, 0)


async def test_closing_servers_cancellation_is_a_lost_reply() -> None:
    """gRPC's server answers CANCELLED to what it got while closing: repeated if that is safe."""
    async with a_pair() as pair:
        pair.first.before_answer = answer(grpc.StatusCode.CANCELLED)
        assert await pair.stub.put(b"hi", timeout=5.0) == b"hi"
        with pytest.raises(AioRpcError):
            await pair.stub.charge(b"hi", timeout=5.0)


async def test_call_never_sent_goes_to_another_endpoint() -> None:
    """An endpoint that refuses connections is passed over also by calls that may not be repeated, however few
    attempts they have."""
    echo, dead = Echo(), [dead_port() for _ in range(3)]
    async with (
        echo.serving() as port,
        channel_to(directory_of(*dead, port), *dead, port, policy=Failover(max_attempts=1)) as channel,
    ):
        assert await Stub(channel).charge(b"hi", timeout=10.0) == b"hi"
        assert echo.carried_out == 1


async def test_attempts_are_limited() -> None:
    """A request is sent max_attempts times at most, although there are more endpoints."""
    echoes = [Echo() for _ in range(4)]
    for echo in echoes:
        echo.before_answer = answer(grpc.StatusCode.UNAVAILABLE)
    async with (
        echoes[0].serving() as one,
        echoes[1].serving() as two,
        echoes[2].serving() as three,
        echoes[3].serving() as four,
        channel_to(directory_of(one, two, three, four)) as channel,
    ):
        with pytest.raises(AioRpcError) as caught:
            await Stub(channel).put(b"hi", timeout=5.0)
        assert sum(echo.carried_out for echo in echoes) == sends(caught.value) == 3


async def test_deadline_exceeded_is_never_repeated() -> None:
    """A call that ran into its deadline may have been carried out; one whose server says DEADLINE_EXCEEDED, too."""
    async with a_pair() as pair:

        async def dawdle(_: Context) -> None:
            await asyncio.sleep(1.0)

        pair.first.before_answer = dawdle
        began = fair_s()
        with pytest.raises(AioRpcError) as caught:
            await pair.stub.put(b"hi", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert fair_s() - began < 0.6
        pair.first.before_answer = answer(grpc.StatusCode.DEADLINE_EXCEEDED)
        for call in (pair.stub.look, pair.stub.put):
            with pytest.raises(AioRpcError, match="by the server"):
                await call(b"hi", timeout=5.0)
        assert (pair.first.carried_out, pair.second.carried_out) == (3, 0)


async def test_read_is_given_up_when_its_share_has_passed() -> None:
    """A read on an endpoint that has fallen silent is asked of another after half of the deadline, without a ping, and
    the first attempt is cancelled."""
    async with a_pair(options=PATIENT) as pair:
        pair.fall_silent()
        assert await pair.stub.look(b"hi", timeout=6.0) == b"hi"
        assert pair.second.seen["left_s"] <= 3.01


async def test_read_is_not_given_up_when_no_other_endpoint_can_be_reached() -> None:
    """When its share has passed and no other endpoint can be reached, a slow read goes on, and gets its answer."""
    echo, dead = Echo(), dead_port()
    picker = InTurn()

    async def answer_after_its_share(_: Context) -> None:
        picked = picker.picked[dead]
        while picker.picked[dead] == picked:  # noqa: ASYNC110  the picker has no event to wait for
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)  # the read would be cancelled in this time

    async with echo.serving() as port, channel_to(directory_of(port, dead), picker=picker) as channel:
        picker.ports = (port, dead)
        stub = Stub(channel)
        await stub.look(b"connects", timeout=5.0)
        echo.before_answer = answer_after_its_share
        assert await stub.look(b"hi", timeout=6.0) == b"hi"
        assert (echo.carried_out, echo.cancelled) == (2, 0)


async def test_write_is_not_sent_twice_before_its_connection_is_proved_dead() -> None:
    """A write on an endpoint that has fallen silent stays outstanding there alone until pings prove the connection
    dead: a second after the oldest without an answer. Then it is repeated elsewhere within the same deadline."""
    async with a_pair() as pair:
        pair.fall_silent()
        began = fair_s()
        assert await pair.stub.put(b"hi", timeout=8.0) == b"hi"
        assert fair_s() - began < NOTICED_S
        assert (pair.first.carried_out, pair.second.carried_out) == (1, 1)
        assert pair.second.seen["left_s"] < 8.0 - 0.9


async def test_slow_write_is_not_given_up_when_half_of_its_deadline_has_passed() -> None:
    """As long as its connection lives it stays outstanding there alone, and gets its answer."""
    async with a_pair() as pair:

        async def answer_late(_: Context) -> None:
            await asyncio.sleep(3.5)

        pair.first.before_answer = answer_late
        assert await pair.stub.put(b"hi", timeout=6.0) == b"hi"
        assert (pair.first.carried_out, pair.second.carried_out) == (1, 0)


async def test_frozen_process_is_noticed_also_in_a_long_call() -> None:
    """SIGSTOP: a write under way fails over as soon as pings prove the connection dead, however long the call has
    been silent before; a call that may not be repeated fails UNAVAILABLE instead of hanging until its deadline."""
    echo = Echo()
    with started("-", "test.Echo") as provider:
        async with (
            echo.serving() as port,
            channel_to(directory_of(provider.port, port), provider.port, port) as channel,
        ):
            stub = Stub(channel)
            await stub.look(b"warm", timeout=5.0)
            provider.freeze()
            began = fair_s()
            put, charge = stub.put(b"hi", timeout=10.0), stub.charge(b"hi", timeout=10.0)
            assert await put == b"hi"
            with pytest.raises(AioRpcError) as caught:
                await charge
            assert fair_s() - began < NOTICED_S
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert echo.carried_out == 1


async def test_pings_go_on_in_a_long_silent_call() -> None:
    """A connection that falls silent when a call has been without a word for 3.5 s is noticed as soon as any."""
    async with a_pair() as pair:

        async def work(_: Context) -> None:
            await asyncio.sleep(3.5)
            pair.cable.fall_silent()

        pair.first.before_answer = work
        began = fair_s()
        assert await pair.stub.put(b"hi", timeout=9.0) == b"hi"
        assert fair_s() - began < 3.5 + NOTICED_S
        assert pair.second.carried_out == 1


class TestErrorAfterAttempts:
    """`sends`, `never_sent`, `maybe_sent_before`."""

    async def test_error_of_one_attempt_counts_one_send(self) -> None:
        """One send; nothing before it."""
        async with a_pair(policy=Failover(1)) as pair:
            pair.first.before_answer = answer(grpc.StatusCode.UNAVAILABLE, with_details=True)
            with pytest.raises(AioRpcError) as caught:
                await pair.stub.put(b"hi", timeout=5.0)
            assert (sends(caught.value), maybe_sent_before(caught.value)) == (1, False)

    async def test_refusal_after_a_lost_reply_may_have_been_done(self) -> None:
        """The second instance says what it did: nothing. The first may have carried the call out all the same."""
        async with a_pair() as pair:
            pair.lose_replies()
            pair.second.before_answer = answer(grpc.StatusCode.UNAVAILABLE, with_details=True)
            call = pair.stub.put(b"hi", timeout=5.0)
            with pytest.raises(AioRpcError, match="by the server") as caught:
                await call
            assert caught.value.trailing_metadata()[DETAILS_KEY] == b"more"
            assert (sends(caught.value), maybe_sent_before(caught.value)) == (2, True)
            assert not never_sent(caught.value)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE

    async def test_refusal_after_a_refusal_was_not_done(self) -> None:
        """Both instances said that they did nothing: nothing was done."""
        async with a_pair() as pair:
            for echo in (pair.first, pair.second):
                echo.before_answer = answer(grpc.StatusCode.UNAVAILABLE, with_details=True)
            with pytest.raises(AioRpcError) as caught:
                await pair.stub.put(b"hi", timeout=5.0)
            assert (sends(caught.value), maybe_sent_before(caught.value)) == (2, False)

    async def test_answer_after_a_lost_reply_may_have_been_done(self) -> None:
        """Also with another code than UNAVAILABLE."""
        async with a_pair() as pair:
            pair.lose_replies()
            pair.second.before_answer = answer(grpc.StatusCode.ABORTED, with_details=True)
            with pytest.raises(AioRpcError) as caught:
                await pair.stub.put(b"hi", timeout=5.0)
            assert caught.value.code() is grpc.StatusCode.ABORTED
            assert maybe_sent_before(caught.value)

    async def test_lost_reply_without_another_endpoint_may_have_been_done(self) -> None:
        """After a lost reply it matters more that the call may have been carried out than that nobody else can be
        reached: the error is the lost reply's."""
        echo = Echo()
        async with echo.serving() as far:
            cable = Cable(far)

            async def cut(_: Context) -> None:
                cable.cut()

            dead = dead_port()
            async with cable.laid() as near, channel_to(directory_of(near, dead), near, dead) as channel:
                await Stub(channel).look(b"warm", timeout=5.0)
                echo.before_answer = cut
                with pytest.raises(AioRpcError) as caught:
                    await Stub(channel).put(b"hi", timeout=5.0)
                assert not never_sent(caught.value)
                assert (sends(caught.value), maybe_sent_before(caught.value)) == (1, False)

    async def test_error_of_unreachable_endpoints_counts_no_send(self) -> None:
        """No send at all."""
        async with channel_to(directory_of(dead_port(), dead_port())) as channel:
            with pytest.raises(AioRpcError) as caught:
                await Stub(channel).put(b"hi", timeout=5.0)
            assert never_sent(caught.value)
            assert (sends(caught.value), maybe_sent_before(caught.value)) == (0, False)


#: A deadline of that many seconds is sent in steps of this size, rounded up.
SENT_IN_STEPS_OF_S = 0.1


class TestGovernedTimeouts:
    """How long a call may take, said by the endpoint's rules."""

    #: What every endpoint lets a Put take, seconds: so long that a stalled machine does not use it up.
    GOVERNED_S = 30.0

    @pytest.fixture
    def governed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every endpoint limits a Put, and says nothing of other methods."""
        monkeypatch.setattr(Endpoint, "timeout_s", lambda _self, method: self.GOVERNED_S if method == "Put" else None)

    @asynccontextmanager
    async def serving(self, default_timeout_s: float) -> AsyncIterator[tuple[Echo, Stub]]:
        echo = Echo()
        async with (
            echo.serving() as port,
            channel_to(directory_of(port), port, default_timeout_s=default_timeout_s) as channel,
        ):
            yield echo, Stub(channel)

    @pytest.mark.parametrize("timeout", [None, 80.0])
    async def test_governed_timeout_caps_the_callers(self, governed: None, timeout: float | None) -> None:
        """A call takes no longer than its endpoint allows, whatever its caller or the channel's default does."""
        async with self.serving(default_timeout_s=90.0) as (echo, stub):
            await stub.put(b"hi", timeout=timeout)
            assert echo.seen["left_s"] <= self.GOVERNED_S + SENT_IN_STEPS_OF_S
            await stub.charge(b"hi", timeout=timeout)
            assert echo.seen["left_s"] > self.GOVERNED_S + SENT_IN_STEPS_OF_S

    async def test_governed_timeout_replaces_a_shorter_default(self, governed: None) -> None:
        """The channel's default is for calls that no endpoint limits."""
        async with self.serving(default_timeout_s=10.0) as (echo, stub):
            await stub.put(b"hi")
            assert 10.0 + SENT_IN_STEPS_OF_S < echo.seen["left_s"] <= self.GOVERNED_S + SENT_IN_STEPS_OF_S

    async def test_governed_timeout_does_not_lengthen_the_callers(self, governed: None) -> None:
        """A caller's shorter timeout stays."""
        async with self.serving(default_timeout_s=90.0) as (echo, stub):
            await stub.put(b"hi", timeout=10.0)
            assert echo.seen["left_s"] <= 10.0 + SENT_IN_STEPS_OF_S


async def test_candidates_are_asked_for_with_method_and_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules see the bare method and the call's `dubbo.tag`; with nobody allowed the call was never sent."""
    asked: list[tuple[str, str]] = []

    async def route(directory: Directory, method: str, tag: str, deadline: Deadline) -> tuple[Endpoint, ...]:
        assert deadline.remaining_s() == pytest.approx(10, abs=9)
        asked.append((method, tag))
        if tag == "slow":
            raise TimeoutError("the rules take longer")
        return () if tag == "blue" else directory.endpoints

    monkeypatch.setattr(Directory, "route", route)
    async with Echo().serving() as port, channel_to(directory_of(port)) as channel:
        assert await Stub(channel).put(b"hi", timeout=10.0) == b"hi"
        with pytest.raises(AioRpcError, match="may serve Put with tag 'blue'") as caught:
            await Stub(channel).put(b"hi", timeout=10.0, metadata=(("dubbo.tag", "blue"),))
        assert never_sent(caught.value)
        with pytest.raises(AioRpcError, match="the rules take longer") as caught:
            await Stub(channel).put(b"hi", timeout=10.0, metadata=(("dubbo.tag", "slow"),))
        assert never_sent(caught.value)
        assert asked == [("Put", ""), ("Put", "blue"), ("Put", "slow")]
