"""The demonstration as a newcomer runs it, and that it can fail: every guard off on every act, as README's table says.

The runs are stacks of their own and mostly wait for sessions to end, so two of them go on at once.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from services.demo.defences import DEFENCES
from services.devstack import state
from services.devstack.stack import Stack
from services.devstack.state import InstanceState
from services.kernel.guards import NAMES
from services.testkit.client import RecordingClient
from tests.e2e.command import command_line, command_line_within, document, processes_of, start_command_line

#: A run without its guards waits in vain for what they would have done: a minute on an idle machine.
_RUN_WITHIN_S = 240.0

pytestmark = pytest.mark.timeout(300)

Run = tuple[str, ...]
Performed = Callable[[Run], Awaitable[subprocess.CompletedProcess[str]]]

_CLICK, _TWO, _LOST, _KILLED = "double click", "two clerks, one order", "lost reply", "killed mid-payment"
_FROZEN, _REVERSAL, _SILENT = "frozen holder", "reversal", "the acquirer did not answer"
_AT_ONCE = 2

WHOLE: Run = ()
#: Guards off, and the act and the check that then break: those that are alone, then those that are together.
ALONE = [((guard,), act, check) for act, stand in DEFENCES.items() for guard, check in stand.alone.items()]
TOGETHER = [(guards, act, check) for act, stand in DEFENCES.items() for guards, check in stand.together.items()]
#: By guard, the acts that stay ok without it.
SPARED = {guard: [act for act, stand in DEFENCES.items() if guard not in stand.alone] for guard in NAMES}


def without(guards: tuple[str, ...], *acts: str) -> Run:
    """A run of some acts with guards off."""
    return ("--guards-off", ",".join(guards), *(word for act in acts for word in ("--act", act)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole run keeps its data."""
    return tmp_path_factory.mktemp("demo") / "kept"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def performed(
    request: pytest.FixtureRequest, kept: Path, _zookeeper_can_be_started: None
) -> AsyncIterator[Performed]:
    """Waits for a run; those that the chosen tests of this module ask for begin at once, in the tests' order."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def perform(run: Run) -> subprocess.CompletedProcess[str]:
        async with turn:
            files = ("--keep", str(kept), "--svg", str(kept.parent / "lanes.svg")) if run == WHOLE else ()
            return await command_line_within(_RUN_WITHIN_S, "demo", "--json", *run, *files)

    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted = dict.fromkeys(call.params["run"] for call in calls if call and "run" in call.params)
    tasks = {run: asyncio.create_task(perform(run)) for run in wanted}
    yield lambda run: tasks[run]
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("run", [pytest.param(WHOLE, id="whole")])
class TestAllActs:
    """All acts, all guards."""

    async def test_verdict_is_ok(self, performed: Performed, run: Run) -> None:
        """Every order was settled exactly once, whatever went wrong."""
        done = await performed(run)
        found = document(done)
        assert found["verdict"] == "ok", failures(found)
        assert done.returncode == 0
        assert done.stderr == ""

    async def test_json_document_has_the_documented_fields(self, performed: Performed, run: Run) -> None:
        """For scripts; `violations` is empty where nothing is wrong."""
        found = document(await performed(run))
        assert set(found) == {"verdict", "acts", "checks", "seconds", "seed"}
        acts = [_CLICK, _TWO, _LOST, _KILLED, _FROZEN, _REVERSAL, _SILENT]
        assert [act["name"] for act in found["acts"]] == acts
        for act in found["acts"]:
            assert set(act) == {"name", "ok", "detail"}
            assert act["ok"] is True
            assert act["detail"]
        for check in found["checks"]:
            assert set(check) - {"violations"} == {"name", "ok", "examined"}
            assert check["ok"] is True
            assert check["examined"] > 0 or check["name"] == "refusals kept", check  # the ledger refuses nothing here
        assert found["seconds"] > 0
        assert isinstance(found["seed"], int)

    async def test_act_names_the_guard_that_caught_the_fault(self, performed: Performed, run: Run) -> None:
        """Who reads the table of guards finds each of them at work."""
        details = {act["name"]: act["detail"] for act in document(await performed(run))["acts"]}
        assert "10 Pays, one ticket: 1 charge" in details[_CLICK]
        assert caught(details[_CLICK]) == {"ticket"}
        assert "the other 20 were told by whom and when" in details[_TWO]
        assert caught(details[_TWO]) <= set(NAMES)
        assert "replayed: yes" in details[_LOST]
        assert caught(details[_KILLED]) == {"recovery"}
        assert "STALE_FENCE" in details[_FROZEN]
        assert "fence" in caught(details[_FROZEN])
        assert "settled again in round 2" in details[_REVERSAL]
        assert "UNKNOWN; asked again: 1 charge there, 1 in the books" in details[_SILENT]
        assert caught(details[_SILENT]) == {"acquirer-key"}

    async def test_svg_shows_the_acts_that_have_lanes(self, performed: Performed, run: Run, kept: Path) -> None:
        """As `services/demo/lanes.svg` was made, which the README there shows."""
        await performed(run)
        svg = (kept.parent / "lanes.svg").read_text(encoding="utf-8").replace("&#160;", " ")
        assert "cashier li" in svg
        assert "kill -9" in svg
        assert "settled again in round 2" in svg

    async def test_kept_data_can_be_checked_again(self, performed: Performed, run: Run, kept: Path) -> None:
        """`countinghouse check` on a stack that has stopped; the answers of clients are known to the demo only."""
        played = document(await performed(run))
        assert processes_of(kept) == []
        assert sorted(path.name for path in (kept / "logs").glob("payment-*.log")) == ["payment-1.log", "payment-2.log"]
        done = await command_line("check", "--json", "--data", str(kept))
        assert done.returncode == 0, done.stderr
        found = document(done)
        assert set(found) == {"verdict", "checks"}
        assert found["verdict"] == "ok"
        told = {check["name"]: check["examined"] for check in played["checks"] if check["name"] != "replays identical"}
        again = {check["name"]: check["examined"] for check in found["checks"]}
        assert {name: again[name] for name in told} == told

    async def test_forged_row_is_found(self, performed: Performed, run: Run, kept: Path, tmp_path: Path) -> None:
        """Behind the services' backs somebody marks an order UNPAID, to have it settled again."""
        await performed(run)
        forged = tmp_path / "order.db"
        with closing(sqlite3.connect(kept / "order.db")) as real, closing(sqlite3.connect(forged)) as copy:
            real.backup(copy)
            copy.execute(
                "UPDATE orders SET state = 'UNPAID', payment_id = '', settled_at_ms = 0 WHERE seq ="
                " (SELECT min(seq) FROM orders)"
            )
            copy.commit()
        arguments = ("--data", str(kept), "--database", f"order=sqlite:///{forged}")
        done = await command_line("check", *arguments)
        assert done.returncode == 1, done.stderr
        assert "verdict: violated" in done.stdout
        assert "broken: paid means charged: order order-" in done.stdout
        found = document(await command_line("check", "--json", *arguments))
        broken = {check["name"]: check["violations"] for check in found["checks"] if not check["ok"]}
        assert set(broken) == {"paid means charged", "moves are legal"}
        assert all(broken.values())


