"""int8 by calibration: QuantizeLinear and DequantizeLinear in the graph, ranges taken from data.

The quantizer is ONNX Runtime's. For TensorRT it is told what that wants: inputs of convolutions and matrix products,
all zero points 0, weights per channel, bias in float, outputs left alone so that activations are fused. For ONNX
Runtime it does what it does by itself: activations in uint8 with zero points, outputs quantized too, bias in int32.

``calibrate`` yields the model beside the float one that it was made of; ``onnxbench.int8`` measures the two and looks
for what to leave in float. ``quantize`` is what an engine is built from. A model that was quantized as ONNX Runtime
likes it is mended by the operation ``symmetric_quantization``, where that changes no number.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from onnxbench import backends, weights
from onnxbench.captures import Value, input_ports
from onnxbench.draft import Draft
from onnxbench.drift import DriftReport, TensorDrift, compare_all
from onnxbench.errors import (
    FeedsError,
    MissingDependencyError,
    NotFoundError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.messages import copy_of
from onnxbench.model import Model, load
from onnxbench.operations import store_constants
from onnxbench.opsets import convert_opset
from onnxbench.ranges import fit_ranges
from onnxbench.samples import Samples, gather
from onnxbench.tensortype import dtype_name
from onnxbench.validity import validate
from onnxbench.wording import plural
from onnxbench.writer import SaveOptions, save

Target = Literal["tensorrt", "onnxruntime"]
Ranges = Literal["minmax", "entropy", "percentile"]
Way = Literal["mse", "minmax", "entropy", "percentile"]
Method = Literal["auto", "mse", "minmax", "entropy", "percentile"]
Quantizer = Literal["onnxruntime", "modelopt"]

QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose inputs become int8."""
_LEAST_OPSET = 13
"""From here on DequantizeLinear has an axis."""
_LEAST_IR = 7
_FLOATS = ("float32", "float16")
_LARGE = 1 << 30
_COMPARED = 4
_JUDGED = 32
"""So many sets of inputs, the first ones, decide between ways of taking ranges."""
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
        doubts: What is wrong with these inputs, in words.
    """

    model: Model
    quantized: int
    left: int
    sets: int
    digest: str
    drift: DriftReport
    doubts: tuple[str, ...] = ()

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
            + (f", {self.left} left in float" if self.left else ""),
            *self.doubts,
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


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A model that was quantized, beside the one in float that it was made of.

    Attributes:
        model: The quantized model. Nodes have names of their own.
        prepared: The float one: opset 13 at least, no weights among the inputs, nodes with the same names.
        names: What nodes were called that were given a name, by the name that they were given.
        operators: The types of nodes that were quantized.
        sets: With how many sets of inputs it was calibrated.
        digest: The sha256 of these inputs.
        method: How ranges were taken.
        tried: Where methods were compared, the signal to noise that each leaves, in dB (see ``calibrate``).
        one_valued: Inputs that were one number throughout these sets, which is no data, with that number.
    """

    model: Model
    prepared: Model
    names: dict[str, str]
    operators: tuple[str, ...]
    sets: int
    digest: str
    method: str
    tried: dict[str, float]
    one_valued: dict[str, str]

    @property
    def doubts(self) -> list[str]:
        """What is wrong with the data that ranges were taken from, in words."""
        return [
            f"input {name!r} is {value} in all calibration data: ranges taken from that say nothing of real inputs"
            for name, value in self.one_valued.items()
        ]


