"""Background tasks of the payment service: renew leases, prepare the locks' directories, run the recovery.

Every instance runs all of it. Two workers that see the same payment are kept apart by the conditional take-over; should
one of them be paused in the middle, by the order's lock and its fence.
"""

from __future__ import annotations

import asyncio

import structlog

from coordination.locks import ResourceLocks
from coordination.session import Session
from services.kernel.errors import CountinghouseError
from services.payment.execution import Leases
from services.payment.recovery import Recovery

_PREPARE_S = 10.0

log = structlog.get_logger()


class LockPreparer:
    """Make the directories of the order locks once ZooKeeper is there, so that no clerk waits for one to be made."""

    def __init__(self, session: Session, locks: ResourceLocks) -> None:
        self._session = session
        self._locks = locks

    async def run(self) -> None:
        """Prepare, then wait until cancelled."""
        await self._session.wait_connected(None)
        await self._locks.prepare(_PREPARE_S)
        await asyncio.Event().wait()


class RecoveryWorker:
    """Finishes payments that no living execution is working on.

    Args:
        interval_s: How often it looks.
    """

    def __init__(self, recovery: Recovery, interval_s: float) -> None:
        self._recovery = recovery
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look repeatedly until cancelled. A payment that cannot be finished yet is tried again."""
        while True:
            try:
                found = await self._recovery.recover()
                if found:
                    log.info("recovered", looked_at=found)
            except CountinghouseError as error:
                log.info("recovery waits", reason=error.reason, why=error.message)
            await asyncio.sleep(self._interval_s)


class LeaseRenewer:
    """Keeps others away from what this process is executing.

    Args:
        lease_s: The length of a lease; renewed three times in its length.
    """

    def __init__(self, leases: Leases, lease_s: float) -> None:
        self._leases = leases
        self._interval_s = lease_s / 3

    async def run(self) -> None:
        """Renew repeatedly until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self._leases.renew()
