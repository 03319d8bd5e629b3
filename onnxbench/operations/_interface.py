"""Operations on the inputs and outputs of a model: which there are, in what order, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.cut import require_main
from onnxbench.documents import from_python
from onnxbench.draft import Draft, require_free
from onnxbench.errors import NotFoundError, RefusedResultError, UnsupportedError, UsageError, did_you_mean
from onnxbench.graph import TensorRef
from onnxbench.messages import copy_of
from onnxbench.modelspec import make_tensor, parse_type
from onnxbench.operations._base import Effect, Operation, TensorOperation, describe_tensor
from onnxbench.operations._ports import input_info, inputs_at, new_node, outputs_at
from onnxbench.pruning import remove_upstream
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART
from onnxbench.tensortype import dtype_name, elem_type, format_type, is_complete, make_value_info, tensor_shape

if TYPE_CHECKING:
    from onnx import TypeProto, ValueInfoProto


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
        kind = _type_of(draft, ref, self.type)
        made = self.name or name
        if made == name and name in main.outputs:
            raise RefusedResultError(f"{name!r} is an output already", hint="Give the second one a name of its own.")
        if made != name:
            require_free(draft, main, made)
            draft.import_domain(main, "")
            node = new_node(draft, "Identity", [name], [made])
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
        return outputs_at(draft, self.at)

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
            remove_upstream(draft, names)


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
        kind = _type_of(draft, ref, self.type)
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
            remove_upstream(draft, {old})

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
        return inputs_at(draft, self.at, backed=True)

    def apply(self, draft: Draft) -> None:
        """Removes the input."""
        for ref in self.find(draft):
            self._remove(draft, ref.name)

    def _remove(self, draft: Draft, name: str) -> None:
        main = draft.main
        info = input_info(draft, name)
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
        if backed and draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART:
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
        if draft.model.proto.ir_version < FIRST_IR_WITH_WEIGHTS_APART:
            draft.import_domain(draft.main, "")
            node = new_node(draft, "Constant", [], [info.name])
            attribute = node.attribute.add(name="value", type=4)
            attribute.t.CopyFrom(tensor)
            draft.splice(draft.main, {0: [node]})
        else:
            draft.main.graph.initializer.append(tensor)
        draft.record("weight", info.name, "added", after=describe_tensor(tensor))


def _type_of(draft: Draft, ref: TensorRef, said: str | None) -> TypeProto:
    """Returns the type that a user states of a tensor, or else what the model and inference tell."""
    kind = _parsed_type(said) if said is not None else draft.type_of(ref)
    if kind is None or not is_complete(kind):
        raise RefusedResultError(f"nothing tells the type of {ref.name!r}", hint="State it: type: float32[1, 3, ?]")
    return kind


def _parsed_type(text: str) -> TypeProto:
    from onnx import TypeProto

    kind = TypeProto()
    parse_type(kind, from_python(text, f"the type {text!r}"))
    return kind


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
    copies = [copy_of(infos[at]) for at in order]
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
        return inputs_at(draft, self.at, backed=True)

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
        return outputs_at(draft, self.at)

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
