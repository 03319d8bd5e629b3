"""Operations on quantized models: back to float, and into the symmetric form that TensorRT takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.draft import Draft
from onnxbench.errors import RefusedResultError
from onnxbench.graph import NodeRef, Scope
from onnxbench.operations._base import Effect, Operation

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto, TensorProto

_INTEGER_OPS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_LINEAR = ("QuantizeLinear", "DequantizeLinear")
_PASSING = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6
_SHOWN = 12
_AGAIN = "Quantize the float model again: build-trt --int8 --calibration DATA."


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
    import numpy as np

    one = _add_weight(draft, scope, "onnxbench_one", np.ones((), np.float32))
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
    values = _array(draft, scope, node.input[1], node)
    zero = _array(draft, scope, node.input[3], node) if len(node.input) > 3 and node.input[3] else None
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
            values = _array(draft, scope, weight, node).astype("float32")
            scales, zeros = _array(draft, scope, scale, node), _array(draft, scope, zero, node)
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
        values, scales = _array(draft, scope, inputs[1], node), _array(draft, scope, inputs[2], node)
        zero = _array(draft, scope, inputs[3], node).astype("float32") if inputs[3] else 0
        weight = _add_weight(draft, scope, f"{inputs[1]}_float", (values.astype("float32") - zero) * scales)
        product = draft.fresh(scope, f"{node.output[0]}_product") if inputs[4] else node.output[0]
        made = [NodeProto(op_type="MatMul", name=node.name, input=[inputs[0], weight], output=[product])]
        if inputs[4]:
            name = draft.fresh_node(scope, f"{node.name or node.output[0]}_bias")
            made.append(NodeProto(op_type="Add", name=name, input=[product, inputs[4]], output=[node.output[0]]))
        inserted[at] = made
        draft.record("node", scope.label(at), "operator", before="DynamicQuantizeMatMul", after="MatMul")
    draft.splice(scope, inserted, removed=positions)


@dataclass(frozen=True)
class SymmetricQuantization(Operation):
    """Bring quantization into the form that TensorRT takes: int8, zero points 0, bias in float.

    Everything computes the same numbers as before. An int32 bias behind DequantizeLinear becomes a float one. uint8
    with zero point 128 becomes int8 with 0. Weights with other zero points become int8 with 0 where they fit, else
    float. Other zero points of what is computed cannot be changed so: all such nodes are named.
    """

    word: ClassVar[str] = "symmetric_quantization"
    effect: ClassVar[Effect] = "rounding"
    expects: ClassVar[str] = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the nodes that are not in that form."""
        return [ref for ref in draft.index.nodes() if _form(draft, ref)]

    def apply(self, draft: Draft) -> None:
        """Changes them."""
        refused = [words for ref in draft.index.nodes() if (words := _reason(draft, ref))]
        if refused:
            more = [f"and {len(refused) - _SHOWN} more nodes"] if len(refused) > _SHOWN else []
            raise RefusedResultError(refused[0], details=[*refused[1:_SHOWN], *more], hint=_AGAIN)
        for path in [scope.path for scope in draft.index.scopes]:
            scope = draft.index.scope_paths[path]
            forms = {at: form for at in range(len(scope.nodes)) if (form := _form(draft, NodeRef(scope, at)))}
            if not forms:
                continue
            if scope.is_function:
                raise RefusedResultError(f"quantization in function {path} is left as it is", hint="Inline it first.")
            before = {name for name in scope.constants if name in scope.consumers}
            floats = _renumber(draft, scope, forms)
            _fold_into_floats(draft, draft.index.scope_paths[path], floats)
            scope = draft.index.scope_paths[path]
            unread = {name for name in before & set(scope.constants) if not _is_read(scope, name)}
            if unread:
                draft.remove_initializers(scope, unread)


def _form(draft: Draft, ref: NodeRef) -> str | None:
    """Returns what a node quantizes that is not in the symmetric form; None if it is, or does not quantize.

    ``bias`` and ``weight`` are stored and dequantized, ``activation`` is uint8 around 128, ``other`` is all else.
    """
    node, scope = ref.node, ref.scope
    if node.op_type.startswith("QLinear"):
        return "other"
    if node.op_type not in _LINEAR or (len(node.input) > 2 and node.input[2] and not _zero(draft, ref)):
        return None
    data = _stored(draft, scope, node.input[0]) if node.op_type == "DequantizeLinear" else None
    if data is not None and data.data_type == _INT32:
        return "bias"
    zero = _zero(draft, ref)
    if zero is not None:
        kind, values = zero.data_type, draft.model.array(zero)
    elif data is not None:
        kind, values = data.data_type, None
    elif node.op_type == "QuantizeLinear":
        kind, values = next((each.i for each in node.attribute if each.name == "output_dtype"), 0) or _UINT8, None
    else:
        return None
    if kind not in (_UINT8, _INT8) or (kind == _INT8 and (values is None or not values.any())):
        return None
    if data is not None:
        return "weight"
    return "activation" if kind == _UINT8 and values is not None and (values == 128).all() else "other"


def _zero(draft: Draft, ref: NodeRef) -> TensorProto | None:
    """Returns the stored zero point of a node; None if it has none, or computes it."""
    return _stored(draft, ref.scope, ref.node.input[2]) if len(ref.node.input) > 2 and ref.node.input[2] else None


