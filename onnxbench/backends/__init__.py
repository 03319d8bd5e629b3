"""Runtimes behind one small seam, and what is computed with any of them.

A backend is an object with a name, ``version`` and ``open``; a session has ``inputs``, ``outputs`` and ``run``.
Nothing else is asked of one, so that a new runtime is one class. ``BACKENDS`` is the table; a backend's own package
is imported when it is used. Other packages offer backends by entry points (``_registered``, docs/backends.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from onnxbench.backends._files import FileBackend as FileBackend
from onnxbench.backends._operators import Operator as Operator
from onnxbench.backends._operators import Taught as Taught
from onnxbench.backends._operators import as_functions as as_functions
from onnxbench.backends._operators import calls_python as calls_python
from onnxbench.backends._operators import has_python_operators as has_python_operators
from onnxbench.backends._operators import uses as uses
from onnxbench.backends._registered import ENTRY_POINTS as ENTRY_POINTS
from onnxbench.backends._registered import RegisteredBackend as RegisteredBackend
from onnxbench.backends._registered import find_registered
from onnxbench.backends._registered import registrations as registrations
from onnxbench.backends._structure import expose as expose
from onnxbench.captures import Feeds, Port, Value, input_ports, onnx_dtype
from onnxbench.errors import ExecutionError, MissingDependencyError, UsageError, did_you_mean
from onnxbench.messages import copy_of
from onnxbench.tensortype import byte_width, elem_type, is_complete

if TYPE_CHECKING:
    from onnx import TypeProto

    from onnxbench.model import Model

BACKENDS: dict[str, str] = {"ort": "onnxbench.backends._ort", "reference": "onnxbench.backends._reference"}
"""Name of a backend to the module whose ``BACKEND`` it is."""
ENGINES: dict[str, str] = dict.fromkeys(("trt", "tensorrt-rtx", "tensorrt"), "onnxbench.engine._sessions")
"""Backends that build an engine of a model and run it on a GPU, to the module whose ``SESSIONS`` has them by name.

``trt`` is the one that is there. They lie above this layer, on the build, so they are reached by name alone.
"""
ALIASES: dict[str, str] = {
    "onnxruntime": "ort", "onnxrt": "ort", "onnx": "reference", "trt-rtx": "tensorrt-rtx", "rtx": "tensorrt-rtx",
}  # fmt: skip
MAX_BYTES = 1 << 30
"""Intermediate values are captured in batches of about this many bytes, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a session is set up; a backend ignores what means nothing to it.

    Attributes:
        optimization: Graph optimizations: ``none`` (each node alone, so that values do not depend on what is looked
            at), ``basic``, ``extended`` or ``all``.
        providers: Execution providers, best first: ``cpu``, ``cuda``, ``tensorrt``, or a runtime's own names.
        threads: Threads within an operator; 0 leaves it to the runtime.
        libraries: Libraries with custom operators, which are loaded into this process (they are code).
        operators: Custom operators that the runtime is taught.
        profile: Where the runtime's own trace (JSON) goes when the session is closed.
        verbose: Let the runtime write its log to stderr.
        frugal: Hold as little memory as possible, for a session that runs once: nodes run in the order of the file
            where dependencies allow, and buffers go back to the system at once.
        unpacked: Leave weights as they are stored, and do not pack them beforehand for kernels that run many times: for
            a session that runs once. Results may differ in rounding.
        isolate: Seconds that opening a session, and each run, may take in a process of its own, which may die without
            taking this one along; 0 runs it in this process.
        disabled: Optimizers of ONNX Runtime, by its own names, that are left out.
        build: What engines are built with beyond shapes: fields of ``onnxbench.engine.BuildSpec``.
    """

    optimization: str = "all"
    providers: tuple[str, ...] = ("cpu",)
    threads: int = 0
    libraries: tuple[Path, ...] = ()
    profile: Path | None = None
    verbose: bool = False
    frugal: bool = False
    unpacked: bool = False
    operators: tuple[Operator, ...] = ()
    isolate: float = 0.0
    disabled: tuple[str, ...] = ()
    build: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """A model that is ready to run.

    Attributes:
        inputs: Its inputs in order.
        outputs: Its outputs in order, with the types that are known.
        providers: What it runs on, in the runtime's own words, best first.
        device: The first of them in short.
    """

    inputs: list[Port]
    outputs: list[Port]
    providers: tuple[str, ...]
    device: str

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name: all, or these.

        Raises:
            FeedsError: The feeds do not fit the inputs.
            ExecutionError: The runtime failed.
        """
        ...

    def close(self) -> None:
        """Ends the session."""
        ...


