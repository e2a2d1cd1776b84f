"""The picture of a run's lanes."""

from __future__ import annotations

from xml.etree import ElementTree

from services.demo.acts import ActResult
from services.demo.lanes import Lane
from services.demo.picture import render_svg

LANES = (
    Lane("cashier li", ((0, "lock"), (4, "pay")), 18, "✔", "settled in 18 ms"),
    Lane("accountant wu", ((0, "lock"), (1, "wait")), 16, "✘", "settled by li <at> 10:00 & paid"),
)


def shown(svg: str) -> list[str]:
    """Return the lines of a picture; a line is drawn in pieces of one style."""
    lines: dict[str, str] = {}
    for piece in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):  # noqa: S314  our own
        lines[piece.attrib["y"]] = lines.get(piece.attrib["y"], "") + "".join(piece.itertext())
    return [line.replace("\u00a0", " ").strip("\n") for line in lines.values()]


def test_svg_has_every_lane_of_every_act_in_one_line_each() -> None:
    acts = [
        ActResult("two clerks", True, "word " * 40, LANES),
        ActResult("double click", True, "one charge", LANES[:1]),
    ]
    lines = shown(render_svg(acts))
    assert sum(line.rstrip().endswith("✔ settled in 18 ms") for line in lines) == 2
    assert (
        sum(line.startswith("    accountant wu") and "✘ settled by li <at> 10:00 & paid" in line for line in lines) == 1
    )
    assert any(line.startswith("double click: one charge") for line in lines)


def test_svg_loads_nothing_and_runs_nothing() -> None:
    """README shows it, and browsers block what an image loads."""
    svg = render_svg([ActResult("a", True, "b", LANES)])
    addresses = [part for part in svg.split('"') if "://" in part]
    assert addresses == ["http://www.w3.org/2000/svg"]
    assert not [word for word in ("@font-face", "<script", "<image", "@import") if word in svg]


def test_svg_of_no_act_is_an_empty_picture() -> None:
    assert shown(render_svg([])) == ["countinghouse demo"]
