"""Who a process of the house is, as its certificate says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_TRUST_DOMAIN: Final = "countinghouse"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process of the house, as its certificate names it."""

    service: str
    instance: str

    @property
    def spiffe_id(self) -> str:
        """The URI in its certificate (SPIFFE-ID, section 2)."""
        return f"spiffe://{_TRUST_DOMAIN}/{self.service}/{self.instance}"

    @classmethod
    def parse(cls, spiffe_id: str) -> Identity | None:
        """Return the process that a URI names; None: it names none of the house."""
        scheme, _, rest = spiffe_id.partition("://")
        domain, *path = rest.split("/")
        if scheme != "spiffe" or domain != _TRUST_DOMAIN or len(path) != 2 or not all(path):
            return None
        return cls(*path)


def server_name(service: str) -> str:
    """Return the DNS name in the certificates of a service, which its clients demand."""
    return f"{service}.{_TRUST_DOMAIN}"