class Backend(Protocol):
    """A runtime.

    It may have two more members: ``unavailable()``, why models cannot be run here, or None; and ``heeds``, the fields
    of ``Options`` that mean something to it.

    Attributes:
        name: Its name.
    """

    name: str

    def version(self) -> str:
        """Returns the runtime's version."""
        ...

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> Session:
        """Returns a session for a model whose outputs are these tensors of its main graph (None: its own)."""
        ...


class EngineBuilder(Backend, Protocol):
    """A runtime that builds engines (see ``ENGINES``).

    Attributes:
        standalone: A module that builds and runs engines without onnxbench.
    """

    standalone: Path

    def kind(self) -> str:
        """Returns which TensorRT it is: ``tensorrt`` or ``tensorrt-rtx``."""
        ...


def engine_builder(name: str) -> EngineBuilder:
    """Returns a backend that builds engines, by its name."""
    return cast(EngineBuilder, backend(name))


def backend(name: str) -> Backend:
    """Returns a backend by its name.

    Raises:
        UsageError: There is none of that name.
    """
    known = ALIASES.get(name.lower(), name.lower())
    if known in ENGINES:
        return cast(Backend, import_module(ENGINES[known]).SESSIONS[known])
    if known in BACKENDS:
        return cast(Backend, import_module(BACKENDS[known]).BACKEND)
    registered = find_registered(known)
    if registered is None:
        every = backend_names()
        raise UsageError(
            f"there is no backend {name!r}", hint=did_you_mean(name, every) or f"Backends: {', '.join(every)}."
        )
    return registered


def backend_names() -> list[str]:
    """Returns the names of all backends: those of onnxbench, then those that other packages offer."""
    return list(dict.fromkeys([*BACKENDS, *ENGINES, *(each.name for each in registrations())]))


def is_known_backend(name: str) -> bool:
    """Tells whether there is a backend of this name, or one that it is another name of."""
    return ALIASES.get(name.lower(), name.lower()) in backend_names()


def heeded(name: str) -> tuple[str, ...]:
    """Returns the fields of ``Options`` that mean something to a backend."""
    return tuple(getattr(backend(name), "heeds", ()))


def why_unavailable(name: str) -> str | None:
    """Returns why a backend cannot take a model here (its package is not installed, say), or None.

    Raises:
        UsageError: There is no such backend.
        ExecutionError: It is of another package and cannot be loaded.
    """
    chosen = backend(name)
    ask = getattr(chosen, "unavailable", None)
    try:
        chosen.version()
        reason: str | None = ask() if ask is not None else None
    except MissingDependencyError as error:
        return error.message
    return reason


def end_process_after(seconds: float) -> None:
    """Lets one call into a runtime take so long, after which SIGALRM ends this process: for one that is watched."""
    from onnxbench.backends._deadline import set_deadline

    set_deadline(seconds)


def open_session(
    model: Model, name: str = "ort", *, outputs: Sequence[str] | None = None, options: Options | None = None
) -> Session:
    """Returns a model ready to run; its weights are read by the runtime, not through Python.

    Args:
        model: The model; it is not changed.
        name: The backend.
        outputs: Tensors of the main graph that become the outputs, in place of the model's own.
        options: How it is set up.

    Raises:
        UsageError: There is no such backend.
        NotFoundError: There is no such tensor.
        ExecutionError: The runtime does not take the model.
        LostProcessError: Its process died or took too long (with ``isolate``).
    """
    chosen = options or Options()
    if chosen.isolate and backend(name).name not in ENGINES:  # these are built in a process of their own in any case
        from onnxbench.backends._isolated import open_isolated

        return open_isolated(model, backend(name).name, outputs=outputs, options=chosen)
    return backend(name).open(model, outputs=outputs, options=chosen)


