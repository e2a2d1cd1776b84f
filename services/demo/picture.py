"""The lanes of a run as a picture: an SVG that loads nothing from the network and contains no script."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from services.demo.acts import ActResult
from services.demo.lanes import coloured, draw

#: rich's own format names fonts on a server. The fields are those of `rich.console.Console.export_svg`.
_SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px monospace; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


#: Columns for the details of acts.
_WIDTH_MIN = 80


def render_svg(acts: Sequence[ActResult]) -> str:
    """Return an SVG with the detail and the lanes of each act, in the order given. Lanes are never wrapped."""
    lanes = [[coloured(f"    {line}") for line in draw(act.lanes)] for act in acts]
    width = max((line.cell_len for lines in lanes for line in lines), default=_WIDTH_MIN)
    console = Console(record=True, file=io.StringIO(), width=max(width, _WIDTH_MIN))
    for act, lines in zip(acts, lanes, strict=True):
        console.print(Text(f"{act.name}: {act.detail}", style="bold"), *lines, Text(), sep="\n")
    return console.export_svg(title="countinghouse demo", theme=DIMMED_MONOKAI, code_format=_SVG, unique_id="lanes")
