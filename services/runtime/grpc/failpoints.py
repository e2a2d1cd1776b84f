"""Failpoints: named moments of a payment at which a test lets the process die, stop, wait or lose its reply.

They are armed from outside, through FailpointService, and only where the settings allow it. Elsewhere the service is
not registered and `hit` returns at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass

from grpc import aio

from countinghouse.debug.v1 import failpoint_pb2 as pb
from countinghouse.debug.v1 import failpoint_pb2_grpc
from services.kernel.errors import InvalidArgument
from services.runtime.grpc.context import Call
from services.runtime.grpc.translate import optional_enum_in

#: In the order in which a payment passes them. The last two are around the COMMIT of each batch: in its transaction,
#: and before its callers are answered.
NAMES = (
    *("accepted", "locked", "claimed", "submitted", "charged", "posted", "voided", "parked", "refunded"),
    *("recorded", "completed", "released", "committing", "committed"),
)
_ACTIONS: dict[int, str] = {number: name for name, number in pb.FailpointAction.items() if number}
_MAX_DELAY_MS = 600_000


@dataclass(slots=True)
class _Armed:
    action: pb.FailpointAction.ValueType
    hits_left: int
    delay_ms: int
    subject: str


class FailpointSet:
    """The failpoints of one process.

    Args:
        enabled: Whether they may be armed at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.passed: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self._armed: dict[str, _Armed] = {}

    def arm(
        self, name: str, action: pb.FailpointAction.ValueType, *, hit: int = 1, delay_ms: int = 0, subject: str = ""
    ) -> None:
        """Let `name` fire once, at the `hit`-th pass from now on that concerns `subject`.

        Raises:
            InvalidArgument: FAILPOINT_UNKNOWN or OUT_OF_RANGE.
        """
        if name not in NAMES:
            raise InvalidArgument.of_field(
                "FAILPOINT_UNKNOWN", "name", f"there is no failpoint {name!r}; there are {', '.join(NAMES)}"
            )
        if not 0 <= delay_ms <= _MAX_DELAY_MS or hit < 0:
            raise InvalidArgument.of_field(
                "OUT_OF_RANGE", "delay_ms", f"delay_ms is 0 to {_MAX_DELAY_MS}, hit 0 or more"
            )
        if action == pb.FAILPOINT_ACTION_UNSPECIFIED:
            self._armed.pop(name, None)
        else:
            self._armed[name] = _Armed(action, max(hit, 1), delay_ms, subject)

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Pass the failpoint `name`.

        Args:
            call: The call whose reply a DROP_REPLY would lose; None: no caller waits for one.
            subjects: The order and payment this is about.
        """
        if not self.enabled:
            return
        self.passed[name] += 1
        armed = self._armed.get(name)
        if armed is None or (armed.subject and armed.subject not in subjects):
            return
        armed.hits_left -= 1
        if armed.hits_left > 0:
            return
        del self._armed[name]
        self.fired[name] += 1
        match armed.action:
            case pb.FAILPOINT_ACTION_KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case pb.FAILPOINT_ACTION_STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case pb.FAILPOINT_ACTION_DELAY:
                await asyncio.sleep(armed.delay_ms / 1000)
            case pb.FAILPOINT_ACTION_DROP_REPLY if call is not None:
                call.reply_dropped = True
            case _:
                pass


class FailpointServicer(failpoint_pb2_grpc.FailpointServiceServicer):
    """Arms the failpoints of this process from outside."""

    def __init__(self, failpoints: FailpointSet) -> None:
        self._failpoints = failpoints

    async def ArmFailpoint(
        self, request: pb.ArmFailpointRequest, _context: aio.ServicerContext[object, object]
    ) -> pb.ArmFailpointResponse:
        optional_enum_in(_ACTIONS, request.action, "action")
        self._failpoints.arm(
            request.name, request.action, hit=request.hit, delay_ms=request.delay_ms, subject=request.subject
        )
        return pb.ArmFailpointResponse(pid=os.getpid())

    async def ListFailpoints(
        self, _request: pb.ListFailpointsRequest, _context: aio.ServicerContext[object, object]
    ) -> pb.ListFailpointsResponse:
        points = self._failpoints
        return pb.ListFailpointsResponse(
            failpoints=[pb.Failpoint(name=name, passed=points.passed[name], fired=points.fired[name]) for name in NAMES]
        )
