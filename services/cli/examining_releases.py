"""What `countinghouse doctor` finds of releases: whether all registered instances are of this program's."""

from __future__ import annotations

from collections.abc import Iterable

from coordination.registry import ProviderURL
from services.cli.finding import Finding
from services.devstack.state import INTERFACES
from services.kernel.printable import escape
from services.runtime.zookeeper_paths import RELEASE_PARAMETER

#: Others write into the registry, too.
_MAX_CHARS = 40
_UNNAMED = "an older one"


def of_providers(providers: Iterable[ProviderURL], ours: str) -> list[Finding]:
    """Return what is found of the releases of our services' instances; nothing if there is none.

    Args:
        ours: The release of this program; empty: not known.
    """
    found = {_instance(url): _release(url) for url in providers if url.interface in INTERFACES.values()}
    if not found:
        return []
    if len({*found.values(), ours or next(iter(found.values()))}) == 1:
        release = next(iter(found.values())) or _UNNAMED
        return [Finding("releases", True, f"{release}, of all {len(found)} instances")]
    each = ", ".join(f"{instance} {release or _UNNAMED}" for instance, release in sorted(found.items()))
    return [
        Finding(
            "releases",
            False,
            f"different ones: {each}; this program {ours or 'not known'}: start those that are older again with the "
            "newest release (an embedded stack: `countinghouse down`, and `countinghouse up`)",
        )
    ]


def _instance(url: ProviderURL) -> str:
    return escape(url.parameters.get("instance", "") or url.address)[:_MAX_CHARS]


def _release(url: ProviderURL) -> str:
    return escape(url.parameters.get(RELEASE_PARAMETER, ""))[:_MAX_CHARS]
