"""Operations on the inputs and outputs of a model: which there are, their names, types, shapes and dimensions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import backends
from onnxbench.cut import require_main
from onnxbench.documents import from_python
from onnxbench.draft import Draft, require_free
from onnxbench.errors import (
    BenchError,
    ExecutionError,
    NotFoundError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import Scope, TensorRef
from onnxbench.modelspec import make_tensor, parse_type
from onnxbench.operations._base import Effect, Operation, TensorOperation, describe_tensor
from onnxbench.operations._files import data_file
from onnxbench.specs import parse_tensor_specs
from onnxbench.tensortype import (
    Dim,
    dtype_name,
    dtype_number,
    elem_type,
    format_shape,
    format_type,
    is_complete,
    make_value_info,
    tensor_shape,
)

if TYPE_CHECKING:
    from onnx import NodeProto, TypeProto, ValueInfoProto

    from onnxbench.model import Model

_FIRST_IR_WITH_WEIGHTS_APART = 4


# ---------------------------------------------------------------- coming and going


@dataclass(frozen=True)
class AddOutput(TensorOperation):
    """Make tensors outputs of the model.

    Attributes:
        at: Selector of the tensors, which must be in the main graph.
        name: What the output is called, if not as the tensor is: a copy (Identity) of that name is made.
        type: Its type, where neither the model nor inference tells it: ``float32[1, 3, ?]``.
    """

    word: ClassVar[str] = "add_output"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "interface"

    name: str | None = None
    type: str | None = None

    def apply(self, draft: Draft) -> None:
        """Adds the outputs."""
        refs = self.find(draft)
        names = require_main(refs, what="outputs")
        if self.name is not None and len(refs) != 1:
            raise UsageError(f"{len(refs)} tensors cannot all be called {self.name!r}", hint="Name one of them.")
        for ref, name in zip(refs, names, strict=True):
            self._add(draft, ref, name)

    def _add(self, draft: Draft, ref: TensorRef, name: str) -> None:
        main = draft.main
        if name in main.constants and draft.initializer(ref) is None:
            raise UnsupportedError(f"{name!r} is a sparse initializer, which cannot be an output")
        kind = _parsed_type(self.type) if self.type is not None else draft.type_of(ref)
        if kind is None or not is_complete(kind):
            raise RefusedResultError(f"nothing tells the type of {name!r}", hint="State it: type: float32[1, 3, ?]")
        made = self.name or name
        if made == name and name in main.outputs:
            raise RefusedResultError(f"{name!r} is an output already", hint="Give the second one a name of its own.")
        if made != name:
            require_free(draft, main, made)
            draft.import_domain(main, "")
            node = _new_node(draft, "Identity", [name], [made])
            draft.splice(main, {len(main.nodes): [node]})
        draft.main.graph.output.append(make_value_info(made, kind))
        draft.record("output", made, "added", after=format_type(kind))
        draft.touch()


@dataclass(frozen=True)
class RemoveOutput(Operation):
    """Take outputs away from the model.

    Attributes:
        at: Selector of the outputs.
        prune: Also remove the nodes and weights that nothing needs any more.
    """

    word: ClassVar[str] = "remove_output"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "interface"

    at: str
    prune: bool = False

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the outputs."""
        return _outputs(draft, self.at)

    def apply(self, draft: Draft) -> None:
        """Removes the outputs."""
        names = {ref.name for ref in self.find(draft)}
        outputs = draft.main.graph.output
        if all(info.name in names for info in outputs):
            raise RefusedResultError("a model needs an output, and this would remove all", hint="Keep one of them.")
        for position in reversed(range(len(outputs))):
            if outputs[position].name in names:
                draft.record("output", outputs[position].name, "removed", before=format_type(outputs[position].type))
                del outputs[position]
        draft.touch()
        if self.prune:
            _prune(draft, names)


