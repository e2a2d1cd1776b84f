"""The rules of files: which module may import which, what modules are called, which files a service has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.code import ACQUIRER, PACKAGES, ROOT, SERVICES, modules, tracked_files

_FILES = ("model.py", "operations.py", "store.py", "servicer.py", "main.py", "README.md", "migrations/versions")
_NO_NOUNS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
_MAX_LINES = 750
#: Folders that exist on one machine only. A path in a comment is as wrong as one in code.
_MACHINE_PATH = re.compile(r"(?<![\w.>}/-])/(?:home|root|Users|work|workspace)/[\w.-]")
_MAY_NAME_MACHINE_PATHS = {Path("tests/architecture/test_layout.py")}


def test_import_contracts_are_kept() -> None:
    """The contracts of pyproject.toml."""
    program = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def test_module_is_about_one_noun() -> None:
    """`utils` is about none."""
    named = [path for path in modules(*PACKAGES, "tests", "protos") if {*path.parts, path.stem} & _NO_NOUNS]
    assert named == []


@pytest.mark.parametrize("service", [*SERVICES, ACQUIRER])
@pytest.mark.parametrize("file", _FILES)
def test_every_service_has_the_same_folders(service: str, file: str) -> None:
    """Who knows one of them knows all."""
    assert (ROOT / "services" / service / file).exists()


def test_module_has_at_most_750_lines() -> None:
    """What is longer is about more than one thing."""
    long = {str(path): _lines(path) for path in modules(*PACKAGES) if _lines(path) > _MAX_LINES}
    assert long == {}


def test_file_contains_no_path_of_a_machine() -> None:
    files = tracked_files()
    if not files:
        pytest.skip("this is no clone: which files are kept is not known")
    told = []
    for path in files:
        if path in _MAY_NAME_MACHINE_PATHS:
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        told += [f"{path}:{text.count(chr(10), 0, found.start()) + 1}" for found in _MACHINE_PATH.finditer(text)]
    assert told == []


def pinned(lock: str) -> list[str]:
    """What a lock file pins, one entry each."""
    text = (ROOT / lock).read_text()
    return [entry for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip()) if entry]


@pytest.fixture(scope="module")
def entries() -> list[str]:
    """What requirements.lock pins."""
    return pinned("requirements.lock")


class TestLock:
    """requirements.lock: the same bytes for everybody, from whichever index they have."""

    def test_runtime_lock_is_part_of_the_lock(self, entries: list[str]) -> None:
        """requirements-runtime.lock is the part of it without which nothing runs: the same versions and hashes."""
        runtime = pinned("requirements-runtime.lock")
        same = {" ".join(entry.split()) for entry in entries}
        assert [entry for entry in runtime if " ".join(entry.split()) not in same] == []
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        missing = {_distribution(name) for name in project["dependencies"]} - {_distribution(name) for name in runtime}
        assert missing == set()
        assert not {"pytest", "mypy", "ruff", "grpcio-tools"} & {_distribution(name) for name in runtime}

    def test_bench_lock_adds_to_the_lock_and_changes_no_version(self, entries: list[str]) -> None:
        """requirements-bench.lock is installed over requirements.lock, for the benchmarks only."""
        import tomllib

        bench = pinned("requirements-bench.lock")
        versions = {_distribution(entry): entry.split()[0] for entry in entries}
        changed = [entry for entry in bench if versions.get(_distribution(entry), entry.split()[0]) != entry.split()[0]]
        assert changed == []
        asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
        assert {_distribution(name) for name in asked} - {_distribution(entry) for entry in bench} == set()

    def test_supply_lock_has_what_checks_the_others_and_they_have_none_of_it(self, entries: list[str]) -> None:
        """The tools of `make check-supply` are in an environment of their own: the product does not depend on them."""
        asked = {_distribution(name) for name in (ROOT / "requirements-supply.in").read_text().split()}
        assert {"cyclonedx-bom", "pip-audit"} <= asked
        assert asked - {_distribution(entry) for entry in pinned("requirements-supply.lock")} == set()
        product = {_distribution(entry) for entry in [*entries, *pinned("requirements-bench.lock")]}
        assert asked & product == set()

    def test_lock_names_no_index_and_no_address(self, entries: list[str]) -> None:
        """An index line would send everybody to the one of whoever wrote it."""
        every = [*entries, *pinned("requirements-bench.lock"), *pinned("requirements-supply.lock")]
        wrong = [entry for entry in every if entry.startswith("-") or "://" in entry or " @ " in entry]
        assert wrong == []

    def test_lock_entry_is_pinned_with_hashes(self, entries: list[str]) -> None:
        wrong = [
            entry.split()[0]
            for entry in [*entries, *pinned("requirements-bench.lock"), *pinned("requirements-supply.lock")]
            if not entry.startswith("#")
            and not re.fullmatch(r"[\w.\[\],-]+==[^\s;]+( ;[^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry)
        ]
        assert wrong == []
        assert len(entries) > 50

    def test_lock_contains_every_requirement(self, entries: list[str]) -> None:
        """What pyproject.toml names and the lock does not would be installed unpinned, or not at all."""
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
        locked = {_distribution(entry) for entry in entries}
        assert {_distribution(name) for name in asked} - locked == set()


def _distribution(requirement: str) -> str:
    """Its name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def _lines(path: Path) -> int:
    return len((ROOT / path).read_text().splitlines())


