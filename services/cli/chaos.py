"""`countinghouse chaos`: a seeded workload and seeded faults on a stack of its own, and the checker's verdict.

`run` runs one seed, `sweep` many; `ablate` shows which guard stops which fault. `proxy` disturbs the connections of any
server.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import exit_codes, output
from services.cli.arguments import AsJson, Database, GuardsOff, names_of, parse_guards_off, run
from services.cli.proxy import proxy
from services.cli.renamed import RenamedCommands, RenamedOptions
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.ids import RandomIds, new_rng

if TYPE_CHECKING:
    from services.chaos.ablation.matrix import Cell, GuardRow, Matrix
    from services.chaos.runner import Result, RunConfig
    from services.chaos.sweep import SeedResult
    from services.chaos.targets.compose import ComposeTarget
    from services.chaos.targets.local import LocalTarget

_VERDICTS = ("ok", "violated", "unknown")
#: More would take days.
_MAX_SEEDS = 10_000
_SECONDS_A_MINUTE = 60
_POSTGRESQL = "postgresql"
#: With more, two cores are so busy that the load is a fault of its own.
_RATE_PER_S = 15.0
#: Where runs without --data have their folders.
_NEW_FOLDERS = Path("/var/tmp")  # noqa: S108  each has a name of its own that cannot be guessed
_RENAMED_FAULTS = {
    "bank-silent": "acquirer-silent",
    "bank-slow": "acquirer-slow",
    "bank-down": "acquirer-down",
    "bank-tells-twice": "acquirer-notifies-twice",
}

_Minutes = Annotated[float, typer.Option("--minutes", help="How long the workload runs.", min=0.1, max=600)]
_Faults = Annotated[
    str,
    typer.Option(
        "--faults",
        help="Fault types, like kill,leader-kill; services/chaos/README.md lists them. [default: all]",
        show_default=False,
    ),
]
_Sample = Annotated[
    int,
    typer.Option(
        "--sample", help="Inject this many fault types, drawn by the seed. [default: all]", min=0, show_default=False
    ),
]
_Parallel = Annotated[int, typer.Option("--parallel", help="Number of stacks at a time.", min=1, max=16)]
_NewFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Folder for stacks, histories and reports. [default: a new one]", show_default=False),
]


class ChaosStack(StrEnum):
    """What a chaos run starts."""

    LOCAL = "local"
    COMPOSE = "compose"
    COMPOSE_HA = "compose-ha"


_Stack = Annotated[
    ChaosStack,
    typer.Option("--stack", help="Local processes, Docker containers, or those with three PostgreSQL servers."),
]
app = typer.Typer(no_args_is_help=True, cls=RenamedCommands)


@app.callback()
def chaos() -> None:
    """Inject faults, and check the books."""


app.command()(proxy)


@app.command("run", cls=RenamedOptions)
def run_chaos(
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Seed of the plan; the same seed repeats it. [default: a random one]",
            show_default=False,
            min=0,
        ),
    ] = None,
    minutes: _Minutes = 1.0,
    faults: _Faults = "",
    sample: _Sample = 0,
    database: Database = _POSTGRESQL,
    stack: _Stack = ChaosStack.LOCAL,
    guards_off: GuardsOff = None,
    data: _NewFolder = None,
    rate: Annotated[float, typer.Option("--rate", help="Operations begun in a second.", min=1, max=200)] = _RATE_PER_S,
    as_json: AsJson = False,
) -> None:
    """Settle orders while faults are injected, then check the books. Exit code 0: ok, 1: violated, 2: unknown.

    It starts a new stack: two instances of each service, PostgreSQL, a ZooKeeper ensemble of three, an acquirer; on
    containers that of deploy/docker-compose.yml, or with docker-compose.ha.yml.

    Example: countinghouse chaos run --seed 7 --minutes 1 --faults kill,acquirer-silent
    """
    off = parse_guards_off(guards_off)
    if off and stack is not ChaosStack.LOCAL:
        raise typer.BadParameter("guards can be switched off on a local stack only", param_hint="--guards-off")
    chosen = new_rng().randrange(2**31) if seed is None else seed
    folder = _folder(data, "history.jsonl", "report.html", "data")
    with _unknown_on_error(as_json=as_json):
        target = _target(stack, folder, database, off)
        command = f"countinghouse chaos run --seed {chosen} --minutes {minutes:g}"
        if stack is not ChaosStack.LOCAL:
            command += f" --stack {stack}"
        elif database != _POSTGRESQL:
            command += f" --database {database}"
        if off:
            command += f" --guards-off {','.join(off)}"
        config = _run_config(target, chosen, minutes * _SECONDS_A_MINUTE, faults, sample, rate, command)
    _make(folder)
    with _unknown_on_error(as_json=as_json):
        result = run(_run(target, config, folder))
    _show(result, chosen, as_json=as_json)
    raise typer.Exit(exit_codes.of_verdict(result.verdict))


@app.command("sweep", cls=RenamedOptions)
def sweep(
    seeds: Annotated[
        str, typer.Option("--seeds", help="Seeds to run, like 1-5,9. [default: none]", show_default=False)
    ] = "",
    random_seeds: Annotated[
        int, typer.Option("--random-seeds", help="Number of random seeds to run besides.", min=0, max=1_000)
    ] = 0,
    parallel: _Parallel = 1,
    minutes: _Minutes = 1.0,
    faults: _Faults = "",
    sample: _Sample = 0,
    database: Database = _POSTGRESQL,
    stack: _Stack = ChaosStack.LOCAL,
    data: _NewFolder = None,
    as_json: AsJson = False,
) -> None:
    """Run many seeds, each on a stack of its own. Exit code 0: all ok, 1: one was violated, 2: one was unknown.

    The files of a run that is ok are removed.

    Example: countinghouse chaos sweep --seeds 1-100 --minutes 0.25 --sample 3 --parallel 2
    """
    chosen = [*_numbers(seeds), *(new_rng().randrange(2**31) for _ in range(random_seeds))]
    if not chosen:
        raise typer.BadParameter("name some seeds, like --seeds 1-5, or ask for random ones with --random-seeds 1")
    options = [
        *("--minutes", str(minutes)),
        *("--sample", str(sample)),
        *("--faults", faults),
        *("--database", database),
        *("--stack", stack),
    ]
    folder = _folder(data, *(f"seed-{seed}" for seed in chosen))
    with _unknown_on_error(as_json=as_json):
        _chosen(faults, _known(_target(stack, folder, database, ())))
    _make(folder)
    results = run(_sweep(chosen, options, folder, parallel))
    verdicts = [result.verdict.value for result in results]
    counts = {verdict: verdicts.count(verdict) for verdict in _VERDICTS}
    if as_json:
        documents = [{"verdict": one.verdict.value, "reasons": list(one.reasons), **one.document} for one in results]
        output.print_json({"counts": counts, "seeds": documents})
    else:
        print(f"{len(results)} seeds: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    worst = "violated" if counts["violated"] else "unknown" if counts["unknown"] else "ok"
    raise typer.Exit(exit_codes.of_verdict(worst))


async def _sweep(seeds: list[int], options: list[str], folder: Path, parallel: int) -> list[SeedResult]:
    from services.chaos.sweep import sweep  # noqa: PLC0415  `--help` does without

    results: list[SeedResult] = []

    def tell(result: SeedResult) -> None:
        results.append(result)
        print(f"[{len(results)}/{len(seeds)}] {result.line()}", file=sys.stderr, flush=True)

    await sweep(seeds, options, folder, SystemClock(), parallel=parallel, tell=tell)
    return results


@app.command("ablate", cls=RenamedOptions)
def run_ablation(
    guards_off: GuardsOff = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds to try until a cell is decided, like 1-5.")] = "1-3",
    parallel: _Parallel = 3,
    data: _NewFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show which guard stops which fault: run each fault with its guard off, with it alone, and with all guards off.

    --guards-off names the guards; the default is all. Exit code 0: every fault does harm without its guard, and none
    with it; 1: a row is empty; 2: one is unknown.

    Example: countinghouse chaos ablate --guards-off fence
    """
    chosen = _numbers(seeds)
    if not chosen:
        raise typer.BadParameter("name some seeds, like --seeds 1-3")
    folder = _folder(data, "report.html", "stack-*")
    guards = names_of(guards_off)
    with _unknown_on_error(as_json=as_json):
        rows = _rows(guards)
    _make(folder)
    with _unknown_on_error(as_json=as_json):
        matrix = run(_run_ablation(rows, guards, chosen, parallel, folder))
    _show_matrix(matrix, folder / "report.html", as_json=as_json)
    raise typer.Exit(exit_codes.of_verdict(matrix.verdict))


