"""Runtimes behind one small seam, and what is computed with any of them.

A backend is a module-level object with a name and ``open``; a session has ``inputs``, ``outputs`` and ``run``.
Nothing else is asked of one, so that a new runtime is one class. ``BACKENDS`` is the table; a backend's own package
is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from onnxbench.captures import Port, Value, onnx_dtype
from onnxbench.errors import ExecutionError, UsageError, did_you_mean
from onnxbench.tensortype import dtype_bits, elem_type, is_complete

if TYPE_CHECKING:
    from onnx import TypeProto

    from onnxbench.model import Model

BACKENDS: dict[str, str] = {"ort": "onnxbench.backends._ort", "reference": "onnxbench.backends._reference"}
"""Name of a backend to the module whose ``BACKEND`` it is."""
ALIASES: dict[str, str] = {"onnxruntime": "ort", "onnxrt": "ort", "onnx": "reference"}
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
        profile: Where the runtime's own trace (JSON) goes when the session is closed.
        verbose: Let the runtime write its log to stderr.
        frugal: Hold as little memory as possible, for a session that runs once: nodes run in the order of the file
            where dependencies allow, and buffers go back to the system at once.
    """

    optimization: str = "all"
    providers: tuple[str, ...] = ("cpu",)
    threads: int = 0
    libraries: tuple[Path, ...] = ()
    profile: Path | None = None
    verbose: bool = False
    frugal: bool = False


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
    """A runtime."""

    name: str

    def version(self) -> str:
        """Returns the runtime's version."""
        ...

    def open(self, model: Model, *, outputs: Sequence[str] | None, options: Options) -> Session:
        """Returns a session for a model whose outputs are these tensors of its main graph (None: its own)."""
        ...


def backend(name: str) -> Backend:
    """Returns a backend by its name.

    Raises:
        UsageError: There is none of that name.
    """
    module = BACKENDS.get(ALIASES.get(name.lower(), name.lower()))
    if module is None:
        raise UsageError(
            f"there is no backend {name!r}", hint=did_you_mean(name, BACKENDS) or f"Backends: {', '.join(BACKENDS)}."
        )
    return cast(Backend, import_module(module).BACKEND)


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
    """
    return backend(name).open(model, outputs=outputs, options=options or Options())


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
    batch, each time up to the batch's last tensor. See ``run_with_outputs`` for the rest.
    """
    chosen = options or Options()
    if optimization is not None:
        chosen = replace(chosen, optimization=optimization)
    wanted = list(dict.fromkeys(names))
    batches = [wanted] if wanted else []
    if max_bytes is not None and len(wanted) > 1:
        sizes = observed_sizes(model, feeds, wanted, backend=backend, options=chosen)
        batches = _batches(wanted, sizes, max_bytes)
    for batch in batches:
        session = open_session(model, backend, outputs=batch, options=replace(chosen, frugal=True))
        values = session.run(feeds)
        session.close()
        del session
        for name in batch:
            yield name, values.pop(name)


def _batches(names: Sequence[str], sizes: Mapping[str, int], most: int) -> list[list[str]]:
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

    One run, in which every value is dropped as soon as its shape is known: ``Shape`` nodes are appended.

    Raises:
        FeedsError: The feeds do not fit.
        ExecutionError: The run failed.
    """
    types = tensor_types(model, names)
    tensors = [name for name in names if name in types and types[name].WhichOneof("value") == "tensor_type"]
    probed, probes = with_probes(model, {name: ["Shape"] for name in tensors})
    chosen = replace(options or Options(), optimization="none", frugal=True)
    session = open_session(probed, backend, outputs=[probes[name] for name in tensors], options=chosen)
    values = session.run(feeds)
    return {name: tuple(int(size) for size in values[probes[name]]) for name in tensors}


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
    shapes = observed_shapes(model, feeds, names, backend=backend, options=options)
    width = {name: max(1, (dtype_bits(elem_type(types[name])) or 256) // 8) for name in shapes}
    return {name: math.prod(shape) * width[name] for name, shape in shapes.items()}


def with_probes(model: Model, chains: Mapping[str, Sequence[str]]) -> tuple[Model, dict[str, str]]:
    """Returns the model with a chain of operators behind each of these tensors, and the names of the chains' ends.

    Each chain stands right behind the node that makes its tensor, so that a session that keeps to the file's order
    (``Options.frugal``) runs it at once and drops the tensor.

    Args:
        model: The model; it is not changed.
        chains: Tensor of the main graph to the types of operators with one input. ``Sub`` subtracts the tensor from
            itself, ``ReduceSum`` reduces all axes, ``Cast:1`` casts to element type 1.
    """
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    if not any(opset.domain in ("", "ai.onnx") for opset in proto.opset_import):
        proto.opset_import.add(domain="", version=13)
    taken = {name for node in proto.graph.node for name in node.output}
    prefix = "onnxbench_probe"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    ends: dict[str, str] = {}
    pending = {name: number for number, name in enumerate(chains)}

    def append(name: str) -> None:
        number, current = pending.pop(name), name
        for step, operator in enumerate(chains[name]):
            made = f"{prefix}_{number}_{step}"
            node = proto.graph.node.add(op_type=operator.partition(":")[0], name=made, output=[made])
            node.input.extend([current, current] if operator == "Sub" else [current])
            if operator == "ReduceSum":
                node.attribute.add(name="keepdims", type=2, i=0)
            if operator.startswith("Cast:"):
                node.attribute.add(name="to", type=2, i=int(operator[5:]))
            current = made
        ends[name] = current

    del proto.graph.node[:]
    for name in list(pending):
        if name not in taken:
            append(name)
    for node in model.proto.graph.node:
        proto.graph.node.append(node)
        for name in node.output:
            if name in pending:
                append(name)
    return model.derive(proto), {name: ends[name] for name in chains}