@dataclass(frozen=True)
class AddInput(Operation):
    """Give the model another input; with ``in_place_of``, a weight or any tensor becomes one.

    Attributes:
        name: What it is called.
        type: Its type, ``float32[1, 3, ?]``; by default that of the tensor that it stands in for.
        in_place_of: The tensor whose readers, in bodies too, read the input instead. It may have the input's own name.
        prune: Also remove the nodes and weights that nothing needs any more.
    """

    word: ClassVar[str] = "add_input"
    spelling: ClassVar[str] = "{name}[:{type}]"
    effect: ClassVar[Effect] = "interface"

    name: str
    type: str | None = None
    in_place_of: str | None = None
    prune: bool = False

    def find(self, draft: Draft) -> list[TensorRef] | None:
        """Returns the tensor that the input stands in for."""
        return None if self.in_place_of is None else draft.tensors(self.in_place_of)

    def apply(self, draft: Draft) -> None:
        """Adds the input."""
        if self.in_place_of is None:
            require_free(draft, draft.main, self.name)
            if self.type is None:
                raise UsageError(f"input {self.name!r} needs a type", hint="type: float32[1, 3, ?]")
            self._add(draft, _parsed_type(self.type))
            return
        ref = draft.tensor(self.in_place_of)
        (old,) = require_main([ref], what="inputs")
        if old in draft.main.true_inputs():
            raise RefusedResultError(f"{old!r} is an input already", hint="rename_input gives it another name.")
        kind = _parsed_type(self.type) if self.type is not None else draft.type_of(ref)
        if kind is None or not is_complete(kind):
            raise RefusedResultError(f"nothing tells the type of {old!r}", hint="State it: type: float32[1, 3, ?]")
        if self.name == old:
            old = self._step_aside(draft, old)
        else:
            require_free(draft, draft.main, self.name)
        if old:
            if old not in draft.main.consumers:
                raise RefusedResultError(f"no node reads {old!r}, so nothing would read the input")
            draft.replace_uses(draft.main, {old: self.name})
        self._add(draft, kind)
        draft.retype(draft.main, [self.name])
        if self.prune and old:
            _prune(draft, {old})

    def _step_aside(self, draft: Draft, old: str) -> str:
        """Frees the name of the tensor that is replaced; returns the name that it has then, empty if it is gone."""
        main = draft.main
        if old in main.outputs:
            raise RefusedResultError(f"{old!r} is also an output, so the input needs another name")
        if old in main.constants:
            draft.record("weight", old, "removed")
            draft.remove_initializers(main, {old})
            return ""
        spare = draft.fresh(main, f"{old}_computed")
        draft.rename(main, {old: spare})
        draft.record("tensor", old, "renamed", after=spare)
        return spare

    def _add(self, draft: Draft, kind: TypeProto) -> None:
        draft.main.graph.input.append(make_value_info(self.name, kind))
        draft.record("input", self.name, "added", after=format_type(kind))
        draft.touch()


