"""`countinghouse chaos run`: a seeded workload and seeded faults on a stack of its own, and what a checker says."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output
from services.cli.arguments import AsJson, run
from services.kernel.ids import dice

if TYPE_CHECKING:
    from services.chaos.run import Result

_EXIT_CODES = {"ok": 0, "violated": 1, "unknown": 2}
_SECONDS_A_MINUTE = 60
#: More than this and two cores are the fault that strikes.
_RATE_PER_S = 15.0

app = typer.Typer(no_args_is_help=True)


@app.callback()
def chaos() -> None:
    """Break things on purpose, and look at the books."""


@app.command("run")
def run_chaos(
    seed: Annotated[
        int, typer.Option("--seed", help="Repeats a plan. [default: a fresh one]", show_default=False, min=0)
    ] = -1,
    minutes: Annotated[float, typer.Option("--minutes", help="How long people are at work.", min=0.1, max=600)] = 1.0,
    faults: Annotated[
        str,
        typer.Option(
            "--faults", help="Which faults, like kill,leader-kill. [default: all there are]", show_default=False
        ),
    ] = "",
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
    """Settles bills while faults strike, and proves the books afterwards. Exit code 0: ok, 1: violated, 2: unknown.

    The stack is one of its own: two of each service, PostgreSQL, a ZooKeeper ensemble of three, a bank.

    Example: countinghouse chaos run --seed 7 --minutes 1 --faults kill,bank-silent
    """
    chosen = dice().randrange(2**31) if seed < 0 else seed
    folder = data or Path(tempfile.mkdtemp(prefix="countinghouse-chaos-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL, run as somebody else, has to pass through
    words = [f"--seed {chosen}", f"--minutes {minutes:g}", *([f"--faults {faults}"] if faults else [])]
    results: list[Result] = []
    command = f"countinghouse chaos run {' '.join(words)}"
    run(_run(chosen, minutes * _SECONDS_A_MINUTE, faults, rate, folder, command, results))
    (result,) = results
    _tell(result, chosen, as_json=as_json)
    raise typer.Exit(_EXIT_CODES[result.verdict])


async def _run(
    seed: int, length_s: float, faults: str, rate: float, folder: Path, command: str, results: list[Result]
) -> None:
    from services.chaos.local import SESSION_TIMEOUT_S, LocalOptions, LocalWorld  # noqa: PLC0415  `--help` does without
    from services.chaos.run import Course, run  # noqa: PLC0415
    from services.kernel.clock import SystemClock  # noqa: PLC0415

    clock = SystemClock()
    began_s = clock.monotonic_s()

    def tell(sentence: str) -> None:
        print(f"{clock.monotonic_s() - began_s:6.1f} s  {sentence}", file=sys.stderr, flush=True)

    tell("starting a stack")
    async with LocalWorld(LocalOptions(folder / "data"), clock) as world:
        names = _chosen(faults, [kind.name for kind in world.kinds()])
        tell(f"ready; seed {seed}")
        results.append(
            await run(world, Course(seed, length_s, names, rate, SESSION_TIMEOUT_S, command), folder, clock, tell)
        )


def _chosen(faults: str, known: list[str]) -> tuple[str, ...]:
    from services.kernel.errors import InvalidArgument  # noqa: PLC0415

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
        print(f"  {reason}")
    print(f"verdict: {result.verdict.value} ({result.calls} calls, seed {seed}); report: {result.report}")
