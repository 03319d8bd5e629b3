"""Custom operators that a runtime is taught for one session.

Every node of such an operator is made a call of a local function of the model that the session gets. Where the operator
has a body of ONNX operators, that is the function, and the runtime computes with its own kernels. Where it has none,
the function casts to float32 (integers to int64), calls Python through onnxruntime-extensions, and casts back, because
that library takes one type for each name in a process: so there is one Python operator for each row of inputs and
outputs, and an attribute of the call says whose values it computes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any

from onnxbench.errors import MissingDependencyError, ModelError, UnsupportedError
from onnxbench.graph import GraphIndex
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    import numpy as np
    from onnx import FunctionProto, ModelProto

    from onnxbench.model import Model

_DOMAIN = "onnxbench.python"
_LEAST_OPSET = 15
"""CastLike came with it; below, Python operators take float32 alone."""
_PROTOBUF = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
"""Set by onnxruntime-extensions when it is imported: all child processes would parse models in slow pure Python."""
_INTEGERS = {"int32": 6, "int64": 7}
"""Element types that Python gets as int64, with their numbers in ONNX."""
_CALLS: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {}
_FAILURES: list[str] = []
_KNOWN: set[str] = set()
_MOST_INPUTS, _MOST_OUTPUTS = 8, 3
"""Up to here rows of floats are usual."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A custom operator, as far as computing it goes.

    Attributes:
        domain: Its domain.
        name: Its name.
        inputs: For each of its inputs the element type, or None where it is the one that varies.
        outputs: For each of its outputs the same.
        attributes: Its attributes with their defaults, or with their types where a node must say them.
        typed_by: Number of the input whose element type the outputs have, as far as they have no other.
        compute: From the values of inputs and attributes to those of the outputs.
        body: From attributes, an opset and the number of inputs to a function of standard operators, or None if there
            is none.
        evaluator: Returns the class for onnx's reference evaluator.
        optional_inputs: How many of the last inputs a node may leave out.
        optional_outputs: How many of the last outputs a node may leave out.
        bundle: The file that defines it, by which another process can be taught it; None if there is none.
    """

    domain: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    attributes: Mapping[str, Any]
    typed_by: int
    compute: Callable[[Sequence[np.ndarray], Mapping[str, Any]], Sequence[np.ndarray]]
    body: Callable[[Mapping[str, Any], int, int], FunctionProto | None]
    evaluator: Callable[[], type]
    optional_inputs: int = 0
    optional_outputs: int = 0
    bundle: Path | None = None

    def takes(self, inputs: int, outputs: int) -> bool:
        """Tells whether a node may have so many inputs and outputs."""
        return (
            len(self.inputs) - self.optional_inputs <= inputs <= len(self.inputs)
            and len(self.outputs) - self.optional_outputs <= outputs <= len(self.outputs)
        )  # fmt: skip


class Taught:
    """A model whose custom operators a runtime can compute.

    Args:
        proto: The model; it is not changed.
        operators: The operators.

    Raises:
        MissingDependencyError: One needs onnxruntime-extensions, which is not installed.
        ModelError: A node lacks an attribute that the operator needs.
        UnsupportedError: A node is not as the operator says.
    """

    def __init__(self, proto: ModelProto, operators: Sequence[Operator]) -> None:
        self.proto = proto
        self.libraries: tuple[Path, ...] = ()
        self._keys: list[str] = []
        known = {(operator.domain, operator.name): operator for operator in operators}
        index = GraphIndex(proto)
        if not any((ref.node.domain, ref.node.op_type) in known for ref in index.nodes()):
            return
        self.proto = copy_of(proto)
        self.proto.ir_version = max(self.proto.ir_version, 8)
        opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)
        if not opset:
            opset = 17
            self.proto.opset_import.add(domain="", version=opset)
        made: dict[str, str] = {}
        unused = 0
        for ref in GraphIndex(self.proto).nodes():
            operator = known.get((ref.node.domain, ref.node.op_type))
            if operator is None:
                continue
            attributes = _attributes(ref.node, operator)
            while ref.node.input and not ref.node.input[-1]:
                del ref.node.input[-1]
            given = len(ref.node.input)
            if not operator.takes(given, len(ref.node.output)):
                raise UnsupportedError(
                    f"node {ref.node.name or ref.node.output[0]!r} ({operator.name}) has {given} inputs and "
                    f"{len(ref.node.output)} outputs; the operator has {len(operator.inputs)} and "
                    f"{len(operator.outputs)}"
                )
            key = f"{operator.domain}::{operator.name} {given} {sorted(attributes.items())}"
            if key not in made:
                function = operator.body(attributes, opset, given) or self._call(operator, attributes, opset, given)
                made[key] = function.name = f"{operator.name}_onnxbench_{len(made)}"
                self.proto.functions.append(function)
            for _ in operator.outputs[len(ref.node.output) :]:
                unused += 1
                ref.node.output.append(f"onnxbench_unused_{unused}")  # ONNX Runtime wants all outputs of a function
            ref.node.op_type = made[key]
            del ref.node.attribute[:]

    def _call(self, operator: Operator, attributes: Mapping[str, Any], opset: int, inputs: int) -> FunctionProto:
        """Returns a function of so many inputs that calls Python."""
        from onnx import helper

        row = "_".join("".join("l" if kind in _INTEGERS else "f" for kind in kinds)
                       for kinds in (operator.inputs[:inputs], operator.outputs))  # fmt: skip
        self.libraries = (_python_operators(row),)
        key = str(len(_CALLS))
        _CALLS[key] = lambda values: operator.compute(values, attributes)
        self._keys.append(key)
        given, made = ([f"{word}{at}" for at in range(count)]
                       for word, count in (("x", inputs), ("y", len(operator.outputs))))  # fmt: skip
        casts = opset >= _LEAST_OPSET
        passed, results = ([f"{name}_passed" if casts else name for name in names] for names in (given, made))
        nodes = [
            helper.make_node("Cast", [name], [to], to=_INTEGERS["int64"] if kind in _INTEGERS else 1)
            for name, to, kind in zip(given, passed, operator.inputs, strict=False) if casts
        ]  # fmt: skip
        nodes.append(helper.make_node(f"Call_{row}", passed, results, domain=_DOMAIN, call=key))
        for name, to, kind in zip(results, made, operator.outputs, strict=True):
            if casts and kind is None:
                nodes.append(helper.make_node("CastLike", [name, given[operator.typed_by]], [to]))
            elif casts:
                nodes.append(helper.make_node("Cast", [name], [to], to=_INTEGERS.get(kind or "", 1)))
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(_DOMAIN, 1)]
        if not any(each.domain == _DOMAIN for each in self.proto.opset_import):
            self.proto.opset_import.add(domain=_DOMAIN, version=1)
        return helper.make_function(operator.domain, operator.name, given, made, nodes, imports)

    def close(self) -> None:
        """Forgets what was taught."""
        for key in self._keys:
            _CALLS.pop(key, None)


def uses(proto: ModelProto, operator: Operator) -> bool:
    """Tells whether a model has a node of an operator, in a body or function perhaps."""
    wanted = operator.domain, operator.name
    return any((ref.node.domain, ref.node.op_type) == wanted for ref in GraphIndex(proto).nodes())


def calls_python(proto: ModelProto) -> bool:
    """Tells whether a model calls Python in this process (see ``Taught``), so that nothing else can run it."""
    return any(ref.node.domain == _DOMAIN for ref in GraphIndex(proto).nodes())


def as_functions(model: Model, operators: Sequence[Operator]) -> Model | None:
    """Returns a model with custom operators as functions that any runtime runs; None if one has no body."""
    known = {(operator.domain, operator.name): operator for operator in operators}
    opset = next((each.version for each in model.proto.opset_import if each.domain in ("", "ai.onnx")), 17)
    for ref in GraphIndex(model.proto).nodes():
        operator = known.get((ref.node.domain, ref.node.op_type))
        if operator is not None:
            given = len([*ref.node.input])
            if operator.body(_attributes(ref.node, operator), opset, given) is None:
                return None
    return model.derive(Taught(model.proto, operators).proto)


def failure() -> str | None:
    """Returns what an operator in Python raised since this was asked last; its outputs are empty then."""
    said = _FAILURES[0] if _FAILURES else None
    _FAILURES.clear()
    return said


def _attributes(node: Any, operator: Operator) -> dict[str, Any]:
    from onnx import helper

    found = dict(operator.attributes)
    for each in node.attribute:
        if each.ref_attr_name:
            raise UnsupportedError(
                f"attribute {each.name!r} of {operator.name} is a parameter of the function that the node is in",
                hint="'onnxbench edit --inline' puts the function's nodes in its place.",
            )
        if each.name in found:
            value = helper.get_attribute_value(each)
            found[each.name] = value.decode() if isinstance(value, bytes) else value
    missing = [name for name, value in found.items() if isinstance(value, (type, GenericAlias))]
    if missing:
        raise ModelError(
            f"node {node.name or node.output[0]!r} ({operator.name}) has no attribute {missing[0]!r}, which it needs"
        )
    return found


def has_python_operators() -> bool:
    """Tells whether operators without a body can be computed in ONNX Runtime."""
    return find_spec("onnxruntime_extensions") is not None


def _python_operators(row: str) -> Path:
    """Returns the library that computes in Python, with an operator of these inputs and outputs in it: ``ffl_f``.

    The library keeps its operators in one array, and sessions point into it: when it grows, a session that was made
    before ends the process as soon as it is freed. So the usual rows are there before any session is, and sessions that
    nobody has any more are freed before another row comes.
    """
    if not has_python_operators():
        raise MissingDependencyError(
            "a custom operator that has no body of ONNX operators needs onnxruntime-extensions in ONNX Runtime",
            hint="pip install onnxruntime-extensions, or --backend reference.",
        )
    before = os.environ.get(_PROTOBUF)
    from onnxruntime_extensions import get_library_path

    os.environ.pop(_PROTOBUF, None)
    if before is not None:
        os.environ[_PROTOBUF] = before
    if not _KNOWN:
        for inputs, outputs in product(range(1, _MOST_INPUTS + 1), range(1, _MOST_OUTPUTS + 1)):
            _register("f" * inputs + "_" + "f" * outputs)
    if row not in _KNOWN:
        gc.collect()
        _register(row)
    return Path(get_library_path())


def _register(row: str) -> None:
    from onnxruntime_extensions import PyCustomOpDef, onnx_op

    _KNOWN.add(row)
    inputs, _, outputs = row.partition("_")

    def compute(*values: Any, call: str) -> Any:
        import numpy as np

        kinds = [np.int64 if letter == "l" else np.float32 for letter in outputs]
        try:
            results = _CALLS[call](values)
            if len(results) != len(kinds):
                raise ValueError(f"it gives {len(results)} values, and the operator has {len(kinds)} outputs")
            made = tuple(np.asarray(value, kind) for value, kind in zip(results, kinds, strict=True))
        except Exception as error:  # the user's own code; an exception that gets to C++ ends the process
            _FAILURES.append(f"{type(error).__name__}: {error}")
            made = tuple(np.zeros(0, kind) for kind in kinds)
        return made[0] if len(kinds) == 1 else made

    types = {"f": PyCustomOpDef.dt_float, "l": PyCustomOpDef.dt_int64}
    onnx_op(
        op_type=f"{_DOMAIN}::Call_{row}", inputs=[types[letter] for letter in inputs],
        outputs=[types[letter] for letter in outputs], attrs={"call": PyCustomOpDef.dt_string},
    )(compute)  # fmt: skip
