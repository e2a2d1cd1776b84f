"""deploy/check_supply.py: what the SBOM names, and what an audit says. No test needs the network.

The tests marked `with_tools` run cyclonedx-py and pip-audit, where deploy/setup-supply.sh has installed them.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.check_supply import (
    FAILED,
    LOCKS,
    OK,
    ROOT,
    RUNTIME_LOCK,
    SBOM,
    TOOLS,
    VULNERABLE,
    Audit,
    Outcome,
    audit,
    classify,
    main,
    missing_from,
    read_pins,
    report,
    write_sbom,
)

HASH = f"--hash=sha256:{'a' * 64}"
LOCK = f"""\
jinja2==2.4.1 \\
    {HASH} \\
    {HASH}
colorama==0.4.6 ; sys_platform == 'win32' \\
    {HASH}
ruamel-yaml==0.18.17 \\
    {HASH}
"""
PINS = {"jinja2": "2.4.1", "colorama": "0.4.6", "ruamel-yaml": "0.18.17"}
PYPROJECT = '[project]\nname = "shop"\nversion = "3.1"\n'

with_tools = pytest.mark.skipif(
    not (TOOLS / "pip-audit").exists(), reason="deploy/setup-supply.sh has not installed the tools"
)

FOUND = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "CVE-2000-0001", "fix_versions": ["2.5"], "aliases": ["GHSA-0000-0000-0001"]}],
}
SOUND = {"name": "six", "version": "1.17.0", "vulns": []}
SKIPPED = {
    "name": "alembic",
    "skip_reason": "Dependency not found on PyPI and could not be audited: alembic (1.20.1)",
}
URL_SKIPPED = {"name": "six @ file:six.whl", "skip_reason": "could not deduce package version from URL requirement"}
TRACEBACK = 'Traceback (most recent call last):\n  File "pip_audit/_cli.py", line 1, in audit\n'
REFUSED = (
    f"{TRACEBACK}requests.exceptions.ConnectionError: HTTPSConnectionPool(host='db.invalid', port=443): Max retries "
    "exceeded with url: /v1/query (Caused by NameResolutionError(\"HTTPSConnection(host='db.invalid', port=443): "
    "Failed to resolve 'db.invalid'\"))\n"
)
UNAVAILABLE = (
    f"{TRACEBACK}requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: http://db.invalid/\n\n"
    "The above exception was the direct cause of the following exception:\n\n"
    f"{TRACEBACK}pip_audit._service.interface.ServiceError\n"
)
TIP = (
    "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\n"
    "ERROR:pip_audit._cli:Tip: your network may be blocking this service. Try another service with `-s SERVICE`\n"
)


def output_of(*dependencies: dict[str, Any]) -> str:
    """The report that pip-audit writes."""
    return json.dumps({"dependencies": dependencies, "fixes": []})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SBOM that cyclonedx-py has made of the small lock."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        write_sbom(*_inputs(folder), folder / "out" / "sbom.cdx.json")
    return folder / "out" / "sbom.cdx.json"


class TestPins:
    def test_lock_is_read_with_names_and_versions(self) -> None:
        assert read_pins(LOCK) == PINS

    def test_name_is_read_as_indexes_compare_it(self) -> None:
        assert read_pins("# made by make lock\nRuamel.YAML[jinja2]==1.0\n") == {"ruamel-yaml": "1.0"}

    @pytest.mark.parametrize("lock", ["jinja2>=2.4\n", "-r other.txt\n", "six @ file:six.whl\n", "", "# empty\n"])
    def test_lock_that_pins_nothing_is_refused(self, lock: str) -> None:
        with pytest.raises(ValueError, match="pin"):
            read_pins(lock)

    @pytest.mark.parametrize("lock", LOCKS)
    def test_lock_of_the_repository_is_read_whole(self, lock: str) -> None:
        text = (ROOT / lock).read_text()
        assert len(read_pins(text)) == sum("==" in line and not line.startswith(" ") for line in text.splitlines())


class TestSbom:
    def test_pin_without_version_or_purl_is_missing(self) -> None:
        def component(name: str, version: str, purl: str) -> dict[str, str]:
            return {"name": name, "version": version, "purl": purl}

        whole = component("jinja2", "2.4.1", "pkg:pypi/jinja2@2.4.1")
        assert missing_from({"components": [whole]}, {"jinja2": "2.4.1"}) == []
        for wrong in (
            component("jinja2", "2.4.1", ""),
            component("jinja2", "2.4.1", "pkg:pypi/jinja2@2.4.0"),
            component("jinja2", "2.4", "pkg:pypi/jinja2@2.4.1"),
            component("jinja", "2.4.1", "pkg:pypi/jinja2@2.4.1"),
        ):
            assert missing_from({"components": [wrong]}, {"jinja2": "2.4.1"}) == ["jinja2==2.4.1"]
        assert missing_from({}, PINS) == [f"{name}=={version}" for name, version in PINS.items()]

    @with_tools
    def test_sbom_names_each_package_with_version_and_purl(self, made: Path) -> None:
        sbom = json.loads(made.read_text())
        assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
        root = sbom["metadata"]["component"]
        assert (root["type"], root["name"], root["version"]) == ("application", "shop", "3.1")
        assert {(each["name"], each["version"], each["purl"]) for each in sbom["components"]} == {
            ("jinja2", "2.4.1", "pkg:pypi/jinja2@2.4.1"),
            ("colorama", "0.4.6", "pkg:pypi/colorama@0.4.6"),
            ("ruamel-yaml", "0.18.17", "pkg:pypi/ruamel-yaml@0.18.17"),
        }

    @with_tools
    def test_sbom_of_the_product_has_every_runtime_package(self, tmp_path: Path) -> None:
        sbom = write_sbom(ROOT / RUNTIME_LOCK, ROOT / "pyproject.toml", tmp_path / "sbom.cdx.json")
        pins = read_pins((ROOT / RUNTIME_LOCK).read_text())
        assert {each["purl"] for each in sbom["components"]} == {
            f"pkg:pypi/{name}@{version}" for name, version in pins.items()
        }
        assert sbom["metadata"]["component"]["name"] == "countinghouse"

    @with_tools
    def test_sbom_of_the_same_commit_has_the_same_bytes(
        self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        again = write_sbom(*_inputs(tmp_path), tmp_path / "again")
        assert again["metadata"]["timestamp"] == "2001-09-09T01:46:40+00:00"
        assert (tmp_path / "again").read_bytes() == made.read_bytes()

    def test_sbom_that_lacks_a_package_is_refused(self, tmp_path: Path) -> None:
        tools = _stub_tools(tmp_path, sbom={"components": []})
        with pytest.raises(RuntimeError, match=r"the SBOM lacks jinja2==2\.4\.1"):
            write_sbom(*_inputs(tmp_path), tmp_path / "sbom.cdx.json", tools)

    def test_sbom_of_an_earlier_run_does_not_stay_when_the_tool_fails(self, tmp_path: Path) -> None:
        output = tmp_path / "sbom.cdx.json"
        output.write_text("{}")
        tools = tmp_path / "bin"
        tools.mkdir()
        _stub(tools / "cyclonedx-py", "echo broken >&2; exit 1")
        with pytest.raises(RuntimeError, match="cyclonedx-py failed: broken"):
            write_sbom(*_inputs(tmp_path), output, tools)
        assert not output.exists()


class TestClassify:
    """pip-audit exits with 1 for a vulnerability, an unreachable database and a lock that it cannot read alike."""

    def test_vulnerability_is_found_with_its_ids_and_fixes(self) -> None:
        found = classify(1, output_of(FOUND, SOUND), "Found 1 known vulnerability in 1 package\n")
        assert found.outcome is Outcome.VULNERABLE
        assert found.details == (
            "jinja2 2.4.1 has the known vulnerability CVE-2000-0001, GHSA-0000-0000-0001; fixed in 2.5",
        )

    def test_vulnerability_is_found_although_another_package_is_skipped(self) -> None:
        assert classify(1, output_of(FOUND, SKIPPED), "").outcome is Outcome.VULNERABLE
        assert classify(1, output_of(FOUND), TIP + REFUSED).outcome is Outcome.VULNERABLE

    def test_no_vulnerability_is_clean(self) -> None:
        assert classify(0, output_of(SOUND), "No known vulnerabilities found\n") == Audit(
            Outcome.CLEAN, audited=frozenset({"six"})
        )

    @pytest.mark.parametrize(
        ("code", "stdout", "stderr", "reason"),
        [
            (1, "", REFUSED, "cannot be reached (ConnectionError, NameResolutionError)"),
            (1, "", f"{TRACEBACK}requests.exceptions.ReadTimeout: timed out\n", "cannot be reached (ReadTimeout)"),
            (1, "", TIP, "cannot be reached"),
            (1, "", UNAVAILABLE, "answered with HTTP status 503"),
            (0, output_of(SKIPPED), "No known vulnerabilities found\n", "does not know any of the packages"),
        ],
        ids=["name", "time-out", "tip", "503", "404"],
    )
    def test_database_that_gives_no_answer_is_unreachable(
        self, code: int, stdout: str, stderr: str, reason: str
    ) -> None:
        assert classify(code, stdout, stderr) == Audit(Outcome.UNREACHABLE, (reason,))

    @pytest.mark.parametrize(
        ("code", "stdout", "stderr"),
        [
            (1, "", "ERROR:pip_audit._cli:requirement six==1.17.0 does not contain a hash\n"),
            (1, "", f"{TRACEBACK}KeyError: 'vulns'\n"),
            (1, "", UNAVAILABLE.replace("503", "400")),
            (1, "", f"{TRACEBACK}requests.exceptions.InvalidURL: no host\n"),
            (1, "", f"{REFUSED}{TRACEBACK}KeyError: 'vulns'\n"),
            (2, "", "pip-audit: error: unrecognized arguments: --quick\n"),
            (-9, "", ""),
            (0, "", ""),
            (0, "", REFUSED),
            (0, "no JSON", "No known vulnerabilities found\n"),
            (0, output_of(), "No known vulnerabilities found\n"),
            (0, output_of(SOUND, SKIPPED), "No known vulnerabilities found\n"),
            (0, output_of(URL_SKIPPED), "No known vulnerabilities found\n"),
        ],
    )
    def test_other_failure_is_neither_clean_nor_unreachable(self, code: int, stdout: str, stderr: str) -> None:
        failed = classify(code, stdout, stderr)
        assert failed.outcome is Outcome.FAILED
        assert failed.details[0]

    def test_text_of_the_database_is_printed_without_control_characters(self) -> None:
        wrong = {**FOUND, "vulns": [{"id": "CVE-1\x1b[2J", "fix_versions": [], "aliases": []}]}
        assert classify(1, output_of(wrong), "").details == (
            "jinja2 2.4.1 has the known vulnerability CVE-1?[2J; no version fixes it",
        )


class TestReport:
    CLEAN = Audit(Outcome.CLEAN, audited=frozenset({"jinja2", "ruamel-yaml"}))
    FOUND = Audit(Outcome.VULNERABLE, ("jinja2 2.4.1 has …",))
    UNREACHABLE = Audit(Outcome.UNREACHABLE, ("cannot be reached (ReadTimeout)",))
    BROKEN = Audit(Outcome.FAILED, ("no hash",))

    @pytest.mark.parametrize(
        ("audits", "code"),
        [
            ((CLEAN, CLEAN), OK),
            ((CLEAN, UNREACHABLE), OK),
            ((UNREACHABLE, UNREACHABLE), OK),
            ((UNREACHABLE, FOUND), VULNERABLE),
            ((FOUND, UNREACHABLE), VULNERABLE),
            ((BROKEN, FOUND), VULNERABLE),
            ((UNREACHABLE, BROKEN), FAILED),
        ],
    )
    def test_exit_code_tells_vulnerable_and_unreachable_apart(self, audits: tuple[Audit, Audit], code: int) -> None:
        assert report(dict(zip(("a.lock", "b.lock"), audits, strict=True)), {"a.lock": PINS, "b.lock": PINS}) == code

    def test_skipped_locks_are_named_in_one_sentence_with_the_reason(self, capsys: pytest.CaptureFixture[str]) -> None:
        report({"a.lock": self.UNREACHABLE, "b.lock": self.UNREACHABLE}, {"a.lock": PINS, "b.lock": PINS})
        assert capsys.readouterr().out == (
            "check-supply: the audit of a.lock, b.lock was skipped, "
            "because the vulnerability database cannot be reached (ReadTimeout)\n"
        )

    def test_package_that_a_marker_excludes_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        report({"a.lock": self.CLEAN}, {"a.lock": PINS})
        assert capsys.readouterr().out == (
            "check-supply: a.lock: no known vulnerability in 2 packages; "
            "not audited, because a marker excludes them here: colorama\n"
        )


class TestMain:
    @pytest.mark.parametrize(
        ("command", "code", "line"),
        [
            ("cat report", OK, "no known vulnerability in 1 packages"),
            (f"cat >&2 <<'EOF'\n{REFUSED}EOF\nexit 1", OK, "was skipped, because the vulnerability database cannot be"),
            (f"echo '{output_of(FOUND)}'; exit 1", VULNERABLE, "known vulnerability CVE-2000-0001"),
            ("echo 'does not contain a hash' >&2; exit 1", FAILED, "the audit failed: does not contain a hash"),
        ],
        ids=["clean", "unreachable", "vulnerable", "failed"],
    )
    def test_sbom_is_written_whatever_the_audit_says(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, line: str
    ) -> None:
        tools = _repository(tmp_path)
        (tmp_path / "report").write_text(output_of(SOUND))
        _stub(tools / "pip-audit", command.replace("cat report", f"cat '{tmp_path / 'report'}'"))
        assert main([], tmp_path, tools) == code
        assert (tmp_path / SBOM).exists()
        said = capsys.readouterr().out
        assert "build/sbom.cdx.json: shop 3.1 with the 3 packages of requirements-runtime.lock" in said
        assert line in said
        assert all(lock in said for lock in LOCKS)

    def test_tools_that_are_not_there_are_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _repository(tmp_path)
        assert main([], tmp_path, tmp_path / "nowhere") == FAILED
        assert "cyclonedx-py" in capsys.readouterr().out

    def test_options_reach_pip_audit(self, tmp_path: Path) -> None:
        tools = _repository(tmp_path)
        _stub(tools / "pip-audit", f"echo \"$@\" >>'{tmp_path / 'calls'}'; exit 1")
        main(["--ignore-vuln", "CVE-1"], tmp_path, tools)
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len(calls) == len(LOCKS)
        assert all("--require-hashes --disable-pip --ignore-vuln CVE-1" in call for call in calls)


class VulnerabilityDatabase(BaseHTTPRequestHandler):
    """Serves what OSV would: a vulnerability of jinja2, or always the same status."""

    status = 200
    vulnerable = ""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = {"name": self.vulnerable, "ecosystem": "PyPI"}
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.5"}]}]
        affected = [{"package": package, "ranges": ranges}]
        found = {"vulns": [{"id": "GHSA-1", "summary": "…", "aliases": ["CVE-2000-0001"], "affected": affected}]}
        body = json.dumps(found if query["package"]["name"] == self.vulnerable else {}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@with_tools
class TestPipAudit:
    """pip-audit itself, with a database on this machine in OSV's place."""

    @pytest.fixture
    def lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        return _inputs(tmp_path)[0]

    def test_vulnerability_is_found(self, lock: Path) -> None:
        with serving(vulnerable="jinja2") as port:
            done = _audit_at(port, lock)
        assert done.outcome is Outcome.VULNERABLE
        assert done.details == ("jinja2 2.4.1 has the known vulnerability CVE-2000-0001, GHSA-1; fixed in 2.5",)

    def test_lock_without_vulnerability_is_clean(self, lock: Path) -> None:
        with serving() as port:
            assert _audit_at(port, lock) == Audit(Outcome.CLEAN, audited=frozenset({"jinja2", "ruamel-yaml"}))

    def test_database_that_is_unavailable_is_unreachable(self, lock: Path) -> None:
        with serving(status=503) as port:
            assert _audit_at(port, lock) == Audit(Outcome.UNREACHABLE, ("answered with HTTP status 503",))

    def test_database_that_refuses_connections_is_unreachable(self, lock: Path) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            done = _audit_at(bound.getsockname()[1], lock)
        assert done.outcome is Outcome.UNREACHABLE
        assert "ConnectionError" in done.details[0]

    def test_lock_without_hashes_is_refused(self, lock: Path) -> None:
        lock.write_text("jinja2==2.4.1\n")
        with serving() as port:
            done = _audit_at(port, lock)
        assert done.outcome is Outcome.FAILED
        assert "does not contain a hash" in done.details[0]


