"""The present providers of an interface: the endpoints of Dubbo's registry with its rules applied, kept up to date."""

from coordination.discovery.discovery import ANY_CONSUMER, Consumer, Directory, DirectoryState, Discovery

__all__ = [
    "ANY_CONSUMER",
    "Consumer",
    "Directory",
    "DirectoryState",
    "Discovery",
]
