"""Where the first NaN or infinity comes from.

The culprit is a node that makes one out of finite inputs. All tensors are judged in one run of the model or two: behind
each stands ``ReduceSum(t)``, and ``ReduceSum(t - t)`` for those whose sum is not finite, so that only scalars leave the
run, and memory is that of the run plus one tensor. Of the nodes with such an output, those whose inputs (what their
bodies capture included) are all finite are origins; the first in topological order is named.

An infinity may be meant (a mask of -inf before a Softmax), a NaN hardly ever is: where the first origin makes
infinities alone, the first node that makes a NaN out of none is named too.

If the culprit is an If, Loop or Scan, its body is run by itself, on the captured values (for loops: iteration by
iteration, until one goes wrong), and searched in the same way, as deep as bodies nest. Local functions are inlined
first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.bodies import body_model
from onnxbench.captures import Value
from onnxbench.errors import BenchError, UnsupportedError
from onnxbench.graph import GraphIndex, NodeRef, Scope, declared_types, topological_order
from onnxbench.inlining import inline_functions
from onnxbench.model import Model
from onnxbench.provenance import provenance
from onnxbench.tensorstats import TensorStats, statistics
from onnxbench.tensortype import elem_type, is_complete

if TYPE_CHECKING:
    from onnx import NodeProto, TypeProto

_SUBTRACTABLE = {1, 11}
_DOUBLE = 11
_FLOATS = {1, 10, 11, 16, 17, 18, 19, 20, 23, 24}
_MAX_ITERATIONS = 100_000


@dataclass(frozen=True, slots=True)
class Origin:
    """A node that makes NaN or infinite values out of finite ones.

    Attributes:
        node: Its label, with the path of its graph (``If_3/then/Log#2``).
        op_type: Its operator, with the domain if it is not the standard one.
        makes: ``NaN``, ``Inf``, or ``NaN and Inf``.
        outputs: What its outputs hold.
        inputs: What its inputs hold (captured ones included).
        scope: Its PyTorch module, or None.
        source: Its PyTorch source line, or None.
        function: The local function that it belongs to, or None.
        within: The nodes around it, outermost first, with the iteration of a loop: ``Loop_2 (Loop), iteration 3``.
        note: What could not be found out, or ``""``.
    """

    node: str
    op_type: str
    makes: str
    outputs: tuple[TensorStats, ...]
    inputs: tuple[TensorStats, ...]
    scope: str | None = None
    source: str | None = None
    function: str | None = None
    within: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """What a search for NaN and infinite values found.

    Attributes:
        origin: The first node that makes any out of finite inputs; None when they come from outside alone.
        nan_origin: The first node that makes NaN out of none, where ``origin`` makes infinities only.
        sources: Inputs, initializers and constants that hold such values already.
        affected: Tensors of the main graph that hold any.
        examined: Tensors of the main graph that were judged.
    """

    origin: Origin | None
    nan_origin: Origin | None
    sources: tuple[TensorStats, ...]
    affected: int
    examined: int


def find_nonfinite(
    model: Model,
    feeds: Mapping[str, Value],
    *,
    backend: str = "ort",
    options: backends.Options | None = None,
) -> NonFinite | None:
    """Returns where the first NaN or infinity in a run of the model comes from; None when there is none.

    Args:
        model: The model; it is not changed.
        feeds: Its inputs.
        backend: What runs it.
        options: How sessions are set up; graph optimizations are always off, so that every node is seen.

    Raises:
        FeedsError: The feeds do not fit.
        ExecutionError: The run failed.
    """
    inlined, moved = inline_functions(model)
    functions = _Functions(GraphIndex(model.proto), moved) if moved else None
    chosen = replace(options or backends.Options(), optimization="none", frugal=True, profile=None)
    search = _Search(inlined, dict(feeds), backend, chosen, functions)
    if not search.bad:
        return None
    positions = search.origins()
    origin = search.explain(positions[0]) if positions else None
    nan_origin = None
    if origin is None or "NaN" not in origin.makes:
        nans = search.only_nan()
        later = nans.origins() if nans.bad else []
        nan_origin = nans.explain(later[0]) if later else None
    return NonFinite(origin, nan_origin, search.sources(), len(search.bad), len(search.examined))


class _Functions:
    """Where inlined nodes came from."""

    def __init__(self, original: GraphIndex, moved: Mapping[str, Sequence[str]]) -> None:
        self._original = original
        self._paths = {new: path for path, names in moved.items() for new in names}

    def origin(self, outputs: Sequence[str]) -> NodeRef | None:
        """Returns the function's own node that makes these tensors when inlined, or None if it was none's."""
        for name in outputs:
            ref = self._original.tensor(self._paths[name]) if name in self._paths else None
            if ref is not None and ref.name in ref.scope.producers:
                return NodeRef(ref.scope, ref.scope.producers[ref.name])
        return None


class _Search:
    """One graph, what was fed to it, and which of its tensors are not finite."""

    def __init__(
        self,
        model: Model,
        feeds: dict[str, Value],
        backend: str,
        options: backends.Options,
        functions: _Functions | None,
        prefix: str = "",
        within: tuple[str, ...] = (),
    ) -> None:
        self.model, self.feeds, self.backend, self.options = model, feeds, backend, options
        self.functions, self.prefix, self.within = functions, prefix, within
        self.index = GraphIndex(model.proto)
        self.scope = self.index.main
        self.kind = "finite"
        self.types = self._types()
        self.examined = [name for name, kind in self.types.items() if elem_type(kind) in _FLOATS]
        self.bad = self._judge(self.examined, nan_only=False)

    def only_nan(self) -> _Search:
        """Returns the same search for NaN alone, among the tensors found so far."""
        other: _Search = object.__new__(_Search)
        other.__dict__.update(self.__dict__)
        other.kind = "NaN"
        other.bad = self._judge(sorted(self.bad), nan_only=True)
        return other

    def _types(self) -> dict[str, TypeProto]:
        """Returns the types of all tensors of the graph, in its order."""
        made = [name for names in self.scope.writes for name in names]
        types = {name: kind for name, kind in declared_types(self.scope).items() if is_complete(kind)}
        types.update(backends.tensor_types(self.model, list(dict.fromkeys(made))))
        return {name: types[name] for name in self.scope.tensor_names() if name and name in types}

    def _judge(self, names: Sequence[str], *, nan_only: bool) -> set[str]:
        """Returns which of these tensors hold NaN (or any value that is not finite).

        Sums alone are looked at first: a NaN or an infinity always shows in one. Large numbers can too, so the tensors
        whose sums are not finite are judged by ``t - t`` in another run.
        """
        version = self._version()
        if version < 7:  # the runtime has no kernels for the rest
            sums = self._sums(names, [])
            return {name for name in names if math.isnan(sums[name])} if nan_only else _not_finite(sums)
        if not nan_only:
            return _not_finite(self._sums(sorted(_not_finite(self._sums(names, []))), ["Sub"]))
        if version < 9:
            return _not_finite(self._sums(names, ["Atan"]))  # which makes numbers of infinities
        return {name for name, count in self._sums(names, ["IsNaN", "Cast:1"]).items() if count}

    def _sums(self, names: Sequence[str], operators: Sequence[str]) -> dict[str, float]:
        chains = {}
        for name in names:
            before = [] if elem_type(self.types[name]) in _SUBTRACTABLE else ["Cast:1"]
            after = ["Cast:1"] if elem_type(self.types[name]) == _DOUBLE and operators[-1:] != ["Cast:1"] else []
            chains[name] = (*before, *operators, "ReduceSum", *after)
        found = backends.probe(self.model, self.feeds, chains, backend=self.backend, options=self.options)
        return {name: float(value[0]) for name, value in found.items()}

    def _version(self) -> int:
        return next((o.version for o in self.model.proto.opset_import if o.domain in ("", "ai.onnx")), 13)

    def origins(self) -> list[int]:
        """Returns the nodes with a bad output and no bad input, in topological order; constants are no origins."""
        order = topological_order(self.scope) or range(len(self.scope.nodes))
        reads, writes, bad = self.scope.reads, self.scope.writes, self.bad
        return [
            position
            for position in order
            if not bad.isdisjoint(writes[position])
            and bad.isdisjoint(reads[position])
            and self.scope.nodes[position].op_type != "Constant"
        ]

    def sources(self) -> tuple[TensorStats, ...]:
        """Returns what the inputs, initializers and Constant nodes hold that are bad themselves."""
        constants = [
            name
            for node, names in zip(self.scope.nodes, self.scope.writes, strict=True)
            for name in names
            if node.op_type == "Constant"
        ]
        names = [*self.scope.inputs, *sorted(self.scope.constants), *constants]
        return self._stats(name for name in names if name in self.bad)

    def _stats(self, names: Iterable[str]) -> tuple[TensorStats, ...]:
        wanted = list(dict.fromkeys(names))
        stream = backends.stream_outputs(self.model, self.feeds, wanted, backend=self.backend, options=self.options)
        return tuple(statistics(name, value) for name, value in stream)

    def explain(self, position: int) -> Origin:
        """Returns what there is to say about a node that is an origin, going down into its bodies."""
        search, label = self, position
        while True:
            below = search.descend(label)
            if isinstance(below, str):
                return search.describe(label, note=below)
            search, label = below

    def describe(self, position: int, *, note: str = "") -> Origin:
        node = self.scope.nodes[position]
        outputs = self._stats(self.scope.writes[position])
        whence = provenance(node)
        called = self.functions.origin(self.scope.writes[position]) if self.functions else None
        makes = [
            word
            for word, there in (("NaN", any(s.nans for s in outputs)), ("Inf", any(s.infs for s in outputs)))
            if there
        ]
        label = self.prefix + self.scope.label(position) if called is None else called.path
        return Origin(
            node=label,
            op_type=f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
            makes=" and ".join(makes) or "nothing of the kind when run alone",
            outputs=outputs,
            inputs=self._stats(self.scope.reads[position]),
            scope=whence.scope or None,
            source=whence.source,
            function=called.scope.path if called else None,
            within=self.within,
            note=note,
        )

    def descend(self, position: int) -> tuple[_Search, int] | str:
        """Returns the search in a node's body and the origin there, or why there is none to be had."""
        node, bodies = self.scope.nodes[position], self.scope.bodies.get(position)
        if not bodies:
            return ""
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("If", "Loop", "Scan"):
            return f"the culprit lies within a body of {node.op_type}, which is not run by itself"
        try:
            for body, feeds, when in self._body_runs(position, node, bodies):
                model = body_model(self.model, body, feeds, self.types)
                values = backends.open_session(model, self.backend, options=self.options).run(feeds)
                if self._finite(values.values()):
                    continue
                label = f"{self.prefix}{self.scope.label(position)} ({node.op_type}){when}"
                search = _Search(
                    model, feeds, self.backend, self.options, None, f"{self.prefix}{body.path}/", (*self.within, label)
                )
                search = search if self.kind == "finite" else search.only_nan()
                origins = search.origins()
                if origins:
                    return search, origins[0]
                return "the culprit lies within its body and could not be pinned down"
        except BenchError as error:
            return f"the culprit lies within its body, which could not be run by itself: {error.message}"
        return "the culprit lies within its body and did not show when that was run by itself"

    def _finite(self, values: Iterable[Value]) -> bool:
        found = [statistics("", value) for value in values]
        return all(not stats.nans if self.kind == "NaN" else stats.finite for stats in found)

    def _body_runs(
        self, position: int, node: NodeProto, bodies: list[Scope]
    ) -> Iterator[tuple[Scope, dict[str, Value], str]]:
        """Yields the runs of a node's body: which body, on what inputs, and which iteration in words."""
        captured = [name for body in bodies for name in body.captures if not self._is_stored(name)]
        names = list(dict.fromkeys([*(name for name in node.input if name), *captured]))
        values = backends.run_with_outputs(self.model, self.feeds, names, backend=self.backend, options=self.options)
        outer = {name: values[name] for name in captured}
        if node.op_type == "If":
            name = "then_branch" if bool(values[node.input[0]].reshape(-1)[0]) else "else_branch"
            body = next(body for body in bodies if body.body_name == name)
            yield body, {name: outer[name] for name in body.captures if name in outer}, ""
        elif node.op_type == "Loop":
            yield from self._loop(node, bodies[0], values, outer)
        else:
            yield from self._scan(node, bodies[0], values, outer)

    def _is_stored(self, name: str) -> bool:
        return name in self.scope.constants

    def _loop(
        self, node: NodeProto, body: Scope, values: Mapping[str, Value], outer: dict[str, Value]
    ) -> Iterator[tuple[Scope, dict[str, Value], str]]:
        import numpy as np

        trips = int(values[node.input[0]].reshape(-1)[0]) if node.input[0] else _MAX_ITERATIONS
        going = bool(values[node.input[1]].reshape(-1)[0]) if len(node.input) > 1 and node.input[1] else True
        carried = [values[name] for name in node.input[2:]]
        session: backends.Session | None = None
        for trip in range(min(trips, _MAX_ITERATIONS)):
            if not going:
                return
            own = [np.array(trip, np.int64), np.array(True), *carried]
            feeds = dict(zip(body.inputs, own, strict=True)) | outer
            yield body, feeds, f", iteration {trip}"
            session = session or backends.open_session(
                body_model(self.model, body, feeds, self.types),
                self.backend,
                outputs=body.outputs,
                options=self.options,
            )
            made = session.run(feeds)
            going = bool(made[body.outputs[0]].reshape(-1)[0])
            carried = [made[name] for name in body.outputs[1 : 1 + len(carried)]]

    def _scan(
        self, node: NodeProto, body: Scope, values: Mapping[str, Value], outer: dict[str, Value]
    ) -> Iterator[tuple[Scope, dict[str, Value], str]]:
        import numpy as np

        if self._version() < 9:
            raise UnsupportedError("Scan of opset 8 works on batches")
        said = {attribute.name: attribute for attribute in node.attribute}
        count = int(said["num_scan_inputs"].i)
        states = [values[name] for name in node.input[: len(node.input) - count]]
        scanned = [values[name] for name in node.input[len(node.input) - count :]]
        axes = list(said["scan_input_axes"].ints) if "scan_input_axes" in said else [0] * count
        backward = list(said["scan_input_directions"].ints) if "scan_input_directions" in said else [0] * count
        length = scanned[0].shape[axes[0]]
        session: backends.Session | None = None
        for trip in range(length):
            slices = [
                np.ascontiguousarray(np.take(value, length - 1 - trip if back else trip, axis=axis))
                for value, axis, back in zip(scanned, axes, backward, strict=True)
            ]
            feeds = dict(zip(body.inputs, [*states, *slices], strict=True)) | outer
            yield body, feeds, f", iteration {trip}"
            session = session or backends.open_session(
                body_model(self.model, body, feeds, self.types),
                self.backend,
                outputs=body.outputs,
                options=self.options,
            )
            made = session.run(feeds)
            states = [made[name] for name in body.outputs[: len(states)]]


def _not_finite(sums: Mapping[str, float]) -> set[str]:
    return {name for name, value in sums.items() if not math.isfinite(value)}