@contextmanager
def serving(vulnerable: str = "", status: int = 200) -> Iterator[int]:
    """Serve a vulnerability database, and yield its port."""
    handler = type("Database", (VulnerabilityDatabase,), {"vulnerable": vulnerable, "status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _audit_at(port: int, lock: Path) -> Audit:
    options = ["--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{port}/"]
    return audit(lock, [*options, "--cache-dir", str(lock.parent / "cache")])


def _inputs(folder: Path) -> tuple[Path, Path]:
    """Write the small lock and its project, and return their paths."""
    lock, project = folder / "small.lock", folder / "pyproject.toml"
    lock.write_text(LOCK)
    project.write_text(PYPROJECT)
    return lock, project


def _stub(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def _stub_tools(folder: Path, sbom: dict[str, Any]) -> Path:
    """Make a cyclonedx-py that writes this SBOM to the file that its last argument names, and return its folder."""
    tools = folder / "bin"
    tools.mkdir()
    _stub(tools / "cyclonedx-py", f"for output; do :; done\ncat >\"$output\" <<'EOF'\n{json.dumps(sbom)}\nEOF")
    return tools


def _repository(folder: Path) -> Path:
    """Make a repository with small locks, and return the folder of its stub tools."""
    for lock in LOCKS:
        (folder / lock).write_text(LOCK)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    components = [
        {"name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"} for name, version in PINS.items()
    ]
    root = {"name": "shop", "version": "3.1"}
    return _stub_tools(folder, sbom={"metadata": {"component": root}, "components": components})
