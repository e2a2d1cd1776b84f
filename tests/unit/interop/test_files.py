"""What pins the other languages' packages: the same bytes for everybody, from whichever registry they have."""

from __future__ import annotations

import json
import re

import pytest

from tests.architecture.code import tracked_files
from tests.interop.toolchain import ROOT, SOURCES

#: Paths of Go modules and XML namespaces are names and no addresses of anything that is fetched from there.
_ADDRESS = re.compile(r"https?://(?!maven\.apache\.org/POM)\w[^\s\"'<]*|GOPROXY=|<repository>|--?index")


def test_python_requirements_are_pinned_with_their_hashes() -> None:
    """Each one."""
    text = (SOURCES / "pypi" / "requirements.lock").read_text().replace("\\\n", " ")
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if entry]
    wrong = [
        entry
        for entry in entries
        if not re.match(r"[\w.-]+==\S+( ;[^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$", entry)
    ]
    assert wrong == []
    assert any(entry.startswith("apache-dubbo==3.0.0b1 ") for entry in entries)


def test_npm_packages_are_pinned_with_their_hashes() -> None:
    """And without the address they once came from."""
    packages = json.loads((SOURCES / "npm" / "package-lock.json").read_text())["packages"]
    del packages[""]
    assert [name for name, package in packages.items() if not package["integrity"].startswith("sha512-")] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_java_packages_are_pinned() -> None:
    """A version that is a range or is left out would be another one tomorrow."""
    text = (SOURCES / "java" / "pom.xml").read_text()
    properties = dict(re.findall(r"<([\w.]+\.version)>([^<]+)</", text))
    for block in re.findall(r"<(?:dependency|plugin|extension)>.*?</(?:dependency|plugin|extension)>", text, re.DOTALL):
        version = re.search(r"<version>(?:\$\{([\w.]+)\}|([\d.]+))</version>", block)
        assert version, block
        assert re.fullmatch(r"[\d.]+", version[2] or properties[version[1]]), block


def test_go_modules_are_pinned_with_their_hashes() -> None:
    """And replaced by nobody's."""
    module = (SOURCES / "go" / "go.mod").read_text()
    assert "dubbo.apache.org/dubbo-go/v3 v3.3.0" in module
    assert "replace" not in module
    assert "dubbo.apache.org/dubbo-go/v3 v3.3.0 h1:" in (SOURCES / "go" / "go.sum").read_text()


def test_no_file_names_a_registry() -> None:
    """Everybody has their own."""
    here = SOURCES.relative_to(ROOT)
    files = [path for path in tracked_files() if here in path.parents and path.name != "go.sum"]
    if not files:
        pytest.skip("this is no clone: which files are kept is not known")
    found = {str(path): _ADDRESS.findall((ROOT / path).read_text()) for path in files}
    assert {path: addresses for path, addresses in found.items() if addresses} == {}