def _rows(guards: tuple[str, ...]) -> tuple[GuardRow, ...]:
    """Return the rows of these guards; none named: all.

    Raises:
        InvalidArgument: GUARD_UNKNOWN.
    """
    from services.chaos.ablation.matrix import chosen_rows  # noqa: PLC0415  `--help` does without

    return chosen_rows(guards)


async def _run_ablation(
    rows: tuple[GuardRow, ...], guards: tuple[str, ...], seeds: list[int], parallel: int, folder: Path
) -> Matrix:
    from services.chaos.ablation.run import ablate  # noqa: PLC0415  `--help` does without
    from services.chaos.report.matrix_page import render  # noqa: PLC0415

    clock = SystemClock()
    began_s = clock.monotonic_s()
    tell = _progress(clock)

    def tell_cell(cell: Cell) -> None:
        tell(f"{cell.row.guard}, {cell.row.scenario.name}, {cell.column}: {cell.verdict} (seed {cell.seed})")

    matrix = await ablate(rows, folder, clock, seeds=seeds, at_once=parallel, tell=tell_cell)
    command = f"countinghouse chaos ablate --seeds {','.join(map(str, seeds))}"
    if guards:
        command += f" --guards-off {','.join(guards)}"
    facts = {"cells": str(len(matrix.cells)), "took": f"{clock.monotonic_s() - began_s:.0f} s"}
    (folder / "report.html").write_text(render(matrix, command, facts), encoding="utf-8")
    return matrix


