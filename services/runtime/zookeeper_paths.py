"""The paths in ZooKeeper that the services use, beside Dubbo's."""

from __future__ import annotations

from typing import Final

#: The directory of the orders' locks.
LOCKS_ROOT: Final = "/countinghouse/locks"
#: The node that holds the ensemble's generation.
GENERATION_PATH: Final = "/countinghouse/generation"