def _breaking(guards: tuple[str, ...], act: str, check: str, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(without(guards, act), act, check, id=f"{act} without {' and '.join(guards)}", marks=marks)


@pytest.mark.parametrize(
    ("run", "act", "check"),
    [
        _breaking(*ALONE[0]),
        *(_breaking(*alone, pytest.mark.long) for alone in ALONE[1:]),
        _breaking(*TOGETHER[0], pytest.mark.long),
        *(_breaking(*together, pytest.mark.soak) for together in TOGETHER[1:]),
    ],
)
async def test_act_without_its_defences_is_violated(performed: Performed, run: Run, act: str, check: str) -> None:
    """The demonstration can fail: exit code 1, and the broken invariant is named."""
    done = await performed(run)
    found = document(done)
    assert (done.returncode, found["verdict"]) == (1, "violated"), failures(found)
    assert [played["name"] for played in found["acts"]] == [act]
    broken = {check["name"]: check["violations"] for check in found["checks"] if not check["ok"]}
    assert check in broken
    assert all(broken.values())


@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "guard"), [pytest.param(without((guard,), *acts), guard, id=guard) for guard, acts in SPARED.items()]
)
async def test_every_act_stays_ok_without_a_guard_that_does_not_stand_alone_in_it(
    performed: Performed, run: Run, guard: str
) -> None:
    """Another catches what it would have caught, and the act says which."""
    done = await performed(run)
    found = document(done)
    assert (done.returncode, found["verdict"]) == (0, "ok"), failures(found)
    assert [act["name"] for act in found["acts"]] == SPARED[guard]
    for act in found["acts"]:
        assert act["ok"] is True
        assert caught(act["detail"]) <= set(NAMES) - {guard}, act


@pytest.mark.soak
@pytest.mark.parametrize(
    ("run", "guard"),
    [
        pytest.param(without((guard,), act), guard, id=f"{act} without {guard}")
        for guard, acts in SPARED.items()
        for act in acts
    ],
)
async def test_each_act_by_itself_stays_ok_without_a_guard_that_does_not_stand_alone_in_it(
    performed: Performed, run: Run, guard: str
) -> None:
    """On a stack that has seen no other act."""
    done = await performed(run)
    found = document(done)
    assert (done.returncode, found["verdict"]) == (0, "ok"), failures(found)
    (act,) = found["acts"]
    assert caught(act["detail"]) <= set(NAMES) - {guard}, act


