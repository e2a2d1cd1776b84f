"""Who provides an interface now: the endpoints of Dubbo's registry after its rules, kept up to date."""

from coordination.discovery.discovery import ANYBODY, Consumer, Directory, DirectoryState, Discovery

__all__ = [
    "ANYBODY",
    "Consumer",
    "Directory",
    "DirectoryState",
    "Discovery",
]
