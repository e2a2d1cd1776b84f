"""Who provides an interface now: the endpoints of Dubbo's registry after its rules, kept up to date."""

from coordination.discovery.discovery import ANY_CONSUMER, Consumer, Directory, DirectoryState, Discovery

__all__ = [
    "ANY_CONSUMER",
    "Consumer",
    "Directory",
    "DirectoryState",
    "Discovery",
]