@pytest.mark.usefixtures("_zookeeper_can_be_started")
class TestInterrupted:
    """Ctrl-C at any moment: exit code 130, nothing said, nothing left running, nothing left behind."""

    @pytest.mark.parametrize("processes", [1, 2])
    async def test_interrupt_while_the_stack_starts_leaves_no_process(self, tmp_path: Path, processes: int) -> None:
        """Before the stack's first process, and after.

        Python itself answers a SIGINT that comes before the command begins.
        """
        begun = _until(lambda: _left_in(tmp_path) and len(processes_of(tmp_path)) >= processes)
        await self._interrupt(tmp_path, begun)

    @pytest.mark.long
    async def test_interrupt_during_an_act_leaves_no_process(self, tmp_path: Path) -> None:
        await self._interrupt(tmp_path, _until(lambda: _all_serving(tmp_path)), "--act", _TWO)

    async def test_interrupt_with_a_frozen_holder_leaves_no_process(self, tmp_path: Path) -> None:
        """A stopped process hears nothing; it is ended all the same."""
        await self._interrupt(tmp_path, _until(lambda: _somebody_stopped(tmp_path)), "--act", _FROZEN)

    async def _interrupt(self, folder: Path, moment: Awaitable[None], *arguments: str) -> None:
        process = await start_command_line("demo", *arguments, TMPDIR=str(folder))
        try:
            await moment
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(20):
                _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 130, errors.decode()
        assert b"Traceback" not in errors
        assert processes_of(folder) == []
        assert _left_in(folder) == []


class TestUsageErrors:
    """What cannot be played is said in one sentence, before anything is started."""

    async def test_unknown_act_is_a_usage_error(self) -> None:
        done = await command_line("demo", "--act", "tap dance", COLUMNS="200")
        assert done.returncode == 2
        assert "tap dance" in done.stderr
        assert _KILLED in done.stderr

    async def test_unknown_guard_is_a_usage_error(self) -> None:
        done = await command_line("demo", "--guards-off", "lock,umbrella", COLUMNS="200")
        assert done.returncode == 2
        assert "umbrella" in done.stderr
        assert ", ".join(NAMES) in done.stderr


class TestCheck:
    """`countinghouse check` by itself."""

    async def test_check_of_a_running_stack_is_ok(self, stack: Stack, cashier: RecordingClient) -> None:
        """After all that other tests did to it, it is as right as after one order."""
        await cashier.settle_ok(await cashier.new_order())
        done = await command_line("check", "--data", str(stack.data))
        assert done.returncode == 0, done.stdout
        assert "verdict: ok" in done.stdout
        assert re.search(r"^settled at most once +[1-9]\d* +ok$", done.stdout, re.MULTILINE)

    async def test_missing_databases_are_named_and_not_made(self, tmp_path: Path) -> None:
        done = await command_line("check", "--data", str(tmp_path / "nowhere"))
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert f"{tmp_path / 'nowhere'}/order.db" in done.stderr
        assert "--data" in done.stderr
        assert _left_in(tmp_path) == []

    @pytest.mark.parametrize(
        "database", ["order", "stock=sqlite:///x.db", "order=mysql://clerk:secret@host/db", "order=:secret"]
    )
    async def test_malformed_database_is_refused_without_repeating_its_password(self, database: str) -> None:
        done = await command_line("check", "--database", database, COLUMNS="200")
        assert done.returncode == 2
        assert "--database" in done.stderr
        assert "secret" not in done.stderr

    async def test_damaged_database_is_no_verdict(self, tmp_path: Path) -> None:
        """Exit code 1 would say that an order was settled twice."""
        for service in ("order", "payment", "ledger"):
            (tmp_path / f"{service}.db").write_bytes(b"this has never been a database" * 200)
        done = await command_line("check", "--data", str(tmp_path))
        assert done.returncode == 2
        assert "order.db" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def failures(document: dict[str, Any]) -> list[Any]:
    """Return the acts and checks of a run that are not ok: pytest cuts the whole document."""
    return [each for each in (*document["acts"], *document["checks"]) if each["ok"] is not True]


def caught(detail: str) -> set[str]:
    """The guards that an act names."""
    _, found, guards = detail.partition("caught by ")
    return set(re.findall(r"[a-z-]+", guards.partition(":")[0])) if found else set()


def _left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def _until(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  another process, of which no event tells
            await asyncio.sleep(0.02)


def _all_serving(folder: Path) -> bool:
    stacks = [state.read(data) for data in folder.glob("countinghouse-demo-*")]
    return any(
        stack is not None and {instance.state for instance in stack.instances} == {InstanceState.SERVING}
        for stack in stacks
    )


def _somebody_stopped(folder: Path) -> bool:
    for pid in processes_of(folder):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return True
        except psutil.NoSuchProcess:
            continue
    return False