def _reason(draft: Draft, ref: NodeRef) -> str | None:
    """Returns why a node cannot be brought into the symmetric form; None if it can, or is."""
    form, node, scope = _form(draft, ref), ref.node, ref.scope
    if form is None:
        return None
    label = f"{node.op_type} {scope.label(ref.position)!r}"
    if node.op_type.startswith("QLinear"):
        return f"{label} computes in integers (QOperator), which TensorRT does not have"
    if form == "bias" and (zero := _zero(draft, ref)) is not None and draft.model.array(zero).any():
        return f"{label} has an int32 zero point that is not 0"
    if form in ("bias", "weight"):
        if any(each.name == "block_size" and each.i for each in node.attribute):
            return f"{label} has a zero point for each block of weights, and TensorRT takes symmetric int8 alone"
        return f"{label} of a stored tensor makes an output" if node.output[0] in scope.outputs else None
    maker = scope.producers.get(node.input[0], -1)
    if node.op_type == "DequantizeLinear" and (maker < 0 or scope.nodes[maker].op_type != "QuantizeLinear"):
        return f"{label}: what makes {node.input[0]!r} in 8 bits cannot be changed"
    if form == "other":
        if node.op_type == "DequantizeLinear":  # told of at its QuantizeLinear, if that has this zero point
            said = list(node.input[1:]) == list(scope.nodes[maker].input[1:])
            return None if said else f"{label} has another zero point than what quantizes {node.input[0]!r}"
        zero = _zero(draft, ref)
        values = "0 of uint8" if zero is None else _spelled(draft.model.array(zero))
        return f"{label} has zero point {values}, and TensorRT takes symmetric int8 alone"
    if node.op_type == "QuantizeLinear":
        name = node.output[0]
        readers = [NodeRef(scope, at) for at in scope.consumers.get(name, [])]
        if name in scope.outputs or any(
            each.node.op_type != "DequantizeLinear" or _form(draft, each) != "activation" for each in readers
        ):
            return f"{label}: {name!r} in uint8 is read by more than DequantizeLinear"
    return None


def _spelled(zeros: np.ndarray) -> str:
    import numpy as np

    found = np.unique(zeros)
    return f"{', '.join(map(str, found[:4]))}{', ...' if len(found) > 4 else ''} of {zeros.dtype}"


def _renumber(draft: Draft, scope: Scope, forms: dict[int, str]) -> list[int]:
    """Makes int8 with zero points 0 of what fits it, and returns the positions of the nodes whose data does not."""
    import numpy as np

    floats, retyped = [], []
    for at, form in forms.items():
        node, ref = scope.nodes[at], NodeRef(scope, at)
        if form == "bias":
            floats.append(at)
            continue
        zero = _zero(draft, ref)
        zeros = draft.model.array(zero) if zero is not None else np.zeros((), np.uint8)
        if form == "weight":
            stored = _array(draft, scope, node.input[0], node)
            values = stored.astype(np.int16) - _along_axis(node, zeros, stored.ndim).astype(np.int16)
            if values.min(initial=0) < -128 or values.max(initial=0) > 127:
                floats.append(at)
                continue
            node.input[0] = _add_weight(draft, scope, f"{node.input[0]}_int8", values.astype(np.int8))
        else:
            retyped += [name for name in node.output if node.op_type == "QuantizeLinear"]
        before = f"{zeros.dtype} {_spelled(zeros).partition(' of ')[0]}"
        name = _add_weight(draft, scope, f"{node.output[0]}_zero", np.zeros(zeros.shape, np.int8))
        del node.input[2:]
        node.input.append(name)
        draft.record("node", scope.label(at), "zero point", before=before, after="int8 0")
    if len(floats) < len(forms):
        draft.touch()
        draft.forget(draft.index.scope_paths[scope.path], retyped)
        draft.retype(draft.index.scope_paths[scope.path], retyped)
    return floats


def _fold_into_floats(draft: Draft, scope: Scope, positions: Sequence[int]) -> None:
    """Replaces DequantizeLinear of stored numbers by the float numbers that it makes of them."""
    import numpy as np

    renamed = {}
    for at in positions:
        node = scope.nodes[at]
        values, scale = _array(draft, scope, node.input[0], node), _array(draft, scope, node.input[1], node)
        zeros = _array(draft, scope, node.input[2], node) if len(node.input) > 2 and node.input[2] else np.int64(0)
        whole = values.astype(np.int64) - _along_axis(node, np.asarray(zeros), values.ndim).astype(np.int64)
        floats = (whole.astype(np.float64) * _along_axis(node, scale, values.ndim)).astype(scale.dtype)
        renamed[node.output[0]] = _add_weight(draft, scope, f"{node.output[0]}_float", floats)
        draft.record("node", scope.label(at), "removed", before=f"DequantizeLinear of stored {values.dtype}")
        draft.forget(scope, node.output)
    if renamed:
        draft.replace_uses(scope, renamed)
        draft.splice(draft.index.scope_paths[scope.path], removed=list(positions))


def _along_axis(node: NodeProto, values: np.ndarray, rank: int) -> np.ndarray:
    """Returns scales or zero points so that they broadcast over the tensor that they are of."""
    if values.size < 2 or rank < 2:
        return values if values.size > 1 else values.reshape(())
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


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
        raise RefusedResultError(
            f"{node.op_type} {node.name or node.output[0]!r}: {name!r} is computed and not stored",
            hint="'onnxbench edit --fold-constants 1G' may store it.",
        )
    return draft.model.array(tensor)


def _add_weight(draft: Draft, scope: Scope, base: str, values: np.ndarray) -> str:
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
