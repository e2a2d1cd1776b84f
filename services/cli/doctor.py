"""`countinghouse doctor`: whether this machine and this data directory are fit, and what to do if not."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url

import services
from coordination.deadline import Deadline
from coordination.errors import CoordinationError, EnsembleUnfit
from coordination.locks import generation
from coordination.locks.generation import MAX_AHEAD
from coordination.registry.registration import Registry
from coordination.session import requests
from coordination.session.security import Security
from coordination.session.session import Session
from services.cli import examining_clocks, examining_identities, examining_releases, output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data, ZooKeeper, run
from services.cli.finding import Finding
from services.devstack import dialers, state, zookeeper_tree
from services.devstack.components import zookeeper
from services.devstack.files import databases_elsewhere, signing_key
from services.devstack.generations import newest, read_file, read_url, seen_by_databases
from services.devstack.restore_marker import refuse_unfinished
from services.devstack.stack import Stack, StackOptions
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError, InvalidArgument, Unavailable
from services.kernel.printable import escape
from services.kernel.release import release
from services.runtime.database.sqlite import made_note
from services.runtime.zookeeper_paths import GENERATION_PATH

_PYTHON = (3, 11)
_ZOOKEEPER_TIMEOUT_S = 5.0
_SERVICES = ("order", "payment", "ledger")
#: It has a database as well, and knows nothing of ZooKeeper's generation.
_ACQUIRER = "acquirer"
#: A database's log and ZooKeeper's own may need hundreds of megabytes at once.
_FREE_BYTES = 1 << 30


def doctor(
    data: Data = DEFAULT_DATA,
    zookeeper: ZooKeeper = "",
    new_generation: Annotated[
        int | None,
        typer.Option(
            "--new-generation",
            help="Raise ZooKeeper's generation to this number, after an ensemble was lost and made anew.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, the data directory, the databases and ZooKeeper. Exits with 1 on a fault.

    Example: countinghouse doctor --data .countinghouse
    """
    findings: list[Finding] = []
    if new_generation:
        run(_advance(data, zookeeper, new_generation, findings))
    findings += [_python(), _java(), _zookeeper(zookeeper), _ports(), *_data(data), _disk(data)]
    findings += examining_identities.of_environment(os.environ)
    run(_databases(data, findings))
    clocks = run(examining_clocks.of_databases(databases_elsewhere(data), SystemClock()))
    run(_generation(data, zookeeper, findings, clocks))
    findings += examining_clocks.judge(clocks)
    if as_json:
        output.print_json(
            {"ok": all(finding.ok for finding in findings), "checks": [asdict(finding) for finding in findings]}
        )
    else:
        output.print_table(
            "doctor",
            ("", "what", "found"),
            [("ok" if finding.ok else "FAULT", finding.name, finding.detail) for finding in findings],
        )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _python() -> Finding:
    wanted = ".".join(map(str, _PYTHON))
    found = platform.python_version()
    if sys.version_info[:2] < _PYTHON:
        return Finding("python", False, f"{found}; install {wanted} or newer")
    return Finding("python", True, found)


def _java() -> Finding:
    java = zookeeper.find_java(os.environ)
    return Finding("java", True, str(java) if java else "none; needed unless Docker or a running ZooKeeper is used")


def _zookeeper(address: str) -> Finding:
    if address:
        return Finding("zookeeper", True, f"configured: {address}")
    try:
        return Finding("zookeeper", True, str(zookeeper.find(os.environ)))
    except CountinghouseError as error:
        return Finding("zookeeper", False, error.message)


def _ports() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("ports", True, f"free ones can be had, such as {server.getsockname()[1]}")
    except OSError as error:
        return Finding("ports", False, f"no port of 127.0.0.1 can be listened on: {error.strerror}")