@dataclass(frozen=True)
class RemoveInput(Operation):
    """Take an input away: fixed to a value, or unused.

    Attributes:
        at: Selector of the input.
        value: What it is from now on, as in a build specification: ``16000``, ``[[1, 0]]``, ``{zeros: [1, 3]}``,
            ``{file: x.npy}``. Numbers take the element type of the input. Without it only an input that no node reads
            can go, or one that has a default: then the default is its value.
    """

    word: ClassVar[str] = "remove_input"
    spelling: ClassVar[str] = "{at}[={value}]"
    effect: ClassVar[Effect] = "interface"

    at: str
    value: Any = None

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the input."""
        return _inputs(draft, self.at, backed=True)

    def apply(self, draft: Draft) -> None:
        """Removes the input."""
        for ref in self.find(draft):
            self._remove(draft, ref.name)

    def _remove(self, draft: Draft, name: str) -> None:
        main = draft.main
        info = _input(draft, name)
        backed = name in main.constants
        if self.value is None and not backed:
            readers = main.consumers.get(name, [])
            if readers or name in main.outputs:
                who = f"node {main.label(readers[0])!r} reads it" if readers else "it is an output, too"
                raise RefusedResultError(f"input {name!r} is in use: {who}", hint="Give it a value: value: 16000")
        if self.value is not None and backed:
            raise RefusedResultError(f"input {name!r} has a default already", hint="set_weight changes it.")
        if self.value is not None:
            self._fix(draft, info)
        if backed and draft.model.proto.ir_version < _FIRST_IR_WITH_WEIGHTS_APART:
            raise UnsupportedError(
                f"every weight is an input in IR version {draft.model.proto.ir_version}",
                hint="Raise the IR version to 4.",
            )
        draft.record("input", name, "removed", before=format_type(info.type))
        main.graph.input.remove(info)
        draft.touch()
        draft.retype(draft.main, [name])

    def _fix(self, draft: Draft, info: ValueInfoProto) -> None:
        wanted, shape = elem_type(info.type), tensor_shape(info.type)
        if info.type.WhichOneof("value") != "tensor_type":
            raise UnsupportedError(f"input {info.name!r} is {format_type(info.type)}, for which no value can be given")
        said = self.value if isinstance(self.value, dict) else {"value": self.value, "dtype": dtype_name(wanted)}
        tensor = make_tensor(info.name, said, folder=draft.folder, allow_outside=draft.allow_outside)
        if tensor.data_type != wanted:
            raise RefusedResultError(
                f"input {info.name!r} is {dtype_name(wanted)}, and the value is {describe_tensor(tensor)}",
                hint=f"dtype: {dtype_name(wanted)}",
            )
        fits = shape is None or (
            len(shape) == len(tensor.dims)
            and all(not isinstance(a, int) or a == b for a, b in zip(shape, tensor.dims, strict=True))
        )
        if not fits:
            raise RefusedResultError(
                f"input {info.name!r} is {format_type(info.type)}, and the value is {describe_tensor(tensor)}",
                hint="{full: 0.5, shape: [2, 3]} fills a shape.",
            )
        if draft.model.proto.ir_version < _FIRST_IR_WITH_WEIGHTS_APART:
            draft.import_domain(draft.main, "")
            node = _new_node(draft, "Constant", [], [info.name])
            attribute = node.attribute.add(name="value", type=4)
            attribute.t.CopyFrom(tensor)
            draft.splice(draft.main, {0: [node]})
        else:
            draft.main.graph.initializer.append(tensor)
        draft.record("weight", info.name, "added", after=describe_tensor(tensor))


# ---------------------------------------------------------------- order and names


@dataclass(frozen=True)
class ReorderInputs(Operation):
    """Put inputs into another order: those named first, the others behind them as they were.

    Attributes:
        names: The inputs that come first.
    """

    word: ClassVar[str] = "reorder_inputs"
    spelling: ClassVar[str] = "{names}"
    keeps_types: ClassVar[bool] = True

    names: list[str]

    def apply(self, draft: Draft) -> None:
        """Reorders the inputs."""
        _reorder(draft, draft.main.graph.input, self.names, "input")


@dataclass(frozen=True)
class ReorderOutputs(Operation):
    """Put outputs into another order: those named first, the others behind them as they were.

    Attributes:
        names: The outputs that come first.
    """

    word: ClassVar[str] = "reorder_outputs"
    spelling: ClassVar[str] = "{names}"
    keeps_types: ClassVar[bool] = True

    names: list[str]

    def apply(self, draft: Draft) -> None:
        """Reorders the outputs."""
        _reorder(draft, draft.main.graph.output, self.names, "output")


def _reorder(draft: Draft, infos: Any, names: Sequence[str], what: str) -> None:
    known = [info.name for info in infos]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"There is: {', '.join(known)}."
            raise NotFoundError(f"there is no {what} {name!r}", hint=hint)
    if len(set(names)) < len(names):
        raise UsageError(f"an {what} is named twice: {', '.join(names)}")
    first = {name: number for number, name in enumerate(names)}
    order = sorted(range(len(known)), key=lambda at: (first.get(known[at], len(first)), at))
    copies = [_copy(infos[at]) for at in order]
    if order == sorted(order):
        return
    del infos[:]
    infos.extend(copies)
    draft.record("model", "", f"order of {what}s", before=", ".join(known), after=", ".join(known[at] for at in order))
    draft.touch()


@dataclass(frozen=True)
class RenameInput(Operation):
    """Give an input another name, wherever it is read.

    Attributes:
        at: Selector of the input.
        to: Its new name.
    """

    word: ClassVar[str] = "rename_input"
    spelling: ClassVar[str] = "{at}={to}"
    keeps_types: ClassVar[bool] = True

    at: str
    to: str

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the input."""
        return _inputs(draft, self.at, backed=True)

    def apply(self, draft: Draft) -> None:
        """Renames the input."""
        _rename(draft, self.find(draft), self.to, "input")


