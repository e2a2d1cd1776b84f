"""Before anything is imported: what services/devstack asks of gRPC, whichever tests are chosen."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