def available_providers() -> list[str]:
    """Returns the execution providers that this ONNX Runtime has, in its own words."""
    from onnxbench.backends import _ort

    return _ort.BACKEND.providers()


def verbose_log(model: Model, options: Options) -> str:
    """Returns what ONNX Runtime says, at its most verbose, while it opens a model in a process of its own.

    Raises:
        LostProcessError: It took longer than ``options.isolate`` seconds.
    """
    from onnxbench.backends._isolated import capture_log

    return capture_log(model, options)


def optimized_graph(model: Model, options: Options, folder: Path) -> Model:
    """Returns the graph that ONNX Runtime makes of a model at an optimization level, as a model of its own.

    Run with optimizations off it computes what the runtime computes with them on, and its tensors can be looked at.
    Fused nodes are of the runtime's own domains; tensors that are left have their old names.

    Args:
        model: The model; it is not changed.
        options: The optimization level and providers.
        folder: Where it is written; it has to stay as long as the result is used.

    Raises:
        ExecutionError: The runtime does not take the model, or cannot write it.
    """
    from onnxbench.backends import _ort
    from onnxbench.model import load

    made = load(_ort.optimized(model, options, folder))
    # Weights that are listed as inputs and were folded away stay listed, and would have to be fed.
    wanted = {port.name for port in input_ports(model.proto.graph) if port.required}
    backed = {tensor.name for tensor in made.proto.graph.initializer}
    for position in reversed(range(len(made.proto.graph.input))):
        if made.proto.graph.input[position].name not in wanted | backed:
            del made.proto.graph.input[position]
    return made


def session_types(model: Model, names: Sequence[str] | None = None) -> dict[str, TypeProto]:
    """Returns the types that ONNX Runtime itself gives to tensors of the main graph.

    It knows its own operators (com.microsoft) and needs no value infos. Large weights are not read.

    Args:
        model: The model.
        names: The tensors; None: everything that a node makes.

    Raises:
        NotFoundError: There is no such tensor.
        ExecutionError: The runtime does not take the model.
    """
    from onnxbench.backends import _ort

    if names is None:
        names = list(dict.fromkeys(name for node in model.proto.graph.node for name in node.output if name))
    return _ort.session_types(model, list(names)) if names else {}


def quantize(
    model: Path,
    target: Path,
    sets: Iterable[Feeds],
    *,
    operators: Sequence[str],
    exclude: Sequence[str],
    external: bool,
    form: Literal["tensorrt", "onnxruntime"] = "tensorrt",
    method: Literal["minmax", "entropy", "percentile"] = "minmax",
    percentile: float | None = None,
    per_channel: bool = True,
) -> None:
    """Writes a model whose operators take int8, with QuantizeLinear and DequantizeLinear, by ONNX Runtime's quantizer.

    Args:
        model: The model's file, opset 13 or later, nodes with names of their own. The quantizer writes beside it.
        target: The file to write.
        sets: Inputs to calibrate with.
        operators: Types of the operators whose inputs are quantized.
        exclude: Names of nodes that stay in float.
        external: Write weights to a file of their own.
        form: ``tensorrt``: int8 with zero points 0, outputs left alone, bias in float. ``onnxruntime``: activations in
            uint8 with zero points, outputs quantized too, bias in int32.
        method: How ranges are taken from the values that a tensor had.
        percentile: With ``percentile``: the share of values within the range, in percent; None: the quantizer's own.
        per_channel: Whether weights have a scale for each channel.

    Raises:
        ExecutionError: The quantizer fails.
    """
    from onnxbench.backends import _quantizer

    _quantizer.quantize(
        model, target, sets, operators=operators, exclude=exclude, external=external, form=form, method=method,
        percentile=percentile, per_channel=per_channel,
    )  # fmt: skip


