"""`python -m services.runtime.grpc.probe HOST:PORT [INTERFACE]`: exit code 0 if grpc.health says SERVING there, else 1.

Without an interface it asks for liveness, with one for the readiness of that interface (`runtime/grpc/health.py`).

For a container's health check, which runs again and again: it imports gRPC and nothing else.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2

from coordination.grpc_channel import open_blocking_channel

_METHOD = "/grpc.health.v1.Health/Check"
_TIMEOUT_S = 2.0


def state(address: str, interface: str = "") -> str:
    """Return what grpc.health says of `interface` at `address`, or the status code with which there was no answer.

    Args:
        interface: Empty: the server as a whole.
    """
    with open_blocking_channel(address) as channel:
        check = channel.unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(service=interface), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main() -> None:
    """Look once."""
    found = state(*sys.argv[1:3])
    print(found)  # noqa: T201  what `docker inspect` shows
    raise SystemExit(found != "SERVING")


if __name__ == "__main__":
    main()
