"""A data directory whose books are being put back says so, until all of them are: no service starts on half of them.

<data>/restore.json      there from before the first change until after the last
<data>/restored.json     the same file after the last: the books are those of a backup, and the acquirer may know more
"""

from __future__ import annotations

import json
from pathlib import Path

from coordination.files import sync_directory, write_whole
from services.devstack.state import StackRefused

_UNFINISHED, _FINISHED = "restore.json", "restored.json"


def begin(data: Path, folder: Path, taken_at_ms: int) -> None:
    """Write down that the backup in `folder` is being put in place.

    Args:
        taken_at_ms: The moment whose state it holds, Unix milliseconds.
    """
    document = {"backup": str(folder.absolute()), "taken_at_ms": taken_at_ms}
    write_whole(data / _UNFINISHED, json.dumps(document).encode(), mode=0o600)


def finish(data: Path) -> None:
    """Write down that all of it is in place."""
    (data / _UNFINISHED).replace(data / _FINISHED)
    sync_directory(data)


def was_restored(data: Path) -> bool:
    """Return whether the books are those of a backup, and what came after it."""
    return (data / _FINISHED).exists()


def refuse_unfinished(data: Path) -> None:
    """Do nothing if the books are whole.

    Raises:
        StackRefused: RESTORE_UNFINISHED: a restore ended before its last step.
    """
    try:
        folder = json.loads((data / _UNFINISHED).read_bytes())["backup"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        folder = "BACKUP"
    raise StackRefused(
        "RESTORE_UNFINISHED",
        f"a restore into {data} was not finished, so its books may be of two moments; "
        f"repeat `countinghouse restore {folder} --data {data}`",
    )
