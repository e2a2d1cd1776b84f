"""The generation of the ZooKeeper ensemble, checked against the one beside the data before any fence is made.

A wiped ensemble counts its zxids from the start again, so its fences would look stale for ever, or worse: an old
holder's would look new. Hence each database remembers the generation under which it was last written, and a service
refuses to work on an ensemble that is behind it.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import Table

from coordination import generation
from coordination.errors import CoordinationError, GenerationBehind
from coordination.session import Session
from services.kernel.errors import CountinghouseError, OutcomeUnknown, Unavailable
from services.runtime.database import Database, read_generation, write_generation

_RETRY_S = 0.5
_TIMEOUT_S = 5.0


class EnsembleRefused(CountinghouseError):
    """This ZooKeeper may not be used with this database."""


class Ensemble:
    """What generation we are in, once we know."""

    def __init__(self, session: Session, database: Database, table: Table) -> None:
        self._session = session
        self._database = database
        self._table = table
        self._generation = 0

    async def settle(self) -> None:
        """Finds the generation out, however long ZooKeeper or the database is away.

        Raises:
            EnsembleRefused: ENSEMBLE_BEHIND, with the command that mends it.
        """
        while True:
            try:
                known = await read_generation(self._database, self._table)
                await self._session.wait_connected(_TIMEOUT_S)
                found = await generation.ensure(self._session, known, timeout_s=_TIMEOUT_S)
                if found > known:
                    await write_generation(self._database, self._table, found)
                break
            except GenerationBehind as error:
                raise EnsembleRefused(
                    "ENSEMBLE_BEHIND",
                    f"this ZooKeeper was made anew: its generation is {error.ensemble or 'missing'}, and "
                    f"{self._database.name} was written under {error.database}; if the old ensemble is gone for good, "
                    f"run `countinghouse doctor --new-generation {error.database + 1}`",
                ) from error
            except (CoordinationError, Unavailable, OutcomeUnknown):
                await asyncio.sleep(_RETRY_S)
        self._generation = found

    @property
    def generation(self) -> int:
        """The generation, 1 or more.

        Raises:
            Unavailable: ZOOKEEPER_UNAVAILABLE: not known yet.
        """
        if not self._generation:
            raise Unavailable(
                "ZOOKEEPER_UNAVAILABLE", "ZooKeeper has not been reached yet; nothing was done, try again"
            )
        return self._generation
