"""`countinghouse trigger`: a situation of `services/demo`, brought about on the stack that runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import exit_codes, output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data, run
from services.cli.interruption import ignored
from services.demo.lanes import draw
from services.demo.situations import SITUATIONS, Outcome, Situation, bring_about
from services.kernel.clock import SystemClock

#: By whether the orders were settled once; None: the situation did not come about.
_VERDICTS = {True: "ok", False: "violated", None: "unknown"}


def trigger(
    situation: Annotated[
        str,
        typer.Argument(
            help="Situation, like lost-reply; without it: the situations there are.",
            autocompletion=lambda: list(SITUATIONS),
            show_default=False,
        ),
    ] = "",
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Bring a fault about on the running stack, and show what came of it.

    Most situations need a stack of `countinghouse up --failpoints`. What was armed or frozen is taken back at the end,
    also after Ctrl-C. Exit code 0: ok, 1: violated, 2: unknown.

    Example: countinghouse trigger lost-reply
    """
    if not situation:
        _list(as_json=as_json)
        return
    if situation not in SITUATIONS:
        raise typer.BadParameter(
            f"there is no situation {situation!r}; there are {', '.join(SITUATIONS)}", param_hint="SITUATION"
        )
    chosen = SITUATIONS[situation]
    steps = _Steps(chosen, printed=not as_json)
    outcome = run(bring_about(chosen, data, SystemClock(), steps.add, ignored))
    if as_json:
        output.print_json(_document(chosen, outcome, steps.sentences, data))
    else:
        _print(outcome, data)
    raise typer.Exit(exit_codes.of_verdict(_VERDICTS[outcome.act.ok]))


class _Steps:
    """The steps so far.

    Args:
        printed: Whether each is printed at once, below what happens in the situation.
    """

    def __init__(self, situation: Situation, *, printed: bool) -> None:
        self.sentences: list[str] = []
        self._situation = situation
        self._printed = printed

    def add(self, sentence: str) -> None:
        """Take the next step."""
        if self._printed and not self.sentences:
            output.print_line(f"{self._situation.name}: {self._situation.says}")
        self.sentences.append(sentence)
        if self._printed:
            output.print_line(f"{len(self.sentences):3}. {sentence}", flush=True)


def _list(*, as_json: bool) -> None:
    if as_json:
        output.print_json({"situations": [_situation_document(each) for each in SITUATIONS.values()]})
        return
    output.print_table(
        "situations",
        ("situation", "what happens", "needs"),
        [(each.name, each.says, _needs(each)) for each in SITUATIONS.values()],
    )


def _needs(situation: Situation) -> str:
    needs = ["--failpoints"] if situation.failpoints else []
    return " ".join([*needs, *([f"--replicas payment={situation.clerks}"] if situation.clerks > 1 else [])])


def _situation_document(situation: Situation) -> dict[str, Any]:
    return {
        "name": situation.name,
        "says": situation.says,
        "failpoints": situation.failpoints,
        "payment_instances": situation.clerks,
    }


def _commands(outcome: Outcome, data: Path) -> list[str]:
    """Return the commands that show the books."""
    where = "" if data == DEFAULT_DATA else f" --data {shlex.quote(str(data))}"
    return [
        f"countinghouse check{where}",
        *(f"countinghouse order history {order_id}{where}" for order_id in outcome.orders),
    ]


def _print(outcome: Outcome, data: Path) -> None:
    for line in draw(outcome.act.lanes):
        output.print_line(f"     {line}")
    output.print_line(f"{_VERDICTS[outcome.act.ok]}: {outcome.act.detail}")
    if outcome.left:
        print(f"start the stack again to be rid of {', '.join(outcome.left)}", file=sys.stderr)
    for command in _commands(outcome, data):
        output.print_line(f"see: {command}")


def _document(situation: Situation, outcome: Outcome, steps: list[str], data: Path) -> dict[str, Any]:
    return {
        "situation": situation.name,
        "verdict": _VERDICTS[outcome.act.ok],
        "detail": outcome.act.detail,
        "steps": steps,
        "orders": list(outcome.orders),
        "still_armed": list(outcome.left),
        "commands": _commands(outcome, data),
    }
