"""What the services agree upon about ZooKeeper: paths and a parameter beside Dubbo's, and the name it is known by."""

from __future__ import annotations

from typing import Final

#: In the certificates of every server of the ensemble.
SERVER_NAME: Final = "zookeeper.countinghouse"
#: The directory of the orders' locks.
LOCKS_ROOT: Final = "/countinghouse/locks"
#: The node that holds the ensemble's generation.
GENERATION_PATH: Final = "/countinghouse/generation"
#: The parameter of a provider's URL that holds the release of the instance, as Dubbo names that of an application.
#: Dubbo's own `release` is that of its library.
RELEASE_PARAMETER: Final = "application.version"
