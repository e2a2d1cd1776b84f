"""One process: started, watched, stopped, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from services.devstack.child import Child, Command


def command(tmp_path: Path, script: str) -> Command:
    return Command((sys.executable, "-c", textwrap.dedent(script)), {"A": "b"}, tmp_path / "child.log")


SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(60)"


async def started(tmp_path: Path, script: str) -> Child:
    """A child that has said its first word."""
    child = Child.spawn(command(tmp_path, script))
    async with asyncio.timeout(10):
        while not child.last_log_line() and not child.ended:  # noqa: ASYNC110  another process writes them
            await asyncio.sleep(0.01)
    return child


async def test_exit_code_and_last_log_line_are_known(tmp_path: Path) -> None:
    child = Child.spawn(command(tmp_path, "import sys; print('one'); print('order: no'); print('{}'); sys.exit(2)"))
    assert await child.wait() == 2
    assert child.returncode == 2
    assert child.last_log_line() == "{}"
    assert child.last_log_line("order: ") == "order: no"


async def test_last_log_line_is_of_this_run(tmp_path: Path) -> None:
    await Child.spawn(command(tmp_path, "print('old')")).wait()
    silent = Child.spawn(command(tmp_path, ""))
    await silent.wait()
    assert silent.last_log_line() == ""


async def test_child_gets_its_environment_only(tmp_path: Path) -> None:
    child = Child.spawn(command(tmp_path, "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))"))
    await child.wait()
    assert child.last_log_line() == "['A']"


async def test_stop_asks_before_it_forces(tmp_path: Path) -> None:
    child = await started(
        tmp_path,
        "import signal,sys,time\nsignal.signal(15, lambda *_: sys.exit(7))\nprint(1, flush=True)\ntime.sleep(60)",
    )
    await child.stop(grace_s=5)
    assert child.returncode == 7


async def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = await started(
        tmp_path, "import signal,time\nsignal.signal(15, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(60)"
    )
    await child.stop(grace_s=0.1)
    assert child.returncode == -signal.SIGKILL


async def test_stopped_process_is_not_a_dead_one_and_can_still_be_stopped(tmp_path: Path) -> None:
    child = await started(tmp_path, SLEEP)
    child.signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await child.wait()
    assert not child.ended
    await child.stop(grace_s=5)
    assert child.returncode == -signal.SIGTERM


async def test_signal_to_a_dead_process_is_no_error(tmp_path: Path) -> None:
    child = Child.spawn(command(tmp_path, ""))
    await child.wait()
    child.signal(signal.SIGKILL)
    await child.stop(grace_s=1)


async def test_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child.spawn(Command(("/nowhere/java",), {}, tmp_path / "log"))


async def test_large_log_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with log.open("wb") as file:
        file.truncate(11 << 20)
    await Child.spawn(command(tmp_path, "print('new')")).wait()
    assert log.read_text() == "new\n"
    assert (tmp_path / "child.log.1").stat().st_size == 11 << 20


async def test_ctrl_c_at_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    child = await started(tmp_path, SLEEP)
    assert os.getsid(child.pid) == child.pid
    await child.stop(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children of the dead")
def test_child_dies_with_its_killed_supervisor(tmp_path: Path) -> None:
    """SIGKILL gives the supervisor no chance to clean up; a stopped child goes all the same."""
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import asyncio, os, signal, sys
                from pathlib import Path
                from services.devstack.child import Child, Command
                SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
                async def main():
                    child = Child.spawn(Command(SLEEP, {{}}, Path({str(tmp_path / "log")!r})))
                    child.signal(signal.SIGSTOP)
                    print(child.pid, flush=True)
                    await child.wait()
                asyncio.run(main())
                """
            ),
        ],
        stdout=subprocess.PIPE,
    )
    assert supervisor.stdout is not None
    process = psutil.Process(int(supervisor.stdout.readline()))
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    try:
        process.wait(timeout=5)
    except psutil.TimeoutExpired:
        process.kill()
        raise
