"""The rules of code, read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.code import PACKAGES, ROOT, dotted, modules, tree

#: What holds a connection, a clock or randomness. A module that makes one when it is imported cannot be given another.
_MADE_IN_MAIN = {
    *("create_engine", "create_async_engine", "Database"),
    *("insecure_channel", "secure_channel", "Channel", "server"),
    *("KazooClient", "Session", "ResourceLocks", "Discovery", "Registration"),
    *("SystemClock", "ManualClock", "RandomIds", "Random", "SystemRandom", "new_rng"),
    *("get_event_loop", "new_event_loop"),
}
_CHANNELS = Path("coordination/grpc_channel.py")
_EXPLAINED = ("coordination", "services/kernel", "services/runtime")


def test_module_path_is_not_changed_in_code() -> None:
    """Generated code lies on the path already (pyproject.toml); bending it hides what is missing."""
    bent = []
    for module in modules(*PACKAGES, "tests", "protos"):
        if "sys.path" not in (ROOT / module).read_text():
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and dotted(node) == "sys.path":
                bent.append(f"{module}:{node.lineno}")
    assert bent == []


def test_import_creates_no_connection_and_no_clock() -> None:
    """Constructor injection: main puts the parts together, and a test puts others in their place."""
    made = [
        f"{module}:{call.lineno} {dotted(call.func)}"
        for module in modules(*PACKAGES)
        for call in _calls_at_import(tree(module))
        if dotted(call.func).rpartition(".")[2] in _MADE_IN_MAIN
    ]
    assert made == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("clock = SystemClock()", True),
        ("class A:\n    channel = grpc.aio.insecure_channel('x')", True),
        ("def f(clock=SystemClock()): ...", True),
        ("if True:\n    engine = create_async_engine('x')", True),
        ("def f():\n    return SystemClock()", False),
        ("class A:\n    def f(self):\n        self.clock = SystemClock()", False),
        ("f = lambda: SystemClock()", False),
    ],
)
def test_rule_finds_code_that_runs_at_import(source: str, found: bool) -> None:
    """A rule that can never be broken would prove nothing."""
    names = {dotted(call.func).rpartition(".")[2] for call in _calls_at_import(ast.parse(source))}
    assert bool(names & _MADE_IN_MAIN) is found


def test_grpc_channels_are_opened_in_one_place() -> None:
    """A channel opened elsewhere has no keepalive, obeys http_proxy, and backs off for minutes."""
    opened = [
        f"{module}:{node.lineno}"
        for module in modules(*PACKAGES)
        if module != _CHANNELS
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and node.attr in ("insecure_channel", "secure_channel")
    ]
    assert opened == []


@pytest.mark.parametrize("package", _EXPLAINED)
def test_public_name_has_a_docstring(package: str) -> None:
    """Every public module, class, function and method has a docstring.

    A method need not repeat what is said where it comes from: in its base class, or in the port of the same module.
    """
    silent = [name for module in modules(package) for name in _unexplained(module)]
    assert silent == []


def _calls_at_import(node: ast.AST) -> Iterator[ast.Call]:
    """Calls made when the module is imported: in no function's body, but in its defaults and decorators."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            defaults = [value for value in (*child.args.defaults, *child.args.kw_defaults) if value]
            decorators = [] if isinstance(child, ast.Lambda) else child.decorator_list
            for part in (*defaults, *decorators):
                yield from _calls_at_import(ast.Expression(part))
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from _calls_at_import(child)


def _unexplained(module: Path) -> Iterator[str]:
    top = tree(module)
    if module.name != "__init__.py" and not ast.get_docstring(top):
        yield str(module)
    for child in top.body:
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or child.name.startswith("_"):
            continue
        if not ast.get_docstring(child):
            yield f"{module}:{child.lineno} {child.name}"
        if isinstance(child, ast.ClassDef) and not _inherits(child):
            for method in _methods(child):
                if not ast.get_docstring(method) and method.name not in _said_by_ports(top):
                    yield f"{module}:{method.lineno} {child.name}.{method.name}"


def _methods(cls: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        child
        for child in cls.body
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        and not child.name.startswith("_")
        and not any(isinstance(part, ast.Attribute) and part.attr == "setter" for part in child.decorator_list)
    ]


def _inherits(cls: ast.ClassDef) -> bool:
    return bool({dotted(base) for base in cls.bases} - {"Protocol", "StrEnum", "enum.Enum", "Enum"})


def _said_by_ports(module: ast.Module) -> set[str]:
    ports = [
        child
        for child in module.body
        if isinstance(child, ast.ClassDef) and "Protocol" in {dotted(base) for base in child.bases}
    ]
    return {method.name for port in ports for method in _methods(port) if ast.get_docstring(method)}
