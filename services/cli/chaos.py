"""`countinghouse chaos`: a seeded workload and seeded faults on a stack of its own, and what a checker says.

`run` runs one seed, `seeds` many; `ablate` shows which guard stops which fault. `proxy` breaks
connections of anybody's.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import exit_codes, output
from services.cli.arguments import AsJson, Database, run
from services.cli.proxy import proxy
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.ids import new_rng

if TYPE_CHECKING:
    from services.chaos.ablation import Cell, Matrix
    from services.chaos.runner import Course, Result
    from services.chaos.sweep import Outcome
    from services.chaos.targets.compose import ComposeWorld
    from services.chaos.targets.local import LocalWorld
    from services.kernel.clock import Clock

_VERDICTS = ("ok", "violated", "unknown")
#: More than anybody waits for.
_MAX_SEEDS = 10_000
_SECONDS_A_MINUTE = 60
_POSTGRESQL = "postgresql"
#: More than this and two cores are the fault that strikes.
_RATE_PER_S = 15.0


class Where(StrEnum):
    """What a run runs on."""

    LOCAL = "local"
    COMPOSE = "compose"


app = typer.Typer(no_args_is_help=True)


@app.callback()
def chaos() -> None:
    """Break things on purpose, and look at the books."""


app.command()(proxy)


@app.command("run")
def run_chaos(
    seed: Annotated[
        int | None, typer.Option("--seed", help="Repeats a plan. [default: a fresh one]", show_default=False, min=0)
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="How long people are at work.", min=0.1, max=600)] = 1.0,
    faults: Annotated[
        str,
        typer.Option(
            "--faults", help="Which faults, like kill,leader-kill. [default: all there are]", show_default=False
        ),
    ] = "",
    some: Annotated[
        int,
        typer.Option(
            "--some",
            help="Only so many of them, drawn by the seed. [default: all]",
            min=0,
            max=1000,
            show_default=False,
        ),
    ] = 0,
    database: Database = _POSTGRESQL,
    stack: Annotated[Where, typer.Option("--stack", help="On processes here, or on containers.")] = Where.LOCAL,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Where its stack, history and report go. [default: a new folder]", show_default=False
        ),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="Things begun in a second, all together.", min=1, max=200)] = (
        _RATE_PER_S
    ),
    as_json: AsJson = False,
) -> None:
    """Settles orders while faults strike, and proves the books afterwards. Exit code 0: ok, 1: violated, 2: unknown.

    The stack is one of its own: two of each service, PostgreSQL, a ZooKeeper ensemble of three, a bank; on containers
    that of deploy/docker-compose.yml.

    Example: countinghouse chaos run --seed 7 --minutes 1 --faults kill,bank-silent
    """
    chosen = new_rng().randrange(2**31) if seed is None else seed
    folder = _folder(data)
    wanted = _Wanted(stack, chosen, minutes * _SECONDS_A_MINUTE, faults, some, database, rate)
    results: list[Result] = []
    with _nothing_proven(as_json=as_json):
        run(_run(wanted, folder, results))
    (result,) = results
    _tell(result, chosen, as_json=as_json)
    raise typer.Exit(exit_codes.of_verdict(result.verdict))


@app.command("seeds")
def run_seeds(
    seeds: Annotated[str, typer.Option("--seeds", help="Which, like 1-5,9. [default: none]", show_default=False)] = "",
    fresh: Annotated[int, typer.Option("--fresh", help="How many fresh ones besides.", min=0, max=1_000)] = 0,
    at_once: Annotated[int, typer.Option("--at-once", help="How many at a time.", min=1, max=16)] = 1,
    minutes: Annotated[float, typer.Option("--minutes", help="As for run.", min=0.1, max=600)] = 1.0,
    faults: Annotated[str, typer.Option("--faults", help="As for run.", show_default=False)] = "",
    some: Annotated[int, typer.Option("--some", help="As for run.", min=0, max=1000, show_default=False)] = 0,
    database: Database = _POSTGRESQL,
    data: Annotated[
        Path | None, typer.Option("--data", help="Where the runs go. [default: a new folder]", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Runs many seeds, each on a stack of its own. Exit code 0: all ok, 1: one was violated, 2: one was unknown.

    What a run that is ok leaves behind is removed.

    Example: countinghouse chaos seeds --seeds 1-100 --minutes 0.2 --some 3 --at-once 2
    """
    chosen = [*_numbers(seeds), *(new_rng().randrange(2**31) for _ in range(fresh))]
    if not chosen:
        raise typer.BadParameter("name some seeds, like --seeds 1-5, or ask for fresh ones with --fresh 1")
    options = [*("--minutes", str(minutes)), *("--some", str(some)), *("--faults", faults), *("--database", database)]
    outcomes: list[Outcome] = []
    run(_run_seeds(chosen, options, _folder(data), at_once, outcomes))
    verdicts = [outcome.verdict.value for outcome in outcomes]
    counts = {verdict: verdicts.count(verdict) for verdict in _VERDICTS}
    if as_json:
        told = [{"verdict": one.verdict.value, "reasons": list(one.reasons), **one.told} for one in outcomes]
        output.print_json({"counts": counts, "seeds": told})
    else:
        print(f"{len(outcomes)} seeds: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    worst = "violated" if counts["violated"] else "unknown" if counts["unknown"] else "ok"
    raise typer.Exit(exit_codes.of_verdict(worst))


async def _run_seeds(seeds: list[int], options: list[str], folder: Path, at_once: int, outcomes: list[Outcome]) -> None:
    from services.chaos.sweep import run_seeds as run_all  # noqa: PLC0415  `--help` does without
    from services.kernel.clock import SystemClock  # noqa: PLC0415

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(f"[{len(outcomes)}/{len(seeds)}] {outcome.line()}", file=sys.stderr, flush=True)

    await run_all(seeds, options, folder, SystemClock(), at_once=at_once, tell=tell)


@app.command("ablate")
def run_ablation(
    guards: Annotated[
        str, typer.Option("--guards", help="Rows of these only, like lock,fence. [default: all]", show_default=False)
    ] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Tried until a cell is decided, like 1-5.")] = "1-3",
    at_once: Annotated[int, typer.Option("--at-once", help="How many stacks at a time.", min=1, max=16)] = 3,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Where its stacks and report go. [default: a new folder]", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Switches each guard off, on alone, and all off, under the fault for which it is the only defence.

    Exit code 0: with every guard off its fault does harm, and with it on none; 1: a row is empty; 2: one is unknown.

    Example: countinghouse chaos ablate --guards fence
    """
    chosen = _numbers(seeds)
    if not chosen:
        raise typer.BadParameter("name some seeds, like --seeds 1-3")
    folder = _folder(data)
    matrices: list[Matrix] = []
    with _nothing_proven(as_json=as_json):
        run(_run_ablation(guards, chosen, at_once, folder, matrices))
    (matrix,) = matrices
    _tell_matrix(matrix, folder / "report.html", as_json=as_json)
    raise typer.Exit(exit_codes.of_verdict(matrix.verdict))


async def _run_ablation(guards: str, seeds: list[int], at_once: int, folder: Path, matrices: list[Matrix]) -> None:
    from services.chaos.ablation import ablate, chosen_rows  # noqa: PLC0415  `--help` does without
    from services.chaos.report.matrix_page import render  # noqa: PLC0415
    from services.kernel.clock import SystemClock  # noqa: PLC0415

    clock = SystemClock()
    began_s = clock.monotonic_s()

    def tell(cell: Cell) -> None:
        said = f"{cell.row.guard}, {cell.row.scene.name}, {cell.column}: {cell.verdict} (seed {cell.seed})"
        print(f"{clock.monotonic_s() - began_s:6.1f} s  {said}", file=sys.stderr, flush=True)

    rows = chosen_rows([name.strip() for name in guards.split(",") if name.strip()])
    matrix = await ablate(rows, folder, clock, seeds=seeds, at_once=at_once, tell=tell)
    command = f"countinghouse chaos ablate --seeds {','.join(map(str, seeds))}{f' --guards {guards}' if guards else ''}"
    facts = {"cells": str(len(matrix.cells)), "took": f"{clock.monotonic_s() - began_s:.0f} s"}
    (folder / "report.html").write_text(render(matrix, command, facts), encoding="utf-8")
    matrices.append(matrix)


def _tell_matrix(matrix: Matrix, report: Path, *, as_json: bool) -> None:
    from services.chaos.report.matrix_page import HEADS, document, table  # noqa: PLC0415  `--help` does without

    if as_json:
        output.print_json(document(matrix) | {"report": str(report)})
        return
    output.print_table("Which guard stops which fault", HEADS, table(matrix))
    for reason in matrix.empty:
        output.print_line(f"  {reason}")
    print(f"verdict: {matrix.verdict} ({len(matrix.cells)} cells); report: {report}")


def _numbers(ranges: str) -> list[int]:
    """Reads `1-5,9`.

    Raises:
        typer.BadParameter: It is not like that.
    """
    numbers: list[int] = []
    for part in filter(None, ranges.split(",")):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        if match is None:
            raise typer.BadParameter(f"{part!r} is not like 7 or 1-5")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)[: _MAX_SEEDS + 1]
        if len(numbers) > _MAX_SEEDS:
            raise typer.BadParameter(f"{part!r} makes more than {_MAX_SEEDS} seeds")
    return list(dict.fromkeys(numbers))


@contextmanager
def _nothing_proven(*, as_json: bool) -> Iterator[None]:
    """Lets whatever goes wrong end with 2, told in a sentence if it was foreseen: 1 would say that books are wrong."""
    try:
        yield
    except CountinghouseError as error:
        if as_json:
            output.print_json({"error": {"reason": error.reason, "message": error.message}})
        print(f"countinghouse: {error.message}", file=sys.stderr)
    except Exception as error:
        traceback.print_exception(error)
    else:
        return
    raise typer.Exit(exit_codes.of_verdict("unknown"))


def _folder(data: Path | None) -> Path:
    folder = data or Path(tempfile.mkdtemp(prefix="countinghouse-chaos-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL, run as somebody else, has to pass through
    return folder


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A run as it was asked for."""

    stack: Where
    seed: int
    length_s: float
    faults: str
    some: int
    database: str
    rate_per_s: float

    def course(self, known: Sequence[str], session_timeout_s: float) -> Course:
        """The run, in a world that knows these faults.

        Raises:
            InvalidArgument: FAULT_UNKNOWN.
        """
        from services.chaos.plan import draw_some  # noqa: PLC0415
        from services.chaos.runner import Course  # noqa: PLC0415

        names = _chosen(self.faults, known)
        if self.some:
            names = draw_some(names, self.seed, self.some)
        command = f"countinghouse chaos run --seed {self.seed} --minutes {self.length_s / _SECONDS_A_MINUTE:g}"
        if len(names) < len(known):
            command += f" --faults {','.join(names)}"
        if self.stack is not Where.LOCAL:
            command += f" --stack {self.stack.value}"
        elif self.database != _POSTGRESQL:
            command += f" --database {self.database}"
        return Course(self.seed, self.length_s, names, self.rate_per_s, session_timeout_s, command)


async def _run(wanted: _Wanted, folder: Path, results: list[Result]) -> None:
    from services.chaos.runner import run  # noqa: PLC0415  `--help` does without
    from services.kernel.clock import SystemClock  # noqa: PLC0415

    # however one gives up, nothing may be left running
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    clock = SystemClock()
    began_s = clock.monotonic_s()

    def tell(sentence: str) -> None:
        print(f"{clock.monotonic_s() - began_s:6.1f} s  {sentence}", file=sys.stderr, flush=True)

    world, session_timeout_s = _world(wanted, folder, clock)
    course = wanted.course([kind.name for kind in world.kinds()], session_timeout_s)
    course.plan(world.kinds())  # refuses what cannot be run, before anything starts
    tell("starting a stack")
    async with world:
        tell(f"ready; seed {wanted.seed}; {', '.join(course.faults)}")
        results.append(await run(world, course, folder, clock, tell))


def _world(wanted: _Wanted, folder: Path, clock: Clock) -> tuple[LocalWorld | ComposeWorld, float]:
    """The world that was asked for, and how long its sessions are."""
    from services.chaos.targets import compose, local  # noqa: PLC0415

    if wanted.stack is Where.COMPOSE:
        return compose.ComposeWorld(compose.ComposeOptions(folder), clock), compose.SESSION_TIMEOUT_S
    options = local.LocalOptions(folder / "data", database=wanted.database)
    return local.LocalWorld(options, clock), local.SESSION_TIMEOUT_S


def _chosen(faults: str, known: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in faults.split(",") if name.strip()) or tuple(known)
    for name in chosen:
        if name not in known:
            raise InvalidArgument("FAULT_UNKNOWN", f"there is no fault {name!r} here; there are {', '.join(known)}")
    return chosen


def _tell(result: Result, seed: int, *, as_json: bool) -> None:
    document: dict[str, Any] = {
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
        "seed": seed,
        "calls": result.calls,
        "at_rest_after_s": round(result.rested_s, 1),
        "fired": dict(result.fired),
        "history": str(result.history),
        "report": str(result.report),
    }
    if as_json:
        output.print_json(document)
        return
    for reason in result.reasons:
        output.print_line(f"  {reason}")
    print(f"verdict: {result.verdict.value} ({result.calls} calls, seed {seed}); report: {result.report}")
