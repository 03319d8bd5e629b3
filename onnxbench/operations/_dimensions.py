"""Operations on the shapes of a model's inputs and outputs: sizes fixed and freed, dimensions named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import backends
from onnxbench.draft import Draft
from onnxbench.errors import (
    BenchError,
    ExecutionError,
    NotFoundError,
    RefusedResultError,
    UsageError,
    did_you_mean,
)
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import NodeRef, Scope
from onnxbench.operations._base import Effect, Operation
from onnxbench.operations._files import data_file
from onnxbench.operations._functions import InlineFunctions
from onnxbench.operations._ports import input_info, tensor_elements
from onnxbench.specs import parse_tensor_specs
from onnxbench.tensortype import Dim, dtype_name, elem_type, format_shape, format_type, tensor_shape

if TYPE_CHECKING:
    from onnx import TypeProto, ValueInfoProto

    from onnxbench.captures import Value
    from onnxbench.model import Model

_MOST_OPENED = 16
"""So many calls and branches are put in place before a batch is given up; each takes a few runs."""


@dataclass(frozen=True)
class SetShape(Operation):
    """State the shape of inputs; what depends on it is inferred anew.

    Attributes:
        shape: Shapes in any usual spelling: ``x:[1,3,224,224]``, ``x:1x3x224x224,y:1x8``, ``[N,3,?,?]`` for the only
            input. A ``?`` leaves a dimension open.
    """

    word: ClassVar[str] = "set_shape"
    spelling: ClassVar[str] = "{shape}"
    effect: ClassVar[Effect] = "nothing"

    shape: str

    def apply(self, draft: Draft) -> None:
        """States the shapes."""
        inputs = draft.main.true_inputs()
        changed = []
        old = draft.model.derive(draft.snapshot()[0])
        tried: dict[str, Sequence[Dim]] = {}
        for spec in parse_tensor_specs([self.shape], inputs, what="set_shape"):
            info = input_info(draft, spec.name)
            if spec.dtype is not None and spec.dtype != tensor_elements(info, "input"):
                raise UsageError(
                    f"input {spec.name!r} is {dtype_name(elem_type(info.type))}, not {dtype_name(spec.dtype)}",
                    hint="retype_input changes the element type.",
                )
            if spec.shape is None:
                raise UsageError(f"set_shape {self.shape!r} says no shape", hint="Write x:[1,3,224,224].")
            before = tensor_shape(info.type)
            if before is not None and len(before) != len(spec.shape):
                raise RefusedResultError(
                    f"input {spec.name!r} has {len(before)} dimensions, {format_shape(before)}, "
                    f"and {format_shape(spec.shape)} has {len(spec.shape)}"
                )
            tensor_elements(info, "input")
            if before == spec.shape:
                continue
            _state_shape(info, spec.shape)
            draft.record("input", spec.name, "shape", before=format_shape(before), after=format_shape(spec.shape))
            changed.append(spec.name)
            if before is None or any(isinstance(a, int) and a != b for a, b in zip(before, spec.shape, strict=True)):
                tried[spec.name] = spec.shape
        draft.touch()
        draft.retype(draft.main, changed, strictly=True, same_rank=True)
        if tried:
            draft.refresh_types()
            _try_shapes(draft, old, tried, "make_batch_dynamic repairs that for a batch.")


@dataclass(frozen=True)
class NameDim(Operation):
    """Give a dimension of an input or output a name, or another one: ``x:0=batch``.

    Attributes:
        dim: Which one, and its name: ``x:0=batch``. A name that it has already is replaced in the whole model:
            ``N=batch`` does so for a name alone.
    """

    word: ClassVar[str] = "name_dim"
    spelling: ClassVar[str] = "{dim}"

    dim: str

    def apply(self, draft: Draft) -> None:
        """Names the dimension."""
        told = _parse_dim(draft, self.dim, "name_dim", outputs=True)
        name = str(told.value)
        if not name or name.isdigit():
            raise UsageError(f"name_dim {self.dim!r}: {name!r} is no name", hint="set_dim gives a dimension a size.")
        if told.info is None:
            _replace_symbol(draft, told.symbol, name)
            return
        now = told.now
        if isinstance(now, int):
            raise RefusedResultError(
                f"dimension {told.axis} of {told.info.name!r} is fixed at {now}",
                hint=f"make_dynamic {told.info.name}:{told.axis}={name} lets it vary.",
            )
        if isinstance(now, str):
            _replace_symbol(draft, now, name)
            return
        _set_dim(told.info, told.axis, name)
        what = "input" if told.is_input else "output"
        draft.record(what, told.info.name, f"dimension {told.axis}", before="?", after=name)
        draft.touch()
        if told.is_input:
            draft.retype(draft.main, [told.info.name], same_rank=True)


@dataclass(frozen=True)
class SetDim(Operation):
    """Fix a dimension: a name in the whole model, or one dimension of one input.

    Attributes:
        dim: ``batch=8``, or ``x:0=8``.
    """

    word: ClassVar[str] = "set_dim"
    spelling: ClassVar[str] = "{dim}"

    dim: str

    def apply(self, draft: Draft) -> None:
        """Fixes the dimension."""
        told = _parse_dim(draft, self.dim, "set_dim")
        text = str(told.value)
        if not (text.isascii() and text.isdigit() and int(text) < 1 << 63):
            raise UsageError(f"set_dim {self.dim!r}: {text!r} is no size", hint="Write batch=8 or x:0=8.")
        size = int(text)
        if told.info is None:
            _replace_symbol(draft, told.symbol, size)
            return
        if isinstance(told.now, int) and told.now != size:
            raise RefusedResultError(
                f"dimension {told.axis} of {told.info.name!r} is fixed at {told.now} already",
                hint="set_shape states another shape, make_batch_dynamic frees a batch.",
            )
        if told.now == size:
            return
        _set_dim(told.info, told.axis, size)
        before = "?" if told.now is None else str(told.now)
        draft.record("input", told.info.name, f"dimension {told.axis}", before=before, after=str(size))
        draft.touch()
        draft.retype(draft.main, [told.info.name], same_rank=True)


@dataclass(frozen=True)
class MakeDynamic(Operation):
    """Let a fixed dimension of an input vary; refused where shapes further on keep it from that.

    The model is run at the old size and at another one. Its batch is freed by make_batch_dynamic, which also repairs.

    Attributes:
        dim: Which one, and its name: ``x:2=height``. Several with commas vary together, ``x:2=height,x:3=width``.
        scale: By which whole number the sizes are multiplied for the second run.
    """

    word: ClassVar[str] = "make_dynamic"
    spelling: ClassVar[str] = "{dim}"

    dim: str
    scale: int = 2

    def apply(self, draft: Draft) -> None:
        """Frees the dimension."""
        if self.scale < 2:
            raise UsageError(f"make_dynamic: a scale of {self.scale} tries no other size", hint="scale: 2")
        old = draft.model.derive(draft.snapshot()[0])
        tried: dict[str, list[Dim]] = {}
        names: list[str] = []
        for part in self.dim.split(","):
            told = _parse_dim(draft, part, "make_dynamic")
            if told.info is None or not told.value or told.value.isdigit():
                raise UsageError(f"make_dynamic {part!r} cannot be read", hint="Write x:2=height.")
            if not isinstance(told.now, int):
                raise RefusedResultError(
                    f"dimension {told.axis} of {told.info.name!r} varies already", hint="name_dim gives it a name."
                )
            shape = tried.setdefault(told.info.name, list(tensor_shape(told.info.type) or ()))
            shape[told.axis] = told.now * self.scale
            _set_dim(told.info, told.axis, told.value)
            names.append(told.info.name)
            draft.record(
                "input", told.info.name, f"dimension {told.axis}", before=str(told.now), after=told.value
            )  # fmt: skip
        draft.touch()
        draft.retype(draft.main, names, strictly=True, same_rank=True)
        draft.refresh_types()
        _try_shapes(
            draft, old, tried, "make_batch_dynamic repairs that for a batch; here the model must be exported anew."
        )


@dataclass(frozen=True)
class MakeBatchDynamic(Operation):
    """Free the batch, repair the constants that it was baked into, and prove it by running.

    Reshape, Expand, Slice, Split, Resize, initial states and indices are repaired. Then the rows of a run at three
    batches must equal three single runs of the model as it was; else the step is refused, and the node that stands in
    the way is named. A call of a function, or an If of a constant, that has the batch baked in gives way to its nodes.

    Attributes:
        inputs: The inputs that carry the batch: names, ``name:dimension``, or a mapping. By default all that have the
            dimension ``dim``.
        dim: Which dimension of them it is.
        to: What it is called then.
        shapes: Shapes to run at, for inputs with dimensions of no fixed size: ``x:[1,3,320,320]``.
        ranges: Value ranges to draw inputs in: ``x:[0,255]``.
        data: Data to run on instead, three sets: ``samples.npz``, a folder, ``script.py:load``.
        atol: How far apart rows may be, as a share of the largest value; by default by element type.
        rtol: How far apart rows may be, as a share of each value.
    """

    word: ClassVar[str] = "make_batch_dynamic"
    spelling: ClassVar[str] = "{to}"
    effect: ClassVar[Effect] = "nothing"

    to: str = "batch"
    inputs: Any = None
    dim: int = 0
    shapes: list[str] | None = None
    ranges: list[str] | None = None
    data: list[str] | None = None
    atol: float | None = None
    rtol: float | None = None

    def apply(self, draft: Draft) -> None:
        """Frees the batch."""
        from onnxbench.batching import BatchBlockedError, free_batch

        inputs = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        if not (inputs is None or isinstance(inputs, (list, dict))):
            raise UsageError(f"inputs: {inputs!r} is no list of inputs", hint="inputs: [x, state:1]")
        feeds = FeedOptions(sources=self._sources(draft), shapes=self.shapes or (), ranges=self.ranges or ())
        for attempt in range(_MOST_OPENED + 1):
            try:
                free_batch(draft, inputs=inputs, dim=self.dim, to=self.to, feeds=feeds, atol=self.atol, rtol=self.rtol)
                return
            except BatchBlockedError as error:
                if attempt == _MOST_OPENED or not _opened(draft, error.position):
                    raise

    def _sources(self, draft: Draft) -> list[str]:
        return [data_file(each, draft.folder)[1] for each in self.data or ()]

    def files(self, folder: Path) -> Sequence[str]:
        """Returns the files with data."""
        return [name for each in self.data or () if (name := data_file(each, folder)[0])]


def _opened(draft: Draft, position: int) -> bool:
    """Puts what a node of the main graph calls or always takes in its place, so that it can be repaired; if it can."""
    from onnxbench.branching import take_branches, taken_branch

    ref = NodeRef(draft.main, position)
    path, op_type = ref.path, ref.node.op_type
    if draft.index.function_of(ref.node) is not None:
        InlineFunctions(f"node:#{position}").apply(draft)
        draft.notes.append(f"{op_type} {path!r} was inlined, for the batch is baked in inside")
        return True
    if taken_branch(draft, ref) is not None and take_branches(draft, [ref]):
        draft.notes.append(
            f"If {path!r} became the branch that it always takes, for the batch is baked in inside of it"
        )
        return True
    return False


def _try_shapes(draft: Draft, old: Model, shapes: Mapping[str, Sequence[Dim]], hint: str) -> None:
    """Runs the model at other shapes, and takes back what it states of its outputs and is not so there.

    Raises:
        RefusedResultError: It fails there, and did not as it was.
    """
    words = [f"{name!r}:[{','.join('?' if not isinstance(size, int) else str(size) for size in shape)}]"
             for name, shape in shapes.items()]  # fmt: skip
    said = ", ".join(f"{name!r} {format_shape(shape)}" for name, shape in shapes.items())
    try:
        _run_once(old, FeedOptions())
    except BenchError as error:
        draft.notes.append(f"not tried at {said}: the model does not run as it is ({error.message})")
        return
    try:
        given, made = _run_once(draft.model, FeedOptions(shapes=words))
    except ExecutionError as error:
        raise RefusedResultError(
            f"sizes are baked in: at {said} the model fails: {error.message}", hint=error.hint or hint
        ) from None
    draft.notes.append(f"runs at {said}")
    _take_back(draft, given, made)


def _take_back(draft: Draft, given: Mapping[str, Value], made: Mapping[str, Value]) -> None:
    """Opens the dimensions of outputs that are stated as a size, or by the name of one of an input, and are another."""
    graph = draft.main.graph
    sizes: dict[str, int] = {}
    for info in graph.input:
        for dim, size in zip(tensor_shape(info.type) or (), getattr(given.get(info.name), "shape", ()), strict=False):
            if isinstance(dim, str):
                sizes.setdefault(dim, size)
    for info in graph.output:
        shape, found = tensor_shape(info.type), getattr(made.get(info.name), "shape", None)
        if shape is None or found is None or len(shape) != len(found):
            continue
        for axis, (dim, size) in enumerate(zip(shape, found, strict=True)):
            stated = sizes.get(dim, size) if isinstance(dim, str) else size if dim is None else dim
            if stated != size:
                info.type.tensor_type.shape.dim[axis].ClearField("dim_value")
                info.type.tensor_type.shape.dim[axis].ClearField("dim_param")
                draft.record("output", info.name, f"dimension {axis}", before=str(dim), after="?")
    draft.touch()


def _run_once(model: Model, options: FeedOptions) -> tuple[Mapping[str, Value], Mapping[str, Value]]:
    """Returns the inputs that a model was run on, and its outputs."""
    feeds = next(feed_sets(model, options)).feeds
    session = backends.open_session(model, options=backends.Options("none", frugal=True))
    made = session.run(feeds)
    session.close()
    return feeds, made


@dataclass(frozen=True)
class _Told:
    """A dimension and what a user says of it: of an input or output, or a symbol alone (``info`` is None)."""

    value: str
    symbol: str = ""
    info: ValueInfoProto | None = None
    axis: int = 0
    now: Dim = None
    is_input: bool = True


def _parse_dim(draft: Draft, text: str, what: str, *, outputs: bool = False) -> _Told:
    """Reads ``x:0=batch``, ``x[0]=batch`` or ``N=batch``; names of tensors may hold such characters themselves."""
    left, sign, value = text.rpartition("=")
    if not sign or not left.strip():
        raise UsageError(f"{what} {text!r} cannot be read", hint="Write x:0=VALUE, or NAME=VALUE.")
    left, value = left.strip(), value.strip()
    graph = draft.main.graph
    infos = {info.name: info for info in (*(graph.output if outputs else ()), *graph.input)}
    name, colon, axis_text = left.rpartition(":")
    if left.endswith("]") and (bracketed := left[:-1].rpartition("["))[0].strip("\"'") in infos:  # as inspect prints it
        name, colon, axis_text = bracketed
    name = name.strip("\"'")
    if colon and name in infos:
        info = infos[name]
        shape = tensor_shape(info.type)
        try:
            axis = int(axis_text)
        except ValueError:
            raise UsageError(f"{what} {text!r}: {axis_text!r} is no dimension", hint="Write x:0=VALUE.") from None
        if shape is None or not -len(shape) <= axis < len(shape):
            raise UsageError(f"{name!r} has no dimension {axis}: it is {format_type(info.type)}")
        axis %= len(shape)
        return _Told(value, info=info, axis=axis, now=shape[axis], is_input=name in draft.main.inputs)
    symbols = {dim.dim_param for _, kind in _stated_types(draft) for dim in _dims_of(kind) if dim.dim_param}
    if left in symbols:
        return _Told(value, symbol=left)
    known = sorted(symbols) if not colon else list(infos)
    hint = did_you_mean(name if colon else left, known)
    known = [*known[:12], "..."] if len(known) > 12 else known
    hint = hint or (f"Dimensions: {', '.join(known)}." if known and not colon else "Write x:0=VALUE for one dimension.")
    word = f"there is no input {name!r}" if colon else f"no dimension is called {left!r}"
    raise NotFoundError(f"{what}: {word}", hint=hint)


def _replace_symbol(draft: Draft, symbol: str, to: str | int) -> None:
    """Replaces a named dimension in every type that the model states."""
    if symbol == to:
        return
    changed = []
    for (scope, info), kind in _stated_types(draft):
        touched = False
        for dim in _dims_of(kind):
            if dim.dim_param == symbol:
                touched = True
                if isinstance(to, int):
                    dim.dim_value = to
                else:
                    dim.dim_param = to
        if touched and scope is draft.main and info.name in scope.inputs:
            changed.append(info.name)
    draft.record("model", "", f"dimension {symbol}", before=symbol, after=str(to))
    draft.touch()
    draft.retype(draft.main, changed, same_rank=True)


def _stated_types(draft: Draft) -> Iterator[tuple[tuple[Scope, ValueInfoProto], TypeProto]]:
    for scope in draft.index.scopes:
        infos = scope.graph.value_info if scope.is_function else (
            *scope.graph.input, *scope.graph.output, *scope.graph.value_info
        )  # fmt: skip
        for info in infos:
            yield (scope, info), info.type


def _dims_of(kind: TypeProto) -> Iterable[Any]:
    """Returns the dimensions of the tensors in a type."""
    which = kind.WhichOneof("value")
    while which in ("sequence_type", "optional_type", "map_type"):
        held = getattr(kind, which)
        kind = held.value_type if which == "map_type" else held.elem_type
        which = kind.WhichOneof("value")
    if which not in ("tensor_type", "sparse_tensor_type"):
        return ()
    dims: Iterable[Any] = getattr(kind, which).shape.dim
    return dims


def _state_shape(info: ValueInfoProto, shape: Sequence[Dim]) -> None:
    tensor = info.type.tensor_type
    denotations = [dim.denotation for dim in tensor.shape.dim] if tensor.HasField("shape") else []
    tensor.shape.Clear()
    tensor.shape.SetInParent()
    for axis, size in enumerate(shape):
        tensor.shape.dim.add()
        _set_dim(info, axis, size)
        if axis < len(denotations) and denotations[axis]:
            tensor.shape.dim[axis].denotation = denotations[axis]


def _set_dim(info: ValueInfoProto, axis: int, size: Dim) -> None:
    dim = info.type.tensor_type.shape.dim[axis]
    dim.ClearField("dim_value")
    dim.ClearField("dim_param")
    if isinstance(size, int):
        dim.dim_value = size
    elif size is not None:
        dim.dim_param = size
