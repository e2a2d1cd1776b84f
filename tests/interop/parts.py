"""The parts of a run, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.interop import consumers, endurance, groups, providers
from tests.interop.harness import Harness
from tests.interop.languages import GO, JAVA, NPM, PYPI
from tests.interop.tally import Part


async def _npm_consumer(harness: Harness) -> str:
    found = consumers.addresses(await harness.ready(NPM))
    return f"addresses looked up for it; {await consumers.run(harness, NPM, *found)}"


PARTS: Final[Sequence[Part[Harness]]] = (
    Part("java consumer", lambda harness: consumers.run(harness, JAVA)),
    Part("java provider", lambda harness: providers.run(harness, JAVA)),
    Part("java groups", lambda harness: groups.run(harness, JAVA)),
    Part("java fault", endurance.run),
    Part("pypi consumer", lambda harness: consumers.run(harness, PYPI, tells_reason=False)),
    Part(
        "pypi provider",
        lambda harness: providers.run(harness, PYPI, refuses="INTERNAL", hears=False, unregisters=False),
    ),
    Part("go consumer", lambda harness: consumers.run(harness, GO)),
    Part("go provider", lambda harness: providers.run(harness, GO)),
    Part("npm consumer", _npm_consumer),
)
