"""The result file of a run: whole lines at any moment, and no file of others is lost."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from services.cli.result_file import Outcome, Result, ResultNotWritten, open_result
from services.kernel.errors import InvalidArgument

HEADER = "line,order_id,outcome,reason,payment_id\n"


def test_lines_are_in_the_file_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    with open_result(path) as result:
        assert path.read_text() == HEADER
        result.add([Result(2, "o1", Outcome.SETTLED, "", "pay_1"), Result(3, "", Outcome.BAD_LINE, 'no, "never"')])
        assert path.read_text() == f'{HEADER}2,o1,settled,,pay_1\n3,,bad line,"no, ""never""",\n'


def test_words_of_others_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    with open_result(path) as result:
        result.add([Result(2, "o1", Outcome.REFUSED, "a\x1b[31m\nb\u202e", "p\r1")])
    with path.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["2", "o1", "refused", "a\\x1b[31m\\x0ab\\u202e", "p\\x0d1"]]


def test_result_of_an_earlier_start_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    with open_result(path) as result:
        result.add([Result(2, "o1", Outcome.OPEN)])
    with open_result(path):
        assert path.read_text() == HEADER


def test_result_of_a_killed_start_is_written_anew(tmp_path: Path) -> None:
    """It was killed before the first line was written."""
    path = tmp_path / "result.csv"
    path.touch()
    with open_result(path):
        assert path.read_text() == HEADER


@pytest.mark.parametrize("content", ["order_id\no1\n", "line,order_id\n", "x"])
def test_file_of_others_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.csv"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match="no result of a run"), open_result(path):
        pass
    assert path.read_text() == content


def test_file_that_another_run_writes_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    with open_result(path) as result:
        result.add([Result(2, "o1", Outcome.SETTLED)])
        with pytest.raises(InvalidArgument, match="another run"), open_result(path):
            pass
        assert path.read_text() == f"{HEADER}2,o1,settled,,\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is no file"), open_result(tmp_path):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_disk_is_told(tmp_path: Path) -> None:
    with open_result(tmp_path / "result.csv") as result:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, result._descriptor)
        os.close(full)
        with pytest.raises(ResultNotWritten, match="No space left"):
            result.add([Result(2, "o1", Outcome.SETTLED)])
