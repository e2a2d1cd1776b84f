"""Limits on size, by what a reader takes in at once: a class, a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.code import PACKAGES, modules, tree

MAX_METHODS = 25
MAX_LINES = 70
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_class_and_no_function_is_too_large() -> None:
    """Migrations are excepted: they are not read as a whole."""
    found = {
        f"{module} {name}"
        for module in modules(*PACKAGES, "tests")
        if module.parent.name != "versions"
        for name in too_large(tree(module))
    }
    assert found == set()


def test_class_of_too_many_methods_is_named() -> None:
    methods = "".join(f"    def f{n}(self): ...\n" for n in range(MAX_METHODS))
    assert list(too_large(ast.parse(f"class A:\n{methods}"))) == []
    assert list(too_large(ast.parse(f"class A:\n{methods}    async def g(self): ...\n"))) == ["A"]


def test_function_of_too_many_lines_is_named() -> None:
    body = "    x\n" * (MAX_LINES - 1)
    assert list(too_large(ast.parse(f"def f():\n{body}"))) == []
    assert list(too_large(ast.parse(f"async def f():\n{body}    x\n"))) == ["f"]


def too_large(module: ast.Module) -> Iterator[str]:
    """Yield the names of classes and functions of a module that break a limit."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and sum(isinstance(child, _FUNCTIONS) for child in node.body) > MAX_METHODS:
            yield node.name
        if isinstance(node, _FUNCTIONS) and (node.end_lineno or 0) - node.lineno + 1 > MAX_LINES:
            yield node.name
