"""The release under which an instance registers."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace
from typing import Any

import pytest

from coordination.registry import ProviderURL
from countinghouse.order.v1 import order_pb2
from services.kernel import release
from services.runtime import cluster_member
from services.runtime.settings import Settings
from tests.fakes.clock import ManualClock


def registered() -> ProviderURL:
    order: Any = order_pb2.DESCRIPTOR.services_by_name["OrderService"]
    service: Any = SimpleNamespace(interface=order.full_name, name="order")
    return cluster_member._provider_url(service, Settings(), cluster_member._Ports(5001, 0), "", ManualClock())


def test_instance_registers_under_the_release_of_its_package() -> None:
    """As the parameter that Dubbo has for the version of an application; `release` is that of Dubbo's library."""
    url = registered()
    assert url.parameters["application.version"] == importlib.metadata.version("countinghouse")
    assert url.parameters["release"] == "countinghouse"
    assert ProviderURL.parse(url.node_name()) == url


def test_instance_that_was_not_installed_registers_without_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with nothing."""
    release.release.cache_clear()
    monkeypatch.setattr(release, "_PACKAGE", "no-such-package")
    try:
        assert "application.version" not in registered().parameters
    finally:
        release.release.cache_clear()
