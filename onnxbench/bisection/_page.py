"""A bisection as a report: what stands on its page, and where.

The tensors are the page's subject: every node of a drawing, point of the chart over depth, and module leads to rows of
their table. What is long is cut to what a browser takes with ease, and the page says so; ``report.json`` has all.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.bisection._evidence import Histogram
from onnxbench.bisection._measures import Distance
from onnxbench.bisection._report import Bisection, Culprit, Row
from onnxbench.envelope import envelope
from onnxbench.reporting import (
    Block,
    Cell,
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
    Tree,
    TreeEntry,
    heat_of,
    place_of,
    write_report,
)
from onnxbench.version import __version__

if TYPE_CHECKING:
    from onnxbench.drift import TensorDrift

COMMAND = "bisect"
MOST_ROWS = 50_000
_MOST_POINTS = 1_500
_MOST_DRAWN = 36
_MOST_DRAWINGS = 6
_MOST_MODULES = 1_500
_MOST_SIDE_BY_SIDE = 32
_MOST_PARTS = 12
_LEVELS = 3
_MOST_INPUTS = 40
_NOTHING = 1e-10
_TENSORS = "tensors"
_COLUMNS = (
    Column("Node"),
    Column("Operator"),
    Column("Own error", "number", "how far the node is off when it is fed the reference's values"),
    Column("× rounding", "number", "the own error over what rounding explains: more than 1 is a fault"),
    Column("Inherited", "number", "what it only passes on"),
    Column("Total error", "number", "how far the suspect's tensor is from the reference's"),
    Column("Max abs", "number", "the largest absolute difference"),
    Column("Depth", "number", "its place in the order of the model"),
    Column("Module"),
    Column("Source", "place"),
    Column("Tensor", is_detail=True),
    Column("In the reference", is_detail=True),
    Column("Computed from", "rows", is_detail=True),
    Column("Code", is_detail=True),
    Column("Element type", is_detail=True),
    Column("Shape", is_detail=True),
    Column("Largest difference at", is_detail=True),
    Column("Mean abs", is_detail=True),
    Column("99 % within", is_detail=True),
    Column("Max relative", is_detail=True),
    Column("ULP", is_detail=True),
    Column("Cosine", is_detail=True),
    Column("SQNR dB", is_detail=True),
    Column("NaN or Inf on one side", is_detail=True),
    Column("Nodes between", is_detail=True),
    Column("Set of inputs", is_detail=True),
    Column("Not judged because", is_detail=True),
)
_EXCESS, _MODULE = 3, 8
_DEPTH_LEAD = (
    "Each tensor in the order of the model. Own error is what a node makes of the reference's values; the rest it "
    "inherits. A click on a point opens its row."
)


def write_bisection(folder: str | os.PathLike[str], found: Bisection) -> tuple[Path, ...]:
    """Writes a bisection as a report, as a whole or not at all, and returns its files.

    Args:
        folder: Where: a new folder, an empty one, or one with an earlier report of a bisection, which is replaced.
        found: What was found, with ``evidence``.

    Raises:
        MissingDependencyError: A package is missing that reports are made with (``onnxbench[report]``).
        OutputError: The folder holds something else, or cannot be written.
    """
    return write_report(folder, _page(found), envelope(COMMAND, result=found))


def _page(found: Bisection) -> Page:
    shown = _Shown(found)
    return Page(
        title=f"onnxbench bisect: {found.suspect}",
        verdict=found.verdict,
        passed=found.passed,
        subject=_TENSORS,
        facts=Facts(list(_summary(found))),
        sections=[section for section in _sections(found, shown) if section.blocks],
        footer=f"Written by onnxbench {__version__}. report.json beside this page holds everything that was measured.",
    )


class _Shown:
    """The rows that the page shows.

    Attributes:
        rows: These, in the order of the model.
        at: Their numbers, by tensor.
        modules: The module of each, or the part of its name before the last slash.
        separator: What stands between the parts of these.
    """

    def __init__(self, found: Bisection) -> None:
        rows: Sequence[Row] = found.tensors
        if len(rows) > MOST_ROWS:
            worst = sorted(range(len(rows)), key=lambda at: (-rows[at].excess, -rows[at].total.severity, at))
            rows = [rows[at] for at in sorted(worst[:MOST_ROWS])]
        self.rows = rows
        self.depths = {row.tensor: depth for depth, row in enumerate(found.tensors)}
        self.at = {row.tensor: at for at, row in enumerate(rows)}
        self.culprits = {culprit.tensor for culprit in found.culprits}
        has_modules = any(row.module for row in rows)
        self.separator = "." if has_modules else "/"
        self.modules = [
            (row.module or "") if has_modules else row.node.rpartition("/")[0].strip("/") for row in rows
        ]  # fmt: skip

    def link(self, tensor: str, text: str | None = None) -> tuple[tuple[int | None, str], ...]:
        """Returns a cell that leads to a tensor's row."""
        return ((self.at.get(tensor), text or tensor),)


