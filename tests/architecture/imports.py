"""Which module imports which, and whether there is a circle among them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.architecture.code import modules, tree


def name_of(module: Path) -> str:
    """Return the dotted name under which a file is imported."""
    parts = module.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(*packages: str) -> dict[str, set[str]]:
    """Return, for every module of these packages, which of them it imports: in functions and for types as well."""
    named = {name_of(module): module for module in modules(*packages)}
    return {name: set(imported_by(tree(module), named)) - {name} for name, module in named.items()}


def imported_by(module: ast.Module, known: Collection[str]) -> Iterator[str]:
    """Yield those of the known modules that a syntax tree imports."""
    for node in ast.walk(module):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [submodule if submodule in known else node.module for submodule in submodules]
        yield from (name for name in names if name in known)


def circle_in(imports: Mapping[str, Collection[str]]) -> list[str]:
    """Return the modules along one circle, the first of them twice; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []
