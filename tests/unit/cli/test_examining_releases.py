"""Whether all registered instances are of one release."""

from __future__ import annotations

import pytest

from coordination.registry import ProviderURL
from services.cli.examining_releases import of_providers
from services.devstack.state import INTERFACES


def provider(instance: str, release: str = "", interface: str = "") -> ProviderURL:
    more = {"application.version": release} if release else {}
    return ProviderURL.provider(
        interface or INTERFACES[instance.rpartition("-")[0]],
        "127.0.0.1",
        5001,
        application="x",
        methods=(),
        release="countinghouse",
        timestamp_ms=1,
        instance=instance,
        **more,  # type: ignore[arg-type]
    )


def found(ours: str, *providers: ProviderURL) -> tuple[bool, str]:
    (finding,) = of_providers(providers, ours)
    assert finding.name == "releases"
    return finding.ok, finding.detail


def test_instances_of_this_release_are_counted() -> None:
    assert found("2.0", provider("order-1", "2.0"), provider("payment-1", "2.0")) == (True, "2.0, of all 2 instances")


@pytest.mark.parametrize(
    ("ours", "releases"),
    [("2.0", ("1.0", "2.0")), ("2.0", ("1.0", "1.0")), ("2.0", ("2.0", "")), ("", ("1.0", "2.0"))],
)
def test_different_releases_are_a_fault_with_the_remedy(ours: str, releases: tuple[str, str]) -> None:
    """Also if only this program is of another one; an instance that names none is older than the name."""
    ok, detail = found(ours, provider("order-1", releases[0]), provider("payment-1", releases[1]))
    assert not ok
    assert f"order-1 {releases[0]}" in detail
    assert f"payment-1 {releases[1] or 'an older one'}" in detail
    assert f"this program {ours or 'not known'}" in detail
    assert "`countinghouse down`" in detail


def test_program_that_does_not_know_its_release_compares_the_instances_alone() -> None:
    assert found("", provider("order-1", "2.0"), provider("payment-1", "2.0"))[0]


def test_other_programs_providers_are_not_looked_at() -> None:
    """They may share the registry."""
    assert of_providers([provider("shop-1", "9.9", interface="shop.Service")], "2.0") == []


def test_text_of_others_is_escaped_and_cut() -> None:
    _, detail = found("2.0", provider("order-1", "\x1b[2J" + "9" * 1000))
    assert "\x1b" not in detail
    assert "9" * 50 not in detail
