"""`python -m services.runtime.probe HOST:PORT`: exit code 0 if grpc.health says SERVING there, else 1.

For a container's health check, which runs again and again: it imports gRPC and nothing else.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2

_METHOD = "/grpc.health.v1.Health/Check"
_TIMEOUT_S = 2.0


def state(address: str) -> str:
    """What grpc.health says of the server at `address`, or the status code with which nobody answered."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main() -> None:
    """Looks once."""
    found = state(sys.argv[1])
    print(found)  # noqa: T201  what `docker inspect` shows
    raise SystemExit(found != "SERVING")


if __name__ == "__main__":
    main()