def _summary(found: Bisection) -> Iterator[tuple[str, str]]:
    yield "Suspect", found.suspect
    yield "Reference", found.reference
    unmatched = f" ({found.unmatched:,} without a partner)" if found.unmatched else ""
    yield "Compared", f"{found.matched:,} tensors, matched by {found.how}{unmatched}"
    if found.sets > 1:
        yield "Sets of inputs", f"{found.sets:,}"
    yield "Own error of a node, median", f"{found.median:.1e}" if found.median else "0"


def _sections(found: Bisection, shown: _Shown) -> Iterator[Section]:
    yield Section("culprits", "Culprits", list(_culprits(found, shown)))
    title = "Around the culprits" if found.culprits else "Around the tensor that is furthest off"
    yield Section(
        "graph", title, list(_drawings(found, shown)),
        "What flows into the node and out of it. Colour is own error; a dashed box has neighbours that are not drawn. "
        "A click on a node opens its row.",
    )  # fmt: skip
    histograms = found.evidence.histograms if found.evidence is not None else ()
    yield Section(
        "values", "Values", [_values(each, number) for number, each in enumerate(histograms)],
        "How the values are spread on both sides. Fed alike: what the suspect's node makes of the reference's values.",
    )  # fmt: skip
    yield Section("depth", "Error along depth", [_depth(found, shown)] if shown.rows else [], _DEPTH_LEAD)
    yield Section(
        "modules", "Modules", list(_modules(shown)),
        "The largest errors within each. A click on a name shows its tensors.",
    )  # fmt: skip
    left_out = (
        f"The {len(shown.rows):,} worst of {len(found.tensors):,}; report.json has all. "
        if len(shown.rows) < len(found.tensors)
        else ""
    )
    yield Section(
        _TENSORS, "All tensors", [_tensors(shown)] if shown.rows else [],
        f"{left_out}A click on a row shows all of it.",
    )  # fmt: skip
    yield Section("outputs", "Outputs", [_outputs(found)] if found.outputs else [], "The suspect as it is used.")
    if found.amplifiers:
        yield Section(
            "amplifiers", "Amplifiers", [_amplifiers(found, shown)],
            "Nodes that compute right and make ten times or more of an error that they inherit.",
        )  # fmt: skip
    yield Section("compared", "What was compared", list(_compared(found)))


# ---------------------------------------------------------------- culprits


def _culprits(found: Bisection, shown: _Shown) -> Iterator[Block]:
    if not found.culprits:
        return
    columns = (
        Column("Node", "rows"), Column("Operator"), Column("Module"), Column("Source", "place"),
        Column("Own error", "number"), Column("Inherited", "number"), Column("× rounding", "number"),
        Column("Of the outputs' error", "number", "how much of it goes away when the node is mended"),
    )  # fmt: skip
    rows = [
        (
            shown.link(each.tensor, each.node), each.op_type, each.module or "", place_of(each.source),
            _distance(each.own, each.excess), _distance(each.inherited), _excess(each.excess),
            Number(each.effect, "-" if each.effect is None else f"{each.effect:.0%}"),
        )
        for each in found.culprits
    ]  # fmt: skip
    yield Table("culprits", columns, rows)
    for each in found.culprits:
        yield Facts(list(_culprit(each, shown, found.sets)), f"{each.node} ({each.op_type})")
    if found.explained is not None and len(found.culprits) > 1:
        yield Prose([f"All of them together: {found.explained:.0%} of the outputs' error."])


