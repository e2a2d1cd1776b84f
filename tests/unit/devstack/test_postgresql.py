"""Where a machine has a PostgreSQL, and which kind of database a data directory is for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.devstack.components import databases, postgresql
from services.devstack.components.postgresql import PostgresqlMissing
from services.devstack.files import database_url, remember_databases
from services.devstack.stack import StackOptions
from services.devstack.state import INTERFACES, StackRefused
from services.kernel.errors import InvalidArgument

SERVER = "postgresql://postgres:sesame@db:5432/second"


def install(root: Path, version: str, *programs: str) -> Path:
    """Debian's package of a version, as far as it is looked at."""
    folder = root / "usr/lib/postgresql" / version / "bin"
    folder.mkdir(parents=True)
    for program in programs or ("initdb", "postgres"):
        (folder / program).touch(mode=0o755)
    return folder


def test_newest_version_is_used(tmp_path: Path) -> None:
    """By number, and not by letter; one that lacks a program is none."""
    install(tmp_path, "9.6")
    newest = install(tmp_path, "15")
    install(tmp_path, "17", "initdb")
    assert postgresql.find({}, tmp_path).programs == newest


def test_data_are_served_by_the_version_that_made_them(tmp_path: Path) -> None:
    """Another cannot read them."""
    made = install(tmp_path, "15")
    install(tmp_path, "17")
    assert postgresql.find({}, tmp_path, "15").programs == made
    with pytest.raises(PostgresqlMissing, match="apt install postgresql-16"):
        postgresql.find({}, tmp_path, "16")


def test_initdb_on_the_path_comes_first(tmp_path: Path) -> None:
    install(tmp_path, "17")
    folder = tmp_path / "opt"
    folder.mkdir()
    for program in ("initdb", "postgres"):
        (folder / program).touch(mode=0o755)
    assert postgresql.find({"PATH": str(folder)}, tmp_path).programs == folder


def test_machine_without_postgresql_gets_the_install_command(tmp_path: Path) -> None:
    with pytest.raises(PostgresqlMissing, match=r"setup-postgresql\.sh"):
        postgresql.find({}, tmp_path)


def test_root_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "15")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert postgresql.find({}, tmp_path).user in ("postgres", "nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert postgresql.find({}, tmp_path).user is None


@pytest.mark.parametrize("choice", ["sqlite", "postgresql", SERVER, "postgresql+asyncpg://postgres@/x?host=/run"])
def test_valid_database_option_is_accepted(tmp_path: Path, choice: str) -> None:
    assert StackOptions(tmp_path, database=choice).database == choice


@pytest.mark.parametrize("choice", ["", "mysql", "mysql://root:sesame@db/x", "postgresql://db/x", "sqlite:///x.db"])
def test_invalid_database_option_is_refused_without_its_password(tmp_path: Path, choice: str) -> None:
    """It may hold a password."""
    with pytest.raises(InvalidArgument) as refusal:
        StackOptions(tmp_path, database=choice)
    assert refusal.value.reason == "DATABASE_UNKNOWN"
    assert "sesame" not in refusal.value.message
    assert "sesame" not in repr(StackOptions(tmp_path, database=SERVER))


@pytest.mark.parametrize(("choice", "house"), [(SERVER, "second"), ("postgresql://postgres@db", "countinghouse")])
def test_url_names_the_server_and_how_names_begin(choice: str, house: str) -> None:
    server, found = databases.server_and_house(choice)
    assert found == house
    assert (server.drivername, server.host, server.database) == ("postgresql+asyncpg", "db", "postgres")


def test_another_database_for_the_same_data_is_refused(tmp_path: Path) -> None:
    """From files to a server or back: the other books would be passed over in silence."""
    services = tuple(INTERFACES)
    for choice in ("sqlite", "postgresql", SERVER):
        databases.check_kind(tmp_path, choice, services)
    (tmp_path / "ledger.db").touch()
    databases.check_kind(tmp_path, "sqlite", services)
    with pytest.raises(StackRefused, match="in SQLite files"):
        databases.check_kind(tmp_path, "postgresql", services)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    remember_databases(elsewhere, {"ledger": SERVER})
    databases.check_kind(elsewhere, "postgresql", services)
    databases.check_kind(elsewhere, "sqlite", ())
    with pytest.raises(StackRefused, match="in PostgreSQL"):
        databases.check_kind(elsewhere, "sqlite", services)


def test_database_urls_are_found_in_the_data_directory(tmp_path: Path) -> None:
    assert database_url(tmp_path, "order") == f"sqlite:///{tmp_path}/order.db"
    remember_databases(tmp_path, {"order": SERVER})
    assert database_url(tmp_path, "order") == SERVER
