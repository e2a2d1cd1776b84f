"""The protos, the table of who may call what, and the servicers say the same."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

from services.kernel.principal import Role
from services.runtime.grpc.access import MAY_CALL
from tests.architecture.code import ROOT

#: Where the servicer of a proto package is.
_SERVICERS = {
    "order": "services.order.servicer",
    "payment": "services.payment.servicer",
    "ledger": "services.ledger.servicer",
    "acquirer": "services.acquirer.servicer",
    "debug": "services.runtime.grpc.failpoints",
}


def _stubs() -> Iterator[tuple[str, ModuleType]]:
    """Generated modules, with the name of their package under `countinghouse`."""
    gen = ROOT / "protos" / "gen"
    for path in sorted(gen.rglob("*_pb2.py")):
        dotted = ".".join(path.relative_to(gen).with_suffix("").parts)
        yield path.relative_to(gen).parts[1], importlib.import_module(dotted)


def _methods() -> list[Any]:
    return [
        pytest.param(package, method, id=f"{service.name}.{method.name}")
        for package, stubs in _stubs()
        for service in stubs.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


@pytest.mark.parametrize(("package", "method"), _methods())
class TestEveryMethod:
    """Of every service."""

    def test_method_is_in_the_access_table(self, package: str, method: MethodDescriptor) -> None:
        """One that does not can be called by nobody."""
        allowed = MAY_CALL.get(f"/{method.containing_service.full_name}/{method.name}")
        assert allowed
        assert allowed <= frozenset(Role)

    def test_method_is_implemented_by_the_servicer(self, package: str, method: MethodDescriptor) -> None:
        """By the servicer itself: what the generated base class answers is UNIMPLEMENTED."""
        module = importlib.import_module(_SERVICERS[package])
        base = f"{method.containing_service.name}Servicer"
        servicers = [
            found
            for _, found in inspect.getmembers(module, inspect.isclass)
            if found.__module__ == module.__name__ and any(parent.__name__ == base for parent in found.__mro__[1:])
        ]
        assert len(servicers) == 1, f"{module.__name__} has {len(servicers)} servicers of {base}"
        owner = next(parent for parent in servicers[0].__mro__ if method.name in vars(parent))
        assert not owner.__module__.endswith("_pb2_grpc")


def test_access_table_names_existing_methods_only() -> None:
    """A typing error there would shut everybody out of one that does."""
    real = {
        f"/{service.full_name}/{method.name}"
        for _, stubs in _stubs()
        for service in stubs.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(MAY_CALL) == real


def test_java_consumer_subscribes_under_the_same_name() -> None:
    """Dubbo's interface is the Java class: package and java_package have to be one."""
    for _, stubs in _stubs():
        assert stubs.DESCRIPTOR.GetOptions().java_package == stubs.DESCRIPTOR.package