def _data(data: Path) -> list[Finding]:
    if not data.exists():
        return [Finding("data", True, f"{data} does not exist yet; `countinghouse up` makes it")]
    if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        return [Finding("data", False, f"{data} cannot be written; make it yours, or name another --data")]
    findings = [Finding("data", True, f"{data}, {'a stack is running' if state.running(data) else 'no stack running'}")]
    try:
        refuse_unfinished(data)
    except state.StackRefused as error:
        findings.append(Finding("restore", False, error.message))
    key = signing_key(data)
    if key.exists():
        mode = stat.S_IMODE(key.stat().st_mode)
        findings.append(
            Finding("signing key", True, f"{key}, mode {mode:04o}")
            if not mode & 0o077
            else Finding(
                "signing key", False, f"others can read {key} (mode {mode:04o}): chmod 600, and remake it if they did"
            )
        )
    findings += examining_identities.of_data(data, SystemClock())
    return findings


def _disk(data: Path) -> Finding:
    """Return what is found of the disk that has the data directory, or will have it."""
    try:
        place = next(each for each in (data.absolute(), *data.absolute().parents) if each.exists())
        free_bytes = shutil.disk_usage(place).free
    except OSError as error:
        return Finding("disk", False, f"the disk of {data} cannot be asked for its free space: {error.strerror}")
    words = f"{free_bytes / (1 << 30):.1f} GiB are free for {data}"
    if free_bytes < _FREE_BYTES:
        wanted = f"{_FREE_BYTES >> 30} GiB"
        return Finding("disk", False, f"{words}: make room for {wanted}, or the services soon refuse every change")
    return Finding("disk", True, words)


async def _databases(data: Path, findings: list[Finding]) -> None:
    elsewhere = databases_elsewhere(data)
    for service in (*_SERVICES, _ACQUIRER):
        url = elsewhere.get(service)
        findings.append(_database(data, service) if url is None else await _database_elsewhere(data, service, url))


def _database(data: Path, service: str) -> Finding:
    name = f"{service} database"
    file = data / f"{service}.db"
    note = made_note(file)
    if not file.exists():
        if note.exists():
            return Finding(
                name,
                False,
                f"{file} was made before and is missing: put it back, or with no stack running a backup in place of it "
                f"and of {file}-wal, or remove {note} to begin with an empty database",
            )
        return Finding(name, True, "none yet")
    try:
        revision = read_file(file, "SELECT version_num FROM alembic_version")
        problems = read_file(file, "PRAGMA quick_check")
    except sqlite3.Error as error:
        return Finding(
            name, False, f"{file} is damaged or not ours ({error}); put a backup in its place or move it away"
        )
    if problems != "ok":
        return Finding(name, False, f"{file} is damaged: {problems}; put a backup in its place")
    return _revision(data, service, f"{file}, sound,", revision)


async def _database_elsewhere(data: Path, service: str, url: str) -> Finding:
    where = str(make_url(url).set(query={}))
    try:
        revision = await read_url(url, "SELECT version_num FROM alembic_version")
    except Unavailable as error:
        if not state.running(data):
            return Finding(f"{service} database", True, f"{where} does not answer, and no stack is running")
        return Finding(f"{service} database", False, f"{where}: {error.message}")
    except CountinghouseError as error:
        return Finding(f"{service} database", False, error.message)
    return _revision(data, service, where, revision)


def _revision(data: Path, service: str, where: str, revision: object) -> Finding:
    name, known = f"{service} database", revisions(service)
    if revision not in known:
        return Finding(
            name, False, f"{where} is at revision {revision}, which this version does not know; install the newer one"
        )
    if revision == known[-1]:
        return Finding(name, True, f"{where} revision {revision}")
    if state.running(data):
        return Finding(
            name,
            False,
            f"{where} is at revision {revision}, and this release needs {known[-1]}: the services that run are of an "
            "older one; `countinghouse down`, and `countinghouse up`; in a deployment its migrate jobs",
        )
    return Finding(name, True, f"{where} revision {revision}, will be brought to {known[-1]} at the next start")


def revisions(service: str) -> list[str]:
    """Return the schema revisions that this version knows of a service, in order."""
    folder = Path(str(services.__file__)).parent / service / "migrations" / "versions"
    return sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))