@dataclass(frozen=True)
class RenameOutput(Operation):
    """Give an output another name, wherever it is read, too.

    Attributes:
        at: Selector of the output.
        to: Its new name.
    """

    word: ClassVar[str] = "rename_output"
    spelling: ClassVar[str] = "{at}={to}"
    keeps_types: ClassVar[bool] = True

    at: str
    to: str

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the output."""
        return _outputs(draft, self.at)

    def apply(self, draft: Draft) -> None:
        """Renames the output."""
        _rename(draft, self.find(draft), self.to, "output")


def _rename(draft: Draft, refs: Sequence[TensorRef], to: str, what: str) -> None:
    if len(refs) > 1:
        raise UsageError(f"{len(refs)} {what}s cannot all be called {to!r}", hint="Name one of them.")
    for ref in refs:
        if ref.name == to:
            continue
        require_free(draft, draft.main, to)
        draft.rename(draft.main, {ref.name: to})
        draft.record(what, ref.name, "renamed", before=ref.name, after=to)


# ---------------------------------------------------------------- element types


@dataclass(frozen=True)
class RetypeInput(Operation):
    """Give inputs another element type, and cast them to the one that the model computes with.

    Attributes:
        at: Selector of the inputs.
        to: The new element type: ``float32``, ``fp16``, ``uint8``.
    """

    word: ClassVar[str] = "retype_input"
    spelling: ClassVar[str] = "{at}={to}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "interface"

    at: str
    to: str

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the inputs."""
        return _inputs(draft, self.at)

    def apply(self, draft: Draft) -> None:
        """Retypes the inputs."""
        number = dtype_number(self.to)
        nodes = []
        for ref in self.find(draft):
            info = _input(draft, ref.name)
            before = _tensor_elements(info, "input")
            if before == number:
                raise RefusedResultError(f"input {ref.name!r} is {dtype_name(number)} already")
            if ref.name in draft.main.outputs:
                raise RefusedResultError(
                    f"input {ref.name!r} is also an output, whose type would change with it",
                    hint="Remove that output first, or add a copy of it under another name.",
                )
            draft.import_domain(draft.main, "")
            inner = draft.fresh(draft.main, f"{ref.name}_{dtype_name(before)}")
            node = _new_node(draft, "Cast", [ref.name], [inner])
            node.attribute.add(name="to", type=2, i=before)
            draft.replace_uses(draft.main, {ref.name: inner})
            info.type.tensor_type.elem_type = number
            nodes.append(node)
            draft.record("input", ref.name, "element type", before=dtype_name(before), after=dtype_name(number))
            draft.record("node", node.name, "inserted", after=f"Cast to {dtype_name(before)}")
        draft.splice(draft.main, {0: nodes})


