"""Before anything is imported: what services/devstack asks of gRPC, and signals as a terminal has them."""

import os
import signal

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A shell starts its background jobs with SIGINT ignored, and every child inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
