"""A data directory whose books are being put back says so, until all of them are: no service starts on half of them.

<data>/restore.json      there from before the first change until after the last
<data>/restored.json     the same file after the last: the books are those of a backup, and the acquirer may know more
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from coordination.files import sync_directory, write_whole
from services.devstack.state import StackRefused
from services.kernel.json_input import parse_json

_UNFINISHED, _FINISHED = "restore.json", "restored.json"


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore that has begun.

    Args:
        backup: The backup's folder.
        database: What the books are kept in, as for `up`; without a password.
        zookeeper: The address that was given; empty: the stack's own.
        suffix: What the names of the old books end with.
    """

    backup: str
    database: str
    zookeeper: str
    suffix: str


def begin(data: Path, restore: Restore) -> None:
    """Write down that a backup is being put in place."""
    write_whole(data / _UNFINISHED, json.dumps(asdict(restore)).encode(), mode=0o600)


def finish(data: Path) -> None:
    """Write down that all of it is in place."""
    (data / _UNFINISHED).replace(data / _FINISHED)
    sync_directory(data)


def was_restored(data: Path) -> bool:
    """Return whether the books are those of a backup, and what came after it."""
    return (data / _FINISHED).exists()


def unfinished(data: Path) -> Restore | None:
    """Return the restore that was not finished; None: there is none.

    Raises:
        StackRefused: RESTORE_UNFINISHED: there is one, and what it was is not to be read.
    """
    try:
        return Restore(**parse_json((data / _UNFINISHED).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StackRefused(
            "RESTORE_UNFINISHED",
            f"a restore into {data} was not finished, and {data / _UNFINISHED} cannot be read; "
            "remove that file, and restore the backup anew",
        ) from error


def refuse_unfinished(data: Path) -> None:
    """Do nothing if the books are whole.

    Raises:
        StackRefused: RESTORE_UNFINISHED: a restore ended before its last step; with the command that repeats it.
    """
    found = unfinished(data)
    if found is None:
        return
    options = ["--data", str(data), *(("--database", found.database) if found.database != "sqlite" else ())]
    options += ["--zookeeper", found.zookeeper] if found.zookeeper else []
    command = shlex.join(["countinghouse", "restore", found.backup, *options])
    raise StackRefused(
        "RESTORE_UNFINISHED",
        f"a restore into {data} was not finished, so its books may be of two moments; repeat `{command}`",
    )
