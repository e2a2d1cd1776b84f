"""The supply check: an SBOM of the runtime dependencies, and an audit of the locks for known vulnerabilities.

`make check-supply` runs it. deploy/setup-supply.sh installs its tools, cyclonedx-py and pip-audit, into .venv-supply.
"""

from __future__ import annotations

import enum
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".venv-supply" / "bin"
RUNTIME_LOCK = "requirements-runtime.lock"
LOCKS = (RUNTIME_LOCK, "requirements.lock", "requirements-bench.lock")
SBOM = Path("build", "sbom.cdx.json")

#: Exit codes. FAILED: a tool failed, or a package was not audited although the database answered.
OK, VULNERABLE, FAILED = 0, 1, 2

_PIN = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)")
#: How pip-audit ends when its own code has noticed that the database does not answer.
_UNREACHABLE = "Tip: your network may be blocking this service."
#: How pip-audit ends when its HTTP client has noticed it: with a traceback, and one of these exceptions of `requests`.
_TRANSPORT_ERROR = re.compile(
    r"requests\.exceptions\.(ConnectionError|ConnectTimeout|ReadTimeout|Timeout|ProxyError|SSLError|ChunkedEncodingError"
    r"|TooManyRedirects|RetryError|JSONDecodeError)\b.*"
)
_CAUSE = re.compile(r"Caused by (\w+)\(")
#: How pip-audit ends when the database, or a proxy before it, answers with an error status.
_SERVICE_ERROR = "pip_audit._service.interface.ServiceError"
_STATUS = re.compile(r"^requests\.exceptions\.HTTPError: (401|403|407|429|5\d\d)\b", re.MULTILINE)
#: What pip-audit's default database answers 404 for. A mirror without the database answers so for every package.
_NO_ENTRY = "Dependency not found on PyPI"


class Outcome(enum.Enum):
    """What an audit of one lock says."""

    CLEAN = "clean"
    VULNERABLE = "vulnerable"
    UNREACHABLE = "unreachable"
    FAILED = "failed"


@dataclass(frozen=True)
class Audit:
    """The audit of one lock.

    Attributes:
        outcome: What it says.
        details: The vulnerabilities, one each; or why there is no answer.
        audited: The names of the packages for which the database answered.
    """

    outcome: Outcome
    details: tuple[str, ...] = ()
    audited: frozenset[str] = frozenset()


def say(text: str) -> None:
    print(f"check-supply: {text}", flush=True)


def read_pins(lock: str) -> dict[str, str]:
    """Return the packages that a lock pins, with their versions.

    Raises:
        ValueError: A line is no pin, or there is none.
    """
    pins: dict[str, str] = {}
    for line in lock.splitlines():
        if not line.strip() or line.startswith((" ", "\t", "#")):
            continue
        pin = _PIN.match(line)
        if pin is None:
            raise ValueError(f"not a pinned requirement: {_printable(line)}")
        pins[_canonical(pin[1])] = pin[2]
    if not pins:
        raise ValueError("the lock pins no package; `make lock` writes it")
    return pins


def missing_from(sbom: Mapping[str, Any], pins: Mapping[str, str]) -> list[str]:
    """Return the pins that an SBOM does not name with their version and their package URL (purl)."""
    components = {(part.get("name"), part.get("version"), part.get("purl")) for part in sbom.get("components", ())}
    return [
        f"{name}=={version}"
        for name, version in pins.items()
        if (name, version, f"pkg:pypi/{name}@{version}") not in components
    ]


