"""What a service is told of a call to another: not sent, not answered, or what was answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from coordination.channel import PickerName
from coordination.channel.channel import DiscoveredChannel
from coordination.channel.outcomes import NeverSent, SentBefore
from coordination.discovery import ANY_CONSUMER, Directory, Discovery
from coordination.metrics import Metrics
from coordination.registry import ProviderURL
from coordination.session import Session
from countinghouse.payment.v1 import payment_pb2
from services.kernel.clock import CallDeadline, SystemClock
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    OutcomeUnknown,
    PermissionDenied,
    RequestInProgress,
    ResourceExhausted,
    Unavailable,
)
from services.runtime.grpc import status
from services.runtime.grpc.service_client import Peer, Peers
from services.runtime.grpc.tls import Dialer
from services.runtime.grpc.tokens import TokenFile

AWAY = Unavailable("ZOOKEEPER_UNAVAILABLE", "away")


def answer(error: CountinghouseError) -> AioRpcError:
    """Return a peer's answer, as it arrives."""
    told = status.to_status(error)
    trailers = Metadata((status.DETAILS_KEY, told.SerializeToString()))
    return AioRpcError(status.code_of(error), Metadata(), trailers, details=error.message)


def lost() -> AioRpcError:
    return AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="recvmsg: Connection reset")


def peers_with(picker: PickerName, tmp_path: Path) -> Peers:
    return Peers(
        cast(Session, None),
        tmp_path,
        dialer=Dialer(None),
        consumer=ANY_CONSUMER,
        picker=picker,
        cache=None,
        metrics=Metrics(),
    )


async def asked(tmp_path: Path, error: AioRpcError) -> CountinghouseError:
    """Return what `Peer.call` raises when the stub raises `error`."""
    token = tmp_path / "order.token"
    token.write_text("x")
    peer = Peer(cast(DiscoveredChannel, None), TokenFile(token))

    async def method(_request: Any, **_: Any) -> Any:
        raise error

    with pytest.raises(CountinghouseError) as caught:
        await peer.call(method, object(), CallDeadline.after(5.0, SystemClock()))
    return caught.value


async def test_never_sent_is_unavailable(tmp_path: Path) -> None:
    """Nothing was done, and trying again may help."""
    error = await asked(tmp_path, NeverSent("nobody"))
    assert (type(error), error.reason) == (Unavailable, "PEER_UNAVAILABLE")


async def test_no_answer_is_unknown(tmp_path: Path) -> None:
    """It was sent."""
    assert type(await asked(tmp_path, lost())) is OutcomeUnknown


async def test_limit_of_a_peer_is_unavailable_to_our_caller(tmp_path: Path) -> None:
    """Nothing was done; and the limit that was reached is this service's, not its caller's."""
    error = await asked(tmp_path, answer(ResourceExhausted("CALLER_LIMIT", "too many calls", retry_after_ms=250)))
    assert (type(error), error.reason, error.retry_after_ms) == (Unavailable, "PEER_BUSY", 250)


async def test_single_answer_is_the_peers_error(tmp_path: Path) -> None:
    """One send, one answer: its word counts, also after others that answered."""
    for told in (AWAY, Aborted("ORDER_LOCKED", "held"), FailedPrecondition("INSUFFICIENT_FUNDS", "no")):
        assert type(await asked(tmp_path, answer(told))) is type(told)
        assert type(await asked(tmp_path, SentBefore(answer(told), sends=2, maybe_done=0))) is type(told)
    refused = await asked(tmp_path, answer(PermissionDenied("ROLE_NOT_ALLOWED", "no")))
    assert (type(refused), refused.reason) == (Unavailable, "PEER_REFUSED_US")


@pytest.mark.parametrize(
    "told", [AWAY, RequestInProgress("k"), Aborted("STALE_FENCE", "no"), PermissionDenied("ROLE_NOT_ALLOWED", "no")]
)
async def test_refusal_after_an_unanswered_attempt_leaves_the_outcome_unknown(
    tmp_path: Path, told: CountinghouseError
) -> None:
    """An instance was sent the call and did not answer; that a second one did nothing leaves the outcome unknown."""
    error = await asked(tmp_path, SentBefore(answer(told), sends=2, maybe_done=1))
    assert type(error) is OutcomeUnknown
    assert told.message in error.message


@pytest.mark.parametrize("told", [AlreadyExists("ORDER_ALREADY_PAID", "paid"), FailedPrecondition("NO", "no")])
async def test_definitive_refusal_is_an_answer_for_all(tmp_path: Path, told: CountinghouseError) -> None:
    """It would have met the earlier attempt, too, or is what that one led to."""
    assert type(await asked(tmp_path, SentBefore(answer(told), sends=2, maybe_done=1))) is type(told)


async def test_consistent_hash_goes_by_the_requests_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without an order has no key."""

    async def subscribe(_discovery: Discovery, interface: str) -> Directory:
        directory = Directory(interface)
        urls = [ProviderURL("tri", "h", port, interface, {"interface": interface}) for port in (1, 2)]
        directory.take(directory.reader.read([url.node_name() for url in urls]))
        return directory

    monkeypatch.setattr(Discovery, "subscribe", subscribe)
    channel = (await peers_with(PickerName.CONSISTENT_HASH, tmp_path).find("a.B")).channel
    reasons = {explanation.why for explanation in channel.explain("/a.B/C", payment_pb2.SettleRequest(order_id="o1"))}
    assert reasons == {"o1 belongs here", "number 2 for o1"}
    assert not any("belongs" in explanation.why for explanation in channel.explain("/a.B/C", object()))
    await channel.close()
