"""ZooKeeper for asyncio services: a session that can be trusted, an order lock, Dubbo's registry, gRPC
channels.

Knows kazoo, grpc and the standard library; nothing of the services that use it. Import from the modules:
``coordination.session``, ``coordination.lock``, ``coordination.registry``, ``coordination.discovery``,
``coordination.channel`` …; README.md says what each of them guarantees.
"""
