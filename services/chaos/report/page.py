"""Render one HTML page that needs no other file: no script, no font and no picture from elsewhere.

So it can be mailed, or kept beside its seed. The verdict, its reasons and the command that repeats the run come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final


def render(
    title: str,
    verdict: str,
    *,
    reasons: Sequence[str],
    facts: Mapping[str, str],
    command: str,
    sections: Mapping[str, str],
) -> str:
    """Return the page.

    Args:
        verdict: `ok`, `violated` or `unknown`.
        reasons: Why it is not ok.
        facts: The run in a few pairs, such as its seed.
        command: Repeats the run.
        sections: HTML by heading.
    """
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: {verdict}</title><style>{_STYLE}</style></head><body><main>",
            f'<header><p class="verdict {verdict}">{verdict}</p><h1>{escape(title)}</h1>'
            f'<div class="reasons">{items(reasons)}</div>'
            f"<dl>{pairs}</dl><p>Repeat it:</p><pre>{escape(command)}</pre></header>",
            *(f"<section><h2>{escape(heading)}</h2>{body}</section>" for heading, body in sections.items()),
            "</main></body></html>",
        ]
    )


def items(lines: Sequence[str], limit: int | None = None) -> str:
    """Return a list of the first lines, and how many more there are; nothing, if there is no line."""
    shown = "".join(f"<li>{escape(line)}</li>" for line in lines[:limit])
    more = len(lines) - len(lines[:limit])
    return f"<ul>{shown}{f'<li>and {more} more</li>' if more else ''}</ul>" if lines else ""


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6776; --paper: #fbfbf9; --line: #d8dbe0;
  --ok: #2e7d54; --fail: #c8871a; --info: #7b5ea7; --bad: #b3261e; --shade: #b3261e14; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b2; --paper: #14181f; --line: #333b47;
  --ok: #5fbf8c; --fail: #e0a94a; --info: #b59ae0; --bad: #ef6a60; --shade: #ef6a6022; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 4px 0 10px; font-size: 24px; } h2 { margin: 34px 0 8px; font-size: 18px; }
h3 { margin: 18px 0 2px; font-size: 14px; } small { color: var(--soft); font-weight: normal; }
.verdict { display: inline-block; margin: 0; padding: 2px 14px; border-radius: 4px; color: #fff; font-weight: 700; }
.verdict.ok { background: var(--ok); } .verdict.violated { background: var(--bad); }
.verdict.unknown { background: var(--info); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 12px 0; }
dt { color: var(--soft); } dd { margin: 0; } pre { padding: 8px 12px; overflow-x: auto; background: var(--shade); }
table { border-collapse: collapse; } td, th { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } .number { text-align: right; font-variant-numeric: tabular-nums; }
td.ok { color: var(--ok); } td.violated, .reasons { color: var(--bad); }
td ul { margin: 2px 0 6px; padding-left: 18px; }
.coverage td.cell { min-width: 26px; padding: 3px; text-align: center; border: 1px solid var(--line); }
.coverage .hit { background: var(--ok); color: #fff; } .slanted { padding: 3px; vertical-align: bottom; }
.slanted span { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: normal; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; } svg .inside { fill: #fff; pointer-events: none; }
svg .axis { stroke: var(--soft); } svg .grid { stroke: var(--line); stroke-dasharray: 2 3; }
.ok { fill: var(--ok); } .fail { fill: var(--fail); } .info { fill: var(--info); } .fault { fill: var(--bad); }
.shade { fill: var(--shade); } circle { opacity: 0.65; }
.quantile { fill: none; stroke: var(--ink); stroke-width: 1.2; opacity: 0.8; }
.p95 { stroke-dasharray: 5 3; } .p99 { stroke-dasharray: 1 3; }
.legend i { display: inline-block; width: 12px; height: 12px; margin: 0 3px 0 12px; border-radius: 2px; }
.legend .ok { background: var(--ok); } .legend .fail { background: var(--fail); }
.legend .info { background: var(--info); } .legend .shade { background: var(--shade); outline: 1px solid var(--line); }
.matrix td { padding: 6px 12px 6px 0; } .matrix td.cell { min-width: 96px; }
td.unknown { color: var(--info); } td.none { color: var(--soft); } h3 .violated { color: var(--bad); }
"""