def _culprit(culprit: Culprit, shown: _Shown, sets: int) -> Iterator[tuple[str, Any]]:
    yield "Makes", shown.link(culprit.tensor)
    if culprit.partner != culprit.tensor:
        yield "In the reference", culprit.partner
    if culprit.attributes:
        yield "Attributes", culprit.attributes
    if culprit.why:
        yield "The files differ here", "\n".join(culprit.why)
    if len(culprit.region) > 1:
        yield "One of these nodes", ", ".join(culprit.region)
    if culprit.reference_region and culprit.reference_region != culprit.region:
        yield "The reference's nodes", ", ".join(culprit.reference_region)
    if culprit.source:
        yield "Source", place_of(culprit.source)
    if culprit.code:
        yield "Code", culprit.code
    if culprit.function:
        yield "Function", culprit.function
    if sets > 1:
        yield "Seen on set", str(culprit.number)
    if culprit.iteration is not None:
        yield "First iteration that goes wrong", str(culprit.iteration)
    pending = list(culprit.inner)
    while pending:
        inner = pending.pop(0)
        pending = [*inner.inner, *pending]
        yield "Within", f"{inner.place}: own error {inner.own.text}"


def _drawings(found: Bisection, shown: _Shown) -> Iterator[Drawing]:
    """Yields the graph around each culprit; without any, around the tensor that is furthest off."""
    if not shown.rows:
        return
    focus = {
        each.tensor: f"{each.node} ({each.op_type})"
        for each in found.culprits[:_MOST_DRAWINGS]
        if each.tensor in shown.at
    }
    if not focus:
        worst = max(shown.rows, key=lambda row: (row.excess, row.total.severity))
        focus = {worst.tensor: f"{worst.node} ({worst.op_type})"}
    readers: dict[str, list[str]] = {}
    for row in shown.rows:
        for name in row.inputs:
            readers.setdefault(name, []).append(row.tensor)
    for number, (tensor, title) in enumerate(focus.items()):
        yield _around(tensor, title, shown, readers, is_open=number == 0)


def _around(
    focus: str, title: str, shown: _Shown, readers: Mapping[str, Sequence[str]], *, is_open: bool
) -> Drawing:  # fmt: skip
    """Returns the graph of what a tensor is computed from and what is computed from it, some levels far."""

    def inputs(name: str) -> Sequence[str]:
        return shown.rows[shown.at[name]].inputs if name in shown.at else ()

    def badness(name: str) -> tuple[float, str]:
        return (-shown.rows[shown.at[name]].excess if name in shown.at else 0.0), name

    kept: dict[str, None] = {focus: None}
    for level_of in (inputs, lambda name: readers.get(name, ())):
        level, room = [focus], (_MOST_DRAWN - 1) // 2
        for _ in range(_LEVELS):
            onward = sorted({near for name in level for near in level_of(name)} - kept.keys(), key=badness)[:room]
            kept.update(dict.fromkeys(onward))
            room -= len(onward)
            level = onward
    names = sorted(kept, key=lambda name: shown.at.get(name, -1))
    numbers = {name: number for number, name in enumerate(names)}
    nodes = []
    for name in names:
        at = shown.at.get(name)
        near = {*inputs(name), *readers.get(name, ())}
        is_margin = not near <= kept.keys()
        if at is None:
            nodes.append(Node("input", name, kind="input", is_margin=is_margin))
            continue
        row = shown.rows[at]
        own = _brief(row.own) if row.own is not None else "not judged"
        nodes.append(
            Node(
                row.op_type, row.node, f"own {own}", _heat(row.excess), at,
                is_focus=name in shown.culprits or name == focus, is_margin=is_margin,
            )
        )  # fmt: skip
    edges = [(numbers[source], numbers[name]) for name in names for source in inputs(name) if source in numbers]
    return Drawing(title, nodes, edges, is_open)


