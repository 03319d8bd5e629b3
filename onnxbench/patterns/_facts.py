"""What is known of the tensors of a model while patterns are looked for: constants, types, shapes as values.

Everything is looked up when it is first asked for. Most attempts to match fail at an operator, and no constant is
read and no type inferred for these.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from onnxbench.graph import TensorRef, home_of
from onnxbench.patterns._expressions import UnknownError
from onnxbench.schemas import find_schema
from onnxbench.tensortype import Dim, dtype_name, elem_type, make_type, tensor_shape

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, NodeProto, TensorProto, TypeProto

    from onnxbench.draft import Draft
    from onnxbench.graph import Scope

MOST_ELEMENTS = 4096
"""Constants of more elements than this are not read to compare them or to calculate with them."""

_DEEPEST = 64
Size = tuple[str, Any]
"""One element of a shape as a value: ``("known", 3)``, ``("name", "batch")``, ``("dim", (x, 1))``, ``("unknown", _)``.
"""


class Facts:
    """What is known of a draft as it is now; to be made anew after every change."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.index = draft.index
        self._initializers: dict[int, dict[str, TensorProto]] = {}
        self._constants: dict[tuple[int, str], TensorProto | None] = {}
        self._arrays: dict[tuple[int, str], np.ndarray] = {}
        self._types: dict[tuple[int, str], TypeProto | None] = {}
        self._outputs: dict[int, frozenset[str]] = {}
        self._listed: dict[int, frozenset[str]] = {}
        self._defaults: dict[tuple[str, str, int], dict[str, AttributeProto]] = {}
        self._opsets: dict[tuple[int, str], int] = {}
        self._operators: dict[int, list[str]] = {}
        self._places: dict[int, dict[str, list[int]]] = {}
        self.compared: dict[tuple[int, int, str], bool] = {}

    # -- graphs -------------------------------------------------------------------------------------------------

    def outputs(self, scope: Scope) -> frozenset[str]:
        """Returns the names of a graph's outputs."""
        found = self._outputs.get(id(scope))
        if found is None:
            found = self._outputs[id(scope)] = frozenset(scope.outputs)
        return found

    def operators(self, scope: Scope) -> list[str]:
        """Returns the operator of each node of a graph."""
        found = self._operators.get(id(scope))
        if found is None:
            found = self._operators[id(scope)] = [node.op_type for node in scope.nodes]
        return found

    def places(self, scope: Scope) -> dict[str, list[int]]:
        """Returns the positions of a graph's nodes by their operator."""
        found = self._places.get(id(scope))
        if found is None:
            found = self._places[id(scope)] = {}
            for position, op_type in enumerate(self.operators(scope)):
                found.setdefault(op_type, []).append(position)
        return found

    def opset(self, scope: Scope, domain: str) -> int:
        """Returns the version of a domain that a graph imports, 0 if none."""
        key = (id(scope), domain)
        if key not in self._opsets:
            self._opsets[key] = self.draft.opset(scope, domain)
        return self._opsets[key]

    def defaults(self, scope: Scope, node: NodeProto) -> dict[str, AttributeProto]:
        """Returns the defaults of a node's attributes, as its operator or function states them."""
        called = self.index.function_of(node)
        if called is not None:
            return {each.name: each for each in called.graph.attribute_proto}
        version = self.opset(scope, node.domain)
        key = (node.domain, node.op_type, version)
        found = self._defaults.get(key)
        if found is None:
            schema = find_schema(node.domain, node.op_type, version) if version else None
            attributes = schema.attributes.items() if schema is not None else ()
            found = {name: known.default_value for name, known in attributes if known.default_value.type}
            self._defaults[key] = found
        return found

    def has_fixed_outputs(self, scope: Scope, node: NodeProto) -> bool:
        """Tells whether what a node's outputs are does not depend on how many it has."""
        if self.index.function_of(node) is not None:
            return False  # ONNX Runtime refuses a call with fewer outputs than the function has
        version = self.opset(scope, node.domain)
        schema = find_schema(node.domain, node.op_type, version) if version else None
        option: Any = schema.outputs[-1].option if schema is not None else None
        return option is not None and option.name != "Variadic"

    # -- constants ----------------------------------------------------------------------------------------------

    def stored(self, scope: Scope, name: str) -> TensorProto | None:
        """Returns the initializer of this name in a graph itself, or None."""
        if scope.is_function or name not in scope.constants:
            return None
        known = self._initializers.get(id(scope))
        if known is None:
            known = self._initializers[id(scope)] = {each.name: each for each in scope.graph.initializer}
        return known.get(name)

    def constant(self, scope: Scope, name: str) -> TensorProto | None:
        """Returns the tensor that a name always stands for: an initializer or Constant node, also behind Identity.

        An initializer that is listed as an input is a default, which a caller may override: it is no constant.
        """
        home = home_of(scope, name)
        for _ in range(_DEEPEST):
            if home is None:
                return None
            if name in home.constants:
                return None if name in self._inputs(home) else self.stored(home, name)
            position = home.producers.get(name)
            if position is None:
                return None
            node = home.nodes[position]
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                return self._of_node(home, name, node)
            if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or len(node.input) != 1:
                return None
            name = node.input[0]
            home = home_of(home, name)
        return None

    def _inputs(self, scope: Scope) -> frozenset[str]:
        found = self._listed.get(id(scope))
        if found is None:
            found = self._listed[id(scope)] = frozenset(scope.inputs)
        return found

    def is_overridable(self, scope: Scope, name: str) -> bool:
        """Tells whether a tensor is an initializer that callers may override."""
        home = home_of(scope, name)
        return home is not None and name in home.constants and name in self._inputs(home)

    def _of_node(self, home: Scope, name: str, node: NodeProto) -> TensorProto | None:
        key = (id(home), name)
        if key in self._constants:
            return self._constants[key]
        made: TensorProto | None = None
        if len(node.attribute) == 1 and not node.attribute[0].ref_attr_name:
            made = _tensor_of(node.attribute[0])
        self._constants[key] = made
        return made

    def array(self, tensor: TensorProto) -> np.ndarray:
        """Returns the values of a constant, in the type that NumPy has for them."""
        key = (id(tensor), tensor.name)
        if key not in self._arrays:
            self._arrays[key] = self.draft.model.array(tensor)
        return self._arrays[key]

    def value(self, scope: Scope, name: str) -> Any:
        """Returns the values of a constant as a number, or as lists of numbers.

        Raises:
            UnknownError: It is no constant, or one with very many elements.
        """
        tensor = self.constant(scope, name)
        if tensor is None:
            why = (
                "is an initializer that callers may override" if self.is_overridable(scope, name) else "is no constant"
            )
            raise UnknownError(f"{name!r} {why}")
        if math.prod(tensor.dims) > MOST_ELEMENTS:
            raise UnknownError(f"{name!r} has more than {MOST_ELEMENTS:,} elements")
        array = self.array(tensor)
        if array.dtype.kind not in "biufOSU":  # bfloat16 and the small floats
            import numpy as np

            array = array.astype(np.float32)
        return array.tolist()

    # -- types --------------------------------------------------------------------------------------------------

    def type_of(self, scope: Scope, name: str) -> TypeProto | None:
        """Returns the type of a tensor, or None if nothing tells."""
        key = (id(scope), name)
        if key not in self._types:
            tensor = self.constant(scope, name)
            if tensor is not None:
                self._types[key] = make_type(tensor.data_type, tuple(tensor.dims))
            else:
                self._types[key] = self.draft.type_of(TensorRef(scope, name))
        return self._types[key]

    def shape(self, scope: Scope, name: str) -> tuple[Dim, ...]:
        """Returns the shape of a tensor.

        Raises:
            UnknownError: Not even its rank is known.
        """
        value = self.type_of(scope, name)
        shape = tensor_shape(value) if value is not None else None
        if shape is None:
            raise UnknownError(f"the rank of {name!r} is not known")
        return shape

    def element(self, scope: Scope, name: str) -> int:
        """Returns the number of a tensor's element type.

        Raises:
            UnknownError: It is not known.
        """
        value = self.type_of(scope, name)
        number = elem_type(value) if value is not None else 0
        if not number:
            raise UnknownError(f"the element type of {name!r} is not known")
        return number

    def dtype(self, scope: Scope, name: str) -> str:
        """Returns the name of a tensor's element type; raises as ``element`` does."""
        return dtype_name(self.element(scope, name))

    # -- shapes as values ---------------------------------------------------------------------------------------

    def sizes(self, scope: Scope, name: str, depth: int = 0) -> list[Size]:
        """Returns the elements of a tensor that holds a shape or part of one, as far as they are known.

        Shape, Gather, Slice, Concat, Squeeze, Unsqueeze, Cast and Identity are followed.

        Raises:
            UnknownError: Its number of elements is not known.
        """
        tensor = self.constant(scope, name)
        if tensor is not None:
            if sum(1 for _ in tensor.dims) > 1:
                raise UnknownError(f"{name!r} is no shape")
            value = self.value(scope, name)
            numbers = value if isinstance(value, list) else [value]
            return [("known", int(number)) for number in numbers]
        home = home_of(scope, name)
        position = home.producers.get(name) if home is not None else None
        if home is None or position is None or depth > _DEEPEST:
            return self._sizes_by_shape(scope, name)
        node = home.nodes[position]
        follow = _FOLLOWED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if follow is None or self.index.function_of(node) is not None:
            return self._sizes_by_shape(home, name)
        found: list[Size] = follow(self, home, node, depth + 1)
        return found

    def _sizes_by_shape(self, scope: Scope, name: str) -> list[Size]:
        shape = self.shape(scope, name)
        if len(shape) > 1 or (shape and not isinstance(shape[0], int)):
            raise UnknownError(f"{name!r} is no shape whose number of elements is known")
        count = int(shape[0]) if shape and isinstance(shape[0], int) else 1
        return [("unknown", (name, at)) for at in range(min(count, MOST_ELEMENTS))]

    def _sizes_of_shape(self, scope: Scope, node: NodeProto, depth: int) -> list[Size]:
        name = node.input[0]
        shape = self.shape(scope, name)
        start, end = _int(node, "start", 0), _int(node, "end", len(shape))
        return [size_of(name, at, dim) for at, dim in enumerate(shape)][slice(start, end)]

    def _sizes_of_gather(self, scope: Scope, node: NodeProto, depth: int) -> list[Size]:
        data = self.sizes(scope, node.input[0], depth)
        at = self.value(scope, node.input[1])
        return [data[int(each)] for each in (at if isinstance(at, list) else [at])]

    def _sizes_of_slice(self, scope: Scope, node: NodeProto, depth: int) -> list[Size]:
        data = self.sizes(scope, node.input[0], depth)
        given: list[Any]
        if len(node.input) == 1:  # opset 1 to 9
            given = [_ints(node, "starts"), _ints(node, "ends"), _ints(node, "axes") or [0], [1]]
        else:
            given = [self.value(scope, name) if name else None for name in node.input[1:]]
            given += [None] * (4 - len(given))
        starts, ends, axes, steps = given[0], given[1], given[2] or [0], given[3] or [1]
        parts = (starts, ends, axes, steps)
        if (
            any(not isinstance(part, list) or len(part) != 1 for part in parts)
            or axes[0] not in (0, -1)
            or steps[0] < 1
        ):
            raise UnknownError(f"how {node.op_type} cuts {node.input[0]!r} is not known")
        return data[_clamp(starts[0], len(data)) : _clamp(ends[0], len(data)) : steps[0]]

    def _sizes_of_concat(self, scope: Scope, node: NodeProto, depth: int) -> list[Size]:
        return [size for name in node.input for size in self.sizes(scope, name, depth)]

    def _sizes_of_same(self, scope: Scope, node: NodeProto, depth: int) -> list[Size]:
        if node.op_type == "Cast" and _int(node, "to", 0) not in (6, 7):
            raise UnknownError(f"{node.output[0]!r} is no shape")
        return self.sizes(scope, node.input[0], depth)


