"""A provider written with PyPI's apache-dubbo, for Countinghouse's own client to find: `provider.py PORT`.

Serves until SIGTERM, or until its standard input ends.
"""

from __future__ import annotations

import os
import signal
import sys

from dubbo import Dubbo, Server
from dubbo.configs import RegistryConfig, ServiceConfig
from dubbo.proxy.handlers import RpcMethodHandler, RpcServiceHandler

from countinghouse.type.v1 import money_pb2


def convert(given: money_pb2.Money) -> money_pb2.Money:
    """Eight CNY for one EUR. Whatever it raises arrives as INTERNAL: apache-dubbo has no other code for it."""
    if given.currency_code != "EUR":
        raise ValueError("only EUR is exchanged here")
    return money_pb2.Money(minor_units=given.minor_units * 8, currency_code="CNY")


def main() -> None:
    """The program."""
    registry = RegistryConfig.from_url(f"zookeeper://{os.environ['INTEROP_ZOOKEEPER']}")
    method = RpcMethodHandler.unary(
        convert,
        method_name="Convert",
        request_deserializer=money_pb2.Money.FromString,
        response_serializer=lambda money: money.SerializeToString(),
    )
    handler = RpcServiceHandler("countinghouse.interop.v1.ExchangeService", [method])
    server = Server(ServiceConfig(handler, host="127.0.0.1", port=int(sys.argv[1])), Dubbo(registry_config=registry))
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
