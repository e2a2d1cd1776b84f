"""`python -m services.runtime.grpc.probe [--name NAME] HOST:PORT [INTERFACE]`: exit code 0 if grpc.health says SERVING
there, else 1.

The server must have a certificate for NAME (HOST, unless it is given) of an authority in COUNTINGHOUSE_CA_FILE; without
that variable it is asked in plain text. Without an interface it asks for liveness, with one for the readiness of that
interface (`runtime/grpc/health.py`).

For a container's health check, which runs again and again: it imports gRPC and nothing else.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from coordination.grpc_channel import open_blocking_channel
from services.runtime.grpc.enum_names import name_of

_METHOD = "/grpc.health.v1.Health/Check"
_TIMEOUT_S = 2.0


def state(address: str, interface: str = "", *, ca_file: str = "", name: str = "") -> str:
    """Return what grpc.health says of `interface` at `address`, or the status code with which there was no answer.

    Args:
        interface: Empty: the server as a whole.
        ca_file: The authorities, PEM; empty: the server is asked in plain text.
        name: What the server's certificate must name; empty: the host of the address.
    """
    credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes()) if ca_file else None
    options = (("grpc.ssl_target_name_override", name),) if name else ()
    with open_blocking_channel(address, options, credentials=credentials) as channel:
        check = channel.unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(service=interface), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return name_of(health_pb2.HealthCheckResponse.ServingStatus, answer.status)


def main() -> None:
    """Look once."""
    parser = argparse.ArgumentParser(prog="python -m services.runtime.grpc.probe")
    parser.add_argument("--name", default="", help="what the server's certificate must name; HOST if it is not given")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("interface", nargs="?", default="", help="asks for its readiness; without it, for liveness")
    given = parser.parse_args()
    found = state(given.address, given.interface, ca_file=os.environ.get("COUNTINGHOUSE_CA_FILE", ""), name=given.name)
    print(found)  # noqa: T201  what `docker inspect` shows
    raise SystemExit(found != "SERVING")


if __name__ == "__main__":
    main()
