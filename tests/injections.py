"""Faults put into models, by a seed: the truth is known to the test, and not to what is tested.

Each fault changes what one node computes (or puts a few nodes behind it) and keeps the names of all tensors, so that
the truth is a set of tensors: those whose own value the fault makes wrong. A fault that changes nothing on the inputs
at hand (a dead channel, a saturated sigmoid) is no fault, and another place is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

VISIBLE = 2e-5
"""A fault has to move its tensor by so much, relatively; rounding does by 1e-7."""


@dataclass(frozen=True)
class Injected:
    """A model with a fault.

    Attributes:
        model: The model.
        truths: For each fault, the tensors that name it: of the changed node, or of those that were put in.
        words: What was done.
    """

    model: onnx.ModelProto
    truths: tuple[frozenset[str], ...]
    words: tuple[str, ...]


Fault = Callable[[onnx.ModelProto, int, np.random.Generator], "frozenset[str] | None"]


def _stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _readers(model: onnx.ModelProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _weight(model: onnx.ModelProto, node: onnx.NodeProto, least: int = 4) -> onnx.TensorProto | None:
    stored, readers = _stored(model), _readers(model)
    for name in list(node.input)[::-1]:
        tensor = stored.get(name)
        fits = tensor is not None and tensor.data_type == TensorProto.FLOAT and readers[name] == 1
        if tensor is not None and fits and np.prod(tensor.dims, dtype=int) >= least:
            return tensor
    return None


def _set(tensor: onnx.TensorProto, values: Any) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _behind(model: onnx.ModelProto, at: int, make: Callable[[str, str], list[onnx.NodeProto]]) -> frozenset[str]:
    """Puts nodes behind one, which take its output's name over."""
    node = model.graph.node[at]
    name = node.output[0]
    raw = f"{name}__raw"
    node.output[0] = raw
    added = make(raw, name)
    rest = list(model.graph.node)[at + 1 :]
    del model.graph.node[at + 1 :]
    model.graph.node.extend([*added, *rest])
    return frozenset(out for new in added for out in new.output)


def perturbed_weight(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    tensor = _weight(model, node) if node.op_type in ("Conv", "MatMul", "Gemm", "Mul", "Add", "ConvTranspose") else None
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor)
    _set(tensor, (values * (1 + 10.0 ** rng.uniform(-3, -1) * rng.standard_normal(values.shape))).astype(values.dtype))
    return frozenset(node.output)


