"""Order, payment, ledger and the acquirer, compared file by file: the same files, the same kinds of things in each."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture.code import ACQUIRER, ROOT, SERVICES, dotted, modules, tree

_FILES = {
    *("__init__", "main", "model", "operations", "ports", "schema", "servicer", "store"),
}
#: What one service has beside the files of all.
_MORE = {
    "order": set[str](),
    "ledger": {"chain", "trial"},
    "acquirer": {"faults", "peers"},
    "payment": {
        *("card", "execution", "locks", "metrics", "pacing", "peers", "recovery", "request_records", "saga", "worker"),
    },
}
#: Where a kind of thing is, if anywhere, in every service.
_PLACES: dict[str, tuple[Callable[[ast.AST], bool], set[str]]] = {
    "protocol": (lambda node: "Protocol" in _bases(node), {"ports"}),
    "table": (lambda node: _made_by(node) in ("Table", "request_table", "ensemble_table"), {"schema"}),
    "index": (lambda node: _made_by(node) == "Index", {"schema"}),
    "SQL store": (lambda node: _is_class(node, "Sql", "Store"), {"store"}),
    "servicer": (lambda node: _is_class(node, "", "Servicer"), {"servicer"}),
    "answers": (lambda node: _is_class(node, "", "Responses") and not _bases(node), {"servicer"}),
    "use cases": (lambda node: _is_class(node, "", "Operations"), {"operations"}),
    "program": (lambda node: _named(node) in ("SERVICE", "main"), {"main"}),
}
#: Of which there is exactly one in each service.
_ONCE = ("SQL store", "use cases")

EVERY = pytest.mark.parametrize("service", [*SERVICES, ACQUIRER])


@EVERY
def test_service_has_the_files_of_every_service(service: str) -> None:
    found = {path.stem for path in modules(f"services/{service}") if len(path.parts) == 3}
    assert _FILES <= found <= _FILES | _MORE[service]
    assert (ROOT / "services" / service / "README.md").exists()
    assert (ROOT / "services" / service / "migrations" / "versions").exists()


@EVERY
@pytest.mark.parametrize("kind", _PLACES)
def test_kind_of_thing_is_in_the_same_file_of_every_service(service: str, kind: str) -> None:
    found = [path for path in modules(f"services/{service}") if len(path.parts) == 3 for _ in things(kind, tree(path))]
    assert {path.stem for path in found} <= _PLACES[kind][1]
    if kind in _ONCE:
        assert len(found) == 1


@EVERY
def test_port_of_the_store_is_implemented_by_the_sql_store(service: str) -> None:
    """`<X>Store` in ports.py, `Sql<X>Store` in store.py, a subclass of it."""
    ports = {node.name for node in _top(service, "ports") if isinstance(node, ast.ClassDef)}
    (store,) = [node for node in _top(service, "store") if _is_class(node, "Sql", "Store")]
    assert isinstance(store, ast.ClassDef)
    assert store.name.removeprefix("Sql") in ports & _bases(store)


@EVERY
def test_money_column_is_named_alike_in_code(service: str) -> None:
    """`…amount_minor` or `…price_minor`, and `currency`, whatever the column is called in SQL."""
    keys = {_column_key(node) for node in ast.walk(tree(_module(service, "schema"))) if _made_by(node) == "Column"}
    assert not {key for key in keys if key.endswith(("amount", "minor_units", "currency_code"))}
    assert "currency" in keys


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("protocol", "class Port(Protocol): ..."),
        ("table", "ORDERS = Table('orders', METADATA)"),
        ("table", "def f(): return Table('orders', METADATA)"),
        ("index", "Index('by_age', ORDERS.c.age)"),
        ("SQL store", "class SqlOrderStore(OrderStore): ..."),
        ("servicer", "class OrderServicer(Base): ..."),
        ("answers", "class OrderResponses: ..."),
        ("use cases", "class OrderOperations: ..."),
        ("program", "def main(): ..."),
    ],
)
def test_rule_sees_a_thing_that_is_misplaced(kind: str, source: str) -> None:
    assert list(things(kind, ast.parse(source)))


def things(kind: str, module: ast.Module) -> Iterator[ast.AST]:
    """Yield what there is of a kind in a module."""
    is_one = _PLACES[kind][0]
    return (node for node in ast.walk(module) if is_one(node))


def _module(service: str, stem: str) -> Path:
    return Path("services", service, f"{stem}.py")


def _top(service: str, stem: str) -> list[ast.stmt]:
    return tree(_module(service, stem)).body


def _named(node: ast.AST) -> str:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.name if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else ""


def _is_class(node: ast.AST, begins: str, ends: str) -> bool:
    return isinstance(node, ast.ClassDef) and node.name.startswith(begins) and node.name.endswith(ends)


def _bases(node: ast.AST) -> set[str]:
    return {dotted(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()


def _made_by(node: ast.AST) -> str:
    return dotted(node.func) if isinstance(node, ast.Call) else ""


def _column_key(node: ast.AST) -> str:
    assert isinstance(node, ast.Call)
    keys = [word.value for word in node.keywords if word.arg == "key"]
    (value,) = keys or node.args[:1]
    assert isinstance(value, ast.Constant)
    return str(value.value)