def test_test_named_by_coordination_readme_exists() -> None:
    """The table of faults names tests that exist; a "…" stands for a part of a name."""
    words = (ROOT / "coordination" / "README.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"`((?:e2e/|unit/…/|tests/unit/coordination/)?test_\w+\.py)", words)):
        name = path.rpartition("/")[2]
        assert list((ROOT / "tests").rglob(name)), f"coordination/README.md names {path}, which is not there"
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"(?:def|class) (test_\w+|Test\w+)", file.read_text(encoding="utf-8"))
    }
    named = set(re.findall(r"[`:](test_\w+|Test\w+)(?:\[[^\]]*\])?`", words))
    assert named - defined == set()


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "tests/chaos/FOUND.md"])
def test_file_named_by_a_page_exists(page: str) -> None:
    """As a path from the top."""
    named = set(re.findall(r"`((?:tests|services)/[\w/]+\.py)`", (ROOT / page).read_text(encoding="utf-8")))
    assert named
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_test_named_by_architecture_exists() -> None:
    """As `path::name`, or `::name` of the file named before; a name may be a part of one behind "…"."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named: list[tuple[str, str]] = []
    path = ""
    for found in re.finditer(r"`(tests/[\w/]+\.py)?((?:::[\w…]+)*)(?:\[[^\]`]*\])?`", page):
        path = found[1] or path
        named += [(path, name) for name in found[2].split("::") if name]
    assert len(named) > 50
    wrong = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(
            rf"(?:def|class) \w*{re.escape(name.lstrip('…'))}\b", (ROOT / path).read_text(encoding="utf-8")
        )
    ]
    assert wrong == []


def test_walk_of_architecture_enters_twelve_files_once_by_functions_that_exist() -> None:
    """Each item of the walk names a file, and before its colon the functions of that file by which it is entered."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    walk = page.partition("## One settle, walked")[2].partition("### ")[0]
    items = re.findall(r"^\d+\. `([\w/]+\.py)`, (.*?): ", walk, re.MULTILINE)
    assert 0 < len(items) <= 12
    assert len({path for path, _ in items}) == len(items)
    defined = {path: (ROOT / path).read_text(encoding="utf-8") for path, _ in items}
    entered = [
        (path, part) for path, names in items for name in re.findall(r"`([\w.]+)`", names) for part in name.split(".")
    ]
    assert [
        f"{path} has no {name}"
        for path, name in entered
        if not re.search(rf"(?:def|class) {name}\b|^{name}\b", defined[path], re.MULTILINE)
    ] == []


def test_walk_of_architecture_names_every_step_of_its_diagram() -> None:
    """In brackets before the colon of each item, like (3, 4, 15). A range like (3 to 15) names no step by itself."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    walk = page.partition("## One settle, walked")[2].partition("### ")[0]
    steps = len(re.findall(r"^ {4}\w+-[->)]+\w+: ", walk, re.MULTILINE))
    items = re.findall(r"^\d+\. `[\w/]+\.py`, [^:]*\((?:step )?([\d, to]+)\): ", walk, re.MULTILINE)
    assert len(items) == len(re.findall(r"^\d+\. `", walk, re.MULTILINE))
    named = {int(number) for item in items if " to " not in item for number in re.findall(r"\d+", item)}
    assert named == set(range(1, steps + 1))
