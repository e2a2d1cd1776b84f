"""The address under which an instance registers itself."""

from __future__ import annotations

from typing import cast

import grpc
import pytest
import structlog
from pydantic import ValidationError

from services.kernel.errors import Unavailable
from services.runtime.cluster_member import AdvertisedAddress, _advertised_host, _listen
from services.runtime.settings import Settings


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "127.0.0.1"),
        ({"listen_host": "192.0.2.7"}, "192.0.2.7"),
        ({"listen_host": "::1"}, "::1"),
        ({"listen_host": "[::1]"}, "::1"),
        ({"listen_host": "[0:0:0:0:0:0:0:1]"}, "::1"),
        ({"listen_host": "::", "advertise_host": " [2001:DB8::7] "}, "2001:db8::7"),
        ({"listen_host": "192.0.2.7", "advertise_host": "order.example"}, "order.example"),
        ({"listen_host": "0.0.0.0", "advertise_host": "order.example"}, "order.example"),  # noqa: S104
    ],
)
def test_registered_address_is_that_of_the_settings(settings: dict[str, str], host: str) -> None:
    """Unless they say that it listens on all addresses, which is none."""
    assert _advertised_host(Settings(**settings)) == host  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "zookeeper",
    ["127.0.0.1:2181", "no-such-host.invalid:2181,127.0.0.1:2181", "127.0.0.1:2181/chroot", "zookeeper://127.0.0.1"],
)
def test_server_on_all_addresses_registers_the_one_from_which_zookeeper_is_reached(zookeeper: str) -> None:
    """The first server whose name is known decides; it need not be up."""
    assert _advertised_host(Settings(listen_host="0.0.0.0", zookeeper=zookeeper)) == "127.0.0.1"  # noqa: S104


def test_server_that_listens_everywhere_registers_the_ipv6_address_from_which_zookeeper_is_reached() -> None:
    assert _advertised_host(Settings(listen_host="::", zookeeper="[::1]:2181")) == "::1"


def test_server_without_a_route_to_zookeeper_exits_to_be_started_again() -> None:
    """A name may be known in a moment; a wrong address would be registered for good."""
    with pytest.raises(Unavailable, match="COUNTINGHOUSE_ADVERTISE_HOST") as refusal:
        _advertised_host(Settings(listen_host="0.0.0.0", zookeeper="no-such-host.invalid:2181"))  # noqa: S104
    assert refusal.value.reason == "ADDRESS_UNKNOWN"


def test_server_that_listens_on_ipv4_registers_no_ipv6_address() -> None:
    """Nobody could reach it there."""
    with pytest.raises(Unavailable, match="COUNTINGHOUSE_ADVERTISE_HOST"):
        _advertised_host(Settings(listen_host="0.0.0.0", zookeeper="[::1]:2181"))  # noqa: S104


@pytest.mark.parametrize("host", ["::1", "[::1]", "::1%lo", "2001:db8::7"])
def test_ipv6_address_is_listened_on_in_brackets(host: str) -> None:
    """gRPC would take the last group of an address without them for a port."""
    assert Settings(listen_host=host, listen_port=5001).listen_address == f"[{host.strip('[]')}]:5001"


@pytest.mark.parametrize("host", ["[::1", "[127.0.0.1]", "h:5001", "a b", "[::1]:5001", "[]"])
def test_malformed_host_is_refused_at_start(host: str) -> None:
    """In one sentence, which quotes it."""
    for name in ("listen_host", "metrics_host", "advertise_host"):
        with pytest.raises(ValidationError, match="is no"):
            Settings(**{name: host})  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "fe80::1%eth0"])  # noqa: S104
def test_address_that_cannot_be_called_is_not_registered(host: str) -> None:
    """All addresses are none, and a scope is this machine's own."""
    with pytest.raises(ValidationError, match=r"cannot be called|means nothing to others"):
        Settings(advertise_host=host)


@pytest.mark.parametrize(
    ("given", "taken"),
    [("", ""), (" h:5000 ", "h:5000"), ("[::1]:5000", "[::1]:5000"), ("127.0.0.1:5000", "127.0.0.1:5000")],
)
def test_acquirer_address_may_be_ipv6(given: str, taken: str) -> None:
    """In brackets, with its port."""
    assert Settings(acquirer_address=given).acquirer_address == taken


@pytest.mark.parametrize("address", ["::1:5000", "[::1]", "h", "h:0", "h:70000", "[::1:5000"])
def test_acquirer_address_without_port_or_brackets_is_refused(address: str) -> None:
    """Cards would be UNKNOWN otherwise, and nobody would know why."""
    for name in ("acquirer_address", "notify_address"):
        with pytest.raises(ValidationError, match=name):
            Settings(**{name: address})  # type: ignore[arg-type]


class Listening:
    """A gRPC server that takes any address."""

    def add_insecure_port(self, address: str) -> int:
        self.address = address
        return 5001


@pytest.mark.parametrize(
    ("settings", "warned", "address"),
    [
        ({"listen_host": "0.0.0.0"}, True, "127.0.0.1:5001"),  # noqa: S104
        ({"listen_host": "::", "zookeeper": "[::1]:2181"}, True, "[::1]:5001"),
        ({"listen_host": "::", "advertise_host": "localhost"}, True, "localhost:5001"),
        ({"listen_host": "::", "advertise_host": "2001:db8::7"}, False, "[2001:db8::7]:5001"),
        ({"listen_host": "::1"}, False, "[::1]:5001"),
        ({}, False, "127.0.0.1:5001"),
    ],
)
def test_registering_loopback_while_listening_on_all_is_warned_about(
    settings: dict[str, str], warned: bool, address: str
) -> None:
    """Somebody on another machine is meant to call it, and would call himself."""
    advertised = AdvertisedAddress()
    with structlog.testing.capture_logs() as logged:
        _listen(cast(grpc.aio.Server, Listening()), Settings(**settings), None, advertised)  # type: ignore[arg-type]
    assert advertised.address == address
    assert ([entry["log_level"] for entry in logged] == ["warning"]) is warned
