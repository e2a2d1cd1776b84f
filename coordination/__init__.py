"""ZooKeeper for asyncio services, in six packages, each of which imports those below it only.

    channel     gRPC channels to the present providers of an interface
    discovery   the endpoints of an interface, kept up to date
    rules       Dubbo's governance rules, followed and applied
    registry    Dubbo's registry: providers' URLs and registrations          locks   with fencing tokens
    session     a session with ZooKeeper, and requests with deadlines

It knows kazoo, grpc, PyYAML, prometheus-client and the standard library; nothing of the services that use it.
Import from the packages, like `from coordination.session import Session`; README.md says what each of them guarantees.
"""

__all__ = ["channel", "discovery", "locks", "registry", "rules", "session"]