_FOLLOWED = {
    "Shape": Facts._sizes_of_shape,
    "Gather": Facts._sizes_of_gather,
    "Slice": Facts._sizes_of_slice,
    "Concat": Facts._sizes_of_concat,
    "Squeeze": Facts._sizes_of_same,
    "Unsqueeze": Facts._sizes_of_same,
    "Cast": Facts._sizes_of_same,
    "Identity": Facts._sizes_of_same,
}


def size_of(name: str, at: int, dim: Dim) -> Size:
    """Returns a dimension of a tensor as an element of a shape."""
    if isinstance(dim, int):
        return ("known", dim)
    return ("name", dim) if dim is not None else ("dim", (name, at))


def _clamp(number: int, count: int) -> int:
    return max(-count, min(int(number), count))


def _int(node: NodeProto, name: str, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def _ints(node: NodeProto, name: str) -> list[int]:
    return next((list(each.ints) for each in node.attribute if each.name == name), [])


def _tensor_of(attribute: AttributeProto) -> TensorProto | None:
    """Returns the tensor that a Constant node's attribute makes; None for a sparse one."""
    from onnx import TensorProto, helper

    if attribute.name == "value":
        return attribute.t
    made = {
        "value_float": (TensorProto.FLOAT, [], [attribute.f]),
        "value_floats": (TensorProto.FLOAT, [len(attribute.floats)], list(attribute.floats)),
        "value_int": (TensorProto.INT64, [], [attribute.i]),
        "value_ints": (TensorProto.INT64, [len(attribute.ints)], list(attribute.ints)),
    }.get(attribute.name)
    if made is None:
        return None
    element, dims, values = made
    return helper.make_tensor("", element, dims, values)
