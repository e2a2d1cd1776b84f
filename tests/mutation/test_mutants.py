"""The ways in which a module is broken, and how a mutant is tried."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.mutation import trial
from tests.mutation.equivalent import read_equivalent
from tests.mutation.mutants import Mutant, mutants_of, names_of
from tests.mutation.trial import ROOT, Fate, files_of_tests, sources, try_all


def changes(source: str) -> list[str]:
    """What is changed, in words."""
    return [f"{mutant.where}: {mutant.what}" for mutant in mutants_of("m.py", source)]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a == b", ["a == b → left out", "a == b → a != b"]),
        ("c = a < b", ["a < b → a >= b", "a < b → a <= b"]),
        ("c = a in b", ["a in b → a not in b"]),
        ("c = a is not b", ["a is not b → a is b"]),
        (
            "c = a < b < d",
            ["a < b < d → a >= b < d", "a < b < d → a <= b < d", "a < b < d → a < b >= d", "a < b < d → a < b <= d"],
        ),
        ("c = a and b", ["a and b → a or b"]),
        ("c = not a", ["not a → a"]),
        ("c = a + b", ["a + b → a - b"]),
        ("c = 3", ["3 → 4"]),
        ("c = True", ["True → False"]),
        ("c = 'PAID'", ["'PAID' → 'PAIDx'"]),
        ("c = row['order_id']", []),
        ("c = f'told {a} times'", []),
        ("c = f'told {a or b}'", ["a or b → a and b"]),
        ("c: int = a", []),
        ("c = a if b else d", ["a if b else d → a", "a if b else d → d"]),
        ("if a:\n    c = b", ["if a → True", "if a → False"]),
        ("while True:\n    break", ["True → False", "break → left out"]),
        ("c = [a for a in b if d]", ["if d → True"]),
        ("c = {a, b}", ["a in a table → left out", "b in a table → left out"]),
        ("c = {a: b}", ["a in a table → left out"]),
        ("f(a)", ["f(a) → left out"]),
        ("c += a", ["c += a → left out"]),
        ("'''About it.'''\nc = a", []),
    ],
)
def test_module_is_broken_in_one_place(source: str, wanted: list[str]) -> None:
    assert changes(source) == [f"module: {what}" for what in wanted]


def test_tables_are_those_of_the_module_only() -> None:
    """A tuple in a function is looked at as what it holds."""
    assert changes("def f():\n    '''About it.'''\n    return a, b") == []


def test_change_is_known_by_where_it_is() -> None:
    """And by its number, if there are several that say the same; not by its line."""
    source = "class A:\n    def f(self):\n        yield a\n        yield a\n"
    assert changes(source) == ["A.f: yield a → left out", "A.f: yield a → left out (no. 2)"]
    assert names_of("m.py", source) == {mutant.name for mutant in mutants_of("m.py", source)}


def test_rest_of_the_module_stays_as_it_is() -> None:
    """Also after the last change: each begins from the whole one."""
    sources = [mutant.source for mutant in mutants_of("m.py", "a = 1\nb = 2\nif c:\n    d = e\n")]
    assert sources == [
        "a = 2\nb = 2\nif c:\n    d = e",
        "a = 1\nb = 3\nif c:\n    d = e",
        "a = 1\nb = 2\nif True:\n    d = e",
        "a = 1\nb = 2\nif False:\n    d = e",
    ]


def _fates(mutants: list[Mutant]) -> dict[str, Fate]:
    """Return what becomes of the mutants of one module, by the tests of that module alone."""
    own, _ = files_of_tests(mutants[0].module)
    with patch.object(trial, "files_of_tests", return_value=(own, [])):
        return {each.mutant.what: each.fate for each in try_all(mutants, 2)}


def test_mutant_is_tried_in_the_place_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is broken or cannot be imported is noticed, and one that is not survives."""
    monkeypatch.chdir(ROOT)
    source = sources()["findings.py"]
    mutants = {
        "broken": source.replace("not self.violations", "self.violations"),
        "torn": "def (",
        "whole": source,
    }
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        fates = fresh.submit(_fates, [Mutant("findings.py", "module", what, text) for what, text in mutants.items()])
        assert fates.result() == {"broken": Fate.NOTICED, "torn": Fate.NOTICED, "whole": Fate.SURVIVED}


def test_process_with_threads_tries_none() -> None:
    """A child of it might wait forever for what a thread of its parent held."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="one thread"):
            next(try_all([], 1))
    finally:
        done.set()
        thread.join()


def test_tests_of_a_module_are_run_first() -> None:
    """And every test of the checker is run."""
    own, others = files_of_tests("history.py")
    assert [os.path.basename(path) for path in own] == ["test_history.py"]
    assert {Path(path).name for path in others} >= {"test_simulation.py", "test_check.py", "test_order_histories.py"}
    assert all(files_of_tests(module)[0] for module in sources())


class TestEquivalent:
    """The list of changes that make no difference."""

    def test_every_name_has_the_reason_above_it(self, tmp_path: Path) -> None:
        file = tmp_path / "equivalent.txt"
        file.write_text(
            "It is the same,\nas one sees.\n  a.py: f: x → y\n  a.py: f: y → z\n\nSo is this.\n  b.py: g: x → y\n"
        )
        assert read_equivalent(file) == {
            "a.py: f: x → y": "It is the same, as one sees.",
            "a.py: f: y → z": "It is the same, as one sees.",
            "b.py: g: x → y": "So is this.",
        }

    @pytest.mark.parametrize("text", ["  a.py: f: x → y\n", "Why.\n  a\n  a\n", "Why.\n\n  a\n"])
    def test_name_without_a_reason_is_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "equivalent.txt"
        file.write_text(text)
        with pytest.raises(ValueError, match="without a reason, or twice"):
            read_equivalent(file)

    def test_each_is_a_change_that_can_be_made(self) -> None:
        """What is no longer there needs no excuse."""
        names = set().union(*(names_of(module, source) for module, source in sources().items()))
        assert read_equivalent().keys() - names == set()


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_every_change_is_noticed() -> None:
    """But for those that make no difference."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