def _show_matrix(matrix: Matrix, report: Path, *, as_json: bool) -> None:
    from services.chaos.report.matrix_page import HEADS, document, table  # noqa: PLC0415  `--help` does without

    if as_json:
        output.print_json(document(matrix) | {"report": str(report)})
        return
    output.print_table("Which guard stops which fault", HEADS, table(matrix))
    for reason in matrix.empty:
        output.print_line(f"  {reason}")
    print(f"verdict: {matrix.verdict} ({len(matrix.cells)} cells); report: {report}")


def _numbers(ranges: str) -> list[int]:
    """Read `1-5,9`.

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
def _unknown_on_error(*, as_json: bool) -> Iterator[None]:
    """End with 2 on any error, in a sentence if it was foreseen: 1 would mean that the books are wrong."""
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


def _folder(data: Path | None, *left: str) -> Path:
    """Return the folder of a run. `_make` makes it, once the run is known to be possible.

    Args:
        left: Patterns of what an earlier run leaves in it: a stack on the databases of that run would change its
            evidence.

    Raises:
        typer.BadParameter: It holds an earlier run.
    """
    if data is not None and any(found for pattern in left for found in data.glob(pattern)):
        raise typer.BadParameter(f"{data} holds an earlier run; name another --data, or remove it", param_hint="--data")
    return data or _NEW_FOLDERS / RandomIds().new("countinghouse-chaos")


def _make(folder: Path) -> None:
    """Make the folder of a run, if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL, run by another user, has to pass through


def _target(stack: ChaosStack, folder: Path, database: str, guards_off: tuple[str, ...]) -> LocalTarget | ComposeTarget:
    from services.chaos.targets import compose, local  # noqa: PLC0415  `--help` does without

    if stack is not ChaosStack.LOCAL:
        deployment = compose.ComposeOptions(folder, replicated=stack is ChaosStack.COMPOSE_HA)
        return compose.ComposeTarget(deployment, SystemClock())
    options = local.LocalOptions(folder / "data", guards_off=guards_off, database=database)
    return local.LocalTarget(options, SystemClock())


def _run_config(
    target: LocalTarget | ComposeTarget,
    seed: int,
    length_s: float,
    faults: str,
    sample: int,
    rate_per_s: float,
    command: str,
) -> RunConfig:
    """Return a run on a target, once it is known to be possible.

    Raises:
        InvalidArgument: FAULT_UNKNOWN or PLAN_TOO_SHORT.
    """
    from services.chaos.plan import draw_sample  # noqa: PLC0415  `--help` does without
    from services.chaos.runner import RunConfig  # noqa: PLC0415

    known = _known(target)
    names = _chosen(faults, known)
    if sample:
        names = draw_sample(names, seed, sample)
    if len(names) < len(known):
        command += f" --faults {','.join(names)}"
    config = RunConfig(seed, length_s, names, rate_per_s, command)
    config.plan(target)
    return config


def _known(target: LocalTarget | ComposeTarget) -> list[str]:
    """Return the names of the faults that can be injected into a target."""
    from services.chaos.faults import available  # noqa: PLC0415  `--help` does without

    return list(dict.fromkeys(fault.name for fault in available(target)))


def _chosen(faults: str, known: Sequence[str]) -> tuple[str, ...]:
    chosen = names_of([faults]) or tuple(known)
    for name in chosen:
        if name in _RENAMED_FAULTS:
            raise InvalidArgument("FAULT_UNKNOWN", f"the fault {name} is now {_RENAMED_FAULTS[name]}")
        if name not in known:
            raise InvalidArgument("FAULT_UNKNOWN", f"there is no fault {name!r} here; there are {', '.join(known)}")
    return chosen


async def _run(target: LocalTarget | ComposeTarget, config: RunConfig, folder: Path) -> Result:
    from services.chaos.runner import run  # noqa: PLC0415  `--help` does without

    # a stack must not be left running, however the command is stopped
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    clock = SystemClock()
    tell = _progress(clock)
    tell("starting a stack")
    async with target:
        tell(f"ready; seed {config.seed}; {', '.join(config.faults)}")
        return await run(target, config, folder, clock, tell)


def _progress(clock: SystemClock) -> Callable[[str], None]:
    """Return a function that prints sentences with the seconds since now."""
    began_s = clock.monotonic_s()

    def tell(sentence: str) -> None:
        print(f"{clock.monotonic_s() - began_s:6.1f} s  {sentence}", file=sys.stderr, flush=True)

    return tell


def _show(result: Result, seed: int, *, as_json: bool) -> None:
    document = {
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
        "seed": seed,
        "calls": result.calls,
        "at_rest_after_s": round(result.rested_s, 1),
        "fired": dict(result.injected),
        "history": str(result.history),
        "report": str(result.report),
    }
    if as_json:
        output.print_json(document)
        return
    for reason in result.reasons:
        output.print_line(f"  {reason}")
    print(f"verdict: {result.verdict.value} ({result.calls} calls, seed {seed}); report: {result.report}")
