"""What an export silently decided: values frozen into the graph, baked sizes, inputs that vanished."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.provenance import Origins
from onnxbench.pytorch.sources import Leaf, is_library

if TYPE_CHECKING:
    from onnx import TensorProto

    from onnxbench.model import Model

_METHODS = ("__int__", "__float__", "__bool__", "__index__", "item", "tolist")
_MOST_ELEMENTS = 64
_INDEX = "a Python index"
"""How ``range()`` takes a value: that counts loops, and no constant need come of it."""
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_SHAPED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Tile": 1, "Resize": 3}
"""Operators to the input that is a shape."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the export decided for good and that a user may not expect.

    Attributes:
        kind: ``frozen-value``, ``frozen-branch``, ``frozen-size``, ``baked-argument``, ``vanished-input``,
            ``unused-input``, ``baked-size``, ``random``, ``tracer`` or ``unused-rewrite``.
        message: What happened, in one sentence.
        source: ``file.py:12``, where it can be told.
        code: What is written there.
        constant: The ONNX tensor that it became, where it can be told.
        hint: What to do.
    """

    kind: str
    message: str
    source: str | None = None
    code: str | None = None
    constant: str | None = None
    hint: str | None = None

    def sentence(self) -> str:
        """The finding in one line."""
        parts = [self.message]
        if self.source:
            parts.append(f"at {self.source}" + (f" ({self.code})" if self.code else ""))
        if self.constant:
            parts.append(f"it is {self.constant} in the file")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A Python value that was taken from a tensor while the model was traced.

    Attributes:
        value: The value.
        how: ``int()``, ``.item()``, ...
        file: The user's file.
        line: The line in it.
        function: The function.
        of_size: Whether it depends on sizes of inputs alone, not on their values.
    """

    value: Any
    how: str
    file: str
    line: int
    function: str
    of_size: bool


@contextlib.contextmanager
def watch_python_values(torch: Any) -> Iterator[list[Frozen]]:
    """Collects the Python values that user code takes from tensors while it is traced by ``torch.jit``."""
    found: list[Frozen] = []
    own = torch.Tensor.__dict__
    before = {name: own.get(name) for name in _METHODS}

    def watched(name: str, original: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            value = original(self, *args)
            frame = _user_frame() if torch._C._is_tracing() else None
            if frame is not None:
                how = f".{name}()" if name[0] != "_" else f"{name.strip('_')}()".replace("index()", _INDEX)
                function = frame.f_code.co_name
                found.append(
                    Frozen(value, how, frame.f_code.co_filename, frame.f_lineno, function, _is_of_size(torch, self))
                )
            return value

        return call

    for name in _METHODS:
        setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    try:
        yield found
    finally:
        for name, original in before.items():
            if original is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, original)


def _user_frame() -> Any:
    """Returns the calling frame if it is the user's code; None if PyTorch asked for the value for itself."""
    frame = sys._getframe(2)
    return None if is_library(frame.f_code.co_filename) else frame


def _is_of_size(torch: Any, tensor: Any) -> bool:
    """Tells whether a traced tensor is computed from sizes alone."""
    try:
        pending = [torch._C._get_value_trace(tensor).node()]
    except RuntimeError:
        return False
    seen = 0
    while pending and seen < 200:
        node, seen = pending.pop(), seen + 1
        if node.kind() == "aten::size":
            continue
        inputs = [each.node() for each in node.inputs()]
        if node.kind() == "prim::Param" or (not inputs and node.kind() != "prim::Constant"):
            return False
        pending += inputs
    return True


def frozen_findings(
    frozen: Sequence[Frozen], caught: Sequence[warnings.WarningMessage], model: Model, *, is_dynamic: bool
) -> list[Finding]:
    """Returns the values that the TorchScript exporter froze, each place once.

    Args:
        frozen: What user code took from tensors.
        caught: Warnings that were raised meanwhile.
        model: The export, its nodes with source lines.
        is_dynamic: Whether any size is open; where none is, a size taken as a Python number does no harm.
    """
    index = GraphIndex(model.proto)
    constants = _Constants(model, index)
    found: list[Finding] = []
    places: set[tuple[str, int]] = set()
    for each in frozen:
        place = each.file, each.line
        if place in places or (each.of_size and not is_dynamic):
            places.add(place)
            continue
        places.add(place)
        source, code = f"{each.file}:{each.line}", _code(*place)
        if isinstance(each.value, bool):
            message = (
                f"the branch that the example input takes is frozen: a tensor was used as the condition {each.value}"
            )
            hint = "Use torch.where, or export with the default exporter and torch.cond."
            found.append(Finding("frozen-branch", message, source, code, None, hint))
            continue
        what = "a size of an input" if each.of_size else "a value computed from the inputs"
        kind = "frozen-size" if each.of_size else "frozen-value"
        message = f"{what} is frozen to {_short(each.value)} by {each.how}"
        constant = constants.find(each)
        hint = "Keep it a tensor, or export with the default exporter, which keeps it as a computed number."
        found.append(Finding(kind, message, source, code, constant, hint))
    for warning in caught:
        place = warning.filename, warning.lineno
        # What our own watchers cause is told above, with the value.
        if warning.category.__name__ != "TracerWarning" or place in places or place[0] == __file__:
            continue
        places.add(place)
        message = " ".join(str(warning.message).split(". ")[0].split())
        found.append(Finding("tracer", message, f"{place[0]}:{place[1]}", _code(*place)))
    return found


