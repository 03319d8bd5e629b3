"""The largest magnitudes of the tensors inside of bodies, found by a model that carries them out of there.

What ONNX Runtime makes within a body of If, Loop or Scan can only be seen if the body hands it on. So each body of a
copy of the model gets nodes behind its own that reduce each of its tensors to its largest finite magnitude, joined to
one vector, and one more output: a Loop or Scan gives a row for each turn, of which the largest values are taken, and an
If gives the vector of the branch that it took, with zeros for the other. Inner bodies hand theirs to outer ones in the
same way, so that one run tells all, however deep they are nested, and no tensor leaves the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.captures import Value
from onnxbench.graph import GraphIndex, Scope, root_of
from onnxbench.inference import TypeFinder, TypeSource
from onnxbench.messages import copy_of
from onnxbench.opsets import standard_opset
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import elem_type

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.model import Model

_DOUBLE = 11
_FIRST_WITH_WHERE, _FIRST_WITH_AXES_AS_INPUT = 9, 18
_OWNERS = ("If", "Loop", "Scan")


class BodyProbes:
    """A copy of a model that tells how large the tensors in its bodies get.

    Args:
        model: The model; it is not changed.
        kinds: The element types that are looked at.
        sources: Further places to ask for types.

    Attributes:
        missed: Paths of the bodies that cannot be looked into.
    """

    def __init__(self, model: Model, kinds: Collection[int], sources: tuple[TypeSource, ...] = ()) -> None:
        proto = copy_of(model.proto)
        self._model, self._version = model.derive(proto), standard_opset(proto) or 0
        self._index = GraphIndex(proto)
        self._count = itertools.count()
        self._mark = "onnxbench_largest_"
        while any(name.startswith(self._mark) for scope in self._index.scopes for name in scope.tensor_names()):
            self._mark += "_"
        finder = TypeFinder(model, self._index, sources)
        self.missed: list[str] = []
        self._vectors: dict[Scope, tuple[str, list[str]]] = {}
        self._outputs: dict[str, list[str]] = {}
        for scope in reversed(self._index.scopes):  # inner before outer
            if root_of(scope).is_function:
                if scope.is_function and scope.bodies:
                    self.missed += [body.path for bodies in scope.bodies.values() for body in bodies]
                continue
            own: list[str] = []
            if scope.parent is not None:
                names = [*scope.inputs, *(name for made in scope.writes for name in made)]
                found = finder.find(scope, names)
                own = [name for name in dict.fromkeys(names) if name in found and elem_type(found[name]) in kinds]
            self._look_into(scope, own)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not self._outputs

    def run(self, feeds: Mapping[str, Value]) -> dict[str, float]:
        """Returns the largest finite magnitudes by the tensors' paths; 0 for what was not computed.

        Raises:
            FeedsError: The feeds do not fit.
            ExecutionError: The model does not run.
        """
        options = backends.Options(optimization="none", frugal=True)
        session = backends.open_session(self._model, outputs=list(self._outputs), options=options)
        values = session.run(feeds)
        session.close()
        return {
            path: float(value)
            for name, paths in self._outputs.items()
            for path, value in zip(paths, values[name], strict=True)
        }

    def _look_into(self, scope: Scope, own: list[str]) -> None:
        parts = [self._largest(scope, name) for name in own]
        paths = [f"{scope.path}/{name}" for name in own]
        for position, bodies in scope.bodies.items():
            node = scope.nodes[position]
            if plain_domain(node.domain) or node.op_type not in _OWNERS or self._version < _FIRST_WITH_WHERE:
                self.missed += [body.path for body in bodies]
                continue
            told = [self._vectors[body] for body in bodies if body in self._vectors]
            if not told:
                continue
            name, inner = self._handed_on(scope, node, bodies)
            if scope.parent is None:
                self._outputs[name] = inner
            else:
                parts.append(name)
                paths += inner
        if parts:
            name = self._node(scope, "Concat", *parts, axis=0)
            self._vectors[scope] = name, paths

    def _largest(self, scope: Scope, name: str) -> str:
        """Returns the tensor with the largest finite magnitude of another one, as a vector of one."""
        wide = self._node(scope, "Cast", name, to=_DOUBLE)
        flat = self._node(scope, "Reshape", wide, self._constant(scope, [-1], 7))
        some = self._node(scope, "Concat", flat, self._constant(scope, [0.0], _DOUBLE), axis=0)  # it may be empty
        size = self._node(scope, "Abs", some)
        difference = self._node(scope, "Sub", size, size)  # NaN for what is not finite
        zero = self._constant(scope, [0.0], _DOUBLE)
        is_finite = self._node(scope, "Equal", difference, zero)
        return self._node(scope, "ReduceMax", self._node(scope, "Where", is_finite, size, zero), keepdims=1)

    def _handed_on(self, scope: Scope, node: NodeProto, bodies: list[Scope]) -> tuple[str, list[str]]:
        """Makes a node hand on what its bodies tell, and returns the vector in the graph around, with its paths."""
        told = {body: self._vectors[body] for body in bodies if body in self._vectors}
        paths = [path for _, inner in told.values() for path in inner]
        out = self._new_name()
        for body in bodies:
            parts = [
                self._vectors[body][0] if body is other else self._constant(body, [0.0] * len(inner), _DOUBLE)
                for other, (_, inner) in told.items()
            ]
            info = body.graph.output.add(name=self._node(body, "Concat", *parts, axis=0))
            info.type.tensor_type.elem_type = _DOUBLE
            info.type.tensor_type.shape.dim.add(dim_value=len(paths))
        made = len(bodies[0].outputs) - (node.op_type == "Loop")
        node.output.extend(self._new_name() for _ in range(made - len(node.output)))
        node.output.append(out)
        for attribute in node.attribute:
            if attribute.name in ("scan_output_axes", "scan_output_directions"):
                attribute.ints.append(0)
        if node.op_type == "If":
            return out, paths
        rows = self._node(scope, "Reshape", out, self._constant(scope, [-1, len(paths)], 7))
        first = self._node(
            scope, "Reshape", self._constant(scope, [0.0] * len(paths), _DOUBLE), self._constant(scope, [1, -1], 7)
        )
        some = self._node(scope, "Concat", first, rows, axis=0)  # there may be no turn
        if self._version >= _FIRST_WITH_AXES_AS_INPUT:
            return self._node(scope, "ReduceMax", some, self._constant(scope, [0], 7), keepdims=0), paths
        return self._node(scope, "ReduceMax", some, axes=[0], keepdims=0), paths

    def _constant(self, scope: Scope, values: list[float] | list[int], kind: int) -> str:
        from onnx import helper

        return self._node(scope, "Constant", value=helper.make_tensor("", kind, [len(values)], values))

    def _node(self, scope: Scope, op_type: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = self._new_name()
        scope.graph.node.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def _new_name(self) -> str:
        return f"{self._mark}{next(self._count)}"
