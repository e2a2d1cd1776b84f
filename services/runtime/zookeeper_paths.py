"""What the services agree upon about ZooKeeper: paths beside Dubbo's, and the name that it is known by."""

from __future__ import annotations

from typing import Final

#: In the certificates of every server of the ensemble.
SERVER_NAME: Final = "zookeeper.countinghouse"
#: The directory of the orders' locks.
LOCKS_ROOT: Final = "/countinghouse/locks"
#: The node that holds the ensemble's generation.
GENERATION_PATH: Final = "/countinghouse/generation"
