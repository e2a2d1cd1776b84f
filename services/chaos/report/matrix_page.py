"""The matrix of guards and faults, for people: in rows for a terminal, and as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from services.chaos.ablation.matrix import Cell, Column, GuardRow, Matrix
from services.chaos.report import page
from services.checker.findings import Verdict

HEADS: Final = ("guard", "fault", *(str(column) for column in Column), "row")
_FILLED: Final = {True: "filled", False: "EMPTY", None: "unknown"}
_MAX_REASONS: Final = 6


def table(matrix: Matrix) -> list[tuple[str, ...]]:
    """Return a row of texts for each row, under `HEADS`."""
    return [
        (
            row.guard,
            _fault(row),
            *(_word(matrix.cells.get((row, column))) for column in Column),
            _FILLED[matrix.filled(row)],
        )
        for row in matrix.rows
    ]


def document(matrix: Matrix) -> dict[str, Any]:
    """Return the matrix for scripts."""
    return {
        "verdict": matrix.verdict.value,
        "reasons": list(matrix.empty),
        "rows": [
            {
                "guard": row.guard,
                "scene": row.scenario.name,
                "fault": row.scenario.fault,
                "off_besides": list(row.besides),
                "filled": matrix.filled(row),
                "cells": {
                    str(column): {
                        "guards_off": list(row.guards_off(column)),
                        "verdict": cell.verdict.value,
                        "seed": cell.seed,
                        "tries": cell.tries,
                        "took_s": round(cell.took_s, 1),
                        "reasons": list(cell.reasons),
                    }
                    for column in row.columns
                    if (cell := matrix.cells.get((row, column))) is not None
                },
            }
            for row in matrix.rows
        ],
    }


def render(matrix: Matrix, command: str, facts: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        command: What repeats it.
        facts: The run in a few pairs.
    """
    return page.render(
        "Which guard stops which fault",
        matrix.verdict,
        reasons=matrix.empty,
        facts=facts,
        command=command,
        sections={
            "Matrix": f"<p>{_LEGEND}</p>{_matrix(matrix)}",
            "What was found": "".join(map(_found, _with_reasons(matrix))),
        },
    )


_LEGEND: Final = (
    "Each row is a fault for which its guard is the only defence; where others stand against it as well, they are off "
    "throughout. A row is filled if all is well with the guard on and a violation is found with it off."
)


def _matrix(matrix: Matrix) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS)
    rows = []
    for row in matrix.rows:
        cells = "".join(_cell(matrix.cells.get((row, column))) for column in Column)
        filled = _FILLED[matrix.filled(row)]
        kind = {"filled": "ok", "EMPTY": "violated"}.get(filled, "unknown")
        rows.append(
            f"<tr><td><b>{escape(row.guard)}</b></td><td>{escape(_fault(row))}</td>{cells}"
            f'<td class="{kind}">{filled}</td></tr>'
        )
    return f'<table class="matrix"><tr>{heads}</tr>{"".join(rows)}</table>'


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="cell none">–</td>'
    checks = "".join(f"<br><small>{escape(name)}</small>" for name in cell.checks)
    return f'<td class="cell {cell.verdict}">{_word(cell)}{checks}</td>'


def _with_reasons(matrix: Matrix) -> list[Cell]:
    """Return the cells in which something was found, or nothing could be."""
    cells = (matrix.cells.get((row, column)) for row in matrix.rows for column in row.columns)
    return [cell for cell in cells if cell is not None and cell.reasons]


def _found(cell: Cell) -> str:
    off = ", ".join(cell.row.guards_off(cell.column)) or "none"
    return (
        f"<h3>{escape(cell.row.guard)}: {escape(cell.row.scenario.name)}, {escape(cell.column)} "
        f"<small>off: {escape(off)}; seed {cell.seed}, try {cell.tries}, {cell.took_s:.1f} s</small></h3>"
        + page.items(cell.reasons, _MAX_REASONS)
    )


def _fault(row: GuardRow) -> str:
    besides = f" (without {' and '.join(row.besides)})" if row.besides else ""
    return row.scenario.fault + besides


def _word(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.verdict is Verdict.OK:
        return "ok"
    word = "VIOLATED" if cell.verdict is Verdict.VIOLATED else "unknown"
    return f"{word}, seed {cell.seed}"