# ---------------------------------------------------------------- charts


def _values(found: Histogram, number: int) -> Chart:
    looks = {
        "reference": ("reference", "var(--reference)"),
        "own": ("suspect, fed alike", "var(--own)"),
        "suspect": ("suspect", "var(--inherited)"),
    }
    width = found.edges[1] - found.edges[0]
    centres = [edge + width / 2 for edge in found.edges[:-1]]
    traces: list[dict[str, Any]] = []
    for side, (name, colour) in looks.items():
        if side not in found.counts:
            continue
        odd = found.nonfinite.get(side, 0)
        label = f"{name} ({odd:,} NaN or Inf)" if odd else name
        counts = [count or None for count in found.counts[side]]  # a logarithmic axis has no 0
        if side == "reference":
            traces.append({"type": "bar", "x": centres, "y": counts, "width": width, "name": label, "opacity": 0.55,
                           "marker": {"color": colour, "line": {"width": 0}}})  # fmt: skip
        else:
            traces.append({"type": "scatter", "mode": "lines", "x": centres, "y": counts, "name": label,
                           "line": {"color": colour, "shape": "hvh", "width": 2}})  # fmt: skip
    most = max((max(counts) for counts in found.counts.values()), default=1)
    every = "" if found.step == 1 else f" (every {found.step:,}th)"
    layout = {
        "xaxis": {"title": {"text": "value"}},
        "yaxis": {
            "type": "log",
            "title": {"text": f"elements{every}"},
            "dtick": 1,
            "range": [-0.3, math.log10(max(most, 1)) + 0.2],
        },
        "margin": {"l": 64, "r": 16, "t": 16, "b": 56},
        "legend": {"orientation": "h", "y": 1.08},
        "bargap": 0,
        "showlegend": True,
    }
    text = "; ".join(
        f"{looks[side][0]}: {sum(counts):,} numbers, {found.nonfinite.get(side, 0):,} NaN or Inf"
        for side, counts in found.counts.items()
    )
    return Chart(f"values{number}", f"Values of {found.tensor}", text, traces, layout)


