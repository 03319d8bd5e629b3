"""Rewrites under the TorchScript exporter: the bodies of ``_symbolics`` as symbolics that it calls.

That exporter calls a symbolic with a graph. An onnxscript function runs under the recorder of the default exporter, on
stand-ins for the values, and what was recorded is replayed into the graph, as a text is. So both exporters give the
same nodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from onnxbench.errors import UnsupportedError, UsageError
from onnxbench.pytorch._symbolics import Body, Parameter, constant_array, resolved

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, NodeProto

_LOWEST_OPSET = 9


def symbolic(
    body_of: Callable[[int, int], tuple[Body, Callable[[], None]] | None], previous: Callable[[int], Any]
) -> Callable[..., Any]:
    """Returns what the TorchScript exporter calls to translate an operator.

    Args:
        body_of: Gives the body for an opset and a number of arguments (an operator may have overloads), and what
            counts it; None where no rewrite is active in this thread.
        previous: Gives the symbolic that was there before.
    """

    def translate(g: Any, *args: Any, **attrs: Any) -> Any:
        found = body_of(g.opset, len(args))
        if found is None:
            before = previous(g.opset)
            if before is None:
                from torch.onnx.errors import UnsupportedOperatorError

                raise UnsupportedOperatorError(g.original_node.kind(), g.opset, None)
            return before(g, *args, **attrs)
        body, fire = found
        fire()
        values = [_python_value(value, each) for value, each in zip(args, body.parameters, strict=False)]
        return scripted(g, body, body.values(values, {}))

    return translate


def _python_value(value: Any, parameter: Parameter) -> Any:
    """Returns an argument as the default exporter would give it: a constant as a Python value, a tensor as it is."""
    from torch.onnx.symbolic_helper import _maybe_get_const, _node_get

    if not hasattr(value, "node"):
        return value
    if value.node().mustBeNone():
        return None
    if parameter.kind == "List[Tensor]":
        return list(value.node().inputs()) if value.node().kind() == "prim::ListConstruct" else value
    letters = {
        "int": "i", "SymInt": "i", "float": "f", "bool": "b", "str": "s", "List[int]": "is", "List[SymInt]": "is",
        "List[float]": "fs", "number": "f", "Scalar": "f",
    }  # fmt: skip
    if parameter.kind == "List[bool]":
        found = _maybe_get_const(value, "is")
        return [bool(each) for each in found] if isinstance(found, (list, tuple)) else found
    letter = letters.get(parameter.kind)
    if letter is None:
        return value
    if letter == "f" and parameter.kind != "float" and value.node().kind() == "onnx::Constant":
        number = _node_get(value.node(), "value")
        return number.item() if hasattr(number, "item") else number
    if letter == "b":
        found = _maybe_get_const(value, "i")
        return bool(found) if isinstance(found, int) else found
    return _maybe_get_const(value, letter)


def scripted(g: Any, body: Body, values: Sequence[Any]) -> Any:
    """Returns the outputs of the nodes that a body adds to a TorchScript graph."""
    if body.is_text:
        inputs, attributes = body.bound(values)
        like = next((kind for value in values if (kind := _script_numpy_type(value)) is not None), None)
        known = {name: _script_constant(g, value, each, like) for name, (value, each) in inputs.items()}
        nodes = list(body.function.node)
        outputs = list(body.function.output)
        functions: Mapping[tuple[str, str], FunctionProto] = {}
    else:
        nodes, known, outputs, functions = _recorded(g, body, values)
        attributes = {}
    made = _replay(g, nodes, known, outputs, attributes, functions, body)
    original = getattr(g, "original_node", None)
    expected = list(original.outputs()) if original is not None else []
    if len(expected) == len(made):
        for value, wanted in zip(made, expected, strict=True):
            if "::" in value.node().kind() and not value.node().kind().startswith("onnx::"):
                _set_type(value, wanted, values)
    return made[0] if len(made) == 1 else tuple(made)


def _set_type(value: Any, wanted: Any, inputs: Sequence[Any]) -> None:
    """Gives an output of an operator that ONNX does not know the traced type; sizes only if no input has open ones."""
    kind = wanted.type()
    if not hasattr(kind, "varyingSizes"):
        value.setType(kind)
        return
    sizes = [
        size
        for each in inputs
        if hasattr(each, "node") and hasattr(each.type(), "varyingSizes")
        for size in each.type().varyingSizes() or [None]
    ]
    if kind.dim() is not None and any(size is None for size in sizes):
        kind = kind.with_sizes([None] * kind.dim())
    value.setType(kind)


def _script_numpy_type(value: Any) -> Any:
    import torch
    from torch.onnx import JitScalarType

    if not hasattr(value, "node"):
        return None
    kind = JitScalarType.from_value(value, JitScalarType.UNDEFINED)
    if kind == JitScalarType.UNDEFINED or kind.dtype() == torch.bfloat16:
        return None
    return torch.empty(0, dtype=kind.dtype()).numpy().dtype


def _script_constant(g: Any, value: Any, parameter: Parameter, like: Any) -> Any:
    import torch

    if value is None or hasattr(value, "node"):
        return value
    return g.op("Constant", value_t=torch.from_numpy(constant_array(value, parameter, like)))


def _recorded(g: Any, body: Body, values: Sequence[Any]) -> Any:
    """Runs an onnxscript function on stand-ins; returns the nodes, the values by name, the outputs and functions."""
    import onnx_ir as ir
    from onnxscript import evaluator
    from onnxscript import values as script_values

    try:
        from torch.onnx._internal.exporter._building import OpRecorder
        from torch.onnx._internal.exporter._tensors import SymbolicTensor
    except ImportError as error:
        raise UnsupportedError(
            f"this version of PyTorch does not run onnxscript functions under the TorchScript exporter: {error}",
            hint="Write the rewrite as ONNX text, or use the default exporter.",
        ) from None
    opset = script_values.Opset("", g.opset)
    recorder = OpRecorder(opset, {})
    known: dict[str, Any] = {}

    def stand_in(value: Any) -> Any:
        if isinstance(value, list):
            return [stand_in(each) for each in value]
        if not hasattr(value, "node"):
            return value
        name = f"in_{len(known)}"
        known[name] = value
        made = SymbolicTensor(opset, name=name)
        kind = _script_numpy_type(value)
        if kind is not None:
            made.dtype = ir.DataType.from_numpy(kind)
        sizes = value.type().varyingSizes() if hasattr(value.type(), "varyingSizes") else None
        if sizes is not None:
            made.shape = ir.Shape(sizes)
        return made

    given = [stand_in(value) for value in body.fitted(values)]
    with evaluator.default_as(recorder):
        result = body.function(*given)
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    at = 0
    for node in recorder.nodes:
        for output in node.outputs:
            output.name, at = f"value_{at}", at + 1
    wrong = next((each for each in results if not isinstance(each, ir.Value)), None)
    if wrong is not None:
        raise UsageError(f"{body.label} returned {type(wrong).__name__}, and not what an ONNX operator gives")
    functions = {
        key[:2]: each.to_function_proto() if hasattr(each, "to_function_proto") else ir.serde.serialize_function(each)
        for key, each in recorder.functions.items()
    }
    return [ir.serde.serialize_node(node) for node in recorder.nodes], known, [each.name for each in results], functions


def _replay(
    g: Any, nodes: Sequence[NodeProto], known: Mapping[str, Any], outputs: Sequence[str],
    attributes: Mapping[str, Any], functions: Mapping[tuple[str, str], FunctionProto], body: Body,
) -> list[Any]:  # fmt: skip
    import torch
    from onnx import helper, numpy_helper

    values = {**known, "": None}
    for node in nodes:
        said = [each for attribute in node.attribute if (each := resolved(attribute, attributes, body)) is not None]
        inputs = [values[name] for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        inner = functions.get((node.domain, node.op_type))
        if inner is not None:
            own = {each.name: helper.get_attribute_value(each) for each in inner.attribute_proto}
            own |= {each.name: helper.get_attribute_value(each) for each in said}
            own = {key: value.decode() if isinstance(value, bytes) else value for key, value in own.items()}
            given = dict(zip(inner.input, [*inputs, *[None] * len(inner.input)], strict=False))
            own = {**dict.fromkeys(inner.attribute), **own}
            made = _replay(g, inner.node, given, inner.output, own, functions, body)
            values.update(zip(node.output, made, strict=False))
            continue
        words: dict[str, Any] = {}
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            words["value_t"] = _constant_tensor(said[0], body)
            said = []
        for each in said:
            value = helper.get_attribute_value(each)
            if each.HasField("g") or each.graphs:
                raise UnsupportedError(
                    f"{body.label}: {node.op_type} has a body, which the TorchScript exporter cannot take",
                    hint="Use the default exporter.",
                )
            if each.HasField("t"):
                words[f"{each.name}_t"] = torch.from_numpy(numpy_helper.to_array(each.t).copy())
            elif isinstance(value, bytes):
                words[f"{each.name}_s"] = value.decode()
            elif isinstance(value, (list, tuple)) or hasattr(value, "extend"):
                items = [item.decode() if isinstance(item, bytes) else item for item in value]
                letter = (
                    "s"
                    if items and isinstance(items[0], str)
                    else "f"
                    if items and isinstance(items[0], float)
                    else "i"
                )
                words[f"{each.name}_{letter}"] = items
            else:
                words[f"{each.name}_{'f' if isinstance(value, float) else 'i'}"] = value
        name = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        made_here = g.op(
            name, *[_absent(g) if each is None else each for each in inputs], outputs=len(node.output), **words
        )
        values.update(zip(node.output, [made_here] if len(node.output) == 1 else made_here, strict=True))
    return [values[name] for name in outputs]


def _constant_tensor(attribute: AttributeProto, body: Body) -> Any:
    """Returns what a Constant holds, however that is spelled: TorchScript knows tensors alone."""
    import numpy as np
    import torch
    from onnx import helper, numpy_helper

    if attribute.HasField("t"):
        return torch.from_numpy(numpy_helper.to_array(attribute.t).copy())
    if attribute.name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise UnsupportedError(f"{body.label}: the TorchScript exporter has no Constant with {attribute.name}")
    kind = np.float32 if "float" in attribute.name else np.int64
    return torch.from_numpy(np.array(helper.get_attribute_value(attribute), kind))


def _absent(g: Any) -> Any:
    from torch.onnx.symbolic_helper import _optional_input_placeholder_tensor

    return _optional_input_placeholder_tensor(g)


_symbolic_lock = threading.RLock()
_registered: dict[str, _Registered] = {}


@dataclass(slots=True)
class _Registered:
    """An operator of the TorchScript exporter that is asked for rewrites.

    Attributes:
        count: How many contexts want it.
        before: What it became before, by the opset from which on.
        overrides: Those among them that were somebody's own.
        opsets: Where it is registered: the exporter takes what is registered for the highest opset that the file has.
    """

    count: int
    before: Mapping[int, Any]
    overrides: Mapping[int, Any]
    opsets: Sequence[int]


def register_symbolic(
    name: str, body_of: Callable[[str, int, int], tuple[Body, Callable[[], None]] | None]
) -> Callable[[], None]:
    """Makes the TorchScript exporter ask ``body_of`` for an operator; returns what takes that back; counted."""
    from torch.onnx import register_custom_op_symbolic
    from torch.onnx._internal.torchscript_exporter.registration import registry

    with _symbolic_lock:
        known = _registered.get(name)
        if known is None:
            group = registry.get_function_group(name)
            before = dict(group._functions._merged) if group is not None else {}
            overrides = dict(group._functions._overrides) if group is not None else {}
            opsets = sorted({_LOWEST_OPSET, *(each for each in before if each > _LOWEST_OPSET)})
            known = _registered[name] = _Registered(0, before, overrides, opsets)

            def previous(version: int) -> Any:
                fitting = [each for each in before if each <= version]
                return before[max(fitting)] if fitting else None

            ours = symbolic(lambda *said: body_of(name, *said), previous)
            for opset in opsets:
                register_custom_op_symbolic(name, ours, opset)
        known.count += 1
    return partial(_unregister_symbolic, name)


def _unregister_symbolic(name: str) -> None:
    """Takes ``register_symbolic`` back: what was registered before is so again."""
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic
    from torch.onnx._internal.torchscript_exporter.registration import registry

    with _symbolic_lock:
        known = _registered[name]
        known.count -= 1
        if known.count:
            return
        del _registered[name]
        for opset in known.opsets:
            unregister_custom_op_symbolic(name, opset)
            if opset in known.overrides:
                register_custom_op_symbolic(name, known.overrides[opset], opset)
        group = registry.get_function_group(name)
        if group is not None and not group._functions:
            del registry._registry[name]  # PyTorch fails over an empty one when it says what is not supported
