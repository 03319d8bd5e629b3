"""Bodies of If, Loop and Scan in which two files differ and that the inputs never ran: there, nothing was compared.

A branch that is not taken and a Loop over no element make no tensor, so a fault in one goes unseen. Where bodies differ
in the files (weights of the main graph are not looked at), the suspect is run once more on each set of inputs, with a
probe at the end of each such body, and the runtime's own trace tells which of the probes ran.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import backends, weights
from onnxbench.bisection._sides import ModelReference
from onnxbench.captures import Value
from onnxbench.errors import BenchError
from onnxbench.graph import GraphIndex, node_bodies
from onnxbench.messages import copy_of
from onnxbench.tensortype import make_type
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.bisection._sides import Reference, Suspect
    from onnxbench.model import Model

_COMPUTES = {"node", "op", "attribute", "wiring", "weight"}
"""Kinds of changes that say what a body computes."""
_PROBE = "onnxbench_probe_{}_"
_MOST_EVENTS = 1_000_000
"""A trace that is as long as ONNX Runtime makes them leaves the rest of the run out."""
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class UnrunBody:
    """A body in which the files differ and that no set of inputs ran.

    Attributes:
        body: Its path in the suspect: ``If_3/then``.
        differing: Paths of the nodes and weights within it that differ.
    """

    body: str
    differing: tuple[str, ...]


def unrun_bodies(
    suspect: Suspect, reference: Reference, sets: Sequence[Mapping[str, Value]]
) -> tuple[tuple[UnrunBody, ...], list[str]]:
    """Returns the bodies in which the files differ and that no set of inputs ran, and notes about them."""
    if not isinstance(reference, ModelReference) or suspect.model is reference.side.model:
        return (), []
    found = _differing(suspect.plain, reference.side.plain)
    if not found:
        return (), []
    try:
        ran = _run(suspect, list(found), sets)
    except BenchError as error:
        named = _listed(list(found))
        return (), [f"the files differ within {named}; whether the inputs run that could not be told: {error.message}"]
    unrun = tuple(UnrunBody(path, where) for path, where in found.items() if path not in ran)
    if not unrun:
        return (), []
    named, many = _listed([each.body for each in unrun]), sum(len(each.differing) for each in unrun)
    return unrun, [
        f"no set of inputs runs {named}, where the files differ in {plural(many, 'place')} "
        f"({_listed([where for each in unrun for where in each.differing])}): give inputs that do"
    ]


def doubt_about(unrun: Sequence[UnrunBody]) -> list[str]:
    """Returns what a verdict that finds no drift has to add, if anything."""
    if not unrun:
        return []
    where = unrun[0].body if len(unrun) == 1 else f"{len(unrun):,} bodies, {unrun[0].body} the first"
    return [f"the files differ in {where}, which these inputs never ran"]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _differing(suspect: Model, reference: Model) -> dict[str, tuple[str, ...]]:
    """Returns what differs in bodies that both files have, by the path of the body."""
    from onnxbench.diffing import KINDS, diff

    if _bodies(suspect) == _bodies(reference):
        return {}
    one, other = _without_weights(suspect), _without_weights(reference)
    looked_at = _COMPUTES - (
        {"weight"} if weights.any_outside(one.proto) or weights.any_outside(other.proto) else set()
    )
    try:
        report = diff(one, other, ignore=KINDS.keys() - looked_at)
    except BenchError:  # no comparison, no claim
        return {}
    found: dict[str, dict[str, None]] = {}
    for change in report.changes:
        if change.graph:
            found.setdefault(change.graph, {})[change.where] = None
    return {path: tuple(where) for path, where in found.items()}


def _bodies(model: Model) -> list[bytes]:
    nodes = model.proto.graph.node
    return [graph.SerializeToString(deterministic=True) for node in nodes for _, graph in node_bodies(node)]


def _without_weights(model: Model) -> Model:
    """Returns a model whose initializers are inputs, so that none is read; those of bodies stay."""
    proto = copy_of(model.proto)
    graph = proto.graph
    known = {info.name for info in graph.input}
    stored = [(t.name, t) for t in graph.initializer] + [(t.values.name, t.values) for t in graph.sparse_initializer]
    for name, tensor in stored:
        if name not in known:
            graph.input.add(name=name).type.CopyFrom(make_type(tensor.data_type, tensor.dims))
    del graph.initializer[:], graph.sparse_initializer[:]
    return model.derive(proto)


def _run(suspect: Suspect, bodies: Sequence[str], sets: Sequence[Mapping[str, Value]]) -> set[str]:
    """Returns those of some bodies that a run of the suspect runs on any set of inputs.

    Raises:
        BenchError: It does not run with probes.
    """
    place = suspect.place
    given = place.options if place.backend == "ort" else backends.Options(operators=place.options.operators)
    probed = _with_probes(suspect.plain, bodies)
    ran: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="onnxbench-") as folder:
        trace = Path(folder, "trace.json")
        options = replace(given, optimization="none", frugal=True, profile=trace)
        for feeds in sets:
            session = backends.open_session(probed, "ort", options=options)
            try:
                session.run(feeds)
            finally:
                session.close()
            ran |= _seen(trace, bodies)
            if len(ran) == len(bodies):
                break
    return ran


def _with_probes(model: Model, bodies: Sequence[str]) -> Model:
    """Returns a model in which the first output of each body comes through a node with a name of its own."""
    proto = copy_of(model.proto)
    scopes = {scope.path: scope for scope in GraphIndex(proto).scopes}
    for number, path in enumerate(bodies):
        graph = scopes[path].graph
        name = _PROBE.format(number)
        graph.node.add(op_type="Identity", name=name, input=[graph.output[0].name], output=[name])
        graph.output[0].name = name
    return model.derive(proto)


def _seen(trace: Path, bodies: Sequence[str]) -> set[str]:
    """Returns the bodies whose probes are in a trace; all of them if the trace is cut off."""
    found: set[str] = set()
    lines = 0
    with trace.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            lines += 1
            if _PROBE[:10] in line:
                found |= {path for number, path in enumerate(bodies) if _PROBE.format(number) in line}
    return set(bodies) if lines >= _MOST_EVENTS else found
