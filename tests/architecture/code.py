"""The repository as the rules read it: its files, and its modules as syntax trees."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("coordination", "services")
SERVICES = ("order", "payment", "ledger")
#: The bank outside: no service of the house, and with the same rooms.
ACQUIRER = "acquirer"


def modules(*packages: str) -> list[Path]:
    """Every Python file under these packages, relative to the repository."""
    return sorted(path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py"))


@functools.cache
def tree(module: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse((ROOT / module).read_text(), filename=str(module))


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """What git keeps, relative to the repository; empty outside a clone."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name]
    return tuple(Path(name) for name in names if (ROOT / name).is_file()) if done.returncode == 0 else ()


def dotted(node: ast.expr) -> str:
    """What is called, like `grpc.aio.insecure_channel`; empty if it has no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])