@dataclass(frozen=True)
class RetypeOutput(Operation):
    """Give outputs another element type, cast from the one that the model computes with.

    Attributes:
        at: Selector of the outputs.
        to: The new element type: ``float32``, ``fp16``, ``int32``.
    """

    word: ClassVar[str] = "retype_output"
    spelling: ClassVar[str] = "{at}={to}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "interface"

    at: str
    to: str

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the outputs."""
        return _outputs(draft, self.at)

    def apply(self, draft: Draft) -> None:
        """Retypes the outputs."""
        number = dtype_number(self.to)
        nodes = []
        for ref in self.find(draft):
            name, main = ref.name, draft.main
            infos = [info for info in main.graph.output if info.name == name]
            before = _tensor_elements(infos[0], "output") or _told_elements(draft, ref)
            if before == number:
                raise RefusedResultError(f"output {name!r} is {dtype_name(number)} already")
            if name not in main.producers:
                what = "an input" if name in main.inputs else "a weight"
                raise RefusedResultError(
                    f"output {name!r} is {what}, whose type would change with it",
                    hint="Add a copy of it under another name (add_output), and remove this one.",
                )
            draft.import_domain(main, "")
            inner = draft.fresh(main, f"{name}_{dtype_name(before)}")
            renamed = dict(draft.renamed)
            draft.rename(main, {name: inner})
            draft.renamed.clear()
            draft.renamed.update(renamed)
            for info in draft.main.graph.output:
                if info.name == inner:
                    info.name = name
                    info.type.tensor_type.elem_type = number
            node = _new_node(draft, "Cast", [inner], [name])
            node.attribute.add(name="to", type=2, i=number)
            nodes.append(node)
            draft.record("output", name, "element type", before=dtype_name(before), after=dtype_name(number))
            draft.record("node", node.name, "inserted", after=f"Cast to {dtype_name(number)}")
            draft.touch()
        draft.splice(draft.main, {len(draft.main.nodes): nodes})


def _tensor_elements(info: ValueInfoProto, what: str) -> int:
    if info.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(f"{what} {info.name!r} is {format_type(info.type)}; only tensors can be cast")
    return elem_type(info.type)


def _told_elements(draft: Draft, ref: TensorRef) -> int:
    kind = draft.type_of(ref)
    if kind is None or not elem_type(kind):
        raise RefusedResultError(f"nothing tells the type of output {ref.name!r}")
    return elem_type(kind)


# ---------------------------------------------------------------- shapes and dimensions


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
            info = _input(draft, spec.name)
            if spec.dtype is not None and spec.dtype != _tensor_elements(info, "input"):
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
            _tensor_elements(info, "input")
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
    """Give a dimension of an input or output a name, or another one.

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
    the way is named.

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
        from onnxbench.batching import free_batch

        inputs = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        if not (inputs is None or isinstance(inputs, (list, dict))):
            raise UsageError(f"inputs: {inputs!r} is no list of inputs", hint="inputs: [x, state:1]")
        feeds = FeedOptions(sources=self._sources(draft), shapes=self.shapes or (), ranges=self.ranges or ())
        free_batch(draft, inputs=inputs, dim=self.dim, to=self.to, feeds=feeds, atol=self.atol, rtol=self.rtol)

    def _sources(self, draft: Draft) -> list[str]:
        return [data_file(each, draft.folder)[1] for each in self.data or ()]

    def files(self, folder: Path) -> Sequence[str]:
        """Returns the files with data."""
        return [name for each in self.data or () if (name := data_file(each, folder)[0])]


