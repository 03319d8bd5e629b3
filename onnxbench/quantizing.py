"""int8 in the form that TensorRT takes: QuantizeLinear and DequantizeLinear in the graph, all zero points 0.

``quantize`` calibrates a float model with data. The quantizer is ONNX Runtime's; what it is told to do is what TensorRT
wants: inputs of convolutions and matrix products, weights per channel, bias in float, outputs left alone so that
activations are fused. A model that was quantized as ONNX Runtime likes it is mended by the operation
``symmetric_quantization``, where that changes no number.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxbench import backends, weights
from onnxbench.drift import DriftReport, TensorDrift, compare_all
from onnxbench.errors import FeedsError, NotFoundError, RefusedResultError, UnsupportedError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import GraphIndex
from onnxbench.messages import copy_of
from onnxbench.model import Model, load
from onnxbench.opsets import convert_opset
from onnxbench.validity import validate
from onnxbench.wording import plural
from onnxbench.writer import SaveOptions, save

QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose inputs become int8."""
_LEAST_OPSET = 13
"""From here on DequantizeLinear has an axis."""
_LEAST_IR = 7
_LARGE = 1 << 30
_COMPARED = 4
_USELESS = 10.0
"""Signal to noise in dB below which a model is told to be another one."""
_LINEAR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A model that was quantized.

    Attributes:
        model: The model.
        quantized: How many nodes take int8 now.
        left: How many of the same kinds stay in float.
        sets: With how many sets of inputs it was calibrated.
        digest: The sha256 of these inputs.
        drift: Its outputs against those of the float model, in ONNX Runtime, on the first of these sets that is worst.
    """

    model: Model
    quantized: int
    left: int
    sets: int
    digest: str
    drift: DriftReport

    def to_record(self) -> dict[str, Any]:
        """Returns what the record of an engine says of the calibration, as plain values."""
        worst = min(self.drift.tensors, key=_noise_ratio)
        return {
            "sets": self.sets, "sha256": self.digest, "quantized": self.quantized, "left": self.left,
            "worst": {"output": worst.name, "sqnr_db": worst.sqnr_db, "max_abs": worst.max_abs},
        }  # fmt: skip

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
    return Quantized(made, done, count - done, sets.count, sets.digest, _compare(prepared, made, calibration))


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
    """Sets of inputs that tell how many they were, and the digest of all."""

    def __init__(self, model: Model, calibration: FeedOptions) -> None:
        self._model, self._calibration = model, calibration
        self.count, self.digest = 0, ""

    def __iter__(self) -> Iterator[Any]:
        import numpy as np

        self.count, digest = 0, hashlib.sha256()
        for each in feed_sets(self._model, self._calibration):
            self.count += 1
            for name in sorted(each.feeds):
                value = np.ascontiguousarray(each.feeds[name])
                digest.update(f"{name} {value.dtype} {value.shape}\0".encode())
                digest.update(value.tobytes())
            yield each.feeds
        if not self.count:
            raise FeedsError("the calibration data holds no set of inputs")
        self.digest = digest.hexdigest()


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
