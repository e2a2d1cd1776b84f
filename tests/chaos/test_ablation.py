"""The ablation on real stacks: with its guard off a fault does harm, with it on none, and the checker sees both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_lost_reply_without_tickets_is_paid_for_twice(tmp_path: Path) -> None:
    """One row, whole: all on, only it off, only it on, all off; the command says so by its exit code."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "services.cli.main", "chaos", "ablate"),
            *("--guards-off", "ticket", "--json", "--data", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=115,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert (told["verdict"], told["reasons"]) == ("ok", [])
    (row,) = told["rows"]
    assert (row["guard"], row["filled"]) == ("ticket", True)
    verdicts = {column: cell["verdict"] for column, cell in row["cells"].items()}
    assert verdicts == {"all on": "ok", "only it off": "violated", "only it on": "ok", "all off": "violated"}
    (broken,) = {reason.partition(" of ")[0] for reason in row["cells"]["only it off"]["reasons"]}
    assert broken.startswith("one charge per key: Pay tkt_")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}
