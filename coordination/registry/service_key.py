"""The service of a provider: an interface, in a group and version."""

from __future__ import annotations

from dataclasses import dataclass

from coordination.registry.url import ProviderURL

ANY_INTERFACE = "*"


@dataclass(frozen=True, slots=True)
class Service:
    """``group/interface:version``, as Dubbo writes it. Interface ``*`` is every service."""

    interface: str
    group: str = ""
    version: str = ""

    @classmethod
    def parse(cls, key: str) -> Service:
        """Read it; ``interface:version:group``, as nodes are named, is understood too."""
        group, slash, rest = key.rpartition("/")
        interface, _, rest = rest.partition(":")
        version, _, more = rest.partition(":")
        return cls(interface, group if slash else more, version)

    @classmethod
    def of(cls, url: ProviderURL) -> Service:
        """Return the service of a provider or consumer."""
        return cls(url.interface, url.group, url.version)

    def includes(self, other: Service) -> bool:
        """Tell whether a rule for this service applies to `other`."""
        return self.interface == ANY_INTERFACE or self == other

    @property
    def rule_key(self) -> str:
        """``interface:version:group``, which begins the names of the service's rule nodes."""
        return f"{self.interface}:{self.version}:{self.group}"

    def accepts(self, provider: Service) -> bool:
        """Tell whether a consumer of this service takes a provider, by Dubbo's rules.

        The group may be ``*`` or a list with commas, the version ``*``; nothing takes only providers without one.
        """
        return (self.group in ("*", provider.group) or provider.group in self.group.split(",")) and (
            self.version in ("*", provider.version)
        )

    def __str__(self) -> str:
        group = f"{self.group}/" if self.group else ""
        return group + self.interface + (f":{self.version}" if self.version else "")
