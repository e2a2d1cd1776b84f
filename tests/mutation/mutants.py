"""Small ways to break a module: one change to its syntax tree each.

| change | becomes |
|---|---|
| comparison | its opposite; and `<` also `<=`, `>` also `>=`, and back |
| `and`, `or` | the other |
| `not x` | `x` |
| `+`, `-` | the other |
| a number, a truth value, a word | another |
| `if x`, `x if y else z`, `for … if x`, `case … if x` | always, never |
| an element of a module's own table | left out |
| a statement that calls, yields, raises, goes on or adds up | left out |

Texts for people are left alone: what an f-string says around its values, and docstrings. So are types, decorators, what
a module offers (`__all__`), and the names of columns: a row has no other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_OTHER_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.GtE, ast.LtE),
    ast.LtE: (ast.Gt, ast.Lt),
    ast.Gt: (ast.LtE, ast.GtE),
    ast.GtE: (ast.Lt, ast.Gt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_STATEMENTS = (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)
_TABLES = (ast.Dict, ast.Set, ast.Tuple, ast.List)
#: Fields that say what things are and not what they do.
_SILENT = {"annotation", "returns", "decorator_list", "type_params"}


@dataclass(frozen=True)
class Mutant:
    """A broken module.

    Args:
        where: Name of the function or class; `module` outside of any.
        what: What was changed, in code, before and after.
    """

    module: str
    where: str
    what: str
    source: str

    @property
    def name(self) -> str:
        """By which an equivalent one is known; it does not move with the lines."""
        return f"{self.module}: {self.where}: {self.what}"


@dataclass
class _Place:
    """Where a node stands in its parent."""

    parent: ast.AST
    field: str
    index: int | None

    @property
    def node(self) -> Any:
        held = getattr(self.parent, self.field)
        return held if self.index is None else held[self.index]

    def put(self, node: Any) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


#: A change to the tree: in words, and what stands in which place instead.
_Change = tuple[str, _Place, Any]


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module's source; no two have one name."""
    tree = ast.parse(source)
    for where, what, place, instead in _numbered(tree):
        before = place.node
        place.put(instead)
        broken = ast.unparse(ast.fix_missing_locations(tree))
        place.put(before)
        yield Mutant(module, where, what, broken)


def names_of(module: str, source: str) -> set[str]:
    """Return the names of the mutants of a module's source, in a tenth of the time that making them takes."""
    return {Mutant(module, where, what, "").name for where, what, _, _ in _numbered(ast.parse(source))}


def _numbered(tree: ast.Module) -> Iterator[tuple[str, str, _Place, Any]]:
    """Return every change to a tree; of those that say the same in one place, all but the first carry a number."""
    told: dict[str, int] = {}
    for where, (what, place, instead) in list(_changes(tree, "module")):
        told[f"{where}: {what}"] = number = told.get(f"{where}: {what}", 0) + 1
        yield where, what if number == 1 else f"{what} (no. {number})", place, instead


def _changes(node: ast.AST, where: str) -> Iterator[tuple[str, _Change]]:
    """The changes below a node, each with the function or class it is in."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        where = node.name if where == "module" else f"{where}.{node.name}"
    for place in _places(node):
        child = place.node
        if isinstance(child, ast.JoinedStr):
            for value in child.values:
                if isinstance(value, ast.FormattedValue):
                    yield from _changes(value, where)
            continue
        if _is_text(node, place) or _is_column(node, child) or _is_type(child):
            continue
        for change in _changes_of(place, is_table=where == "module"):
            yield where, change
        yield from _changes(child, where)


def _places(node: ast.AST) -> Iterator[_Place]:
    for name, value in ast.iter_fields(node):
        if name in _SILENT:
            continue
        if isinstance(value, ast.AST):
            yield _Place(node, name, None)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield _Place(node, name, index)


def _is_text(node: ast.AST, place: _Place) -> bool:
    """Whether this is a docstring."""
    child = place.node
    is_first = place.field == "body" and place.index == 0 and hasattr(node, "body")
    return (
        is_first
        and isinstance(child, ast.Expr)
        and isinstance(child.value, ast.Constant)
        and isinstance(child.value.value, str)
    )


def _is_column(node: ast.AST, child: ast.AST) -> bool:
    """Whether this is the `x` of `row["x"]`."""
    return isinstance(node, ast.Subscript) and isinstance(child, ast.Constant) and isinstance(child.value, str)


def _is_type(child: ast.AST) -> bool:
    """Whether this is `Key = tuple[str, str]`, `_T = TypeVar(…)` or `__all__ = …`."""
    match child:
        case ast.Assign([ast.Name("__all__")]):
            return True
        case ast.Assign(_, ast.Call(ast.Name("TypeVar"))):
            return True
        case ast.Assign(_, ast.Subscript(ast.Name("tuple" | "Mapping" | "Iterator" | "Callable" | "Generator"))):
            return True
    return False


def _changes_of(place: _Place, *, is_table: bool) -> Iterator[_Change]:
    node = place.node
    for make in (_comparisons, _operators, _constants, _conditions):
        for instead in make(node):
            yield f"{_shown(node)} → {_shown(instead)}", place, instead
    if isinstance(node, _STATEMENTS):
        yield f"{_shown(node)} → left out", place, ast.Pass()
    if isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, ast.Constant):
        test = _Place(node, "test", None)
        for always in (True, False):
            yield f"{_keyword(node)} {_shown(node.test)} → {always}", test, ast.Constant(always)
    if isinstance(node, ast.comprehension):
        for condition in node.ifs:
            left = [other for other in node.ifs if other is not condition]
            yield f"if {_shown(condition)} → True", _Place(node, "ifs", None), left
    if isinstance(node, ast.match_case) and node.guard is not None:
        yield f"case … if {_shown(node.guard)} → True", _Place(node, "guard", None), None
    if is_table and isinstance(node, _TABLES):
        yield from _shorter(place)


def _comparisons(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in _OTHER_COMPARISONS[type(operator)]:
                operators = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield ast.Compare(node.left, operators, node.comparators)


def _operators(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.BoolOp(ast.And(), values):
            yield ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(ast.Or(), values):
            yield ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, ast.Add(), right):
            yield ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left, ast.Sub(), right):
            yield ast.BinOp(left, ast.Add(), right)


def _constants(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(str(value)):
            yield ast.Constant(f"{value}x")


def _conditions(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse


def _shorter(place: _Place) -> Iterator[_Change]:
    """A table without each of its elements."""
    node = place.node
    elements = node.keys if isinstance(node, ast.Dict) else node.elts
    for index, element in enumerate(elements):
        rest = [other for other in range(len(elements)) if other != index]
        if isinstance(node, ast.Dict):
            instead: ast.expr = ast.Dict([node.keys[other] for other in rest], [node.values[other] for other in rest])
        elif isinstance(node, ast.Set) and not rest:
            continue  # an empty set has no display
        else:
            instead = type(node)([elements[other] for other in rest], *([ast.Load()] * (not isinstance(node, ast.Set))))
        yield f"{_shown(element)} in a table → left out", place, instead


def _keyword(node: ast.If | ast.While) -> str:
    return "if" if isinstance(node, ast.If) else "while"


def _shown(node: ast.AST, limit: int = 70) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
