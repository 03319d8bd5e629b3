"""Where the boxes and lines of a drawing lie: Sugiyama's layers, as fast-sugiyama finds them.

It puts nodes into layers, orders each layer so that few lines cross, and gives long lines a bend in each layer that
they pass, so that none runs through a box. (igraph has the same method and is under the GPL, which this project cannot
ask of its users; grandalf is no longer kept; networkx has no such layout.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxbench.reporting._blocks import Drawing, Node

BOX = (196.0, 58.0)
_GAPS = (20.0, 34.0)
_MARGIN = 10.0
_LETTERS = 26
"""How many letters of a monospaced line fit into a box."""


@dataclass(frozen=True, slots=True)
class Box:
    """A node and the middle of its box."""

    node: Node
    x: float
    y: float

    @property
    def name(self) -> str:
        """The node's name, or the end of it, which tells more than its beginning."""
        name = self.node.name
        return name if len(name) <= _LETTERS else f"…{name[-_LETTERS + 1 :]}"

    @property
    def tooltip(self) -> str:
        """All that there is to say, in lines."""
        return "\n".join(line for line in (self.node.title, self.node.name, self.node.note) if line)


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A drawing with coordinates.

    Attributes:
        drawing: The drawing.
        width: Its width.
        height: Its height.
        boxes: Its nodes.
        lines: SVG paths of its edges, each with whether it touches a node in focus.
    """

    drawing: Drawing
    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[tuple[str, bool], ...]


def lay_out(drawing: Drawing) -> LaidOut:
    """Returns a drawing with coordinates, the same for the same drawing."""
    points, routes = _positions(len(drawing.nodes), list(dict.fromkeys(drawing.edges)))
    step_x, step_y = BOX[0] + _GAPS[0], BOX[1] + _GAPS[1]
    left = min((x for x, _ in points.values()), default=0.0)
    top = min((y for _, y in points.values()), default=0.0)
    placed = {
        key: (
            round((x - left) * step_x + BOX[0] / 2 + _MARGIN, 1),
            round((y - top) * step_y + BOX[1] / 2 + _MARGIN, 1),
        )
        for key, (x, y) in points.items()
    }
    lines = []
    for route in routes:
        in_focus = drawing.nodes[route[0]].is_focus or drawing.nodes[route[-1]].is_focus
        lines.append((_path([placed[key] for key in route]), in_focus))
    return LaidOut(
        drawing,
        max((x for x, _ in placed.values()), default=0.0) + BOX[0] / 2 + _MARGIN,
        max((y for _, y in placed.values()), default=0.0) + BOX[1] / 2 + _MARGIN,
        tuple(Box(node, *placed[at]) for at, node in enumerate(drawing.nodes)),
        tuple(lines),
    )


def _positions(count: int, edges: Sequence[tuple[int, int]]) -> tuple[dict[int, tuple[float, float]], list[list[int]]]:
    """Returns the places of nodes and of bends (numbers from ``count`` on), in boxes, and the way of each edge.

    Parts that hang together stand side by side. The y axis points down.
    """
    from fast_sugiyama import from_edges

    linked = sorted({node for edge in edges for node in edge})
    numbers = {node: number for number, node in enumerate(linked)}  # without gaps: larger ones are bends
    parts: Any = from_edges(
        [(numbers[source], numbers[target]) for source, target in edges],
        vertex_spacing=1.0,
        dummy_vertices=True,
        dummy_size=0.2,
        crossing_minimization="barycenter",
        transpose=True,
    ) if edges else []  # fmt: skip
    points: dict[int, tuple[float, float]] = {}
    routes: list[list[int]] = []
    right = 0.0
    bends = count
    # The package's own order of nodes and parts differs from run to run; their places do not.
    for positions, _, _, made in sorted(parts, key=lambda part: min(part[0])):
        ordered = sorted(positions)
        names = {}
        for number, _ in ordered:
            if number < len(linked):
                names[number] = linked[number]
            else:
                names[number], bends = bends, bends + 1
        left = min(x for _, (x, _) in ordered)
        top = max(y for _, (_, y) in ordered)
        points.update((names[number], (x - left + right, top - y)) for number, (x, y) in ordered)
        right += max(x for _, (x, _) in ordered) - left + 1
        onward = {source: target for source, target in made or () if source >= len(linked)}
        for source, target in sorted(made or ()):
            if source >= len(linked):
                continue
            route = [source, target]
            while route[-1] >= len(linked):
                route.append(onward[route[-1]])
            routes.append([names[number] for number in route])
    for node in range(count):
        if node not in numbers:
            points[node] = (right, 0.0)
            right += 1
    return points, routes


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Returns an SVG path from the lower edge of the first box to the upper edge of the last one, around the others."""
    half = BOX[1] / 2
    x, y = points[0]
    words = [f"M{x:g} {y + half:g}"]
    y += half
    for at, (next_x, next_y) in enumerate(points[1:], 1):
        upper = next_y - half
        middle = (y + upper) / 2
        words.append(f"C{x:g} {middle:g} {next_x:g} {middle:g} {next_x:g} {upper:g}")
        if at < len(points) - 1:
            words.append(f"V{next_y + half:g}")
        x, y = next_x, next_y + half
    return " ".join(words)
