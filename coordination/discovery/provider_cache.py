"""The last list of providers in a file, for a start while ZooKeeper is away."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from coordination.files import write_whole

log = logging.getLogger(__name__)


class ProviderCache:
    """The last list read, as a JSON array of node names. Losing it costs a cold start and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[str]:
        """Return what was saved; empty if there is nothing that can be read."""
        try:
            names = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            log.warning("the cached providers in %s cannot be read: %s", self._path, error)
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def save(self, node_names: list[str]) -> None:
        """Replace the file, whole or not at all."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(sorted(node_names), indent=0).encode(), mode=0o666)
        except OSError as error:
            log.warning("the providers cannot be cached in %s: %s", self._path, error)
