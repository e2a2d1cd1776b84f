"""The embedded stack: a real ZooKeeper and the services as processes of this machine, run as one."""

import os

# The supervisor forks children while it talks gRPC. gRPC's fork handlers crash them before they exec, so they are
# switched off; a child uses nothing of gRPC before it has become another program. Read when gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
