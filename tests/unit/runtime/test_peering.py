"""What a service is told of a call to another: not sent, not answered, or what was answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from coordination.channel import PickerName
from coordination.channel.outcomes import NeverSent, SentBefore
from coordination.discovery import ANYBODY
from coordination.metrics import Metrics
from coordination.session import Session
from services.kernel.clock import Deadline, SystemClock
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
from services.runtime.grpc.service_client import Peers
from services.runtime.grpc.tokens import TokenFile

AWAY = Unavailable("ZOOKEEPER_UNAVAILABLE", "away")


def answer(error: CountinghouseError) -> AioRpcError:
    """Return a peer's answer, as it arrives."""
    told = status.to_status(error)
    trailers = Metadata((status.DETAILS_KEY, told.SerializeToString()))
    return AioRpcError(status.code_of(error), Metadata(), trailers, details=error.message)


def lost() -> AioRpcError:
    return AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="recvmsg: Connection reset")


async def asked(tmp_path: Path, error: AioRpcError) -> CountinghouseError:
    """Return what `Peers.call` raises when the stub raises `error`."""
    token = tmp_path / "token"
    token.write_text("x")
    peers = Peers(
        cast(Session, None),
        TokenFile(token),
        consumer=ANYBODY,
        picker=PickerName.POWER_OF_TWO_CHOICES,
        cache=None,
        metrics=Metrics(),
    )

    async def method(_request: Any, **_: Any) -> Any:
        raise error

    with pytest.raises(CountinghouseError) as caught:
        await peers.call(method, object(), Deadline.after(5.0, SystemClock()))
    return caught.value


async def test_never_sent_is_unavailable(tmp_path: Path) -> None:
    """Nothing was done, and trying again may help."""
    error = await asked(tmp_path, NeverSent("nobody"))
    assert (type(error), error.reason) == (Unavailable, "PEER_UNAVAILABLE")


async def test_no_answer_is_unknown(tmp_path: Path) -> None:
    """It was sent."""
    assert type(await asked(tmp_path, lost())) is OutcomeUnknown


async def test_limit_of_a_peer_is_unavailable_to_whoever_called_us(tmp_path: Path) -> None:
    """Nothing was done; and the limit that was reached is this service's, not its caller's."""
    error = await asked(tmp_path, answer(ResourceExhausted("CALLER_LIMIT", "too many calls", retry_after_ms=250)))
    assert (type(error), error.reason, error.retry_after_ms) == (Unavailable, "PEER_BUSY", 250)


async def test_an_answer_is_what_it_says(tmp_path: Path) -> None:
    """One send, one answer: its word counts, also after others that answered."""
    for told in (AWAY, Aborted("ORDER_LOCKED", "held"), FailedPrecondition("INSUFFICIENT_FUNDS", "no")):
        assert type(await asked(tmp_path, answer(told))) is type(told)
        assert type(await asked(tmp_path, SentBefore(answer(told), sends=2, maybe_done=0))) is type(told)
    refused = await asked(tmp_path, answer(PermissionDenied("ROLE_NOT_ALLOWED", "no")))
    assert (type(refused), refused.reason) == (Unavailable, "PEER_REFUSED_US")


@pytest.mark.parametrize(
    "told", [AWAY, RequestInProgress("k"), Aborted("STALE_FENCE", "no"), PermissionDenied("ROLE_NOT_ALLOWED", "no")]
)
async def test_nothing_done_by_one_says_nothing_of_another(tmp_path: Path, told: CountinghouseError) -> None:
    """An instance was sent the call and did not answer; that a second one did nothing leaves the outcome unknown."""
    error = await asked(tmp_path, SentBefore(answer(told), sends=2, maybe_done=1))
    assert type(error) is OutcomeUnknown
    assert told.message in error.message


@pytest.mark.parametrize("told", [AlreadyExists("ORDER_ALREADY_PAID", "paid"), FailedPrecondition("NO", "no")])
async def test_a_definitive_refusal_is_an_answer_for_all(tmp_path: Path, told: CountinghouseError) -> None:
    """It would have met the earlier attempt, too, or is what that one led to."""
    assert type(await asked(tmp_path, SentBefore(answer(told), sends=2, maybe_done=1))) is type(told)
