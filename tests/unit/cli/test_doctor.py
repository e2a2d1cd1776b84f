"""What the doctor finds."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from coordination.locks import generation
from services.cli import doctor
from services.cli.commands import app
from services.cli.doctor import revisions
from services.devstack import restore_marker, revocations
from services.devstack.files import ca_file
from services.devstack.generations import _FENCES
from services.devstack.keys import Keys, revoked_file
from services.devstack.restore_marker import Restore
from services.devstack.revocations import Revocations
from services.kernel.clock import SystemClock
from tests.fakes.clock import ManualClock
from tests.unit.cli.stacks import described_as_running
from tests.unit.cli.test_examining_releases import provider


def examine(data: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["doctor", "--json", "--data", str(data), *arguments])
    checks = json.loads(result.stdout)["checks"]
    return result.exit_code, {check["name"]: check for check in checks}


def database(data: Path, service: str, revision: str, generation: int = 1) -> Path:
    file = data / f"{service}.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.execute("CREATE TABLE ensemble (id INTEGER, generation INTEGER)")
    connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    connection.execute("INSERT INTO ensemble VALUES (1, ?)", (generation,))
    table, generations, tokens = _FENCES[service]
    connection.execute(f"CREATE TABLE {table} ({generations} INTEGER, {tokens} INTEGER)")
    connection.commit()
    connection.close()
    return file


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own ZooKeeper and disk are not what these tests are about."""
    monkeypatch.setattr("services.devstack.components.zookeeper.find", lambda _environment: "found")
    has_free(monkeypatch, 5 << 30)


def has_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free_bytes))


def test_fresh_directory_is_fit(tmp_path: Path) -> None:
    code, checks = examine(tmp_path / "new")
    assert code == 0
    assert all(check["ok"] for check in checks.values())


def test_sound_database_is_known_by_its_revision(tmp_path: Path) -> None:
    database(tmp_path, "order", revisions("order")[-1], generation=3)
    code, checks = examine(tmp_path)
    assert code == 0
    assert revisions("order")[-1] in checks["order database"]["detail"]
    assert "order 3" in checks["generation"]["detail"]


def test_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "order.db").write_bytes(b"not a database at all, but long enough to be read as a header" * 20)
    code, checks = examine(tmp_path)
    assert code == 1
    assert not checks["order database"]["ok"]
    assert "order.db" in checks["order database"]["detail"]


def test_newer_database_is_named(tmp_path: Path) -> None:
    database(tmp_path, "ledger", "9999")
    code, checks = examine(tmp_path)
    assert code == 1
    assert "9999" in checks["ledger database"]["detail"]