def quantize(
    model: Model, calibration: FeedOptions, *, operators: Sequence[str] = QUANTIZED, exclude: Sequence[str] = ()
) -> Quantized:
    """Returns a float model with int8 inputs for its convolutions and matrix products, as TensorRT takes it.

    Args:
        model: The model; neither it nor its files are changed.
        calibration: Sets of inputs like those that it will get: the ranges of all tensors are taken from them.
        operators: The types of nodes that are quantized.
        exclude: Names of nodes that stay in float.

    Raises:
        BenchError: As for ``calibrate``.
    """
    known = {node.name for node in model.proto.graph.node}
    for name in exclude:
        if name not in known:
            raise NotFoundError(f"the model has no node {name!r}")
    made = calibrate(model, calibration, operators=operators, exclude=exclude)
    done, count = _count(made.model, operators), _of_type(made.prepared, operators)
    restore_names(made.model, made)
    drift = _compare(made.prepared, made.model, calibration)
    return Quantized(made.model, done, count - done, made.sets, made.digest, drift, tuple(made.doubts))


def calibrate(
    model: Model,
    calibration: FeedOptions | Sequence[Mapping[str, Value]],
    *,
    target: Target = "tensorrt",
    quantizer: Quantizer = "onnxruntime",
    method: Method = "auto",
    percentile: float | None = None,
    per_channel: bool = True,
    operators: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Calibrated:
    """Returns a float model with QuantizeLinear and DequantizeLinear around its operators.

    Args:
        model: The model; neither it nor its files are changed.
        calibration: Sets of inputs like those that it will get: the ranges of all tensors are taken from them.
        target: What will run it, and so the form that it has.
        quantizer: What inserts the nodes: ONNX Runtime's quantizer, or NVIDIA's modelopt, which is for TensorRT.
        method: How a range is taken from values: what leaves the smallest squared error (``mse``, for zero points 0),
            all of them, the one that loses least information, or a percentile. ``auto`` tries those that need no
            number, and takes the one with the highest signal to noise at the output where that is lowest.
        percentile: The share of values within the range, in percent, for ``method="percentile"``.
        per_channel: Whether weights have a scale for each channel.
        operators: The types of nodes that are quantized; None: ``QUANTIZED``, or all that ONNX Runtime takes.
        exclude: Names of nodes that stay in float.

    Raises:
        UsageError: There is no such target, quantizer or method, they do not go together, or the percentile is none.
        MissingDependencyError: modelopt is not installed.
        FeedsError: The data does not fit, holds no set, or NaN.
        NotFoundError: The model has none of these operators.
        UnsupportedError: It is quantized already, or its opset cannot be raised to 13.
        ExecutionError: The quantizer or ONNX Runtime fails.
        RefusedResultError: What comes out is no valid model, or has other inputs or outputs.
    """
    _require_word(target, get_args(Target), "target")
    _require_word(method, get_args(Method), "method")
    _require_word(quantizer, get_args(Quantizer), "quantizer")
    methods = _methods(method, target, quantizer)
    if quantizer == "modelopt":
        for each in methods:
            _require_modelopt(target, each, per_channel=per_channel)
    if percentile is not None and (method != "percentile" or not 50 < percentile <= 100):
        raise UsageError(
            f"a percentile of {percentile:g} means nothing here",
            hint="It is for the method percentile, above 50 and up to 100: 99.99.",
        )
    _refuse_quantized(model)
    wanted = tuple(operators or (QUANTIZED if target == "tensorrt" else backends.quantizable_operators()))
    prepared, names = _prepared(model, wanted)
    if not _of_type(prepared, wanted):
        raise NotFoundError(f"the model has no {', '.join(wanted)} to quantize")
    with tempfile.TemporaryDirectory(prefix="onnxbench-") as name:
        folder = Path(name)
        source, file = folder / "float.onnx", folder / "int8.onnx"
        size = sum(weights.tensor_bytes(tensor) for tensor in weights.tensors(prepared.proto))
        save(prepared, source, options=SaveOptions(external=size > _LARGE))
        samples, _ = gather(model, calibration)
        one_valued = _one_valued(samples, model)
        made: dict[str, Model] = {}
        for each in methods:
            ranges: Ranges = "minmax" if each == "mse" else each
            if each == "mse" and "minmax" in made:
                made[each] = made["minmax"].derive(copy_of(made["minmax"].proto))
            elif quantizer == "modelopt":
                backends.quantize_by_modelopt(
                    source, file, samples, operators=wanted, exclude=exclude, external=size > _LARGE, method=ranges,
                )  # fmt: skip
            else:
                backends.quantize(
                    source, file, samples, operators=wanted, exclude=exclude, external=size > _LARGE, form=target,
                    method=ranges, percentile=percentile, per_channel=per_channel,
                )  # fmt: skip
            made.setdefault(each, _gathered(load(file)))
            if each == "mse":
                fit_ranges(made[each], prepared, samples)
    for quantized in made.values():
        _restore_heads(quantized, prepared)
        _drop_orphans(quantized, model)
        validate(quantized.proto)
        if _ports(quantized) != _ports(prepared):
            raise RefusedResultError("the quantizer changed the inputs or outputs of the model")
    tried = _signal_to_noise(prepared, made, samples) if len(made) > 1 else {}
    best = max(made, key=lambda each: tried.get(each, 0.0))
    return Calibrated(made[best], prepared, names, wanted, len(samples), _digest(samples), best, tried,
                      one_valued)  # fmt: skip


def _methods(method: Method, target: Target, quantizer: Quantizer) -> list[Way]:
    """Returns how ranges are taken: by one method, or for ``auto`` by those that are compared.

    Raises:
        UsageError: ``mse`` is asked for where zero points need not be 0, or scales are another quantizer's.
    """
    fits = (target, quantizer) == ("tensorrt", "onnxruntime")
    if method == "auto":
        return ["minmax", "mse", "entropy"] if fits else ["minmax", "entropy"]
    if method == "mse" and not fits:
        raise UsageError(
            "the method mse is for the target tensorrt and ONNX Runtime's quantizer",
            hint="Leave it out, or say minmax, entropy or percentile.",
        )
    return [method]


def _signal_to_noise(
    reference: Model, made: Mapping[str, Model], samples: Sequence[Mapping[str, Value]]
) -> dict[str, float]:
    """Returns the lowest signal to noise of an output that each model has on the first sets of inputs, in dB."""
    options = backends.Options("basic")
    with contextlib.ExitStack() as opened:
        plain, *others = (
            opened.enter_context(contextlib.closing(backends.open_session(model, options=options)))
            for model in (reference, *made.values())
        )
        lowest = dict.fromkeys(made, math.inf)
        for sample in itertools.islice(samples, _JUDGED):
            expected = plain.run(sample)
            for name, session in zip(made, others, strict=True):
                drifts = compare_all(expected, session.run(sample)).tensors
                lowest[name] = min(lowest[name], *map(_noise_ratio, drifts))
    return lowest


def restore_names(model: Model, made: Calibrated) -> None:
    """Gives the nodes of a model that was made of a calibrated one the names that they had, in place."""
    for node in model.proto.graph.node:
        if node.name in made.names:
            node.name = made.names[node.name]


def _require_modelopt(target: str, method: str, *, per_channel: bool) -> None:
    if target != "tensorrt":
        raise UsageError("modelopt quantizes for TensorRT alone", hint="Leave the quantizer or the target out.")
    if method == "percentile" or not per_channel:
        raise UsageError("modelopt takes ranges by minmax or entropy, and has weights per channel always")
    if find_spec("modelopt") is None:
        raise MissingDependencyError(
            "NVIDIA's quantizer is not installed", hint="Install it: pip install 'nvidia-modelopt[onnx]'."
        )


def _require_word(word: str, words: Sequence[str], what: str) -> None:
    if word not in words:
        hint = did_you_mean(word, words) or f"There are: {', '.join(words)}."
        raise UsageError(f"{word!r} is no {what} of quantization", hint=hint)


def _refuse_quantized(model: Model) -> None:
    for ref in GraphIndex(model.proto).nodes():
        if ref.node.op_type in _LINEAR or ref.node.op_type.startswith("QLinear"):
            raise UnsupportedError(
                f"the model is quantized already ({ref.node.op_type} {ref.node.name or ref.node.output[0]!r})",
                hint="Calibrate the float model that it was made of, or build this one without calibration.",
            )


def _prepared(model: Model, operators: Sequence[str]) -> tuple[Model, dict[str, str]]:
    """Returns a model as the quantizer wants it (opset 13, weights stored and no inputs), and names that are new."""
    opset = next((each.version for each in model.proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < _LEAST_OPSET:
        model, _ = convert_opset(model, _LEAST_OPSET)
    model = _with_stored_weights(model, operators)
    proto = copy_of(model.proto)
    taken, seen = {node.name for node in proto.graph.node}, set[str]()
    names: dict[str, str] = {}
    for at, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{at}_onnxbench"
            while name in taken:
                name += "_"
            names[name] = node.name
            node.name = name
            taken.add(name)
        seen.add(node.name)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [copy_of(info) for info in proto.graph.input if info.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, _LEAST_IR)
    return model.derive(proto), names


def _with_stored_weights(model: Model, operators: Sequence[str]) -> Model:
    """Returns a model whose Constant nodes that these operators read are initializers: quantizers take only those.

    Some exporters (Paddle's) write all weights as Constant nodes.
    """
    main = GraphIndex(model.proto).main
    weights_made = [
        NodeRef(main, at)
        for at, node in enumerate(main.nodes)
        if node.op_type == "Constant"
        and node.domain in ("", "ai.onnx")
        and any(
            main.nodes[reader].op_type in operators for name in node.output for reader in main.consumers.get(name, ())
        )
        and any(dtype_name(each.t.data_type) in _FLOATS for each in node.attribute if each.name == "value")
    ]
    if not weights_made:
        return model
    draft = Draft.of(model)
    store_constants(draft, [NodeRef(draft.main, ref.position) for ref in weights_made])
    return draft.model


def _restore_heads(made: Model, prepared: Model) -> None:
    """Gives a model what the quantizer writes over that has nothing to do with it."""
    for name in ("producer_name", "producer_version", "model_version", "domain", "doc_string"):
        setattr(made.proto, name, getattr(prepared.proto, name))
    del made.proto.metadata_props[:]
    made.proto.metadata_props.extend(prepared.proto.metadata_props)


def _drop_orphans(made: Model, given: Model) -> None:
    """Removes what a model states of tensors that went; what was said of no tensor before is left as it was."""
    before, after = (set(GraphIndex(each.proto).main.tensor_names()) for each in (given, made))
    stray = {info.name for info in given.proto.graph.value_info} - before
    infos = made.proto.graph.value_info
    kept = [copy_of(info) for info in infos if info.name in after or info.name in stray]
    del infos[:]
    infos.extend(kept)


def _one_valued(samples: Samples, model: Model) -> dict[str, str]:
    """Returns the inputs whose elements are one and the same number in all samples, and that number.

    An input of a single element (a rate, a threshold) has often the same value in all that a user has, and is none.

    Raises:
        FeedsError: An input is NaN somewhere, which leaves no range at all.
    """
    import numpy as np

    limits: dict[str, tuple[Any, Any]] = {}
    for number, sample in enumerate(samples):
        for name, value in sample.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.size < 2:
                continue
            smallest, largest = value.min(), value.max()
            if np.isnan(smallest):
                raise FeedsError(f"input {name!r} is NaN somewhere in set {number} of the calibration data")
            least, most = limits.get(name, (smallest, largest))
            limits[name] = min(least, smallest), max(most, largest)
    order = [port.name for port in input_ports(model.proto.graph)]
    return {name: f"{limits[name][0]:g}" for name in order if name in limits and limits[name][0] == limits[name][1]}


def _digest(samples: Samples) -> str:
    import numpy as np

    digest = hashlib.sha256()
    for sample in samples:
        for name in sorted(sample):
            value = np.ascontiguousarray(sample[name])
            digest.update(f"{name} {value.dtype} {value.shape}\0".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()


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


def _of_type(model: Model, operators: Sequence[str]) -> int:
    return sum(node.op_type in operators for node in model.proto.graph.node)


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
