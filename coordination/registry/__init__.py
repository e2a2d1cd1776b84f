"""Dubbo's registry in ZooKeeper: a provider's URL, what it serves, and registrations that outlive sessions."""

from coordination.registry.endpoint import Endpoint
from coordination.registry.registration import DEFAULT_ROOT, Registry
from coordination.registry.service_key import Service
from coordination.registry.url import ProviderURL

__all__ = [
    "DEFAULT_ROOT",
    "Endpoint",
    "ProviderURL",
    "Registry",
    "Service",
]