def test_database_behind_this_release_is_a_fault_of_a_running_stack(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its services are of an older release. One that does not run brings its database up to date when it starts."""
    database(tmp_path, "payment", "0001")
    (tmp_path / "keys").mkdir()
    newest = revisions("payment")[-1]
    stopped = examine(tmp_path)[1]["payment database"]
    assert stopped["ok"]
    assert f"will be brought to {newest} at the next start" in stopped["detail"]
    request.getfixturevalue("running")
    code, checks = examine(tmp_path)
    assert (code, checks["payment database"]["ok"]) == (1, False)
    assert f"is at revision 0001, and this release needs {newest}" in checks["payment database"]["detail"]
    assert "`countinghouse down`" in checks["payment database"]["detail"]


@pytest.mark.parametrize("data", ["", "made/later"])
def test_disk_that_is_nearly_full_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """Also that of a directory which is not there yet."""
    assert examine(tmp_path / data)[1]["disk"]["ok"]
    has_free(monkeypatch, 200 << 20)
    code, checks = examine(tmp_path / data)
    assert (code, checks["disk"]["ok"]) == (1, False)
    assert "0.2 GiB are free" in checks["disk"]["detail"]
    assert "make room for 1 GiB" in checks["disk"]["detail"]


def test_disk_that_cannot_be_asked_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    code, checks = examine(tmp_path)
    assert (code, checks["disk"]["ok"]) == (1, False)
    assert "Input/output error" in checks["disk"]["detail"]


def test_key_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "signing.key"
    key.write_text("")
    key.chmod(0o644)
    code, checks = examine(tmp_path)
    assert code == 1
    assert "chmod 600" in checks["signing key"]["detail"]


def test_authority_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    keys = Keys(tmp_path, SystemClock())
    keys.certify("order", "order-1")
    assert examine(tmp_path)[1]["certificates"]["ok"]
    (key,) = (tmp_path / "keys").glob("ca.*.key")
    key.chmod(0o644)
    code, checks = examine(tmp_path)
    assert code == 1
    assert "rotate --authority --now" in checks["certificates"]["detail"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[None]:
    with described_as_running(tmp_path, "order-1"):
        yield


def test_authority_that_is_missing_is_a_fault_of_a_running_stack(tmp_path: Path, running: None) -> None:
    checks = examine(tmp_path)[1]
    assert not checks["certificates"]["ok"]
    assert "ca.pem is missing" in checks["certificates"]["detail"]


def test_revoked_process_that_still_runs_is_named(tmp_path: Path, running: None) -> None:
    (tmp_path / "keys").mkdir()
    revocations.write(revoked_file(tmp_path), Revocations(callers=frozenset({"instance:order-1", "cashier:li"})), 0)
    assert "order-1: calls no service" in examine(tmp_path)[1]["revoked"]["detail"]
    revoked_file(tmp_path).write_text("rubbish")
    assert not examine(tmp_path)[1]["revoked"]["ok"]
    revocations.write(revoked_file(tmp_path), Revocations(callers=frozenset({"instance:order-2"})), 0)
    assert "revoked" not in examine(tmp_path)[1]


@pytest.mark.parametrize("variable", ["COUNTINGHOUSE_CA_FILE", "COUNTINGHOUSE_ACQUIRER_CA_FILE"])
@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"", "no certificates"), (b"rubbish", "no certificates")]
)
def test_file_of_authorities_that_cannot_be_used_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: bytes | None, words: str
) -> None:
    file = tmp_path / "elsewhere.pem"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(variable, str(file))
    code, checks = examine(tmp_path)
    assert (code, checks[variable]["ok"]) == (1, False)
    assert words in checks[variable]["detail"]
    assert "countinghouse key ca" in checks[variable]["detail"]


def test_file_of_authorities_that_can_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Keys(tmp_path, SystemClock()).certify("order", "order-1")
    monkeypatch.setenv("COUNTINGHOUSE_CA_FILE", str(ca_file(tmp_path)))
    assert examine(tmp_path)[1]["COUNTINGHOUSE_CA_FILE"] == {
        "name": "COUNTINGHOUSE_CA_FILE",
        "ok": True,
        "detail": f"{ca_file(tmp_path)}, 1 authority",
    }


@pytest.mark.parametrize("damaged", [False, True])
def test_certificate_that_is_not_renewed_is_a_fault_of_a_running_stack(
    tmp_path: Path, damaged: bool, request: pytest.FixtureRequest
) -> None:
    """A stack that does not run makes new ones at its start."""
    file = Keys(tmp_path, ManualClock(1_000_000_000_000)).certify("order", "order-1")
    if damaged:
        file.write_text("rubbish")
    assert examine(tmp_path)[1]["certificates"]["ok"]
    request.getfixturevalue("running")
    checks = examine(tmp_path)[1]
    assert not checks["certificates"]["ok"]
    assert str(file) in checks["certificates"]["detail"]


def test_zookeeper_that_does_not_answer_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.doctor._ZOOKEEPER_TIMEOUT_S", 0.2)
    monkeypatch.setenv("COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT", "true")
    code, checks = examine(tmp_path, "--zookeeper", "127.0.0.1:1")
    assert code == 1
    assert not checks["generation"]["ok"]
    assert "does not answer" in checks["generation"]["detail"]


def test_zookeeper_whose_authority_is_not_known_is_a_fault_with_the_remedy(tmp_path: Path) -> None:
    code, checks = examine(tmp_path, "--zookeeper", "127.0.0.1:1")
    assert code == 1
    assert not checks["generation"]["ok"]
    assert "COUNTINGHOUSE_CA_FILE" in checks["generation"]["detail"]


def test_generation_behind_the_databases_is_not_set(tmp_path: Path) -> None:
    database(tmp_path, "order", "0001", generation=5)
    result = CliRunner().invoke(app, ["doctor", "--data", str(tmp_path), "--new-generation", "5"])
    assert result.exit_code == 1
    assert "give 6" in str(result.exception)


@pytest.mark.parametrize("wanted", [7, 2**62, 2**63])
def test_generation_that_is_not_the_next_is_not_set(tmp_path: Path, wanted: int) -> None:
    """One that is too high could never be followed."""
    database(tmp_path, "order", "0001", generation=5)
    result = CliRunner().invoke(app, ["doctor", "--data", str(tmp_path), "--new-generation", str(wanted)])
    assert result.exit_code == 1
    assert "the next is 6" in str(result.exception)


def test_database_file_that_was_made_and_is_missing_is_a_fault_with_the_remedies(tmp_path: Path) -> None:
    (tmp_path / "order.db.made").touch()
    code, checks = examine(tmp_path)
    assert code == 1
    assert not checks["order database"]["ok"]
    assert f"{tmp_path / 'order.db'} was made before and is missing" in checks["order database"]["detail"]
    assert f"remove {tmp_path / 'order.db.made'}" in checks["order database"]["detail"]
    assert checks["ledger database"]["ok"]


def test_restore_that_was_not_finished_is_a_fault(tmp_path: Path) -> None:
    restore_marker.begin(tmp_path, Restore("/backups/monday", "sqlite", "", "_before"))
    code, found = examine(tmp_path)
    assert (code, found["restore"]["ok"]) == (1, False)
    assert "countinghouse restore /backups/monday" in found["restore"]["detail"]
    restore_marker.finish(tmp_path)
    assert "restore" not in examine(tmp_path)[1]


class FakeSession:
    """A session with a ZooKeeper that is well."""

    last_zxid = 9

    def __init__(self, _address: str, **_: Any) -> None:
        pass

    async def __aenter__(self) -> FakeSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def wait_connected(self, _timeout_s: float) -> None:
        pass

    async def ask(self, *_: object) -> None:
        pass

    async def create(self, path: str, **_: object) -> Any:
        return path, SimpleNamespace(ctime=SystemClock().now_ms() + 3_600_000)

    async def delete(self, _path: str, **_: object) -> None:
        pass


class FakeRegistry:
    """One instance, of an older release."""

    def __init__(self, _session: FakeSession) -> None:
        pass

    async def ls(self, **_: object) -> list[Any]:
        return [SimpleNamespace(providers=[provider("order-1", "0.0.1")])]


def test_zookeeper_that_answers_shows_releases_and_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: None
) -> None:
    """Both are faults here: an instance is of an older release, and the clocks are an hour apart."""

    async def read(*_: object, **__: object) -> int:
        return 1

    monkeypatch.setattr(doctor, "Session", FakeSession)
    monkeypatch.setattr(doctor, "Registry", FakeRegistry)
    monkeypatch.setattr(generation, "read", read)
    monkeypatch.setenv("COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT", "true")
    checks = examine(tmp_path)[1]
    assert checks["generation"]["ok"]
    assert not checks["releases"]["ok"]
    assert "order-1 0.0.1" in checks["releases"]["detail"]
    assert not checks["clocks"]["ok"]
    assert "the clock of ZooKeeper is 3600.0 s ahead" in checks["clocks"]["detail"]
