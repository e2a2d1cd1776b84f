"""A client of the failpoints of running processes: arms, watches and disarms them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from countinghouse.debug.v1 import failpoint_pb2
from services.kernel.errors import CountinghouseError
from services.testkit.client import RecordingClient
from services.testkit.waiting import WITHIN_S, NotBroughtAbout, wait_until

KILL: Final = failpoint_pb2.FAILPOINT_ACTION_KILL
STOP: Final = failpoint_pb2.FAILPOINT_ACTION_STOP
DELAY: Final = failpoint_pb2.FAILPOINT_ACTION_DELAY
DROP_REPLY: Final = failpoint_pb2.FAILPOINT_ACTION_DROP_REPLY
_DISARM: Final = failpoint_pb2.FAILPOINT_ACTION_UNSPECIFIED
_TIMEOUT_S: Final = 2.0
#: An instance that was killed is started again within this time.
_TAKE_BACK_WITHIN_S: Final = 5.0
#: What an armed failpoint does, in words.
_DOES: Final = {
    KILL: "kills the process",
    STOP: "freezes the process",
    DELAY: "delays the call",
    DROP_REPLY: "drops the reply",
}


class FailpointClient:
    """Args:
    operator: Whose token may arm them.
    tell: Called with a sentence for each that is armed.
    """

    def __init__(self, operator: RecordingClient, tell: Callable[[str], None] = lambda _sentence: None) -> None:
        self._operator = operator
        self._tell = tell
        self._armed: set[tuple[str, str]] = set()

    async def arm(
        self,
        instance: str,
        point: str,
        action: failpoint_pb2.FailpointAction.ValueType,
        subject: str = "",
        *,
        delay_s: float = 0.0,
    ) -> int:
        """Arm a failpoint of one instance; return the process id.

        Args:
            subject: The order, payment or card it concerns; empty: all.

        Raises:
            NotBroughtAbout: It cannot be armed.
        """
        request = failpoint_pb2.ArmFailpointRequest(
            name=point, action=action, subject=subject, delay_ms=round(delay_s * 1000)
        )
        self._armed.add((instance, point))  # before it is asked for: the answer may be lost
        try:
            pid = int(
                (await self._operator.ask_until_ok(request, at=instance, timeout_s=_TIMEOUT_S, within_s=WITHIN_S)).pid
            )
        except CountinghouseError as error:
            raise NotBroughtAbout(f"{instance} cannot be armed: {error}") from error
        if action != _DISARM:
            self._tell(f"failpoint {point} of {instance} is armed for {subject or 'every call'}: it {_DOES[action]}")
        return pid

    async def disarm(self, instance: str, point: str) -> int:
        """Disarm a failpoint of one instance; return the process id. Raises as `arm`."""
        pid = await self.arm(instance, point, _DISARM)
        self._armed.discard((instance, point))
        return pid

    async def take_back(self) -> list[str]:
        """Disarm all that were armed here, whether they have fired or not.

        Returns:
            Those that could not be disarmed, like `posted of payment-1`.
        """

        async def disarmed(instance: str, point: str) -> bool:
            request = failpoint_pb2.ArmFailpointRequest(name=point, action=_DISARM)
            try:
                await self._operator.ask_until_ok(
                    request, at=instance, timeout_s=_TIMEOUT_S, within_s=_TAKE_BACK_WITHIN_S
                )
            except CountinghouseError:
                return False
            return True

        armed = sorted(self._armed)
        done = await asyncio.gather(*(disarmed(*each) for each in armed))
        self._armed = {each for each, taken_back in zip(armed, done, strict=True) if not taken_back}
        return [f"{point} of {instance}" for instance, point in sorted(self._armed)]

    async def list(self, instance: str) -> dict[str, failpoint_pb2.Failpoint]:
        """Return each failpoint of an instance by name; nothing if the instance does not answer."""
        request = failpoint_pb2.ListFailpointsRequest()
        result = await self._operator.call(request, at=instance, timeout_s=_TIMEOUT_S)
        return {} if result.error else {found.name: found for found in result.response.failpoints}

    async def fired(self, instance: str, point: str) -> int:
        """Return how often a failpoint has done something; 0 if the instance does not answer."""
        found = (await self.list(instance)).get(point)
        return found.fired if found else 0

    async def wait_fired(self, instance: str, point: str, more_than: int, within_s: float = WITHIN_S) -> None:
        """Wait until a failpoint has fired once more. Raises NotBroughtAbout."""

        async def fired() -> bool:
            return await self.fired(instance, point) > more_than

        await wait_until(fired, f"{instance} did not come to {point}", within_s)

    async def wait_passed(self, instance: str, point: str, times: int) -> None:
        """Wait until an instance has passed a failpoint so often. Raises NotBroughtAbout."""

        async def passed() -> bool:
            found = (await self.list(instance)).get(point)
            return found is not None and found.passed >= times

        await wait_until(passed, f"{instance} did not pass {point} {times} times")

    async def wait_closed(self, instance: str) -> None:
        """Wait until an instance takes no new calls. Raises NotBroughtAbout."""

        async def closed() -> bool:
            return not await self.list(instance)

        await wait_until(closed, f"{instance} still takes calls")