def write_sbom(lock: Path, pyproject: Path, output: Path, tools: Path = TOOLS) -> dict[str, Any]:
    """Write a CycloneDX SBOM of what a lock pins, and return it. The project is its root component.

    The same commit gives the same bytes: the time of the SBOM is SOURCE_DATE_EPOCH, or that of the commit.

    Raises:
        RuntimeError: cyclonedx-py failed, or left a package out.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    command = [str(tools / "cyclonedx-py"), "requirements", str(lock), "--pyproject", str(pyproject)]
    form = ["--mc-type", "application", "--spec-version", "1.6", "--output-format", "JSON", "--output-reproducible"]
    target = ["--validate", "--output-file", str(output)]
    # A lock says what is installed, not which package needs it: the tool warns that the root names no dependency.
    env = {**os.environ, "PYTHONWARNINGS": "ignore::UserWarning", **_source_date(pyproject.parent)}
    done = subprocess.run(  # noqa: S603  the tool that setup-supply.sh installs
        [*command, *form, *target], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not output.exists():
        raise RuntimeError(f"cyclonedx-py failed: {_last_line(done.stderr)}")
    sbom: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    if missing := missing_from(sbom, read_pins(lock.read_text(encoding="utf-8"))):
        raise RuntimeError(f"the SBOM lacks {', '.join(missing)}")
    return sbom


def audit(lock: Path, options: Sequence[str] = (), tools: Path = TOOLS) -> Audit:
    """Return what pip-audit says of one lock.

    A lock with hashes is complete: pip-audit needs no resolver. It leaves out a package whose marker excludes it here.

    Args:
        lock: The lock.
        options: More options of pip-audit, such as `--ignore-vuln ID` or `--vulnerability-service osv`.
        tools: The folder of pip-audit.
    """
    command = [str(tools / "pip-audit"), "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    form = ["--format", "json", "--desc", "off", "--aliases", "on", "--progress-spinner", "off"]
    done = subprocess.run(  # noqa: S603  the tool that setup-supply.sh installs
        [*command, *options, *form], capture_output=True, text=True, check=False
    )
    return classify(done.returncode, done.stdout, done.stderr)


def classify(code: int, stdout: str, stderr: str) -> Audit:
    """Return what one run of pip-audit says.

    pip-audit exits with 1 for a vulnerability and for its own failure alike. Only the first comes with a report.

    Args:
        code: The exit code of pip-audit.
        stdout: Its report in JSON; empty if the audit did not end.
        stderr: Its log.
    """
    dependencies = _report(stdout)
    found = tuple(
        _vulnerability(each, vulnerability) for each in dependencies for vulnerability in each.get("vulns", ())
    )
    audited = frozenset(_canonical(each["name"]) for each in dependencies if "skip_reason" not in each)
    if found:
        return Audit(Outcome.VULNERABLE, found, audited)
    if code == 0 and dependencies:
        return _without_findings(dependencies, audited)
    reason = _why_unreachable(stderr) if code != 0 else ""
    if reason:
        return Audit(Outcome.UNREACHABLE, (reason,))
    return Audit(Outcome.FAILED, (_last_line(stderr),))


def _without_findings(dependencies: Sequence[Mapping[str, Any]], audited: frozenset[str]) -> Audit:
    """Return what a report without vulnerabilities says. pip-audit also calls it clean when it audited no package."""
    skipped = [each for each in dependencies if "skip_reason" in each]
    if not skipped:
        return Audit(Outcome.CLEAN, audited=audited)
    if not audited and all(each["skip_reason"].startswith(_NO_ENTRY) for each in skipped):
        return Audit(Outcome.UNREACHABLE, ("does not know any of the packages",))
    names = ", ".join(_printable(each["name"]) for each in skipped)
    return Audit(Outcome.FAILED, (f"pip-audit could not audit {names}",), audited)


def _why_unreachable(stderr: str) -> str:
    """Return what the database does instead of answering; empty if pip-audit does not report that."""
    last = stderr.strip().rpartition("\n")[2]
    if _UNREACHABLE in last:
        return "cannot be reached"
    if error := _TRANSPORT_ERROR.fullmatch(last):
        cause = _CAUSE.search(last)
        return f"cannot be reached ({error[1]}, {cause[1]})" if cause else f"cannot be reached ({error[1]})"
    statuses = _STATUS.findall(stderr)
    return f"answered with HTTP status {statuses[-1]}" if statuses and last.startswith(_SERVICE_ERROR) else ""


def report(audits: Mapping[str, Audit], pins: Mapping[str, Mapping[str, str]]) -> int:
    """Print what the audits say, and return the exit code.

    Args:
        audits: The audits by lock.
        pins: What each lock pins.
    """
    for lock, each in audits.items():
        if each.outcome is Outcome.CLEAN:
            excluded = sorted(set(pins[lock]) - each.audited)
            rest = f"; not audited, because a marker excludes them here: {', '.join(excluded)}" if excluded else ""
            say(f"{lock}: no known vulnerability in {len(each.audited)} packages{rest}")
        elif each.outcome is Outcome.VULNERABLE:
            for vulnerability in each.details:
                say(f"{lock}: {vulnerability}")
        elif each.outcome is Outcome.FAILED:
            say(f"{lock}: the audit failed: {each.details[0]}")
    if skipped := {lock: each.details[0] for lock, each in audits.items() if each.outcome is Outcome.UNREACHABLE}:
        reasons = " and ".join(dict.fromkeys(skipped.values()))
        say(f"the audit of {', '.join(skipped)} was skipped, because the vulnerability database {reasons}")
    outcomes = {each.outcome for each in audits.values()}
    if Outcome.VULNERABLE in outcomes:
        return VULNERABLE
    return FAILED if Outcome.FAILED in outcomes else OK


def main(options: Sequence[str], root: Path = ROOT, tools: Path = TOOLS) -> int:
    """Write the SBOM, audit the locks, and return the exit code.

    Args:
        options: More options of pip-audit.
        root: The repository.
        tools: The folder of the tools.
    """
    try:
        pins = {lock: read_pins((root / lock).read_text(encoding="utf-8")) for lock in LOCKS}
        sbom = write_sbom(root / RUNTIME_LOCK, root / "pyproject.toml", root / SBOM, tools)
        project = sbom["metadata"]["component"]
        count = len(sbom["components"])
        say(f"{SBOM}: {project['name']} {project['version']} with the {count} packages of {RUNTIME_LOCK}")
        return report({lock: audit(root / lock, options, tools) for lock in LOCKS}, pins)
    except (OSError, RuntimeError, ValueError) as error:
        say(str(error))
        return FAILED


def _source_date(repository: Path) -> dict[str, str]:
    """Return SOURCE_DATE_EPOCH: the time of the commit, unless it is set; empty outside a clone."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return {}
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"],  # noqa: S607  whichever is on PATH
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"SOURCE_DATE_EPOCH": done.stdout.strip()} if done.returncode == 0 else {}


def _report(stdout: str) -> list[dict[str, Any]]:
    """Return the packages of pip-audit's report; none if it wrote no report."""
    try:
        dependencies: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return []
    return dependencies


def _vulnerability(dependency: Mapping[str, Any], vulnerability: Mapping[str, Any]) -> str:
    """Return one vulnerability as a line of text."""
    ids = ", ".join([vulnerability["id"], *vulnerability.get("aliases", ())])
    fixes = ", ".join(vulnerability.get("fix_versions", ()))
    fixed = f"fixed in {fixes}" if fixes else "no version fixes it"
    return _printable(f"{dependency['name']} {dependency['version']} has the known vulnerability {ids}; {fixed}")


def _canonical(name: str) -> str:
    """Return a name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _last_line(text: str) -> str:
    return _printable(text.strip().rpartition("\n")[2]) or "it gives no reason"


def _printable(text: str) -> str:
    """Return what another program wrote, without control characters and at most 300 characters of it."""
    return "".join(character if character.isprintable() else "?" for character in text[:300])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
