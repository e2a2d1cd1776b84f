"""Check, in every session, that ZooKeeper's ensemble is not behind the database before a fence is made.

    unknown ──▶ SETTLED for one session ──new session, or the generation changed──▶ looked at again
       └──▶ REFUSED: it is behind the database ──repaired──▶ SETTLED, by itself

A wiped ensemble counts its zxids from the start again, so its fences would look stale for ever, or worse: an old
holder's would look new. An older backup does the same under the same generation. Hence each database remembers the
generation under which it was last written, and its newest fence; a service makes no fence on an ensemble behind either.

Invariants
1. A fence is made only of a lock that was taken in the session for which the generation was settled.
2. A refusal names its reason and the command that repairs it; after the repair, running services go on by themselves.

Which function makes each move: `_look`.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy import Column, Table

from coordination.errors import CoordinationError, EnsembleUnfit, Forbidden
from coordination.locks import generation
from coordination.session import Session
from services.kernel.errors import CountinghouseError, OutcomeUnknown, Unavailable
from services.runtime.database.database import Database, read_newest_fence, write_generation
from services.runtime.zookeeper_paths import GENERATION_PATH

_RETRY_S = 0.5
_TIMEOUT_S = 5.0
#: How long a service that starts waits for its rights in ZooKeeper.
_RIGHTS_WITHIN_S = 5.0

log = structlog.get_logger()


class EnsembleRefused(CountinghouseError):
    """This ZooKeeper may not be used with this database."""


class Ensemble:
    """What generation we are in, once we know.

    Args:
        table: The database's table of the generation.
        fences: The columns of generation and token of the fences that it keeps.
    """

    def __init__(self, session: Session, database: Database, table: Table, fences: tuple[Column[int], Column[int]]):
        self._session = session
        self._database = database
        self._table = table
        self._fences = fences
        self._settled: tuple[int, int] | None = None  # session id, generation
        self._refusal: EnsembleRefused | None = None
        self._forbidden_from_s: float | None = None
        self._looked = asyncio.Event()  # set once there is an outcome, renewed at each

    async def settle(self) -> None:
        """Wait for the first outcome of `keep`, however long ZooKeeper or the database is away.

        Raises:
            EnsembleRefused: ENSEMBLE_BEHIND, with the command that repairs it; ENSEMBLE_FORBIDDEN.
        """
        while self._settled is None:
            if self._refusal is not None and not self._may_be_allowed_soon():
                raise self._refusal
            await self._looked.wait()

    def _may_be_allowed_soon(self) -> bool:
        """Tell whether the operator, who gives the rights at its own start, may still be about to."""
        return self._forbidden_from_s is not None and time.monotonic() - self._forbidden_from_s < _RIGHTS_WITHIN_S

    async def keep(self) -> None:
        """Find the generation out for every session; never ends by itself."""
        changed = asyncio.Event()
        unsubscribe = self._session.subscribe(lambda _change: changed.set())
        try:
            while True:
                changed.clear()
                again_s = await self._look(changed)
                try:
                    async with asyncio.timeout(again_s):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            unsubscribe()

    def check(self) -> None:
        """Do nothing if a fence may be made, as far as is known.

        Raises:
            Unavailable: ENSEMBLE_BEHIND: refused, with the remedy. ZOOKEEPER_UNAVAILABLE: not known yet.
        """
        if self._refusal is not None:
            raise Unavailable(self._refusal.reason, f"{self._refusal.message}; nothing was done")
        if self._settled is None:
            raise _not_reached()

    async def generation_in(self, session_id: int, timeout_s: float) -> int:
        """Return the generation of what was made in a session; waiting at most `timeout_s` seconds for it to be known.

        Raises:
            Unavailable: As `check`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self.check()
                    if self._settled is not None and self._settled[0] == session_id:
                        return self._settled[1]
                    await self._looked.wait()
        except TimeoutError:
            raise _not_reached() from None

    async def _look(self, changed: asyncio.Event) -> float | None:
        """Look once; return the seconds after which to look again, None: at the next change."""
        try:
            known, newest_zxid = await read_newest_fence(self._database, self._table, self._fences)
            await self._session.wait_connected(_TIMEOUT_S)
            session_id = self._session.session_id
            found = await generation.ensure(
                self._session, known, _TIMEOUT_S, newest_zxid=newest_zxid, watch=changed.set, path=GENERATION_PATH
            )
            if found > known:
                await write_generation(self._database, self._table, found)
            if session_id is None or session_id != self._session.session_id:
                return 0.0
        except EnsembleUnfit as error:
            remedy = f"countinghouse doctor --new-generation {error.database + 1}"
            self._refuse("ENSEMBLE_BEHIND", f"{error}; if what it had is gone for good, run `{remedy}`")
            return _RETRY_S
        except Forbidden as error:
            if self._forbidden_from_s is None:
                self._forbidden_from_s = time.monotonic()
            self._refuse("ENSEMBLE_FORBIDDEN", str(error))
            return _RETRY_S
        except (CoordinationError, Unavailable, OutcomeUnknown):
            return _RETRY_S
        if self._refusal is not None:
            log.info("the ensemble is fit again", generation=found)
        self._settled, self._refusal, self._forbidden_from_s = (session_id, found), None, None
        self._tell()
        return None

    def _refuse(self, reason: str, message: str) -> None:
        if self._refusal is None or self._refusal.message != message:
            log.error("the ensemble is refused", why=message)
        self._refusal = EnsembleRefused(reason, message)
        self._settled = None
        self._tell()

    def _tell(self) -> None:
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()


def _not_reached() -> Unavailable:
    return Unavailable("ZOOKEEPER_UNAVAILABLE", "ZooKeeper has not been reached yet; nothing was done, try again")
