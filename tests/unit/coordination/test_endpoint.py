"""From the names in the registry to addresses to call."""

from __future__ import annotations

from coordination.endpoint import endpoints_from
from coordination.url import ProviderURL


def node(port: int, timestamp_ms: int = 0, protocol: str = "tri") -> str:
    return ProviderURL(protocol, "h", port, "a.B", {"timestamp": str(timestamp_ms)}).node_name()


def test_sorted_by_address_and_other_protocols_left_out() -> None:
    """Only what speaks gRPC is an endpoint."""
    found = endpoints_from([node(2), node(1, protocol="grpc"), node(3, protocol="dubbo"), "nonsense"])
    assert [endpoint.address for endpoint in found] == ["h:1", "h:2"]


def test_later_of_two_registrations_counts() -> None:
    """A restarted provider is there twice until its old session expires: it is one endpoint, the new one."""
    for names in ([node(1, 5), node(1, 9)], [node(1, 9), node(1, 5)]):
        (endpoint,) = endpoints_from(names)
        assert endpoint.url.timestamp_ms == 9
