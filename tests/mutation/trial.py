"""Tries mutants: each in a process of its own, in which the broken module is imported instead of the real one.

    parent: imports what tests need, but nothing of ours ──fork──▶ child: mutant in place, tests until the first fails

So nothing is written anywhere, several are tried at once, and a test session costs no start of Python. The tests of the
module itself are run first, for they are the most likely to notice; then all others.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType

import alembic.command  # noqa: F401  imported once, before the forks; like all that knows nothing of the checker
import hypothesis
import pytest
import typer.testing  # noqa: F401

import services.devstack.state
import services.ledger.model
import services.runtime.database.database  # noqa: F401
from tests.mutation.mutants import Mutant

ROOT = Path(__file__).parents[2]
_PACKAGE = "services.checker"
_MODULES = ROOT / "services" / "checker"
_TESTS = ROOT / "tests" / "unit" / "checker"
_COMMAND_TESTS = ROOT / "tests" / "unit" / "cli" / "test_check.py"
#: The tests of a module that has none under its own path, or more than those.
_OWN_TESTS = {
    "evidence.py": ("checks/test_settlement.py", "checks/test_answers.py"),
    "linearizability/explanation.py": ("checks/test_orders.py",),
    "linearizability/order_calls.py": (
        "linearizability/test_order_calls.py",
        "linearizability/test_order_histories.py",
        "checks/test_orders.py",
    ),
    "linearizability/order_model.py": (
        "linearizability/test_order_model.py",
        "linearizability/test_order_histories.py",
    ),
    "linearizability/search.py": ("linearizability/test_search.py", "linearizability/test_order_histories.py"),
}
#: How long one session may take; one that hangs has noticed.
_PATIENCE_S = 120.0


class Fate(StrEnum):
    """What became of a mutant. `hung`: its tests did not come to an end, which is noticed as well."""

    NOTICED = "noticed"
    HUNG = "hung"
    SURVIVED = "survived"
    #: No test could be run, with or without it: that proves nothing.
    UNTRIED = "untried"


_FATES = {0: Fate.SURVIVED, 1: Fate.NOTICED, 2: Fate.NOTICED}


@dataclass(frozen=True)
class Trial:
    """One mutant and what became of it."""

    mutant: Mutant
    fate: Fate
    seconds: float


def sources() -> dict[str, str]:
    """Return the source of each module of the checker, by its path in the package."""
    return {path.relative_to(_MODULES).as_posix(): path.read_text() for path in sorted(_MODULES.rglob("[!_]*.py"))}


def files_of_tests(module: str) -> tuple[list[str], list[str]]:
    """Return the test files of this module, and all others of the checker."""
    folder, _, name = module.rpartition("/")
    own_tests = [_TESTS / path for path in _OWN_TESTS.get(module, (f"{folder}/test_{name}".lstrip("/"),))]
    files = [*sorted(_TESTS.rglob("test_*.py")), _COMMAND_TESTS]
    return [str(path) for path in files if path in own_tests], [str(path) for path in files if path not in own_tests]


def try_all(mutants: Iterable[Mutant], at_once: int) -> Iterator[Trial]:
    """Tries mutants, so many at once, in the order in which they come to an end.

    Raises:
        RuntimeError: This process has more threads than one, or has imported the checker. A fork takes the locks that
            other threads hold along, but not the threads; and a module that is there already is not imported again.
    """
    if len(os.listdir("/proc/self/task")) > 1 or _PACKAGE in sys.modules:
        raise RuntimeError("mutants are tried from a process with one thread that has not imported the checker")
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    waiting = iter(mutants)
    running: dict[int, tuple[Mutant, int, float]] = {}
    try:
        while True:
            while len(running) < at_once and (mutant := next(waiting, None)) is not None:
                pid, descriptor = _start(mutant)
                running[descriptor] = (mutant, pid, time.monotonic())
            if not running:
                return
            ended, _, _ = select.select(list(running), [], [], 1.0)
            late = [found for found, (_, _, began_s) in running.items() if time.monotonic() - began_s > _PATIENCE_S]
            for descriptor in {*ended, *late}:
                mutant, pid, began_s = running.pop(descriptor)
                yield Trial(mutant, _end(pid, descriptor, hung=descriptor not in ended), time.monotonic() - began_s)
    finally:
        for descriptor, (_, pid, _) in running.items():
            _end(pid, descriptor, hung=True)


def _start(mutant: Mutant) -> tuple[int, int]:
    """Forks; the descriptor can be read once the child is gone."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 3
    try:
        os.setsid()
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)
        sys.meta_path.insert(0, _InPlace(mutant))
        for tests in files_of_tests(mutant.module):
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout=60", *tests])) if tests else code
            if code:
                break
    finally:
        os._exit(code)


def _end(pid: int, descriptor: int, *, hung: bool) -> Fate:
    os.close(descriptor)
    if hung:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return Fate.HUNG if hung else _FATES.get(os.waitstatus_to_exitcode(status), Fate.UNTRIED)


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the broken module where the real one would be."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = f"{_PACKAGE}.{mutant.module.removesuffix('.py').replace('/', '.')}"
        self._mutant = mutant

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        exec(compile(self._mutant.source, self._mutant.name, "exec"), module.__dict__)  # noqa: S102
