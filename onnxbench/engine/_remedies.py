"""The known ways out of what TensorRT refuses, as edits: what ``build-trt --apply`` does.

Each is an operation like those of ``onnxbench edit`` and goes through ``onnxbench.surgery``, so that it is checked,
told of change by change, and named in the model's metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.draft import Draft
from onnxbench.errors import BenchError, NotFoundError, RefusedResultError
from onnxbench.graph import NodeRef, Scope
from onnxbench.operations import FoldConstants, Operation, RemoveInput, SetShape, TakeBranches
from onnxbench.operations._base import Effect
from onnxbench.quantizing import SymmetricQuantization
from onnxbench.recipe import Step
from onnxbench.surgery import edit
from onnxbench.tensortype import make_type, make_value_info

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto, TensorProto

    from onnxbench.engine._diagnosis import Problem
    from onnxbench.model import Model

_INTEGER_OPS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_FLOAT, _INT32, _INT64 = 1, 6, 7
_PASSING = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")


@dataclass(frozen=True)
class Dequantize(Operation):
    """Undo dynamic quantization: integer weights become float ones, and nothing is rounded on the way.

    ``DynamicQuantizeLinear`` goes (its scale is 1 from then on), ``ConvInteger`` becomes ``Conv`` and ``MatMulInteger``
    ``MatMul``, com.microsoft's ``DynamicQuantizeLSTM`` and ``DynamicQuantizeMatMul`` become ``LSTM`` and ``MatMul``.
    """

    word: ClassVar[str] = "dequantize"
    effect: ClassVar[Effect] = "numerics"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the nodes that quantize as they go."""
        names = {"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}
        return [ref for ref in draft.index.nodes() if ref.node.op_type in names]

    def apply(self, draft: Draft) -> None:
        """Replaces them."""
        before = {
            scope.path: {name for name in scope.constants if _is_read(scope, name)} for scope in draft.index.scopes
        }
        for path in before:
            for op_type, replace in (
                ("DynamicQuantizeLSTM", _replace_lstm), ("DynamicQuantizeMatMul", _replace_matmul),
                ("DynamicQuantizeLinear", _replace_dynamic),
            ):  # fmt: skip
                scope = draft.index.scope_paths[path]
                found = [at for at, node in enumerate(scope.nodes) if node.op_type == op_type]
                if found and scope.is_function:
                    raise RefusedResultError(f"{op_type} in function {path} cannot be undone", hint="Inline it first.")
                if found:
                    replace(draft, scope, found)
        for scope in draft.index.scopes:
            unread = {name for name in scope.constants & before[scope.path] if not _is_read(scope, name)}
            if unread:
                draft.remove_initializers(scope, unread)


def _is_read(scope: Scope, name: str) -> bool:
    return name in scope.consumers or name in scope.outputs


def _replace_dynamic(draft: Draft, scope: Scope, positions: list[int]) -> None:
    """Makes the readers of quantized tensors compute in float."""
    one = _add_weight(draft, scope, "onnxbench_one", None)
    renamed: dict[str, str] = {}
    retyped: list[str] = []
    for at in positions:
        quantizer = scope.nodes[at]
        source, quantized = quantizer.input[0], quantizer.output[0]
        readers = [scope.nodes[reader] for reader in scope.consumers.get(quantized, [])]
        for reader in readers:
            if reader.op_type not in _INTEGER_OPS or reader.input[0] != quantized:
                raise RefusedResultError(
                    f"{scope.label(at)!r} is read by a {reader.op_type}, which cannot be taken back to float"
                )
        for reader in readers:
            _to_float(draft, scope, reader)
            retyped.append(reader.output[0])
        renamed[quantized] = source
        if len(quantizer.output) > 1 and quantizer.output[1]:
            renamed[quantizer.output[1]] = one
        draft.record("node", scope.label(at), "removed", before="DynamicQuantizeLinear")
        draft.forget(scope, quantizer.output)
    draft.replace_uses(scope, _resolved(renamed))
    path = scope.path
    draft.splice(draft.index.scope_paths[path], removed=positions)
    draft.retype(draft.index.scope_paths[path], [one, *retyped])


def _resolved(names: dict[str, str]) -> dict[str, str]:
    """Returns renamings whose targets are not renamed themselves (a quantizer may read what another one made)."""
    found = {}
    for name, to in names.items():
        while to in names:
            to = names[to]
        found[name] = to
    return found


def _to_float(draft: Draft, scope: Scope, node: NodeProto) -> None:
    values = _constant(draft, scope, node.input[1], node)
    zero = _constant(draft, scope, node.input[3], node) if len(node.input) > 3 and node.input[3] else None
    if zero is not None and zero.ndim == 1 and zero.size > 1 and node.op_type == "ConvInteger":
        zero = zero.reshape((-1,) + (1,) * (values.ndim - 1))
    floats = values.astype("float32") - (0 if zero is None else zero.astype("float32"))
    weight = _add_weight(draft, scope, f"{node.input[1]}_float", floats)
    before, node.op_type = node.op_type, _INTEGER_OPS[node.op_type]
    del node.input[1:]
    node.input.append(weight)
    draft.record("node", node.name or node.output[0], "operator", before=before, after=node.op_type)
    draft.forget(scope, node.output)
    for reader in scope.consumers.get(node.output[0], []):
        if scope.nodes[reader].op_type == "Add":
            for name in scope.nodes[reader].input:
                if name != node.output[0]:
                    _unround(draft, scope, name)


def _unround(draft: Draft, scope: Scope, name: str) -> None:
    """Keeps a bias in float that was rounded to integers on its way to an integer Add."""
    while (at := scope.producers.get(name, -1)) >= 0:
        node = scope.nodes[at]
        draft.forget(scope, node.output)
        if node.op_type in ("Floor", "Round", "Ceil"):
            draft.record("node", scope.label(at), "operator", before=node.op_type, after="Identity")
            node.op_type = "Identity"
            return
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == _INT32:
                    attribute.i = _FLOAT
        elif node.op_type not in _PASSING:
            return
        name = node.input[0]


def _replace_lstm(draft: Draft, scope: Scope, positions: list[int]) -> None:
    """Makes com.microsoft's quantized LSTM the standard one, whose weights lie the other way round."""
    for at in positions:
        node = scope.nodes[at]
        inputs = [*node.input, *[""] * (12 - len(node.input))]
        names = []
        for weight, scale, zero in ((inputs[1], inputs[8], inputs[9]), (inputs[2], inputs[10], inputs[11])):
            values = _constant(draft, scope, weight, node).astype("float32")
            scales, zeros = _constant(draft, scope, scale, node), _constant(draft, scope, zero, node)
            shape = (values.shape[0], 1, -1)
            floats = (values - zeros.astype("float32").reshape(shape)) * scales.reshape(shape)
            names.append(_add_weight(draft, scope, f"{weight}_float", floats.transpose(0, 2, 1)))
        kept = [inputs[0], *names, *inputs[3:8]]
        while not kept[-1]:
            kept.pop()
        del node.input[:]
        node.input.extend(kept)
        node.op_type, node.domain = "LSTM", ""
        draft.record("node", scope.label(at), "operator", before="DynamicQuantizeLSTM", after="LSTM")
    draft.touch()


def _replace_matmul(draft: Draft, scope: Scope, positions: list[int]) -> None:
    from onnx import NodeProto

    inserted: dict[int, list[Any]] = {}
    for at in positions:
        node = scope.nodes[at]
        inputs = [*node.input, *[""] * (5 - len(node.input))]
        values, scales = _constant(draft, scope, inputs[1], node), _constant(draft, scope, inputs[2], node)
        zero = _constant(draft, scope, inputs[3], node).astype("float32") if inputs[3] else 0
        weight = _add_weight(draft, scope, f"{inputs[1]}_float", (values.astype("float32") - zero) * scales)
        product = draft.fresh(scope, f"{node.output[0]}_product") if inputs[4] else node.output[0]
        made = [NodeProto(op_type="MatMul", name=node.name, input=[inputs[0], weight], output=[product])]
        if inputs[4]:
            name = draft.fresh_node(scope, f"{node.name or node.output[0]}_bias")
            made.append(NodeProto(op_type="Add", name=name, input=[product, inputs[4]], output=[node.output[0]]))
        inserted[at] = made
        draft.record("node", scope.label(at), "operator", before="DynamicQuantizeMatMul", after="MatMul")
    draft.splice(scope, inserted, removed=positions)


def _constant(draft: Draft, scope: Scope, name: str, node: NodeProto) -> np.ndarray:
    tensor = _initializer(scope, name)
    if tensor is None:
        raise RefusedResultError(
            f"{node.op_type} {node.name or node.output[0]!r}: {name!r} is computed and not stored",
            hint="'onnxbench edit --fold-constants 1G' may store it.",
        )
    return draft.model.array(tensor)


def _initializer(scope: Scope, name: str) -> TensorProto | None:
    around: Scope | None = scope
    while around is not None:
        if not around.is_function:
            for tensor in around.graph.initializer:
                if tensor.name == name:
                    found: TensorProto = tensor
                    return found
        around = around.parent
    return None


def _add_weight(draft: Draft, scope: Scope, base: str, values: np.ndarray | None) -> str:
    """Adds a float32 initializer to a graph and returns its name; None stands for the scalar 1."""
    import numpy as np

    array = np.ascontiguousarray(np.float32(1) if values is None else values, dtype="<f4")
    array = array.reshape(()) if values is None else array
    name = draft.fresh(scope, base)
    tensor = scope.graph.initializer.add(name=name, data_type=_FLOAT)
    tensor.dims.extend(array.shape)
    draft.model.store(tensor, [array.tobytes()], array.nbytes)
    draft.record("weight", name, "added")
    return name


@dataclass(frozen=True)
class ResizeBySizes(Operation):
    """Let Resize take the size of its result, as int64, in place of float scales that are an input of the model.

    TensorRT makes shapes of integers only. The input changes its name and type: callers give sizes from then on.
    """

    word: ClassVar[str] = "resize_by_sizes"
    effect: ClassVar[Effect] = "interface"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the Resize nodes of the main graph whose scales are an input that nothing else reads."""
        main = draft.main
        free = set(main.true_inputs())
        return [
            NodeRef(main, at)
            for at, node in enumerate(main.nodes)
            if node.op_type == "Resize" and len(node.input) == 3 and node.input[2] in free
            and main.consumers[node.input[2]] == [at]
        ]  # fmt: skip

    def apply(self, draft: Draft) -> None:
        """Replaces the inputs."""
        for ref in self.find(draft):
            node, main = ref.node, ref.scope
            old = node.input[2]
            info = next(each for each in main.graph.input if each.name == old)
            lengths = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            new = draft.fresh(main, f"{old}_sizes")
            position = list(main.graph.input).index(info)
            infos = [make_value_info(new, make_type(_INT64, tuple(lengths))) if each is info else each
                     for each in main.graph.input]  # fmt: skip
            copies = [type(info).FromString(each.SerializeToString()) for each in infos]
            del main.graph.input[:]
            main.graph.input.extend(copies)
            node.input[2] = ""
            node.input.append(new)
            draft.record("input", old, "replaced", before="float32 scales", after=f"{new}, int64 sizes")
            draft.notes.append(f"input {old!r} (number {position}) is now {new!r}: the size of the result, int64")
            draft.retype(main, node.output)
        draft.touch()


_REMEDIES: dict[str, Callable[[], list[Operation]]] = {
    "dequantize": lambda: [Dequantize()],
    "fold_weights": lambda: [FoldConstants(max_bytes="2G")],
    "resize_sizes": lambda: [ResizeBySizes()],
    "symmetric_quantization": lambda: [SymmetricQuantization()],
    "take_branches": lambda: [FoldConstants(), TakeBranches()],
}


def fix_inputs(model: Model, words: Sequence[str]) -> tuple[Model, list[str]]:
    """Returns a model some of whose inputs have one value for good, and what was changed.

    Args:
        model: The model.
        words: ``sr=16000``, as for ``onnxbench edit --remove-input``.
    """
    from onnxbench.documents import from_yaml
    from onnxbench.errors import UsageError
    from onnxbench.operations import spelled_fields

    steps = []
    for word in words:
        fields = spelled_fields(RemoveInput, word)
        if "value" not in fields:
            raise UsageError(f"--fix {word!r} gives no value", hint="Write --fix sr=16000.")
        steps.append(Step(RemoveInput(fields["at"], _python(from_yaml(fields["value"], "--fix")))))
    done = edit(model, steps)
    return done.model, [change.sentence() for change in done.changes]


def _python(item: Any) -> Any:
    if item.kind == "list":
        return [_python(each) for each in item.items]
    if item.kind in ("int", "float"):
        return float(item.text) if item.kind == "float" else int(item.text, 0)
    if item.kind == "bool":
        return item.text.lower() == "true"
    return {key: _python(value) for key, _, value in item.pairs()} if item.kind == "map" else item.text


def take_ways_out(
    model: Model, problems: Sequence[Problem], fixed: Mapping[str, Sequence[int]] | None = None
) -> tuple[Model, list[str]]:
    """Returns a model with the remedies applied that its problems name, and what they did; the same model for none.

    A remedy that does not work here is told of and left out.

    Args:
        model: The model.
        problems: What stands in the way.
        fixed: Inputs that will have one shape only. Where conditions depend on sizes, they get it for good.
    """
    words = []
    for remedy in dict.fromkeys(problem.remedy for problem in problems if problem.remedy):
        shapes = [
            SetShape(f'"{name}":[{",".join(map(str, shape))}]') for name, shape in (fixed or {}).items()
        ]  # fmt: skip
        attempts: list[list[Operation]] = [_REMEDIES[remedy]()]
        if remedy == "take_branches" and shapes:  # shapes come second: branches never taken may not fit them
            attempts.append([*shapes, *_REMEDIES[remedy]()])
        said = ""
        for operations in attempts:
            try:
                done = edit(model, [Step(operation) for operation in operations])
            except NotFoundError as error:
                said = f"{remedy} changes nothing here: {error.message}"
            except BenchError as error:
                said = f"{remedy} does not work here: {error.message}"
            else:
                if done.changes:
                    model = done.model
                    said = f"applied {remedy}: {len(done.changes)} changes"
                    words += [note for step in done.steps for note in step.notes]
                    break
        words += [said] if said else []
    return model, words