def _depth(found: Bisection, shown: _Shown) -> Chart:
    """Returns own, inherited and total error over the place in the model, on a logarithmic axis.

    What is nothing next to rounding has a place below all numbers, infinity one above them. A node without an own error
    has no point for it. Of very many tensors, the worst of each few are shown.
    """
    rows = shown.rows
    series: dict[str, list[float | None]] = {
        "total": [row.total.severity for row in rows],
        "inherited": [row.inherited.severity if row.inherited is not None else None for row in rows],
        "own": [row.own.severity if row.own is not None else None for row in rows],
    }
    finite = [value for each in series.values() for value in each if value is not None and 0 < value < math.inf]
    low = math.floor(math.log10(max(min(finite, default=1e-7), _NOTHING)))
    high = math.ceil(math.log10(max(finite, default=1.0)))
    floor, top = 10.0 ** (low - 1), 10.0 ** (high + 1)
    group = -(-len(rows) // _MOST_POINTS)
    looks = {
        "total": ("total", "lines", "var(--total)"),
        "inherited": ("inherited", "lines", "var(--inherited)"),
        "own": ("own", "markers", "var(--own)"),
    }
    traces: list[dict[str, Any]] = []
    for side, (name, mode, colour) in looks.items():
        values = series[side]
        chosen = [
            max(range(start, min(start + group, len(rows))), key=lambda at: _or_least(values[at]))
            for start in range(0, len(rows), group)
        ]
        chosen = [at for at in chosen if values[at] is not None and (side != "own" or values[at])]
        trace = _points(name, [rows[at] for at in chosen], chosen, [values[at] for at in chosen], shown, floor, top)
        look = (
            {"line": {"color": colour, "width": 1.3}} if mode == "lines" else {"marker": {"color": colour, "size": 4}}
        )
        traces.append({**trace, "mode": mode, **look})
    accused = [at for at, row in enumerate(rows) if row.tensor in shown.culprits]
    if accused:
        trace = _points(
            "culprit", [rows[at] for at in accused], accused, [series["own"][at] for at in accused], shown, floor, top
        )
        marker = {"color": "var(--bad)", "size": 13, "symbol": "diamond-open", "line": {"width": 2.5}}
        traces.append({**trace, "mode": "markers", "marker": marker})
    powers = list(range(low, high + 1, max(1, (high - low) // 10)))
    ticks = {floor: "about 0", **{10.0**power: f"1e{power}" for power in powers}}
    if any(value == math.inf for each in series.values() for value in each):
        ticks[top] = "∞, NaN, shape"
    else:
        top = 10.0**high
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "place in the model"}},
        "yaxis": {
            "type": "log", "title": {"text": "relative error"},
            "tickvals": list(ticks), "ticktext": list(ticks.values()), "range": [low - 1.3, math.log10(top) + 0.3],
        },
        "margin": {"l": 92, "r": 16, "t": 16, "b": 56},
        "legend": {"orientation": "h", "y": 1.08},
        "hovermode": "closest",
    }  # fmt: skip
    if found.median > 0:
        layout["shapes"] = [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": found.median, "y1": found.median,
                "line": {"color": "var(--faint)", "width": 1, "dash": "dot"},
            }
        ]  # fmt: skip
    every = f", the worst of every {group:,} tensors" if group > 1 else ""
    text = f"Own, inherited and total error of {len(rows):,} tensors in the order of the model{every}. {found.verdict}"
    return Chart("depth", f"Relative error by place in the model{every}", text, traces, layout)


def _or_least(value: float | None) -> float:
    return -1.0 if value is None else value


def _points(
    name: str,
    rows: Sequence[Row],
    numbers: Sequence[int],
    values: Sequence[float | None],
    shown: _Shown,
    floor: float,
    top: float,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "x": [shown.depths[row.tensor] for row in rows],
        "y": [min(max(value or 0.0, floor), top) for value in values],
        "customdata": list(numbers),
        "text": [_hover(row) for row in rows],
        "hoverinfo": "text",
    }


def _hover(row: Row) -> str:
    """Returns what is told of a point; plotly reads some HTML in it, so names are escaped."""
    own = row.own.text if row.own is not None else "not judged"
    inherited = row.inherited.text if row.inherited is not None else "-"
    lines = (f"{_end(row.node)} ({row.op_type})", f"own {own}, inherited {inherited}", f"total {row.total.text}")
    return "<br>".join(html.escape(line) for line in lines)


def _end(name: str, most: int = 80) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


# ---------------------------------------------------------------- modules


@dataclass(slots=True)
class _Module:
    name: str
    path: str
    tensors: int = 0
    own: float = 0.0
    excess: float = 0.0
    total: float = 0.0
    children: dict[str, _Module] = field(default_factory=dict)

    def take(self, row: Row) -> None:
        self.tensors += 1
        self.own = max(self.own, row.own.severity if row.own is not None else 0.0)
        self.excess = max(self.excess, row.excess)
        self.total = max(self.total, row.total.severity)

    def cells(self) -> tuple[Number, ...]:
        """Returns its numbers."""
        return (
            _error(self.own, _heat(self.excess)),
            _excess(self.excess),
            _error(self.total, _heat_of_error(self.total)),
            Number(self.tensors, f"{self.tensors:,}"),
        )

    def entry(self, separator: str, depth: int = 0) -> TreeEntry:
        """Returns it as a part of the page; modules that hold nothing but one other are told with that."""
        name, module = self.name, self
        while len(module.children) == 1:
            only = next(iter(module.children.values()))
            if only.tensors != module.tensors:
                break
            name, module = f"{name}{separator}{only.name}", only
        cells = module.cells()
        children = _entries(list(module.children.values()), separator, depth + 1)
        return TreeEntry(name, module.path or None, cells, children, bool(depth == 0 or module.excess > 1))


