"""Down into the bodies of If, Loop and Scan: a culprit that holds graphs is searched in turn, on what flows into it.

A body is made a model whose inputs are its own and what it captures, on both sides, and both are fed the reference's
values. Of a Loop or a Scan, iterations are run on the reference's states (and slices), one after the other, until one
goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.bisection._measures import measure
from onnxbench.bisection._sides import ModelReference, as_dtype
from onnxbench.boundary import reach_back
from onnxbench.captures import Value, onnx_dtype

if TYPE_CHECKING:
    from onnxbench.bisection._finding import Finding
    from onnxbench.bisection._search import Search
    from onnxbench.graph import Scope
    from onnxbench.model import Model
    from onnxbench.parts import Parts

_MOST_ITERATIONS = 10_000
_TRIFLE = 1e-6


@dataclass(frozen=True, slots=True)
class BodyRun:
    """A body on both sides, and what flows into it.

    Attributes:
        suspect: The suspect's body as a model.
        reference: The reference's.
        feeds: The reference's values, by the names of the suspect's body.
        path: The suspect's body: ``If_3/then``.
        iteration: Of a Loop or a Scan, the iteration; None otherwise.
    """

    suspect: Model
    reference: Model
    feeds: dict[str, Value]
    path: str
    iteration: int | None = None


def body_run(search: Search, finding: Finding, feeds: Mapping[str, Value]) -> BodyRun | None:
    """Returns the body in which a culprit goes wrong and what flows into it; None where it has none to look into.

    Raises:
        BenchError: The bodies of both sides do not fit each other, or do not run.
    """
    if not isinstance(search.reference, ModelReference):
        return None
    mine, theirs = search.parts, search.reference.side.parts
    at = theirs.scope.producers.get(finding.partner)
    node = mine.scope.nodes[finding.maker]
    if at is None or node.op_type not in _RUNS or theirs.scope.nodes[at].op_type != node.op_type:
        return None
    if node.op_type == "Scan" and not all(map(_is_scan, (mine, theirs), (finding.maker, at))):
        return None
    inner = [name for name in finding.inputs if name not in feeds]
    wanted = search.values(inner, feeds, finding.number) if inner else {}
    plain = search.with_values({}, feeds, inner) if inner else {}
    given = {
        name: feeds[name] if name in feeds else as_dtype(wanted[name], onnx_dtype(plain[name].dtype))
        for name in finding.inputs
    }
    own = _values_read(mine, finding.maker, given)
    partners = {search.match.tensors.get(name, name): value for name, value in {**given, **wanted}.items()}
    other = _values_read(theirs, at, partners)
    runs = _RUNS[node.op_type]
    for body, body_b, values, values_b, iteration in runs(mine, finding.maker, own, theirs, at, other):
        run = BodyRun(mine.body(body, values), theirs.body(body_b, values_b), values, body.path, iteration)
        if iteration is None or _differ(run, values_b, search):
            return run
    return None


def _values_read(parts: Parts, position: int, given: Mapping[str, Value]) -> dict[str, Value]:
    """Returns all that a node and its bodies read, but for stored weights."""
    scope = parts.scope
    names = [name for name in scope.reads[position] if name not in scope.constants]
    rest = [name for name in names if name not in given]
    made = {}
    if rest:
        made = parts.run(reach_back(scope, rest, set(given)).nodes, given, rest)
    return {name: given[name] if name in given else made[name] for name in names}


def _read(parts: Parts, name: str, values: Mapping[str, Value]) -> Value:
    return values[name] if name in values else parts.stored(name)


def _captured(body: Scope, values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: values[name] for name in body.captures if name in values}


def _if_runs(
    mine: Parts, position: int, own: Mapping[str, Value], theirs: Parts, at: int, other: Mapping[str, Value]
) -> Iterator[tuple[Scope, Scope, dict[str, Value], dict[str, Value], int | None]]:
    condition = _read(mine, mine.scope.nodes[position].input[0], own)
    name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    body = next(each for each in mine.scope.bodies[position] if each.body_name == name)
    body_b = next(each for each in theirs.scope.bodies[at] if each.body_name == name)
    yield body, body_b, _captured(body, own), _captured(body_b, other), None


def _loop_runs(
    mine: Parts, position: int, own: Mapping[str, Value], theirs: Parts, at: int, other: Mapping[str, Value]
) -> Iterator[tuple[Scope, Scope, dict[str, Value], dict[str, Value], int | None]]:
    """Yields both sides' iterations, driven by the reference's states."""
    import numpy as np

    node, body, body_b = theirs.scope.nodes[at], mine.scope.bodies[position][0], theirs.scope.bodies[at][0]
    trips = int(_read(theirs, node.input[0], other).reshape(-1)[0]) if node.input[0] else _MOST_ITERATIONS
    goes_on = (
        bool(_read(theirs, node.input[1], other).reshape(-1)[0]) if len(node.input) > 1 and node.input[1] else True
    )
    states = [_read(theirs, name, other) for name in node.input[2:]]
    captured, captured_b = _captured(body, own), _captured(body_b, other)
    session: backends.Session | None = None
    for trip in range(min(trips, _MOST_ITERATIONS)):
        if not goes_on:
            return
        flowing = [np.array(trip, np.int64), np.array(True), *states]
        values = dict(zip(body.inputs, flowing, strict=True)) | captured
        values_b = dict(zip(body_b.inputs, flowing, strict=True)) | captured_b
        yield body, body_b, values, values_b, trip
        session = session or theirs.open(theirs.body(body_b, values_b))
        made = session.run(values_b)
        goes_on = bool(made[body_b.outputs[0]].reshape(-1)[0])
        states = [made[name] for name in body_b.outputs[1 : 1 + len(states)]]


def _is_scan(parts: Parts, position: int) -> bool:
    """Tells whether a Scan is that of opset 9 and later: before, it had a batch axis, and another input."""
    versions = {entry.domain: entry.version for entry in parts.model.proto.opset_import}
    return versions.get("", versions.get("ai.onnx", 0)) >= 9 and bool(parts.scope.bodies[position])


def _scan_runs(
    mine: Parts, position: int, own: Mapping[str, Value], theirs: Parts, at: int, other: Mapping[str, Value]
) -> Iterator[tuple[Scope, Scope, dict[str, Value], dict[str, Value], int | None]]:
    """Yields both sides' iterations, driven by the reference's states; each takes its slice of every scanned input."""
    node, body, body_b = theirs.scope.nodes[at], mine.scope.bodies[position][0], theirs.scope.bodies[at][0]
    settings = {attribute.name: attribute for attribute in node.attribute}
    count = settings["num_scan_inputs"].i
    given = [_read(theirs, name, other) for name in node.input]
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    if not scanned:
        return
    axes, backward = (
        list(settings[name].ints) if name in settings else [0] * count
        for name in ("scan_input_axes", "scan_input_directions")
    )
    captured, captured_b = _captured(body, own), _captured(body_b, other)
    session: backends.Session | None = None
    for trip in range(min(scanned[0].shape[axes[0]], _MOST_ITERATIONS)):
        slices = [
            value.take(-1 - trip if back else trip, axis)
            for value, axis, back in zip(scanned, axes, backward, strict=True)
        ]
        values = dict(zip(body.inputs, [*states, *slices], strict=True)) | captured
        values_b = dict(zip(body_b.inputs, [*states, *slices], strict=True)) | captured_b
        yield body, body_b, values, values_b, trip
        session = session or theirs.open(theirs.body(body_b, values_b))
        made = session.run(values_b)
        states = [made[name] for name in body_b.outputs[: len(states)]]


_RUNS = {"If": _if_runs, "Loop": _loop_runs, "Scan": _scan_runs}


def _differ(run: BodyRun, values_b: Mapping[str, Value], search: Search) -> bool:
    """Tells whether the bodies give something else on the same values, by more than rounding."""
    assert isinstance(search.reference, ModelReference)
    mine = search.parts.open(run.suspect).run(run.feeds)
    theirs = search.reference.side.parts.open(run.reference).run(values_b)
    for one, other in zip(theirs.values(), mine.values(), strict=False):
        distance = measure(one, other)
        if distance.problem or distance.rel > _TRIFLE:
            return True
    return False
