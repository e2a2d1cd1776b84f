"""Which guards stop the fault of which act: the table that the demo's README shows and that the tests run.

A guard is **alone** in an act if the act ends violated with just this guard off. Guards are **together** if it ends
violated with all of them off, and does not with any one of them off. Every other single guard can be switched off, and
the act stays ok. Each entry names the check that finds what went wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Defence:
    """The guards of one act.

    Args:
        alone: The check that fails without a guard, by guard.
        together: The check that fails without several guards, by guards.
    """

    alone: Mapping[str, str] = field(default_factory=dict)
    together: Mapping[tuple[str, ...], str] = field(default_factory=dict)


#: By act, in the order in which they are played.
DEFENCES: Final[Mapping[str, Defence]] = {
    "double click": Defence(alone={"ticket": "one charge per key"}),
    "two clerks, one order": Defence(
        together={
            ("state", "unique"): "settled at most once",
            ("lock", "unique"): "settled at most once",
            ("lock", "state"): "paid means charged",
            ("ticket", "lock"): "answers are true",
            ("lock", "recovery"): "nothing left over",
        }
    ),
    "lost reply": Defence(alone={"ticket": "answers are true"}),
    "killed mid-payment": Defence(
        alone={
            "ticket": "answers are true",
            "unique": "settled at most once",
            "recovery": "nothing left over",
        }
    ),
    "frozen holder": Defence(
        alone={"ticket": "answers are true", "recovery": "nothing left over"},
        together={
            ("fence", "unique"): "settled at most once",
            ("state", "unique"): "settled at most once",
        },
    ),
    "reversal": Defence(),
    "the acquirer did not answer": Defence(
        alone={
            "ticket": "answers are true",
            "recovery": "nothing left over",
            "acquirer-key": "cards agree",
        }
    ),
}


def table() -> str:
    """Return the table in Markdown, as the demo's README has it."""
    rows = [
        "| act | only this guard stops it: what is found without it "
        "| either of the two stops it: what is found without both |",
        "|---|---|---|",
    ]
    for act, defence in DEFENCES.items():
        alone = "; ".join(f"`{guard}`: *{check}*" for guard, check in defence.alone.items())
        together = "; ".join(
            f"{' and '.join(f'`{guard}`' for guard in guards)}: *{check}*" for guards, check in defence.together.items()
        )
        rows.append(f"| *{act}* | {alone or 'none'} | {together or 'none'} |")
    return "\n".join(rows)
