"""No import circle: a module can be read after those that it imports."""

from __future__ import annotations

import ast

from tests.architecture.code import PACKAGES
from tests.architecture.imports import circle_in, imported_by, imports_of


def test_modules_import_each_other_in_no_circle() -> None:
    imports = imports_of(*PACKAGES)
    assert len(imports) > 200
    assert circle_in(imports) == []


def test_folders_import_each_other_in_no_circle() -> None:
    """coordination, and each folder of services."""
    folders: dict[str, set[str]] = {}
    for importer, imported in imports_of(*PACKAGES).items():
        folders.setdefault(_folder(importer), set()).update(_folder(name) for name in imported)
    assert len(folders) > 10
    assert circle_in({folder: others - {folder} for folder, others in folders.items()}) == []


def test_circle_is_named() -> None:
    """A rule that no import can break proves nothing."""
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])


def test_imports_in_functions_and_for_types_count() -> None:
    source = "import a\nif TYPE_CHECKING:\n    from b import C\ndef f():\n    from d import e, g\n"
    assert list(imported_by(ast.parse(source), {"a", "b", "d", "d.e", "x"})) == ["a", "b", "d.e", "d"]


def _folder(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "coordination" else ".".join(parts[:2])