def _entries(modules: Sequence[_Module], separator: str, depth: int = 0) -> list[TreeEntry]:
    """Returns modules side by side; of very many, those that are least off are folded into an entry of their own."""
    if len(modules) <= _MOST_SIDE_BY_SIDE:
        return [module.entry(separator, depth) for module in modules]
    worst = sorted(range(len(modules)), key=lambda at: (-modules[at].excess, -modules[at].total))
    kept = set(worst[: _MOST_SIDE_BY_SIDE - 1])
    rest = _Module("", "")
    for at in worst[_MOST_SIDE_BY_SIDE - 1 :]:
        rest.tensors += modules[at].tensors
        rest.own, rest.excess, rest.total = (
            max(getattr(rest, name), getattr(modules[at], name)) for name in ("own", "excess", "total")
        )
    shown = [modules[at].entry(separator, depth) for at in sorted(kept)]
    folded = [module.entry(separator, depth + 1) for at, module in enumerate(modules) if at not in kept]
    return [*shown, TreeEntry(f"{len(folded):,} more that are less off", None, rest.cells(), folded)]


def _modules(shown: _Shown) -> Iterator[Block]:
    if not any(shown.modules):
        return
    parts = [path.split(shown.separator, _MOST_PARTS) if path else [] for path in shown.modules]
    depth = _MOST_PARTS
    while depth > 1 and len({tuple(each[:depth]) for each in parts}) > _MOST_MODULES:
        depth -= 1
    root = _Module("", "")
    outside = _Module("(in no module)", "")
    for row, each in zip(shown.rows, parts, strict=True):
        if not each:
            outside.take(row)
        module, path = root, ""
        for part in each[:depth]:
            path = f"{path}{shown.separator}{part}" if path else part
            module = module.children.setdefault(part, _Module(part, path))
            module.take(row)
    tops = [*root.children.values(), *([outside] if outside.tensors else [])]
    columns = ("own error", "× rounding", "total error", "tensors")
    yield Tree(columns, _entries(tops, shown.separator), shown.separator)


# ---------------------------------------------------------------- tables


def _tensors(shown: _Shown) -> Table:
    rows: list[Sequence[Cell]] = []
    for row, module in zip(shown.rows, shown.modules, strict=True):
        total = row.total
        dtypes, shapes = (dict.fromkeys(pair) for pair in (total.dtypes, total.shapes))
        rows.append(
            (
                row.node,
                row.op_type,
                _distance(row.own, row.excess),
                _excess(row.excess) if row.own is not None else Number(None, "-"),
                _distance(row.inherited),
                Number(total.severity, _brief(total), _heat_of_error(total.severity)),
                Number(total.max_abs, f"{total.max_abs:.3g}"),
                Number(float(shown.depths[row.tensor]), f"{shown.depths[row.tensor]:,}"),
                module,
                place_of(row.source),
                row.tensor,
                row.partner if row.partner != row.tensor else "",
                _computed_from(row, shown),
                row.code or "",
                ", in the reference ".join(reversed([str(word) for word in dtypes])),
                ", in the reference ".join(reversed([str(list(shape)) for shape in shapes])),
                str(list(total.at)) if total.at else "",
                *_measures(row.drift),
                f"{total.nonfinite:,} of {total.elements:,}" if total.nonfinite else "",
                str(row.region) if row.region > 1 else "",
                str(row.number) if row.number else "",
                row.note,
            )
        )
    return Table(_TENSORS, _COLUMNS, rows, sort_by=_EXCESS, module_column=_MODULE, opens=True)


def _measures(drift: TensorDrift | None) -> tuple[str, ...]:
    """Returns what is measured of a tensor beyond its error, in the order of the columns."""
    if drift is None:
        return ("",) * 6
    numbers = (drift.mean_abs, drift.p99_abs, drift.max_rel, drift.max_ulp, drift.cosine, drift.sqnr_db)
    return tuple(_plain(number).text if number is not None else "" for number in numbers)