def quantize_by_modelopt(
    model: Path,
    target: Path,
    sets: Iterable[Feeds],
    *,
    operators: Sequence[str],
    exclude: Sequence[str],
    external: bool,
    method: Literal["minmax", "entropy", "percentile"] = "minmax",
) -> None:
    """Writes a model whose operators take int8 as TensorRT wants it, by NVIDIA's modelopt.

    Args:
        model: The model's file.
        target: The file to write.
        sets: Inputs to calibrate with.
        operators: Types of the operators whose inputs are quantized.
        exclude: Names of nodes that stay in float.
        external: Write weights to a file of their own.
        method: How ranges are taken from the values that a tensor had; modelopt has no ``percentile``.

    Raises:
        ExecutionError: The quantizer fails.
    """
    from onnxbench.backends import _modelopt

    _modelopt.quantize(model, target, sets, operators=operators, exclude=exclude, external=external, method=method)


def quantizable_operators() -> tuple[str, ...]:
    """Returns the types of operators that ONNX Runtime's quantizer takes, sorted."""
    from onnxbench.backends import _quantizer

    return _quantizer.quantizable_operators()


def symbolic_types(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    """Returns the types that ONNX Runtime's symbolic shape inference can tell of tensors of the main graph.

    It never fails: a tensor that it cannot tell is absent.
    """
    from onnxbench.backends import _ort

    return _ort.symbolic_types(model, names)


def tensor_types(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    """Returns the types of tensors of the main graph: ONNX Runtime's own, or where it refuses the model, onnx's."""
    try:
        return session_types(model, names)
    except ExecutionError:
        from onnxbench.inference import inferred, inferred_types

        return {name: kind for name, kind in inferred_types(inferred(model.proto), names).items() if is_complete(kind)}


def dtype_of(value: Value) -> int:
    """Returns the ``TensorProto.DataType`` of an array's elements; 0 for what is no array."""
    return onnx_dtype(value.dtype) if hasattr(value, "dtype") else 0


def run_with_outputs(
    model: Model,
    feeds: Mapping[str, Value],
    names: Sequence[str],
    *,
    backend: str = "ort",
    options: Options | None = None,
    optimization: str | None = None,
    max_bytes: int | None = None,
) -> dict[str, Value]:
    """Returns the values of any tensors of the main graph in one run of the model.

    Args:
        model: The model; it is not changed.
        feeds: Its inputs.
        names: The tensors: of nodes, inputs or initializers. Everything that they do not need is left out of the run.
        backend: What runs it.
        options: How it is set up.
        optimization: In place of that of ``options``. With ``none`` a value does not depend on which others are asked
            for, but for fp16 on a CPU, which keeps 32 bits between nodes and rounds where a value leaves the graph.
        max_bytes: Run in batches whose values take about this much; None: all at once.

    Raises:
        NotFoundError: There is no such tensor.
        FeedsError: The feeds do not fit.
        ExecutionError: The run failed.
    """
    return dict(
        stream_outputs(
            model, feeds, names, backend=backend, options=options, optimization=optimization, max_bytes=max_bytes
        )
    )


def stream_outputs(
    model: Model,
    feeds: Mapping[str, Value],
    names: Sequence[str],
    *,
    backend: str = "ort",
    options: Options | None = None,
    optimization: str | None = None,
    max_bytes: int | None = MAX_BYTES,
) -> Iterator[tuple[str, Value]]:
    """Yields the values of tensors of the main graph, holding about ``max_bytes`` of them at a time.

    What they take is found out first, in a run that yields shapes alone. If it is too much, the model runs once per
    batch, each time up to the batch's last tensor.

    Args:
        model: The model; it is not changed.
        feeds: Its inputs.
        names: The tensors, which come in this order, each once.
        backend: What runs it.
        options: How it is set up.
        optimization: In place of that of ``options`` (see ``run_with_outputs``).
        max_bytes: How many bytes a batch's values take at most, if one tensor does not take more; None: one batch.

    Raises:
        NotFoundError: There is no such tensor.
        FeedsError: The feeds do not fit.
        ExecutionError: A run failed.
    """
    chosen = options or Options()
    if optimization is not None:
        chosen = replace(chosen, optimization=optimization)
    wanted = list(dict.fromkeys(names))
    batches = [wanted] if wanted else []
    if max_bytes is not None and len(wanted) > 1:
        sizes = observed_sizes(model, feeds, wanted, backend=backend, options=chosen)
        batches = in_batches(wanted, sizes, max_bytes)
    for batch in batches:
        session = open_session(model, backend, outputs=batch, options=replace(chosen, frugal=True))
        values = session.run(feeds)
        session.close()
        del session
        for name in batch:
            yield name, values.pop(name)


def in_batches(names: Iterable[str], sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Returns tensors in batches that take about so many bytes each, in the order given; unknown sizes count as 0."""
    batches: list[list[str]] = []
    room = 0
    for name in names:
        size = sizes.get(name, 0)
        if not batches or size > room:
            batches.append([])
            room = most
        batches[-1].append(name)
        room -= size
    return batches


def observed_shapes(
    model: Model,
    feeds: Mapping[str, Value],
    names: Sequence[str],
    *,
    backend: str = "ort",
    options: Options | None = None,
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that tensors really have for these feeds; what is no tensor is absent.

    One run, in which every value is dropped as soon as its shape is known (see ``probe``).

    Raises:
        FeedsError: The feeds do not fit.
        ExecutionError: The run failed.
    """
    return _shapes(model, feeds, tensor_types(model, names), backend, options)


def _shapes(
    model: Model, feeds: Mapping[str, Value], types: Mapping[str, TypeProto], backend: str, options: Options | None
) -> dict[str, tuple[int, ...]]:
    tensors = [name for name, kind in types.items() if kind.WhichOneof("value") == "tensor_type"]
    # The runtime's Shape does not take all the small types, its Cast does.
    chains = {name: ("Cast:1", "Shape") if elem_type(types[name]) >= 17 else ("Shape",) for name in tensors}
    found = probe(model, feeds, chains, backend=backend, options=options)
    return {name: tuple(int(size) for size in shape) for name, shape in found.items()}


def observed_sizes(
    model: Model,
    feeds: Mapping[str, Value],
    names: Sequence[str],
    *,
    backend: str = "ort",
    options: Options | None = None,
) -> dict[str, int]:
    """Returns the bytes that tensors take in memory for these feeds (see ``observed_shapes``)."""
    types = tensor_types(model, names)
    shapes = _shapes(model, feeds, types, backend, options)
    return {name: math.prod(shape) * byte_width(elem_type(types[name])) for name, shape in shapes.items()}


def probe(
    model: Model,
    feeds: Mapping[str, Value],
    chains: Mapping[str, Sequence[str]],
    *,
    backend: str = "ort",
    options: Options | None = None,
) -> dict[str, Any]:
    """Returns what a chain of operators makes of each tensor, as 1-D arrays, from one run of the model.

    Memory is that of the run: each chain stands right behind the node that makes its tensor, the session runs in the
    order of the file, and the tensor is dropped. Results are joined by the hundred before they leave, because
    runtimes take time quadratic in the number of outputs.

    Args:
        model: The model; it is not changed.
        feeds: Its inputs.
        chains: Tensor of the main graph to the types of operators with one input: the last is ``Shape``, in all chains,
            or makes a scalar of one element type in all. ``Sub`` subtracts the tensor from itself, ``ReduceSum``
            reduces all axes, ``Cast:1`` casts to element type 1.
        backend: What runs it.
        options: How it is set up; optimizations are off.

    Raises:
        FeedsError: The feeds do not fit.
        ExecutionError: The run failed.
    """
    if not chains:
        return {}
    probes = _Probes(model, chains)
    chosen = replace(options or Options(), optimization="none", frugal=True, profile=None)
    session = open_session(model.derive(probes.proto), backend, outputs=probes.outputs, options=chosen)
    values = session.run(feeds)
    session.close()
    return probes.split(values)


class _Probes:
    """A model with chains of operators behind its tensors, and how their results are joined."""

    GROUP = 500

    def __init__(self, model: Model, chains: Mapping[str, Sequence[str]]) -> None:
        source = model.proto
        self._chains = chains
        self._vectors = next(iter(chains.values()))[-1] == "Shape"
        self._groups: list[list[str]] = [[]]
        self._ends: list[tuple[str, str]] = []
        self.outputs: list[str] = []
        self.proto = copy_of(source)
        if not any(opset.domain in ("", "ai.onnx") for opset in self.proto.opset_import):
            self.proto.opset_import.add(domain="", version=13)
        self._graph = self.proto.graph
        made = {name for node in source.graph.node for name in node.output}
        self._prefix, self._flat = "onnxbench_probe", ""
        while any(name.startswith(self._prefix) for name in made):
            self._prefix += "_"
        del self._graph.node[:]
        for name in chains:
            if name not in made:
                self._append(name)
        for node in source.graph.node:
            self._graph.node.append(node)
            for name in node.output:
                if name in chains:
                    self._append(name)
        self._join()

    def _append_flat(self) -> None:
        """Adds the shape [-1] that a group's scalars are reshaped to.

        It is a node, since old models list initializers as inputs, and one per group, since the runtime takes time
        quadratic in the number of its readers.
        """
        self._flat = f"{self._prefix}_flat_{len(self._groups)}"
        node = self._graph.node.add(op_type="Constant", name=self._flat, output=[self._flat])
        value = node.attribute.add(name="value", type=4)
        value.t.data_type = 7
        value.t.dims.append(1)
        value.t.int64_data.append(-1)

    def _append(self, name: str) -> None:
        current = name
        number = (len(self._groups) - 1) * self.GROUP + len(self._ends)
        for step, operator in enumerate(self._chains[name]):
            current = self._node(operator, current, f"{self._prefix}_{number}_{step}")
        length = ""
        if self._vectors:
            length = self._node("Shape", current, f"{self._prefix}_{number}_length")
        else:
            if not self._ends:
                self._append_flat()
            current = self._node("Reshape", current, f"{self._prefix}_{number}_flat")
        self._ends.append((current, length))
        self._groups[-1].append(name)
        if len(self._ends) == self.GROUP:
            self._join()

    def _node(self, operator: str, source: str, made: str) -> str:
        kind, _, argument = operator.partition(":")
        node = self._graph.node.add(op_type=kind, name=made, input=[source], output=[made])
        if kind == "Sub":
            node.input.append(source)
        elif kind == "Reshape":
            node.input.append(self._flat)
        elif kind == "ReduceSum":
            node.attribute.add(name="keepdims", type=2, i=0)
        elif kind == "Cast":
            node.attribute.add(name="to", type=2, i=int(argument))
        return made

    def _join(self) -> None:
        if not self._ends:
            return
        for what, column in (("values", 0), ("lengths", 1)):
            names = [ends[column] for ends in self._ends]
            if names[0]:
                joined = f"{self._prefix}_{what}_{len(self._groups)}"
                node = self._graph.node.add(op_type="Concat", name=joined, input=names, output=[joined])
                node.attribute.add(name="axis", type=2, i=0)
                self.outputs.append(joined)
        self._ends = []
        self._groups.append([])

    def split(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Returns the results by tensor, in the order of the chains."""
        import numpy as np

        found: dict[str, Any] = {}
        columns = 2 if self._vectors else 1
        for number, names in enumerate(group for group in self._groups if group):
            joined = values[self.outputs[number * columns]]
            lengths = values[self.outputs[number * columns + 1]] if self._vectors else np.ones(len(names), np.int64)
            found.update(zip(names, np.split(joined, np.cumsum(lengths)[:-1]), strict=True))
        return {name: found[name] for name in self._chains}
