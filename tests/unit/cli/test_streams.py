"""Output that cannot be shown or written, and output without a reader."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Prints what a command prints, through the program's own frame.
PRINTING = """
from services.cli import output, program
def print_and_exit():
    output.print_facts([("customer", {text!a})])
    output.print_json({{"customer": {text!a}}})
    output.print_table("customers", ("name",), [({text!a},)])
    print("sentence", {text!a})
    raise SystemExit({code})
program.run(print_and_exit)
"""


def printed(
    text: str, *, code: int = 0, stdout: int = subprocess.PIPE, settings: dict[str, str] | None = None
) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PRINTING.format(text=text, code=code)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        env=os.environ | (settings or {}),
    )
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_output_whose_encoding_lacks_a_character_is_escaped(environment: dict[str, str]) -> None:
    """A traceback would come after the money was taken."""
    code, said, errors = printed("梅", settings=environment)
    assert (code, errors) == (0, "")
    assert said.splitlines()[0] == "customer  \\u6885"


@pytest.mark.parametrize("code", [0, 3])
def test_reader_that_has_gone_changes_no_exit_code(code: int) -> None:
    """`countinghouse settle … | head -0` tells by its code whether it is paid."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended, _, errors = printed("mei", code=code, stdout=writing)
    finally:
        os.close(writing)
    assert (ended, errors) == (code, "")


@pytest.mark.parametrize("descriptors", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_output_that_is_closed_changes_no_exit_code(tmp_path: Path, descriptors: str) -> None:
    """Nor does a socket or file take its number."""
    script = tmp_path / "command"
    script.write_text(PRINTING.format(text="mei", code=3))
    shell = f'exec "$0" "$1" {descriptors}'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable, str(script)], check=False, timeout=60, cwd=os.getcwd()
    )
    assert done.returncode == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("length", [3, 20_000])
@pytest.mark.parametrize(("code", "ends_with"), [(0, 5), (3, 3)])
def test_output_that_could_not_be_written_is_reported(code: int, ends_with: int, length: int) -> None:
    """On standard error, and in the exit code if that said done; whether it fails at the end or in the middle."""
    with open("/dev/full", "wb") as full:
        ended, _, errors = printed("m" * length, code=code, stdout=full.fileno())
    assert (ended, errors) == (
        ends_with,
        f"countinghouse: the answer could not be written: {os.strerror(errno.ENOSPC)}\n",
    )


@pytest.mark.parametrize(
    "text", ["a\x9b31mb", "a\u202eb", "a\u2028b", "a\u200bb", "a\x1b[31mb", "a\nb", "a\U000e0041b", "a\x85b", "a\x07b"]
)
def test_text_of_others_is_printed_escaped(text: str) -> None:
    """In facts, JSON and tables; in sentences, what no terminal takes for a colour or a line end of ours."""
    code, said, errors = printed(text)
    assert (code, errors) == (0, "")
    facts, document, table = (
        said.partition("\n{")[0],
        said[said.index("{") : said.index("}") + 1],
        said.splitlines()[-2],
    )
    character = text[1]
    assert json.loads(document) == {"customer": text}
    assert character not in facts
    assert character not in table
    assert character not in document.replace("\n", "")
    if character not in "\x1b\n":
        assert character not in said