def _computed_from(row: Row, shown: _Shown) -> tuple[tuple[int | None, str], ...]:
    links = [(shown.at.get(name), name) for name in row.inputs[:_MOST_INPUTS]]
    more = len(row.inputs) - len(links)
    return (*links, (None, f"and {more:,} more")) if more else tuple(links)


def _outputs(found: Bisection) -> Table:
    columns = (
        Column("Output"), Column("Verdict"), Column("Max abs", "number"), Column("Mean abs", "number"),
        Column("99 % within", "number"), Column("Max relative", "number"), Column("ULP", "number"),
        Column("Cosine", "number"), Column("SQNR dB", "number"), Column("Worst on set", "number"), Column("Why"),
    )  # fmt: skip
    rows: list[tuple[str | Number, ...]] = [
        (
            drift.name, found.judged(drift),
            *(_plain(value) for value in (drift.max_abs, drift.mean_abs, drift.p99_abs, drift.max_rel)),
            _plain(drift.max_ulp), _plain(drift.cosine), _plain(drift.sqnr_db), _plain(number), drift.reason,
        )
        for drift, number in zip(found.outputs, found.worst_sets, strict=True)
    ]  # fmt: skip
    return Table("outputs", columns, rows)


def _amplifiers(found: Bisection, shown: _Shown) -> Table:
    columns = (
        Column("Node", "rows"), Column("Operator"), Column("Error in", "number"), Column("Error out", "number"),
        Column("Times", "number"),
    )  # fmt: skip
    rows = [
        (
            shown.link(each.tensor, each.node), each.op_type, _error(each.before), _error(each.after),
            Number(each.growth, f"{each.growth:,.0f}"),
        )
        for each in found.amplifiers
    ]  # fmt: skip
    return Table("amplifiers", columns, rows)


def _compared(found: Bisection) -> Iterator[Block]:
    if found.evidence is not None:
        columns = (Column("What"), Column("Name"), Column("SHA-256"))
        rows: list[tuple[str, str, str]] = []
        for model in found.evidence.models:
            rows.append((model.role, model.name or "in memory", model.sha256))
            rows += [(f"weights of the {model.role}", name, digest) for name, digest in model.weights.items()]
        for number, feeds in enumerate(found.evidence.feeds):
            rows += [(f"inputs, set {number}", f"{name}: {what}", digest) for name, what, digest in feeds.inputs]
        yield Table("digests", columns, rows)
        yield Facts(list(found.evidence.versions.items()))
    if found.choices or found.notes:
        yield Prose([*found.notes, *(f"chosen: {choice}" for choice in found.choices)], is_list=True)


# ---------------------------------------------------------------- numbers


def _heat(excess: float) -> int:
    return heat_of(excess, cold=1, hot=1e6)


def _heat_of_error(error: float) -> int:
    return heat_of(error, cold=1e-6, hot=1.0)


def _distance(distance: Distance | None, excess: float = 0.0) -> Number:
    return Number(None, "-") if distance is None else Number(distance.severity, _brief(distance), _heat(excess))


def _brief(distance: Distance) -> str:
    """Returns a distance in so few words that a column of them stays narrow."""
    words = {"nonfinite": f"{distance.nonfinite:,} NaN or Inf", "shape": "another shape", "kind": "another kind"}
    return words.get(distance.problem, distance.text)


def _excess(excess: float) -> Number:
    text = "∞" if math.isinf(excess) else f"{excess:,.0f}" if excess >= 10 else f"{excess:.2g}"
    return Number(excess, text, _heat(excess))


def _error(value: float, heat: int = 0) -> Number:
    return Number(value, "NaN, Inf or shape" if math.isinf(value) else f"{value:.1e}" if value else "0", heat)


def _plain(value: float | None) -> Number:
    return Number(value, "-" if value is None else f"{value:.4g}")
