"""The present providers of an interface: the endpoints of Dubbo's registry with its rules applied, kept up to date."""

from coordination.discovery.consumer import ANY_CONSUMER, Consumer
from coordination.discovery.directory import Directory, DirectoryState, Eligibility
from coordination.discovery.discovery import Discovery

__all__ = [
    "ANY_CONSUMER",
    "Consumer",
    "Directory",
    "DirectoryState",
    "Discovery",
    "Eligibility",
]
