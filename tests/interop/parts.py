"""The parts of a run, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.interop import consumers, endurance, groups, providers
from tests.interop.languages import GO, JAVA, NPM, PYPI
from tests.interop.stage import Stage
from tests.interop.tally import Part


async def _npm_consumer(stage: Stage) -> str:
    found = consumers.addresses(await stage.ready(NPM))
    return f"addresses looked up for it; {await consumers.play(stage, NPM, *found)}"


PARTS: Final[Sequence[Part[Stage]]] = (
    Part("java consumer", lambda stage: consumers.play(stage, JAVA)),
    Part("java provider", lambda stage: providers.play(stage, JAVA)),
    Part("java groups", lambda stage: groups.play(stage, JAVA)),
    Part("java fault", endurance.play),
    Part("pypi consumer", lambda stage: consumers.play(stage, PYPI, tells_reason=False)),
    Part(
        "pypi provider", lambda stage: providers.play(stage, PYPI, refuses="INTERNAL", hears=False, unregisters=False)
    ),
    Part("go consumer", lambda stage: consumers.play(stage, GO)),
    Part("go provider", lambda stage: providers.play(stage, GO)),
    Part("npm consumer", _npm_consumer),
)