def _try_shapes(draft: Draft, old: Model, shapes: Mapping[str, Sequence[Dim]], hint: str) -> None:
    """Runs the model at other shapes.

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
        _run_once(draft.model, FeedOptions(shapes=words))
    except ExecutionError as error:
        raise RefusedResultError(
            f"sizes are baked in: at {said} the model fails: {error.message}", hint=error.hint or hint
        ) from None
    draft.notes.append(f"runs at {said}")


def _run_once(model: Model, options: FeedOptions) -> None:
    feeds = next(feed_sets(model, options)).feeds
    session = backends.open_session(model, options=backends.Options("none", frugal=True))
    session.run(feeds)
    session.close()


# ---------------------------------------------------------------- helpers


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
    """Reads ``x:0=batch`` or ``N=batch``; names of tensors may hold colons and equal signs themselves."""
    left, sign, value = text.rpartition("=")
    if not sign or not left.strip():
        raise UsageError(f"{what} {text!r} cannot be read", hint="Write x:0=VALUE, or NAME=VALUE.")
    left, value = left.strip(), value.strip()
    graph = draft.main.graph
    infos = {info.name: info for info in (*(graph.output if outputs else ()), *graph.input)}
    name, colon, axis_text = left.rpartition(":")
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


def _inputs(draft: Draft, selector: str, *, backed: bool = False) -> list[TensorRef]:
    main = draft.main
    return _ports(draft, selector, main.inputs if backed else main.true_inputs(), "input")


def _outputs(draft: Draft, selector: str) -> list[TensorRef]:
    return _ports(draft, selector, draft.main.outputs, "output")


def _ports(draft: Draft, selector: str, names: Collection[str], what: str) -> list[TensorRef]:
    """Returns the inputs or outputs that a selector stands for."""
    if selector in names:
        return [TensorRef(draft.main, selector)]
    few = f"The {what}s: {', '.join(names)}." if 0 < len(names) <= 8 else None
    try:
        refs = draft.tensors(selector)
    except NotFoundError as error:
        raise NotFoundError(error.message, hint=did_you_mean(selector, names) or few or error.hint) from None
    found = [ref for ref in refs if ref.scope is draft.main and ref.name in names]
    if not found:
        raise NotFoundError(f"{selector!r} is no {what} of the model", hint=did_you_mean(selector, names) or few)
    return found


def _input(draft: Draft, name: str) -> ValueInfoProto:
    info: ValueInfoProto = next(info for info in draft.main.graph.input if info.name == name)
    return info


def _parsed_type(text: str) -> TypeProto:
    from onnx import TypeProto

    kind = TypeProto()
    parse_type(kind, from_python(text, f"the type {text!r}"))
    return kind


def _new_node(draft: Draft, op_type: str, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    from onnx import NodeProto

    name = draft.fresh_node(draft.main, f"{outputs[0]}_{op_type}")
    return NodeProto(op_type=op_type, name=name, input=inputs, output=outputs)


def _copy(info: ValueInfoProto) -> ValueInfoProto:
    made = type(info)()
    made.CopyFrom(info)
    return made


def _prune(draft: Draft, names: Iterable[str]) -> None:
    """Removes what makes these tensors of the main graph, and what only that needed, as far as nothing reads it."""
    main = draft.main
    waiting = {name: len(readers) for name, readers in main.consumers.items()}
    outputs = set(main.outputs)
    removed: set[int] = set()
    weights: set[str] = set()
    pending = list(names)

    def unneeded(name: str) -> bool:
        return not waiting.get(name) and name not in outputs

    while pending:
        name = pending.pop()
        position = main.producers.get(name)
        if not unneeded(name):
            continue
        if position is None:
            if name in main.constants:
                weights.add(name)
            continue
        if position in removed or not all(map(unneeded, main.writes[position])):
            continue
        removed.add(position)
        for read in dict.fromkeys(main.reads[position]):
            waiting[read] -= 1
            pending.append(read)
    gone = [name for position in removed for name in main.writes[position]]
    for position in sorted(removed):
        draft.record("node", main.label(position), "removed", before=main.nodes[position].op_type)
    draft.forget(main, gone)
    draft.splice(main, removed=removed)
    if weights:
        for name in sorted(weights):
            draft.record("weight", name, "removed")
        draft.remove_initializers(draft.main, weights)