def _code(file: str, line: int) -> str | None:
    import linecache

    return linecache.getline(file, line).strip() or None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Constants:
    """The small constants of a model, and where the nodes that read them come from."""

    def __init__(self, model: Model, index: GraphIndex) -> None:
        self._origins = Origins([ref.node for ref in index.nodes()])
        self._values: dict[str, Any] = {}
        self._readers: dict[str, list[NodeRef]] = {}
        tensors: list[tuple[str, TensorProto]] = [(each.name, each) for each in model.proto.graph.initializer]
        for ref in index.nodes():
            if ref.node.op_type == "Constant" and ref.node.attribute and ref.node.attribute[0].HasField("t"):
                tensors.append((ref.node.output[0], ref.node.attribute[0].t))
                self._readers.setdefault(ref.node.output[0], []).append(ref)
            for name in ref.node.input:
                self._readers.setdefault(name, []).append(ref)
        for name, tensor in tensors:
            count = 1
            for size in tensor.dims:
                count *= size
            if count <= _MOST_ELEMENTS and not weights.is_outside(tensor):
                self._values[name] = model.array(tensor)

    def find(self, frozen: Frozen) -> str | None:
        """Returns the one constant with a frozen value that is read in the function where it was frozen, or None."""
        here: list[str] = []
        below: list[str] = []
        for name, array in self._values.items():
            if array.dtype.kind not in "iuf" or not isinstance(frozen.value, (int, float)):
                continue
            if not (array == frozen.value).any():
                continue
            lines = [
                frame.line
                for ref in self._readers.get(name, ())
                for frame in self._origins.of(ref.node).frames
                if frame.file == frozen.file and frame.function == frozen.function
            ]
            if frozen.line in lines:
                here.append(name)
            elif frozen.how != _INDEX and any(line > frozen.line for line in lines):
                below.append(name)
        found = here or below
        return f"{found[0]} = {self._values[found[0]].tolist()}" if len(found) == 1 else None


def input_findings(
    leaves: Sequence[Leaf], inputs: Sequence[int], model: Model, *, takes_numbers: bool
) -> list[Finding]:
    """Returns what became of example inputs that are no inputs of the file, or that nothing in it reads.

    Args:
        leaves: The example inputs.
        inputs: The leaf that each input of the file is.
        model: The file.
        takes_numbers: Whether the exporter makes inputs of plain numbers, too.
    """
    found = []
    for at, leaf in enumerate(leaves):
        if at in inputs:
            continue
        if hasattr(leaf.value, "shape") or takes_numbers:
            message = f"input {leaf.name!r} is not in the file: nothing that the model computes depends on it"
            found.append(Finding("vanished-input", message))
        else:
            message = f"argument {leaf.name!r} is baked into the file as {_short(leaf.value)}"
            found.append(Finding("baked-argument", message, hint="Make it a tensor to keep it an input."))
    index = GraphIndex(model.proto)
    for at, info in zip(inputs, model.proto.graph.input, strict=False):
        if not index.main.consumers.get(info.name) and info.name not in index.main.outputs:
            message = f"input {leaves[at].name!r} is read by nothing in the file"
            found.append(Finding("unused-input", message))
    return found


def random_findings(model: Model) -> list[Finding]:
    """Returns the operators that draw random numbers: no two runs of such a model agree."""
    index = GraphIndex(model.proto)
    origins = Origins([ref.node for ref in index.nodes()])
    found = []
    for ref in index.nodes():
        if ref.node.op_type in _RANDOM:
            said = origins.of(ref.node)
            message = f"node {ref.path} ({ref.node.op_type}) draws random numbers, so no two runs agree"
            found.append(Finding("random", message, said.source, said.code, None, "Dropout left on? Call eval()."))
    return found


def baked_sizes(model: Model, sizes: Mapping[str, int]) -> list[Finding]:
    """Returns constants that are shapes and hold the example's size of a dimension that is to be open.

    Args:
        model: The export.
        sizes: The sizes of the open dimensions in the example inputs.
    """
    index = GraphIndex(model.proto)
    origins = Origins([ref.node for ref in index.nodes()])
    constants = _Constants(model, index)
    symbols = {size: symbol for symbol, size in sizes.items() if size > 1}
    found = []
    for ref in index.nodes():
        at = _SHAPED.get(ref.node.op_type)
        name = ref.node.input[at] if at is not None and len(ref.node.input) > at else ""
        array = constants._values.get(name)
        hits = [size for size in symbols if array is not None and array.dtype.kind in "iu" and (array == size).any()]
        for size in hits:
            said = origins.of(ref.node)
            message = f"{ref.node.op_type} {ref.path} may have the example's {symbols[size]} = {size} baked in"
            hint = "onnxbench edit --make-batch-dynamic repairs a baked batch; or compute the size from x.shape there."
            constant = f"{name} = {array.tolist()}" if array is not None else None
            found.append(Finding("baked-size", message, said.source, said.code, constant, hint))
    return found
