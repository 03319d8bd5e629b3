"""Custom operators that a runtime is taught for one session.

Every node of such an operator is made a call of a local function of the model that the session gets. Where the operator
has a body of ONNX operators, that is the function, and the runtime computes with its own kernels. Where it has none,
the function casts to float32, calls Python through onnxruntime-extensions, and casts back, because that library takes
one type for each name in a process: so there is one Python operator for each number of inputs and outputs, and an
attribute of the call says whose values it computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.errors import MissingDependencyError, UnsupportedError
from onnxbench.graph import GraphIndex
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    import numpy as np
    from onnx import FunctionProto, ModelProto

_DOMAIN = "onnxbench.python"
_LEAST_OPSET = 15
"""CastLike came with it; below, Python operators take float32 alone."""
_PROTOBUF = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
"""Set by onnxruntime-extensions when it is imported: all child processes would parse models in slow pure Python."""
_CALLS: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {}
_FAILURES: list[str] = []
_KNOWN: set[tuple[int, int]] = set()


@dataclass(frozen=True, slots=True)
class Operator:
    """A custom operator, as far as computing it goes.

    Attributes:
        domain: Its domain.
        name: Its name.
        inputs: How many inputs it has.
        outputs: How many outputs it has.
        attributes: Its attributes with their defaults.
        typed_by: Number of the input whose element type the outputs have.
        compute: From the values of inputs and attributes to those of the outputs.
        body: From attributes and an opset to a function of standard operators, or None if there is none.
        evaluator: Returns the class for onnx's reference evaluator.
        optional: How many of the last inputs may be left out.
    """

    domain: str
    name: str
    inputs: int
    outputs: int
    attributes: Mapping[str, Any]
    typed_by: int
    compute: Callable[[Sequence[np.ndarray], Mapping[str, Any]], Sequence[np.ndarray]]
    body: Callable[[Mapping[str, Any], int], FunctionProto | None]
    evaluator: Callable[[], type]
    optional: int = 0


class Taught:
    """A model whose custom operators a runtime can compute.

    Args:
        proto: The model; it is not changed.
        operators: The operators.

    Raises:
        MissingDependencyError: One needs onnxruntime-extensions, which is not installed.
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
        for ref in GraphIndex(self.proto).nodes():
            operator = known.get((ref.node.domain, ref.node.op_type))
            if operator is None:
                continue
            attributes = _attributes(ref.node, operator)
            while ref.node.input and not ref.node.input[-1]:
                del ref.node.input[-1]
            given = len(ref.node.input)
            fits = operator.inputs - operator.optional <= given <= operator.inputs and all(ref.node.input)
            if not fits or len(ref.node.output) != operator.outputs:
                raise UnsupportedError(
                    f"node {ref.node.name or ref.node.output[0]!r} ({operator.name}) has {given} inputs "
                    f"and {len(ref.node.output)} outputs; the operator has {operator.inputs} and {operator.outputs}"
                )
            key = f"{operator.domain}::{operator.name} {given} {sorted(attributes.items())}"
            if key not in made:
                function = operator.body(attributes, opset) or self._call(operator, given, attributes, opset)
                made[key] = function.name = f"{operator.name}_onnxbench_{len(made)}"
                self.proto.functions.append(function)
            ref.node.op_type = made[key]
            del ref.node.attribute[:]

    def _call(self, operator: Operator, inputs: int, attributes: Mapping[str, Any], opset: int) -> FunctionProto:
        """Returns a function that calls Python with so many inputs."""
        from onnx import helper

        self.libraries = (_python_operators(inputs, operator.outputs),)
        key = str(len(_CALLS))
        _CALLS[key] = lambda values: operator.compute(values, attributes)
        self._keys.append(key)
        given, made = ([f"{word}{at}" for at in range(count)]
                       for word, count in (("x", inputs), ("y", operator.outputs)))  # fmt: skip
        casts = opset >= _LEAST_OPSET
        floats, results = ([f"{name}_float" if casts else name for name in names] for names in (given, made))
        nodes = [helper.make_node("Cast", [name], [to], to=1) for name, to in zip(given, floats, strict=True) if casts]
        nodes.append(
            helper.make_node(_python_name(inputs, operator.outputs), floats, results, domain=_DOMAIN, call=key)
        )
        typing = given[operator.typed_by]
        nodes += [
            helper.make_node("CastLike", [name, typing], [to]) for name, to in zip(results, made, strict=True) if casts
        ]
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(_DOMAIN, 1)]
        if not any(each.domain == _DOMAIN for each in self.proto.opset_import):
            self.proto.opset_import.add(domain=_DOMAIN, version=1)
        return helper.make_function(operator.domain, operator.name, given, made, nodes, imports)

    def close(self) -> None:
        """Forgets what was taught."""
        for key in self._keys:
            _CALLS.pop(key, None)


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
    return found


def has_python_operators() -> bool:
    """Tells whether operators without a body can be computed in ONNX Runtime."""
    return find_spec("onnxruntime_extensions") is not None


def _python_name(inputs: int, outputs: int) -> str:
    return f"Call_{inputs}_{outputs}"


def _python_operators(inputs: int, outputs: int) -> Path:
    """Returns the library that computes in Python, with an operator of so many inputs and outputs in it."""
    if not has_python_operators():
        raise MissingDependencyError(
            "a custom operator that has no body of ONNX operators needs onnxruntime-extensions in ONNX Runtime",
            hint="pip install onnxruntime-extensions, or --backend reference.",
        )
    before = os.environ.get(_PROTOBUF)
    from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op

    os.environ.pop(_PROTOBUF, None)
    if before is not None:
        os.environ[_PROTOBUF] = before
    if (inputs, outputs) not in _KNOWN:
        _KNOWN.add((inputs, outputs))

        def compute(*values: Any, call: str) -> Any:
            import numpy as np

            try:
                made = tuple(np.asarray(value, np.float32) for value in _CALLS[call](values))
            except Exception as error:  # the user's own code; an exception that gets to C++ ends the process
                _FAILURES.append(f"{type(error).__name__}: {error}")
                made = ()
            if len(made) != outputs:
                if made:
                    _FAILURES.append(f"it gives {len(made)} values, and the operator has {outputs} outputs")
                made = (np.zeros(0, np.float32),) * outputs
            return made[0] if outputs == 1 else made

        kind = PyCustomOpDef.dt_float
        onnx_op(
            op_type=f"{_DOMAIN}::{_python_name(inputs, outputs)}", inputs=[kind] * inputs, outputs=[kind] * outputs,
            attrs={"call": PyCustomOpDef.dt_string},
        )(compute)  # fmt: skip
    return Path(get_library_path())