async def _generation(data: Path, address: str, findings: list[Finding], clocks: examining_clocks.Readings) -> None:
    """Look at what is in ZooKeeper, and add the reading of its clock."""
    seen, _ = await seen_by_databases(data)
    stack = state.read(data)
    where = address or (stack.zookeeper if stack else "")
    said = ", ".join(f"{service} {each.generation}" for service, each in seen.items()) or "no database yet"
    if not where:
        findings.append(Finding("generation", True, f"{said}; ZooKeeper is not running"))
        return
    known = newest(seen)
    remedy = f"if what it had is gone for good, run `countinghouse doctor --new-generation {known + 1}`"
    elsewhere = stack is None or where != stack.zookeeper
    try:
        security = dialers.zookeeper_of_command(data, os.environ, elsewhere=elsewhere)
    except CountinghouseError as error:
        findings.append(Finding("generation", False, error.message))
        return
    try:
        async with Session(where, name="doctor", security=security) as session:
            await session.wait_connected(_ZOOKEEPER_TIMEOUT_S)
            await session.ask(requests.sync(GENERATION_PATH), Deadline.after(_ZOOKEEPER_TIMEOUT_S))
            found = await generation.read(session, timeout_s=_ZOOKEEPER_TIMEOUT_S, path=GENERATION_PATH)
            if security.user is not None:
                findings.append(_rights(await zookeeper_tree.open_nodes(session, _ZOOKEEPER_TIMEOUT_S)))
            listings = await Registry(session).ls(timeout_s=_ZOOKEEPER_TIMEOUT_S)
            findings += examining_releases.of_providers((url for each in listings for url in each.providers), release())
            clocks |= await examining_clocks.of_zookeeper(session, SystemClock())
            for each in seen.values():
                if each.generation:
                    generation.judge(found, session.last_zxid, each.generation, each.zxid, path=GENERATION_PATH)
    except EnsembleUnfit as error:
        findings.append(Finding("generation", False, f"{error}; {said}; {remedy}"))
    except (CoordinationError, ValueError) as error:
        findings.append(Finding("generation", False, f"ZooKeeper at {where} does not answer: {error}"))
    else:
        findings.append(Finding("generation", True, f"ZooKeeper {found or 'none'}, {said}"))


def _rights(open_nodes: Sequence[str]) -> Finding:
    if not open_nodes:
        return Finding("zookeeper rights", True, "nothing can be changed without a user")
    return Finding(
        "zookeeper rights",
        False,
        f"open to clients without a user: {escape(open_nodes[0])}, and {len(open_nodes) - 1} others; closed at the "
        "next start: `countinghouse down`, and `countinghouse up`; in a deployment by the job `tree`",
    )


async def _advance(data: Path, address: str, to: int, findings: list[Finding]) -> None:
    """Raise the generation, in the ZooKeeper named, in the running stack's, or in one started for this alone."""
    seen, unread = await seen_by_databases(data)
    known = newest(seen)
    if to <= known:  # the very tokens of that generation may be given out again
        raise InvalidArgument("GENERATION_TOO_LOW", f"the databases have seen generation {known}; give {known + 1}")
    if to > known + (MAX_AHEAD if unread else 1):
        but = f"but {', '.join(unread)} cannot be read" if unread else f"the next is {known + 1}"
        raise InvalidArgument("GENERATION_TOO_HIGH", f"the databases have seen generation {known}; {but}")
    stack = state.read(data)
    if address or stack:
        where = address or (stack.zookeeper if stack else "")
        elsewhere = stack is None or where != stack.zookeeper
        security = dialers.zookeeper_of_command(data, os.environ, elsewhere=elsewhere)
        findings.append(await _advanced(where, to, security))
        return
    async with Stack(StackOptions(data, services=())) as alone:
        findings.append(await _advanced(alone.zookeeper, to, alone.zookeeper_security()))


async def _advanced(address: str, to: int, security: Security) -> Finding:
    async with Session(address, name="doctor", security=security) as session:
        await session.wait_connected(_ZOOKEEPER_TIMEOUT_S)
        now = await generation.advance(session, to, timeout_s=_ZOOKEEPER_TIMEOUT_S, path=GENERATION_PATH)
    return Finding(
        "new generation", True, f"ZooKeeper at {address} is now at {now}; running services go on by themselves"
    )
