"""A search as a report: what stands on its page, and where.

The candidates are the page's subject: every box of a drawing and every kept node leads to its row.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxbench.envelope import envelope
from onnxbench.reporting import (
    Block,
    Chart,
    Column,
    Drawing,
    Facts,
    Node,
    Number,
    Page,
    Prose,
    Section,
    Table,
    heat_of,
    write_report,
)
from onnxbench.tuning._result import Candidate, Tuning
from onnxbench.version import __version__

COMMAND = "precision"
_NODES = "nodes"
_MOST_DRAWN = 36
_MOST_DRAWINGS = 6
_LEVELS = 2
_HOTTEST = 9
_COLUMNS = (
    Column("Node"),
    Column("Operator"),
    Column("Stays"),
    Column("Own error", "number", "in half precision, on the values of the float32 model: 0 to 1, or it overflows"),
    Column("Gain", "number", "what becomes of an error of its outputs at the outputs of the model"),
    Column("Effect", "number", "own error times gain: the estimated error at the outputs"),
    Column("Cost", "number", "what it costs to keep it"),
    Column("Reads", "rows", is_detail=True),
)
_EFFECT = 5


def write_tuning(folder: str | os.PathLike[str], found: Tuning) -> tuple[Path, ...]:
    """Writes a search as a report, as a whole or not at all, and returns its files.

    Args:
        folder: Where: a new folder, an empty one, or one with an earlier report of a search, which is replaced.
        found: What was found.

    Raises:
        MissingDependencyError: A package is missing that reports are made with (``onnxbench[report]``).
        OutputError: The folder holds something else, or cannot be written.
    """
    return write_report(folder, _page(found), envelope(COMMAND, result=found))


def _page(found: Tuning) -> Page:
    rows = {each.node: at for at, each in enumerate(found.candidates)}
    return Page(
        title=f"onnxbench precision: {found.model} in {found.to}",
        verdict=found.verdict,
        passed=found.passed,
        subject=_NODES,
        facts=Facts(list(_summary(found))),
        sections=[section for section in _sections(found, rows) if section.blocks],
        footer=f"Written by onnxbench {__version__}. report.json beside this page holds everything that was measured.",
    )


def _summary(found: Tuning) -> Iterator[tuple[str, str]]:
    yield "Model", found.model
    yield "Precision", found.to
    yield "Tolerance", found.criterion
    yield "Nothing kept", found.plain.text
    if found.found:
        yield "With the kept nodes", found.score.text
    if found.holdout is not None:
        yield "On samples that the search did not see", f"{found.holdout.text} ({found.held_out:,})"
    yield "Run by", found.place
    yield "Tried", f"{found.sets:,} sets, {found.runs:,} runs of the model, on {found.samples:,} samples"
    yield "Ended", found.ended


def _sections(found: Tuning, rows: Mapping[str, int]) -> Iterator[Section]:
    kept = found.kept if found.found else ()
    yield Section("kept", "Kept in float32", [_kept(kept, rows)] if kept else [])
    yield Section(
        "frontier", "Nodes kept against error", [frontier_chart(found)] if found.frontier else [],
        "Every set that was tried and than which no cheaper one had a smaller error. Below the line is within the "
        "tolerance; a set that fails was judged by the first sample that did.",
    )  # fmt: skip
    yield Section(
        "graph", "Around the kept nodes", list(_drawings(kept, found.candidates, rows)),
        "Kept nodes and what can be in half precision around them. Colour is the estimated effect; a dashed box has "
        "neighbours that are not drawn. A click on a node opens its row.",
    )  # fmt: skip
    yield Section(
        _NODES, "All nodes that can be in half precision", [_nodes(found.candidates, rows)] if rows else [],
        "A click on a row shows all of it.",
    )  # fmt: skip
    lines = [*found.notes, *(f"chosen: {choice}" for choice in found.choices)]
    notes: list[Block] = [Prose(lines, is_list=True)] if lines else []
    yield Section("notes", "Notes", notes)


def _kept(kept: Sequence[Candidate], rows: Mapping[str, int]) -> Table:
    columns = (Column("Node", "rows"), Column("Operator"), Column("Own error", "number"), Column("Effect", "number"),
               Column("Cost", "number"))  # fmt: skip
    cells = [
        (((rows[each.node], each.node),), each.op_type, _error(each.own), _error(each.effect), _plain(each.cost))
        for each in kept
    ]
    return Table("kept", columns, cells)


def _nodes(candidates: Sequence[Candidate], rows: Mapping[str, int]) -> Table:
    cells = [
        (
            each.node, each.op_type, "float32" if each.kept else "", _error(each.own), _plain(each.gain),
            _error(each.effect), _plain(each.cost), tuple((rows[name], name) for name in each.inputs),
        )
        for each in candidates
    ]  # fmt: skip
    return Table(_NODES, _COLUMNS, cells, sort_by=_EFFECT, opens=True)


def _drawings(
    kept: Sequence[Candidate], candidates: Sequence[Candidate], rows: Mapping[str, int]
) -> Iterator[Drawing]:  # fmt: skip
    """Yields the graph around the kept nodes, those that are near to each other in one drawing."""
    readers: dict[str, list[str]] = {}
    for each in candidates:
        for name in each.inputs:
            readers.setdefault(name, []).append(each.node)
    left = dict.fromkeys(each.node for each in kept)
    for number in range(_MOST_DRAWINGS):
        if not left:
            return
        focus = next(iter(left))
        names = _around(focus, candidates, rows, readers, left)
        for name in names:
            left.pop(name, None)
        yield _drawing(focus, names, candidates, rows, readers, is_open=number == 0)


def _around(
    focus: str,
    candidates: Sequence[Candidate],
    rows: Mapping[str, int],
    readers: Mapping[str, Sequence[str]],
    wanted: Mapping[str, None],
) -> list[str]:
    """Returns a kept node and those around it; from kept ones among these it goes on."""
    found: dict[str, int] = {focus: 0}
    pending = [focus]
    while pending and len(found) < _MOST_DRAWN:
        name = pending.pop(0)
        if found[name] >= _LEVELS:
            continue
        for near in (*candidates[rows[name]].inputs, *readers.get(name, ())):
            if near not in found and len(found) < _MOST_DRAWN:
                found[near] = 0 if near in wanted else found[name] + 1
                pending.append(near)
    return sorted(found, key=rows.__getitem__)


def _drawing(
    focus: str,
    names: Sequence[str],
    candidates: Sequence[Candidate],
    rows: Mapping[str, int],
    readers: Mapping[str, Sequence[str]],
    *,
    is_open: bool,
) -> Drawing:
    numbers = {name: number for number, name in enumerate(names)}
    boxes = []
    for name in names:
        each = candidates[rows[name]]
        near = {*each.inputs, *readers.get(name, ())}
        note = "float32" if each.kept else f"own {_error(each.own).text}"
        boxes.append(
            Node(each.op_type, name, note, _heat(each.effect), rows[name], is_focus=each.kept,
                 is_margin=not near <= numbers.keys())
        )  # fmt: skip
    edges = [
        (numbers[source], numbers[name])
        for name in names
        for source in candidates[rows[name]].inputs
        if source in numbers and rows[source] < rows[name]
    ]
    return Drawing(focus, boxes, edges, is_open)


def frontier_chart(found: Tuning) -> Chart:
    """Returns error over cost, as a share of what is allowed, on a logarithmic axis; infinity has a place above."""
    ratios = [point.score.ratio for point in found.frontier]
    finite = [ratio for ratio in ratios if 0 < ratio < math.inf]
    low, high = min([*finite, 0.5]), max([*finite, 2.0])
    floor, top = 10 ** math.floor(math.log10(low)), 10 ** (math.ceil(math.log10(high)) + 1)
    traces: list[dict[str, Any]] = []
    for name, passed, colour in (("within the tolerance", True, "var(--own)"), ("beyond it", False, "var(--bad)")):
        points = [point for point in found.frontier if point.passed == passed]
        traces.append({
            "type": "scatter", "mode": "markers", "name": name,
            "x": [point.cost for point in points],
            "y": [min(max(point.score.ratio, floor), top) for point in points],
            "text": [f"{point.nodes:,} nodes kept: {point.score.text}" for point in points],
            "hoverinfo": "text",
            "marker": {"color": colour, "size": 9},
        })  # fmt: skip
    powers = range(round(math.log10(floor)), round(math.log10(top)))
    ticks = {10.0**power: f"{10.0**power:g}" for power in powers}
    if math.inf in ratios:
        ticks[float(top)] = "NaN, Inf"
    layout = {
        "xaxis": {"title": {"text": "cost of the kept nodes"}, "rangemode": "tozero"},
        "yaxis": {
            "type": "log", "title": {"text": "error / tolerance"},
            "tickvals": list(ticks), "ticktext": list(ticks.values()),
            "range": [math.log10(floor) - 0.3, math.log10(top) + 0.3],
        },
        "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
                    "line": {"color": "var(--faint)", "width": 1, "dash": "dot"}}],
        "margin": {"l": 92, "r": 16, "t": 16, "b": 56},
        "legend": {"orientation": "h", "y": 1.08},
        "showlegend": True,
        "hovermode": "closest",
    }  # fmt: skip
    text = "; ".join(f"{point.nodes:,} nodes: {point.score.text}" for point in found.frontier)
    return Chart("frontier", "Error over the cost of the kept nodes", text, traces, layout)


def _error(value: float | None) -> Number:
    if value is None:
        return Number(None, "-")
    return Number(value, "overflows" if math.isinf(value) else f"{value:.1e}" if value else "0", _heat(value))


def _plain(value: float | None) -> Number:
    return Number(value, "-" if value is None else f"{value:.4g}")


def _heat(value: float | None) -> int:
    if value is None:
        return 0
    return _HOTTEST if math.isinf(value) else heat_of(value, cold=1e-4, hot=1.0)