def one_weight(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    tensor = _weight(model, node) if node.op_type in ("Conv", "MatMul", "Gemm") else None
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    spot = int(rng.integers(flat.size))
    flat[spot] += 0.5 * (float(np.abs(flat).max()) or 1.0)
    _set(tensor, values)
    return frozenset(node.output)


_SWAPS = {"Sigmoid": "HardSigmoid", "Tanh": "Softsign", "Erf": "Tanh", "Relu": "LeakyRelu", "Softplus": "Relu"}


def swapped_operator(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type == "Gelu":
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("approximate", "tanh"))
        return frozenset(node.output)
    if node.op_type not in _SWAPS or node.domain:
        return None
    node.op_type = _SWAPS[node.op_type]
    del node.attribute[:]
    return frozenset(node.output)


def gelu_by_tanh(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    """erf(x) as tanh makes it: tanh(1.1283792 x + 0.1009110 x^3), which is what Gelu's approximation comes to."""
    node = model.graph.node[at]
    if node.op_type != "Erf":
        return None
    x, y = node.input[0], node.output[0]
    names = [f"{y}__{i}" for i in range(4)]
    values = {f"{y}__a": 1.1283792, f"{y}__b": 0.1009110}
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    a, b = values
    new = [
        helper.make_node("Mul", [x, x], [names[0]]),
        helper.make_node("Mul", [names[0], b], [names[1]]),
        helper.make_node("Add", [names[1], a], [names[2]]),
        helper.make_node("Mul", [names[2], x], [names[3]]),
        helper.make_node("Tanh", [names[3]], [y]),
    ]
    rest = list(model.graph.node)[at + 1 :]
    del model.graph.node[at:]
    model.graph.node.extend([*new, *rest])
    return frozenset([y, *names])


def wrong_epsilon(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type in ("LayerNormalization", "BatchNormalization", "InstanceNormalization"):
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = 1e-2
                return frozenset(node.output)
        node.attribute.append(helper.make_attribute("epsilon", 1e-2))
        return frozenset(node.output)
    if node.op_type == "Add":
        tensor = next((t for name, t in _stored(model).items() if name in node.input and not any(t.dims)), None)
        if tensor is not None and tensor.data_type == TensorProto.FLOAT and _readers(model)[tensor.name] == 1:
            value = float(numpy_helper.to_array(tensor))
            if 0 < value < 1e-3:
                _set(tensor, np.array(value * 1000, np.float32))
                return frozenset(node.output)
    return None


def swapped_axes(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type == "Transpose":
        for attribute in node.attribute:
            if attribute.name == "perm" and len(attribute.ints) > 2:
                i, j = rng.choice(len(attribute.ints), 2, replace=False)
                attribute.ints[i], attribute.ints[j] = attribute.ints[j], attribute.ints[i]
                return frozenset(node.output)
    if node.op_type == "Concat" and len(node.input) > 1:
        node.input[0], node.input[-1] = node.input[-1], node.input[0]
        return frozenset(node.output)
    if node.op_type in ("Sub", "Div") and node.input[0] != node.input[1]:
        node.input[0], node.input[1] = node.input[1], node.input[0]
        return frozenset(node.output)
    if node.op_type == "Softmax":
        axis = next((a for a in node.attribute if a.name == "axis"), None)
        if axis is not None:
            axis.i = -2 if axis.i in (-1, 2, 3) else -1
            return frozenset(node.output)
    return None


def truncated_constant(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type == "Constant":
        tensor = next((a.t for a in node.attribute if a.name == "value"), None)
    elif node.op_type in ("Mul", "Add", "Div", "Pow", "Sub", "BatchNormalization"):
        tensor = _weight(model, node, least=1)
    else:
        return None
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    scale = 10.0 ** np.floor(np.log10(np.maximum(np.abs(values), 1e-30)))
    rounded = (np.trunc(values / scale * 10) / 10 * scale).astype(np.float32)
    name = tensor.name
    _set(tensor, rounded)
    tensor.name = name
    return frozenset(node.output)


def half_overflow(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type not in ("Conv", "MatMul", "Gemm", "Add", "Mul"):
        return None
    name = node.output[0]
    for suffix, value in (("__up", 65504.0), ("__down", 1 / 65504.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name + suffix))

    def make(raw: str, out: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Mul", [raw, f"{name}__up"], [f"{name}__large"]),
            helper.make_node("Cast", [f"{name}__large"], [f"{name}__half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [f"{name}__half"], [f"{name}__back"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}__back", f"{name}__down"], [out]),
        ]

    return _behind(model, at, make)


def bad_cast(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type not in ("Conv", "MatMul", "Gemm", "Add", "Mul", "Relu", "Softmax", "Sigmoid"):
        return None
    name = node.output[0]
    return _behind(
        model,
        at,
        lambda raw, out: [
            helper.make_node("Cast", [raw], [f"{name}__half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [f"{name}__half"], [out], to=TensorProto.FLOAT),
        ],
    )


def shifted_pad(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type not in ("Conv", "MaxPool", "AveragePool", "ConvTranspose"):
        return None
    for attribute in node.attribute:
        if attribute.name == "pads" and attribute.ints[0] > 0:
            half = len(attribute.ints) // 2
            attribute.ints[0] -= 1
            attribute.ints[half] += 1
            return frozenset(node.output)
    return None


def wrong_resize(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type != "Resize":
        return None
    for attribute in node.attribute:
        if attribute.name == "coordinate_transformation_mode":
            attribute.s = b"asymmetric" if attribute.s != b"asymmetric" else b"half_pixel"
            return frozenset(node.output)
    return None


def nan_branch(model: onnx.ModelProto, at: int, rng: np.random.Generator) -> frozenset[str] | None:
    node = model.graph.node[at]
    if node.op_type not in ("Conv", "MatMul", "Gemm", "Add", "Mul", "Relu", "Transpose"):
        return None
    name = node.output[0]
    return _behind(
        model,
        at,
        lambda raw, out: [
            helper.make_node("Sqrt", [raw], [f"{name}__root"]),
            helper.make_node("Mul", [f"{name}__root", f"{name}__root"], [out]),
        ],
    )


FAULTS: dict[str, Fault] = {
    "perturbed weight": perturbed_weight, "one weight": one_weight, "swapped operator": swapped_operator,
    "gelu by tanh": gelu_by_tanh, "wrong epsilon": wrong_epsilon, "swapped axes": swapped_axes,
    "truncated constant": truncated_constant, "half overflow": half_overflow, "bad cast": bad_cast,
    "shifted pad": shifted_pad, "wrong resize": wrong_resize, "nan branch": nan_branch,
}  # fmt: skip


def tensor_of(model: onnx.ModelProto, feeds: Mapping[str, Any], name: str) -> Any:
    """Returns a tensor of the main graph by a run of ONNX Runtime on a copy of the model that gives it out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.add(name=name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([name], dict(feeds))[0]


def shows(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Any], name: str) -> bool:
    """Tells whether a fault changes its tensor on these inputs: by more than rounding, and not its shape."""
    try:
        one, other = tensor_of(before, feeds, name), tensor_of(after, feeds, name)
        tensor_of(after, feeds, after.graph.output[0].name)
    except Exception:  # whatever the runtime makes of a model that does not run: another place is drawn
        return False
    if one.shape != other.shape or one.dtype != other.dtype or one.dtype.kind != "f":
        return False
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return bool(np.isfinite(one).all())
    size = float(np.linalg.norm(one.astype(np.float64)))
    return bool(np.linalg.norm(other.astype(np.float64) - one) > VISIBLE * size > 0)


def _positions(model: onnx.ModelProto, rng: np.random.Generator) -> Iterator[int]:
    yield from (int(at) for at in rng.permutation(len(model.graph.node)))


def inject(
    model: onnx.ModelProto, kinds: tuple[str, ...], feeds: Mapping[str, Any], seed: int, tries: int = 40
) -> Injected | None:
    """Returns a model with these faults, each at a place drawn from the seed; None where there is no place for one."""
    rng = np.random.default_rng(seed)
    current = onnx.ModelProto()
    current.CopyFrom(model)
    known = {name for node in model.graph.node for name in node.output}
    truths: list[frozenset[str]] = []
    words: list[str] = []
    for kind in kinds:
        left = tries
        for at in _positions(current, rng):
            candidate = onnx.ModelProto()
            candidate.CopyFrom(current)
            original = list(candidate.graph.node[at].output)
            if not known.issuperset(original):
                continue  # a node that another fault put in, or put nodes behind: both would be one place
            truth = FAULTS[kind](candidate, at, rng)
            if truth is None or any(truth & other for other in truths):
                continue
            left -= 1
            if shows(current, candidate, feeds, original[0]):
                words.append(f"{kind} at {current.graph.node[at].op_type} {original[0]}")
                truths.append(truth)
                current = candidate
                break
            if not left:
                return None
        else:
            return None
    return Injected(current, tuple(truths), tuple(words))
