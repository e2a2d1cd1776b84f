"""The address under which an instance registers itself."""

from __future__ import annotations

import pytest

from services.kernel.errors import Unavailable
from services.runtime.server import _advertised_host
from services.runtime.settings import Settings


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "127.0.0.1"),
        ({"listen_host": "192.0.2.7"}, "192.0.2.7"),
        ({"listen_host": "192.0.2.7", "advertise_host": "order.example"}, "order.example"),
        ({"listen_host": "0.0.0.0", "advertise_host": "order.example"}, "order.example"),  # noqa: S104
    ],
)
def test_it_is_what_the_settings_say(settings: dict[str, str], host: str) -> None:
    """Unless they say that it listens on all addresses, which is none."""
    assert _advertised_host(Settings(**settings)) == host  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "zookeeper",
    ["127.0.0.1:2181", "no-such-host.invalid:2181,127.0.0.1:2181", "127.0.0.1:2181/chroot", "zookeeper://127.0.0.1"],
)
def test_who_listens_on_all_addresses_registers_the_one_from_which_zookeeper_is_reached(zookeeper: str) -> None:
    """The first server whose name is known decides; it need not be up."""
    assert _advertised_host(Settings(listen_host="0.0.0.0", zookeeper=zookeeper)) == "127.0.0.1"  # noqa: S104


def test_server_that_listens_everywhere_registers_the_ipv6_address_from_which_zookeeper_is_reached() -> None:
    assert _advertised_host(Settings(listen_host="::", zookeeper="[::1]:2181")) == "::1"


def test_where_no_way_to_zookeeper_is_known_it_is_started_again_later() -> None:
    """A name may be known in a moment; a wrong address would be registered for good."""
    with pytest.raises(Unavailable, match="COUNTINGHOUSE_ADVERTISE_HOST") as refusal:
        _advertised_host(Settings(listen_host="0.0.0.0", zookeeper="no-such-host.invalid:2181"))  # noqa: S104
    assert refusal.value.reason == "ADDRESS_UNKNOWN"
