"""`countinghouse backup, restore`: the books of an embedded stack, saved and put back."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli import output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data, Database, ZooKeeper, ZooKeeperPlaintext, run
from services.devstack.backup import restoring, taking
from services.devstack.backup.manifest import Backup
from services.devstack.stack import StackOptions
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument
from services.kernel.printable import escape

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The backup's folder.", show_default=False)]


def backup(folder: _Folder, data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Copy the books of order, payment and ledger into a new folder, all of one moment, also while they are written.

    The stack may run. Keys are not in it, nor the acquirer's data.

    Example: countinghouse backup backups/monday
    """
    taken = run(taking.take(data, folder, SystemClock(), _tell))
    if as_json:
        output.print_json({"folder": str(folder.absolute()), **_document(taken)})
        return
    output.print_line(f"{folder} holds the books as of {output.moment(taken.taken_at_ms)}, from {taken.database}")
    output.print_line(f"`{shlex.join(['countinghouse', 'restore', str(folder)])}` puts them back")


def restore(
    folder: _Folder,
    data: Data = DEFAULT_DATA,
    zookeeper: ZooKeeper = "",
    database: Database = "sqlite",
    zookeeper_plaintext: ZooKeeperPlaintext = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of the books. No stack may run; what was there is renamed, not removed.

    ZooKeeper's generation is raised, so that no lock from before counts any more. Give --database, --zookeeper and
    --zookeeper-plaintext as for `up`. What the acquirer did after the backup was taken is not in it: `reconcile` names
    that.

    Example: countinghouse restore backups/monday
    """
    try:
        options = StackOptions(
            data, zookeeper=zookeeper, database=database, services=(), zookeeper_plaintext=zookeeper_plaintext
        )
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from error
    done = run(restoring.restore(folder, options, SystemClock(), _tell))
    if as_json:
        output.print_json({"set_aside": list(done.set_aside), "generation": done.generation, **_document(done.backup)})
        return
    output.print_line(f"the books are those of {output.moment(done.backup.taken_at_ms)}; generation {done.generation}")
    for name in done.set_aside:
        output.print_line(f"what was there is kept: {name}")
    same = ["--data", str(data), *(["--database", _without_password(database)] if database != "sqlite" else [])]
    same += ["--zookeeper", zookeeper] if zookeeper else []
    same += ["--zookeeper-plaintext"] if zookeeper_plaintext else []
    output.print_line(f"next: `{shlex.join(['countinghouse', 'up', *same])}`; then `countinghouse reconcile`")
    output.print_line("names what the acquirer did since; read that before clerks settle again")


def _without_password(database: str) -> str:
    return re.sub(r"(://[^:@/]*):[^@]*@", r"\1@", database)


def _document(taken: Backup) -> dict[str, object]:
    return {
        "database": taken.database,
        "taken_at_ms": taken.taken_at_ms,
        "files": {
            service: {"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for service, file in taken.files.items()
        },
    }


def _tell(sentence: str) -> None:
    print(escape(sentence), file=sys.stderr, flush=True)
