"""int8 in the form that TensorRT takes: QuantizeLinear and DequantizeLinear in the graph, all zero points 0.

``quantize`` calibrates a float model with data. The quantizer is ONNX Runtime's; what it is told to do is what TensorRT
wants: inputs of convolutions and matrix products, weights per channel, bias in float, outputs left alone so that
activations are fused. ``SymmetricQuantization`` mends a model that was quantized as ONNX Runtime likes it, where that
changes nothing but names of numbers, and refuses it where it would.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import backends, weights
from onnxbench.drift import DriftReport, TensorDrift, compare_all
from onnxbench.errors import FeedsError, NotFoundError, RefusedResultError, UnsupportedError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.messages import copy_of
from onnxbench.model import Model, load
from onnxbench.operations import Operation
from onnxbench.operations._base import Effect
from onnxbench.opsets import convert_opset
from onnxbench.validity import validate
from onnxbench.wording import plural
from onnxbench.writer import SaveOptions, save

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto, TensorProto

    from onnxbench.draft import Draft

QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose inputs become int8."""
_LEAST_OPSET = 13
"""From here on DequantizeLinear has an axis."""
_LEAST_IR = 7
_LARGE = 1 << 30
_COMPARED = 4
_USELESS = 10.0
"""Signal to noise in dB below which a model is told to be another one."""
_INT32, _UINT8, _INT8 = 6, 2, 3
_LINEAR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A model that was quantized.

    Attributes:
        model: The model.
        quantized: How many nodes take int8 now.
        left: How many of the same kinds stay in float.
        sets: With how many sets of inputs it was calibrated.
        drift: Its outputs against those of the float model, in ONNX Runtime, on the first of these sets that is worst.
    """

    model: Model
    quantized: int
    left: int
    sets: int
    drift: DriftReport

    def sentences(self) -> list[str]:
        """Returns what was done and how far the result is from float, in words."""
        said = [
            f"int8: {plural(self.quantized, 'node')} quantized with {plural(self.sets, 'set')} of inputs"
            + (f", {self.left} left in float" if self.left else "")
        ]
        worst = min(self.drift.tensors, key=_noise_ratio)
        if worst.sqnr_db is None or worst.max_abs is None:
            reason = worst.reason or "it is empty for these inputs"
            return [*said, f"int8 against float in ONNX Runtime: output {worst.name!r} cannot be compared: {reason}"]
        if not worst.max_abs:
            return [*said, "int8 against float in ONNX Runtime: no difference"]
        said.append(
            f"int8 against float in ONNX Runtime: signal to noise {worst.sqnr_db:.1f} dB, largest difference "
            f"{worst.max_abs:.3g} (output {worst.name!r}, the worst)"
        )
        if worst.sqnr_db < _USELESS:
            said.append("that is not the same model any more: calibrate with inputs like those that it will get")
        return said


def quantize(
    model: Model, calibration: FeedOptions, *, operators: Sequence[str] = QUANTIZED, exclude: Sequence[str] = ()
) -> Quantized:
    """Returns a float model with int8 inputs for its convolutions and matrix products.

    Args:
        model: The model; neither it nor its files are changed.
        calibration: Sets of inputs like those that it will get: the ranges of all tensors are taken from them.
        operators: The types of nodes that are quantized.
        exclude: Names of nodes that stay in float.

    Raises:
        FeedsError: The data does not fit, or holds no set.
        NotFoundError: The model has no such node, or none of these operators.
        UnsupportedError: It is quantized already, or its opset cannot be raised to 13.
        ExecutionError: The quantizer or ONNX Runtime fails.
        RefusedResultError: What comes out is no valid model, or has other inputs or outputs.
    """
    _refuse_quantized(model)
    prepared = _prepared(model, exclude)
    count = sum(1 for node in prepared.proto.graph.node if node.op_type in operators)
    if not count:
        raise NotFoundError(f"the model has no {', '.join(operators)} to quantize")
    with tempfile.TemporaryDirectory(prefix="onnxbench-") as name:
        folder = Path(name)
        source, target = folder / "float.onnx", folder / "int8.onnx"
        size = sum(weights.tensor_bytes(tensor) for tensor in weights.tensors(prepared.proto))
        save(prepared, source, options=SaveOptions(external=size > _LARGE))
        sets = _Counted(model, calibration)
        backends.quantize(source, target, sets, operators=operators, exclude=exclude, external=size > _LARGE)
        made = _gathered(load(target))
    validate(made.proto)
    if _ports(made) != _ports(prepared):
        raise RefusedResultError("the quantizer changed the inputs or outputs of the model")
    done = _count(made, operators)
    return Quantized(made, done, count - done, sets.count, _compare(prepared, made, calibration))


def _refuse_quantized(model: Model) -> None:
    for ref in GraphIndex(model.proto).nodes():
        if ref.node.op_type in _LINEAR or ref.node.op_type.startswith("QLinear"):
            raise UnsupportedError(
                f"the model is quantized already ({ref.node.op_type} {ref.node.name or ref.node.output[0]!r})",
                hint="Calibrate the float model that it was made of, or build this one without --int8.",
            )


def _prepared(model: Model, exclude: Sequence[str]) -> Model:
    """Returns a model as the quantizer wants it: opset 13, weights that are no inputs, node names of their own."""
    known = {node.name for node in model.proto.graph.node}
    for name in exclude:
        if name not in known:
            raise NotFoundError(f"the model has no node {name!r}")
    opset = next((each.version for each in model.proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < _LEAST_OPSET:
        model, _ = convert_opset(model, _LEAST_OPSET)
    proto = copy_of(model.proto)
    seen: set[str] = set()
    for at, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{at}_onnxbench"
        seen.add(node.name)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [copy_of(info) for info in proto.graph.input if info.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, _LEAST_IR)
    return model.derive(proto)


class _Counted:
    """Sets of inputs that tell how many they were."""

    def __init__(self, model: Model, calibration: FeedOptions) -> None:
        self._model, self._calibration = model, calibration
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for each in feed_sets(self._model, self._calibration):
            self.count += 1
            yield each.feeds
        if not self.count:
            raise FeedsError("the calibration data holds no set of inputs")


def _gathered(model: Model) -> Model:
    """Returns a model that needs no file of a folder that goes."""
    for tensor in weights.tensors(model.proto):
        if weights.is_outside(tensor):
            where = model.byte_range(tensor)
            assert where is not None
            model.store(tensor, [weights.read_bytes(where)], where.length)
    model.origin = None
    return model


def _ports(model: Model) -> list[str]:
    return [info.name for info in (*model.proto.graph.input, *model.proto.graph.output)]


def _count(model: Model, operators: Sequence[str]) -> int:
    makers = {name: node.op_type for node in model.proto.graph.node for name in node.output}
    return sum(
        1 for node in model.proto.graph.node
        if node.op_type in operators and makers.get(node.input[0]) == "DequantizeLinear"
    )  # fmt: skip


def _compare(before: Model, after: Model, calibration: FeedOptions) -> DriftReport:
    """Returns how the outputs compare, on the worst of the first sets."""
    reports = []
    sessions = [backends.open_session(model, options=backends.Options("basic")) for model in (before, after)]
    for number, each in enumerate(feed_sets(before, calibration)):
        if number == _COMPARED:
            break
        expected, actual = (session.run(each.feeds) for session in sessions)
        reports.append(compare_all(expected, actual))
    for session in sessions:
        session.close()
    return min(reports, key=lambda report: min(map(_noise_ratio, report.tensors)))


def _noise_ratio(drift: TensorDrift) -> float:
    return -math.inf if drift.sqnr_db is None else drift.sqnr_db


# ---------------------------------------------------------------- models that are quantized already


@dataclass(frozen=True)
class SymmetricQuantization(Operation):
    """Bring quantization into the form that TensorRT takes: int8, zero points 0, bias in float.

    An int32 bias behind DequantizeLinear becomes a float one; uint8 with zero point 128 becomes int8 with 0, which is
    the same numbers. Other zero points are refused.
    """

    word: ClassVar[str] = "symmetric_quantization"
    effect: ClassVar[Effect] = "rounding"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the nodes that are to be changed: of an int32 bias, or with uint8."""
        return [ref for ref in draft.index.nodes() if ref.node.op_type in _LINEAR and self._kind(draft, ref)]

    def _kind(self, draft: Draft, ref: NodeRef) -> int | None:
        """Returns ``_INT32`` for the DequantizeLinear of a bias, ``_UINT8`` for what works in uint8, else None."""
        node = ref.node
        if node.op_type == "DequantizeLinear":
            data = _stored(draft, ref.scope, node.input[0])
            if data is not None and data.data_type == _INT32:
                return _INT32
        zero = _stored(draft, ref.scope, node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is not None:
            return _UINT8 if zero.data_type == _UINT8 else None
        if node.op_type == "QuantizeLinear":
            said = next((each.i for each in node.attribute if each.name == "output_dtype"), 0)
            return _UINT8 if len(node.input) < 3 and said in (0, _UINT8) else None
        data = _stored(draft, ref.scope, node.input[0])
        return _UINT8 if data is not None and data.data_type == _UINT8 else None

    def apply(self, draft: Draft) -> None:
        """Changes them."""
        _refuse_others(draft)
        for path in [scope.path for scope in draft.index.scopes]:
            scope = draft.index.scope_paths[path]
            kinds = [
                (at, kind) for at, node in enumerate(scope.nodes)
                if node.op_type in _LINEAR and (kind := self._kind(draft, NodeRef(scope, at)))
            ]  # fmt: skip
            if kinds and scope.is_function:
                raise RefusedResultError(f"quantization in function {path} is left as it is", hint="Inline it first.")
            before = {name for name in scope.constants if name in scope.consumers}
            self._to_int8(draft, scope, [at for at, kind in kinds if kind == _UINT8])
            scope = draft.index.scope_paths[path]
            self._fold_bias(draft, scope, [at for at, kind in kinds if kind == _INT32])
            scope = draft.index.scope_paths[path]
            unread = {
                name for name in before & set(scope.constants)
                if name not in scope.consumers and name not in scope.outputs
            }  # fmt: skip
            if unread:
                draft.remove_initializers(scope, unread)

    def _fold_bias(self, draft: Draft, scope: Scope, positions: list[int]) -> None:
        import numpy as np

        renamed = {}
        for at in positions:
            node = scope.nodes[at]
            if node.output[0] in scope.outputs:
                raise RefusedResultError(f"DequantizeLinear {scope.label(at)!r} of an int32 tensor makes an output")
            values, scale = _array(draft, scope, node.input[0], node), _array(draft, scope, node.input[1], node)
            if len(node.input) > 2 and node.input[2] and _array(draft, scope, node.input[2], node).any():
                raise RefusedResultError(f"DequantizeLinear {scope.label(at)!r}: an int32 zero point that is not 0")
            axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
            if scale.size > 1:
                shape = [1] * values.ndim
                shape[axis if values.ndim > 1 else 0] = -1
                scale = scale.reshape(shape)
            floats = (values.astype(np.float64) * scale.astype(np.float64)).astype(scale.dtype)
            renamed[node.output[0]] = _add(draft, scope, f"{node.output[0]}_float", floats)
            draft.record("node", scope.label(at), "removed", before="DequantizeLinear of an int32 bias")
            draft.forget(scope, node.output)
        if renamed:
            draft.replace_uses(scope, renamed)
            draft.splice(draft.index.scope_paths[scope.path], removed=positions)

    def _to_int8(self, draft: Draft, scope: Scope, positions: list[int]) -> None:
        import numpy as np

        changed = set(positions)
        converted: dict[str, str] = {}
        for at in positions:
            node = scope.nodes[at]
            label = f"{node.op_type} {scope.label(at)!r}"
            zero = _array(draft, scope, node.input[2], node) if len(node.input) > 2 and node.input[2] else None
            if zero is None or not (zero == 128).all():
                found = "0" if zero is None else ", ".join(map(str, np.unique(zero)[:4]))
                raise RefusedResultError(
                    f"{label} has zero point {found} of uint8, and TensorRT takes symmetric int8 alone",
                    hint="Quantize the float model again: build-trt --int8 --calibration DATA.",
                )
            name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
            readers = scope.consumers.get(name, [])
            if name in scope.outputs or any(
                reader not in changed or scope.nodes[reader].op_type != "DequantizeLinear" for reader in readers
            ):
                raise RefusedResultError(f"{label}: {name!r} in uint8 is read by more than DequantizeLinear")
            if node.op_type == "DequantizeLinear" and (maker := scope.producers.get(name, -1)) not in changed:
                if maker >= 0 or _stored(draft, scope, name) is None:
                    raise RefusedResultError(f"{label}: what makes {name!r} in uint8 cannot be changed")
                if name not in converted:
                    values = _array(draft, scope, name, node).astype(np.int16) - 128
                    converted[name] = _add(draft, scope, f"{name}_int8", values.astype(np.int8))
        names = []
        for at in positions:
            node = scope.nodes[at]
            shape = _array(draft, scope, node.input[2], node).shape
            node.input[2] = _add(draft, scope, f"{node.input[2]}_int8", np.zeros(shape, np.int8))
            node.input[0] = converted.get(node.input[0], node.input[0])
            draft.record("node", scope.label(at), "zero point", before="uint8 128", after="int8 0")
            names += [name for name in node.output if node.op_type == "QuantizeLinear"]
        if positions:
            draft.touch()
            draft.forget(draft.index.scope_paths[scope.path], names)
            draft.retype(draft.index.scope_paths[scope.path], names)


def _refuse_others(draft: Draft) -> None:
    """Raises RefusedResultError for what no renumbering can make symmetric."""
    for ref in draft.index.nodes():
        node = ref.node
        if node.op_type.startswith("QLinear"):
            raise RefusedResultError(
                f"{node.op_type} {ref.scope.label(ref.position)!r} computes in integers (QOperator), which TensorRT "
                "does not have",
                hint="Quantize the float model again: build-trt --int8 --calibration DATA.",
            )
        if node.op_type in _LINEAR and len(node.input) > 2 and node.input[2]:
            zero = _stored(draft, ref.scope, node.input[2])
            if zero is not None and zero.data_type == _INT8 and draft.model.array(zero).any():
                raise RefusedResultError(
                    f"{node.op_type} {ref.scope.label(ref.position)!r} has zero points that are not 0, and TensorRT "
                    "takes symmetric int8 alone",
                    hint="Quantize the float model again: build-trt --int8 --calibration DATA.",
                )


def _stored(draft: Draft, scope: Scope, name: str) -> TensorProto | None:
    """Returns the initializer, or the value of the Constant node, that a graph knows by a name."""
    around: Scope | None = scope
    while around is not None:
        maker = around.producers.get(name, -1)
        if maker >= 0:
            node = around.nodes[maker]
            return next((each.t for each in node.attribute if each.name == "value"), None) if (
                node.op_type == "Constant"
            ) else None  # fmt: skip
        if not around.is_function and name in around.constants:
            found = draft.once(_stored, lambda: _by_name(draft))
            return found.get((around.path, name))
        around = around.parent
    return None


def _by_name(draft: Draft) -> dict[tuple[str, str], TensorProto]:
    return {
        (scope.path, tensor.name): tensor
        for scope in draft.index.scopes if not scope.is_function
        for tensor in scope.graph.initializer
    }  # fmt: skip


def _array(draft: Draft, scope: Scope, name: str, node: NodeProto) -> np.ndarray:
    tensor = _stored(draft, scope, name)
    if tensor is None:
        raise RefusedResultError(f"{node.op_type} {node.name or node.output[0]!r}: {name!r} is computed, not stored")
    return draft.model.array(tensor)


def _add(draft: Draft, scope: Scope, base: str, values: np.ndarray) -> str:
    """Adds an initializer to a graph and returns its name."""
    import numpy as np

    from onnxbench.captures import onnx_dtype

    array = np.ascontiguousarray(values).reshape(values.shape)
    name = draft.fresh(scope, base)
    tensor = scope.graph.initializer.add(name=name, data_type=onnx_dtype(array.dtype))
    tensor.dims.extend(array.shape)
    draft.model.store(tensor, [array.astype(array.dtype.newbyteorder("<")).tobytes()], array.nbytes)
    draft.record("weight", name, "added")
    return name


__all__ = ["QUANTIZED", "Quantized", "SymmetricQuantization", "quantize"]
