"""Rules on QuantizeLinear and DequantizeLinear: pairs that are none, places that are not fused, wrong numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxbench.graph import Scope
from onnxbench.lint.facts import STANDARD_DOMAINS, Facts, readable_array
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.tensortype import tensor_shape
from onnxbench.wording import plural

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

checks = Checks("Quantization: QuantizeLinear and DequantizeLinear")

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CARRYING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Pad",
    "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose outputs hold elements of their inputs, integers or not."""
_INTEGER = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_PRODUCTS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Operators that sum up products, and the inputs that have to be int8 for that to be in integers."""
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})
_FLOAT, _INT8, _INT32 = 1, 3, 6
_SMALLEST_NORMAL = 2.0**-126

NO_DEQUANTIZE = Rule(
    code="OB751",
    name="quantize-without-dequantize",
    severity=Severity.WARNING,
    summary="Nothing dequantizes what a QuantizeLinear makes.",
    why="Integers reach operators that take them for numbers: the result is off by the scale and the zero point. "
    "Runtimes look for pairs and leave half of one as it stands, or refuse it.",
    mend="Put a DequantizeLinear with the same scale and zero point behind it, or remove it.",
    example="""
        q = QuantizeLinear (x, s, z)   f = Cast <to = 1> (q)   y = Conv (f, w)
        """,
)
NO_QUANTIZE = Rule(
    code="OB752",
    name="dequantize-without-quantize",
    severity=Severity.WARNING,
    summary="A DequantizeLinear reads what no QuantizeLinear made and no constant is.",
    why="Runtimes fuse pairs, and stored weights. What something else computed (a Cast, arithmetic on integers) has no "
    "scale that they know of, so the operators around it run in float, and TensorRT refuses it.",
    mend="Quantize with QuantizeLinear, or compute in float from the start.",
    example="""
        i = Cast <to = 3> (x)   f = DequantizeLinear (i, s, z)
        """,
    severities={"tensorrt": Severity.ERROR},
)
HALF_QUANTIZED = Rule(
    code="OB753",
    name="half-quantized",
    severity=Severity.WARNING,
    summary="A product reads one input dequantized and the other one in float.",
    why="Such a node runs in float, and the quantization of its other input costs time and accuracy for nothing (a "
    "dequantized weight alone can be meant, since it makes the file smaller: an info).",
    mend="Quantize the other input as well, or let the node read the float tensor.",
    example="""
        f = DequantizeLinear (QuantizeLinear (x, s, z), s, z)   y = MatMul (f, float_weight)
        """,
)
NOT_REQUANTIZED = Rule(
    code="OB754",
    name="not-requantized",
    severity=Severity.INFO,
    summary="A convolution reads int8, and its output is not quantized.",
    why="ONNX Runtime has integer kernels for a Conv between DequantizeLinear and QuantizeLinear only (an activation "
    "may be between); without the latter it dequantizes and computes in float.",
    mend="Quantize for ONNX Runtime: 'onnxbench quantize --target onnxruntime'. TensorRT wants it as it is.",
    example="""
        y = Conv (DequantizeLinear (q, s, z), DequantizeLinear (w, t, u))
        """,
    only_for=("onnxruntime",),
)
RESCALED = Rule(
    code="OB755",
    name="rescaled-pair",
    severity=Severity.WARNING,
    summary="QuantizeLinear and DequantizeLinear of a pair have different scales or zero points.",
    why="The pair multiplies by the quotient of the scales, which is hardly ever meant: a scale was edited in one "
    "place, or two pairs were mixed up. No runtime fuses it.",
    mend="Give both the same scale and zero point.",
    example="""
        q = QuantizeLinear (x, s, z)   f = DequantizeLinear (q, other, z)
        """,
)
INT32_BIAS = Rule(
    code="OB756",
    name="int32-bias",
    severity=Severity.ERROR,
    summary="A bias is stored in int32 and dequantized.",
    why="ONNX Runtime's quantizer writes it so. TensorRT has no int32 for DequantizeLinear and refuses the model.",
    mend="Store it in float: 'onnxbench edit --apply symmetric_quantization', or 'onnxbench quantize' from the float "
    "model.",
    example="""
        b = DequantizeLinear (bias_int32, s, z)   y = Conv (f, g, b)
        """,
    only_for=("tensorrt",),
)
ASYMMETRIC = Rule(
    code="OB757",
    name="asymmetric-quantization",
    severity=Severity.ERROR,
    summary="A zero point is not 0, or is uint8.",
    why="TensorRT quantizes symmetrically to int8 and refuses any other zero point.",
    mend="'onnxbench edit --apply symmetric_quantization' where that changes no number; else quantize again from the "
    "float model with 'onnxbench quantize'.",
    example="""
        <uint8 z = {114}>   q = QuantizeLinear (x, s, z)
        """,
    only_for=("tensorrt",),
)
BAD_SCALE = Rule(
    code="OB758",
    name="bad-scale",
    severity=Severity.ERROR,
    summary="A scale is zero, negative, not finite or subnormal.",
    why="With 0 or infinity all values become NaN or one number, with a negative scale their order turns round and "
    "runtimes differ. A subnormal scale (a warning) is 0 where a runtime or device flushes such numbers, and comes "
    "from a tensor that was all zeros in the calibration.",
    mend="Calibrate with data that reaches this tensor, or leave what reads it in float.",
    example="""
        <float s = {0}>   q = QuantizeLinear (x, s, z)
        """,
)
WRONG_AXIS = Rule(
    code="OB759",
    name="quantization-axis",
    severity=Severity.ERROR,
    summary="The axis of a quantization does not fit.",
    why="There has to be one scale for each element along the axis, and the axis has to exist. Along an axis that a "
    "product sums over (a warning), scales cannot be taken out of the sum, so no integer kernel computes it: "
    "runtimes fall back to float, TensorRT refuses.",
    mend="Quantize weights along their output channels: axis 0 of Conv, 1 of ConvTranspose, the last of MatMul.",
    example="""
        <float[3] s = {1, 1, 1}>   f = DequantizeLinear <axis = 0> (w_of_shape_8_3_3_3, s, z)
        """,
)


@checks(NO_DEQUANTIZE, NO_QUANTIZE, RESCALED)
def _pairs(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope, position, node in _linear_nodes(facts):
        if node.op_type == _QUANTIZE:
            if not _is_dequantized(scope, node.output[0]):
                message = f"nothing dequantizes {node.output[0]!r}"
                yield facts.find(NO_DEQUANTIZE, message, scope=scope, position=position, tensor=node.output[0])
            continue
        maker = _origin(facts, scope, node.input[0])
        if maker is not None and maker.op_type != _QUANTIZE:
            message = f"{node.input[0]!r} comes from {maker.op_type}, and not from QuantizeLinear"
            yield facts.find(NO_QUANTIZE, message, scope=scope, position=position, tensor=node.input[0])
        elif maker is not None:
            direct = scope.producers.get(node.input[0])
            if direct is not None and scope.nodes[direct] is maker and _differ(facts, scope, maker, node):
                message = f"{node.input[0]!r} is dequantized with other numbers than it was quantized with"
                yield facts.find(RESCALED, message, scope=scope, position=position, tensor=node.input[0])


@checks(HALF_QUANTIZED, NOT_REQUANTIZED)
def _places(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            slots = _PRODUCTS.get(node.op_type, ())
            if not slots or node.domain not in STANDARD_DOMAINS or len(node.input) < len(slots):
                continue
            quantized = [_maker_of_type(scope, node.input[slot], _DEQUANTIZE) is not None for slot in slots]
            if all(quantized):
                if node.op_type == "Conv" and not _is_requantized(scope, node.output[0]):
                    message = f"the output {node.output[0]!r} is not quantized"
                    yield facts.find(NOT_REQUANTIZED, message, scope=scope, position=position, tensor=node.output[0])
            elif any(quantized):
                one, other = slots if quantized[0] else reversed(slots)
                message = f"{node.input[one]!r} is dequantized, and {node.input[other]!r} is in float"
                maker = _maker_of_type(scope, node.input[one], _DEQUANTIZE)
                is_weight = maker is not None and facts.constant(scope, maker.input[0]) is not None
                severity = Severity.INFO if is_weight else None
                yield facts.find(
                    HALF_QUANTIZED, message, scope=scope, position=position, tensor=node.input[other], severity=severity
                )


@checks(INT32_BIAS, ASYMMETRIC)
def _tensorrt_form(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope, position, node in _linear_nodes(facts):
        if node.op_type == _DEQUANTIZE:
            stored = facts.constant(scope, node.input[0])
            if stored is not None and stored.data_type == _INT32:
                message = f"{node.input[0]!r} is dequantized from int32"
                yield facts.find(INT32_BIAS, message, scope=scope, position=position, tensor=node.input[0])
                continue
        zero = facts.constant(scope, node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) < 3 or not node.input[2]:
            kind = next((each.i for each in node.attribute if each.name == "output_dtype"), 0)
            if node.op_type == _QUANTIZE and kind in (0, 2):
                message = "without a zero point, it quantizes to uint8"
                yield facts.find(ASYMMETRIC, message, scope=scope, position=position, tensor=node.output[0])
        elif zero is not None and zero.data_type == 2:
            message = f"the zero point {node.input[2]!r} is uint8"
            yield facts.find(ASYMMETRIC, message, scope=scope, position=position, tensor=node.input[2])
        else:
            values = _values(facts, scope, node.input[2])
            if values is not None and zero is not None and zero.data_type == _INT8 and values.any():
                worst = int(values.ravel()[abs(values.astype("int64")).argmax()])
                message = f"the zero point {node.input[2]!r} is {worst}"
                yield facts.find(ASYMMETRIC, message, scope=scope, position=position, tensor=node.input[2])


@checks(BAD_SCALE)
def _scales(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope, position, node in _linear_nodes(facts):
        if node.op_type == _DEQUANTIZE and _maker_of_type(scope, node.input[0], _QUANTIZE) is not None:
            continue  # told of at its QuantizeLinear
        values = _values(facts, scope, node.input[1]) if len(node.input) > 1 else None
        if values is None:
            continue
        for number in (float(value) for value in values.astype("float64").ravel()):
            if (
                number > 0
                and math.isfinite(number)
                and not (_is_single(facts, scope, node) and number < _SMALLEST_NORMAL)
            ):
                continue
            is_subnormal = 0 < number < _SMALLEST_NORMAL
            message = f"the scale {node.input[1]!r} has {number:g}" + (", which is subnormal" if is_subnormal else "")
            severity = Severity.WARNING if is_subnormal else None
            yield facts.find(
                BAD_SCALE, message, scope=scope, position=position, tensor=node.input[1], severity=severity
            )
            break


@checks(WRONG_AXIS)
def _axes(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope, position, node in _linear_nodes(facts):
        scale = _dims(facts, scope, node.input[1]) if len(node.input) > 1 else None
        if scale is None or len(scale) != 1 or scale == (1,) or _attribute(node, "block_size", 0):
            continue  # one scale for all, or blocks, which the onnx checker judges
        dims = _dims(facts, scope, node.input[0])
        if dims is None:
            continue
        axis = _attribute(node, "axis", 1)
        if not -len(dims) <= axis < len(dims):
            message = f"axis {axis} is none of {node.input[0]!r}, which has rank {len(dims)}"
            yield facts.find(WRONG_AXIS, message, scope=scope, position=position, tensor=node.input[0])
            continue
        size = dims[axis]
        if isinstance(size, int) and isinstance(scale[0], int) and size != scale[0]:
            message = f"{plural(scale[0], 'scale')} for axis {axis} of {node.input[0]!r}, which has size {size}"
            yield facts.find(WRONG_AXIS, message, scope=scope, position=position, tensor=node.input[1])
            continue
        summed = _summing_reader(scope, node, axis % len(dims), len(dims))
        if summed is not None:
            message = f"the axis {axis} of {node.input[0]!r} has a scale each, and {summed} sums over it"
            yield facts.find(
                WRONG_AXIS, message, scope=scope, position=position, tensor=node.input[1], severity=Severity.WARNING
            )


def _linear_nodes(facts: Facts) -> Iterator[tuple[Scope, int, NodeProto]]:
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            if node.op_type in (_QUANTIZE, _DEQUANTIZE) and node.input and node.output:
                yield scope, position, node


def _maker_of_type(scope: Scope, name: str, op_type: str) -> NodeProto | None:
    at = scope.producers.get(name)
    return scope.nodes[at] if at is not None and scope.nodes[at].op_type == op_type else None


def _takes_integers(node: NodeProto) -> bool:
    return node.op_type in _INTEGER or node.op_type.startswith("QLinear") or node.domain not in STANDARD_DOMAINS


def _is_dequantized(scope: Scope, name: str) -> bool:
    """Tells whether integers reach what is made for them, through operators that carry them on; or leave the graph."""
    pending, seen = [name], {name}
    while pending:
        current = pending.pop()
        if current in scope.outputs:
            return True
        for at in scope.consumers.get(current, ()):
            node = scope.nodes[at]
            if node.op_type == _DEQUANTIZE or _takes_integers(node) or at in scope.bodies:
                return True
            if node.op_type in _CARRYING:
                pending += [output for output in node.output if output and output not in seen]
                seen.update(node.output)
    return False


def _origin(facts: Facts, scope: Scope, name: str) -> NodeProto | None:
    """Returns the node that integers come from, back through what carries them on; None for what needs none."""
    for _ in range(len(scope.nodes) + 1):
        at = scope.producers.get(name)
        if at is None or facts.constant(scope, name) is not None:
            return None
        node = scope.nodes[at]
        if node.op_type not in _CARRYING or not node.input:
            is_none = at in scope.bodies or (_takes_integers(node) and node.op_type != _QUANTIZE)
            return None if is_none else node
        name = node.input[0]
    return None


def _differ(facts: Facts, scope: Scope, one: NodeProto, other: NodeProto) -> bool:
    """Tells whether two nodes have different scales or zero points, as far as that is known."""
    for slot in (1, 2):
        names = [node.input[slot] if len(node.input) > slot else "" for node in (one, other)]
        if names[0] == names[1]:
            continue
        values = [_values(facts, scope, name) if name else None for name in names]
        if all(value is not None for value in values):
            first, second = (value for value in values if value is not None)
            if first.shape != second.shape or (first != second).any():
                return True
    return False


def _is_requantized(scope: Scope, name: str) -> bool:
    for at in scope.consumers.get(name, ()):
        node = scope.nodes[at]
        if node.op_type == _QUANTIZE:
            return True
        if node.op_type in _ACTIVATIONS and _is_quantized(scope, node.output[0]):
            return True
    return False


def _is_quantized(scope: Scope, name: str) -> bool:
    return any(scope.nodes[at].op_type == _QUANTIZE for at in scope.consumers.get(name, ()))


def _summing_reader(scope: Scope, node: NodeProto, axis: int, rank: int) -> str | None:
    """Returns what sums over an axis of a dequantized weight: the operator of a product that reads it."""
    if node.op_type != _DEQUANTIZE:
        return None
    for at in scope.consumers.get(node.output[0], ()):
        reader = scope.nodes[at]
        if len(reader.input) < 2 or reader.input[1] != node.output[0]:
            continue
        kept = {
            "Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1, "Gemm": 0 if _attribute(reader, "transB", 0) else 1,
        }.get(reader.op_type)  # fmt: skip
        if kept is not None and axis != kept and reader.domain in STANDARD_DOMAINS:
            return reader.op_type
    return None


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _is_single(facts: Facts, scope: Scope, node: NodeProto) -> bool:
    """Tells whether a scale is float32: the smallest normal number is that of this type."""
    scale = facts.constant(scope, node.input[1])
    return scale is not None and scale.data_type == _FLOAT


def _values(facts: Facts, scope: Scope, name: str) -> np.ndarray | None:
    """Returns the numbers of a small constant, or None."""
    tensor = facts.constant(scope, name)
    if tensor is None:
        return None
    data = facts.small_data(tensor)
    if data is not None:
        tensor = type(tensor)(data_type=tensor.data_type, dims=tensor.dims, raw_data=data)
    return readable_array(tensor)


def _dims(facts: Facts, scope: Scope, name: str) -> tuple[int | str | None, ...] | None:
    tensor = facts.constant(scope, name)
    if tensor is not None:
        return tuple(tensor.dims)
    kind = facts.types(scope).get(name)
    shape = tensor_shape(kind) if kind is not None else None
    return tuple(shape) if shape is not None else None
