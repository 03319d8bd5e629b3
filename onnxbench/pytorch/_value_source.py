"""What any source of PyTorch's values has in common: what a value is, and how it is asked for (see ``values``)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnxbench.backends import in_batches
from onnxbench.captures import Feeds, Port, Value
from onnxbench.errors import FeedsError, NotFoundError, did_you_mean
from onnxbench.provenance import Provenance
from onnxbench.pytorch import require_torch
from onnxbench.pytorch._binding import bound_inputs
from onnxbench.pytorch._verification import as_array, tensors_of
from onnxbench.pytorch.sources import Source, own_errors

if TYPE_CHECKING:
    pass

Kind = Literal["program", "modules"]
ROOT = "(model)"
"""What the model itself is called among its modules."""


@dataclass(frozen=True, slots=True)
class TorchValue:
    """One value that PyTorch computes.

    Attributes:
        name: The fx node; or the call of a module, ``layers.0.bn``, ``act@1`` for the second one, ``rotary:0`` and
            ``(model):logits`` for parts of a nested result.
        shape: Its shape for the example inputs; a size that is open in an exported program is None.
        dtype: Its element type, ``float32``.
        origin: Module path, classes, source lines.
        inputs: The values that it is computed from, as far as they have names here.
        same_as: The value that it is, the very same tensor under another name (a module's output that is the output of
            a module within it), or None.
        calls: The module calls whose output it is: ``layers.0.bn``, ``act@1``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    origin: Provenance
    inputs: tuple[str, ...] = ()
    same_as: str | None = None
    calls: tuple[str, ...] = ()


class TorchValues(ABC):
    """The values of a PyTorch model.

    Attributes:
        source: The model.
        kind: ``program`` for the values of fx nodes, ``modules`` for the outputs of modules.
        label: What this is, in words.
        values: The values by name, in the order in which PyTorch computes them.
        notes: What was decided without being told.
        inputs: Which argument each input of the ONNX model is (see ``bind``).
        program: The ``ExportedProgram``; None for outputs of modules.
    """

    kind: Kind
    label: str
    values: Mapping[str, TorchValue]
    program: Any = None

    def __init__(self, source: Source, notes: Sequence[str] = ()) -> None:
        self.source = source
        self.notes = tuple(notes)
        self.inputs: dict[str, str] = {}
        self._leaves = source.leaves()

    def bind(self, ports: Sequence[Port], said: Mapping[str, str] | None = None) -> dict[str, str]:
        """Finds and returns which argument of the model each input of an ONNX model is.

        Told, else called the same, else the only way in which the others fit in order.

        Args:
            ports: The inputs of the ONNX model.
            said: What a user says: ONNX input to argument.

        Raises:
            NotFoundError: ``said`` names no input or no argument.
            FeedsError: An input cannot be told, or does not fit its argument.
        """
        self.inputs = bound_inputs([port for port in ports if port.required], self._leaves, said or {}, self.label)
        return self.inputs

    def examples(self) -> Feeds:
        """Returns the example inputs by the names of the ONNX model's inputs (``bind`` comes first)."""
        known = {leaf.name: leaf.value for leaf in self._leaves}
        return {name: as_array(known[leaf]) for name, leaf in self.inputs.items()}

    def stream(self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]:
        """Yields values as arrays, batch after batch; a batch is not kept once the next one is asked for.

        Args:
            feeds: The inputs, by the names of the ONNX model's inputs (``bind`` comes first). Arguments that are no
                input of the ONNX model have their example values.
            batches: Names of values. Any order is right; that of ``values`` needs the least memory.

        Raises:
            NotFoundError: There is no such value.
            FeedsError: An input does not fit the model.
            ExecutionError: The model failed.
        """
        for name in (name for batch in batches for name in batch):
            if name not in self.values:
                raise NotFoundError(f"{self.label} has no value {name!r}", hint=did_you_mean(name, self.values))
        yield from self._stream(self._arguments(feeds), batches)

    def batches(self, max_bytes: int, names: Collection[str] | None = None) -> list[list[str]]:
        """Returns values, in order, in batches that take about so many bytes for the example inputs."""
        sizes = {
            name: math.prod(each or 1 for each in value.shape) * (8 if "64" in value.dtype else 4)
            for name, value in self.values.items()
            if names is None or name in names
        }
        return in_batches(sizes, sizes, max_bytes)

    def call(self, name: str) -> str:
        """Returns how a value is computed, in words: ``aten.gelu.default(linear)``, or the class of the module."""
        return self.values[name].origin.module_class or "the model"

    def outputs(self) -> list[str]:
        """Returns the names of what the model returns, in order; what is no tensor is left out."""
        return []

    def recompute(self, names: Sequence[str], given: Mapping[str, Value]) -> dict[str, Value] | None:
        """Returns values computed anew from given ones; None where they do not suffice.

        Args:
            names: The values.
            given: Values by their names here, inputs by the names of the ONNX model's inputs; weights by theirs, which
                have the place of the model's own.
        """
        return None

    def rerun(self, name: str, given: Mapping[str, Value]) -> Value | None:
        """Returns one value computed anew (see ``recompute``)."""
        made = self.recompute([name], given)
        return None if made is None else made[name]

    def within(self, name: str, given: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what the steps make that a value is computed by, where that is one call; none if it is one step.

        Args:
            name: The value.
            given: Values, as for ``rerun``.

        Returns:
            The values in their order, named after the operators: ``bmm``, ``bmm_1``.
        """
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from onnxbench.pytorch._steps import Steps

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Steps() as steps:  # others are one step each
            made = self.rerun(name, given)
        return {} if made is None or len(steps.values) < 2 else {n: as_array(v) for n, v in steps.values.items()}

    def weight(self, name: str) -> Value | None:
        """Returns the values of a parameter or buffer, or None."""
        state = self.source.module.state_dict if self.source.kind == "program" else self.source.module.state_dict()
        return as_array(state[name]) if name in state else None

    def returned(self, feeds: Mapping[str, Value]) -> list[Value]:
        """Returns the tensors that the model itself returns, in order, as arrays; ``feeds`` as for ``stream``.

        Raises:
            FeedsError: An input does not fit the model.
            ExecutionError: The model failed.
        """
        args, kwargs = self._filled(self._arguments(feeds))
        with running(self.source):
            return tensors_of(self.source.call(args, kwargs))

    def _filled(self, given: Sequence[Any]) -> tuple[Any, Any]:
        """Returns positional arguments and those by keyword, with these leaves in them."""
        from torch.utils import _pytree as pytree

        flat, spec = pytree.tree_flatten((self.source.args, dict(self.source.kwargs)))
        values = iter(given)
        args, kwargs = pytree.tree_unflatten([None if each is None else _copied(next(values)) for each in flat], spec)
        return args, kwargs

    @abstractmethod
    def _stream(self, given: Sequence[Any], batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Value]]: ...

    def _arguments(self, feeds: Mapping[str, Value]) -> list[Any]:
        """Returns the leaves of the arguments with these feeds in place of the examples."""
        fed = {self.inputs[name]: (name, value) for name, value in feeds.items() if name in self.inputs}
        unknown = next((name for name in feeds if name not in self.inputs), None)
        if unknown is not None:
            raise FeedsError(
                f"input {unknown!r} is no argument of {self.source.spelling}",
                details=[f"{name} is {leaf}" for name, leaf in self.inputs.items()],
            )
        return [as_leaf(*fed[leaf.name], leaf.value) if leaf.name in fed else leaf.value for leaf in self._leaves]


def as_leaf(name: str, value: Any, example: Any) -> Any:
    """Returns an array as the argument that an example shows: a tensor of its type and place, or a number.

    Args:
        name: The input, for messages.
        value: The array.
        example: The argument as the example has it.

    Raises:
        FeedsError: It has another rank, or more than one element where a number is wanted.
    """
    import numpy as np

    torch = require_torch()
    array = np.asarray(value)
    if not isinstance(example, torch.Tensor):
        if array.size != 1:
            raise FeedsError(f"input {name!r} is a number in PyTorch, and is given the shape {list(array.shape)}")
        return type(example)(array.reshape(()).item())
    if array.ndim != example.ndim:
        raise FeedsError(
            f"input {name!r} is given the shape {list(array.shape)}, and its argument is {list(example.shape)}"
        )
    return as_tensor(array).to(device=example.device, dtype=example.dtype)


def as_tensor(array: Any) -> Any:
    """Returns an array, of ``ml_dtypes`` too, as a tensor with memory of its own."""
    import numpy as np

    torch = require_torch()
    narrow = {
        "bfloat16": (np.int16, torch.bfloat16),
        "float8_e4m3fn": (np.int8, torch.float8_e4m3fn),
        "float8_e5m2": (np.int8, torch.float8_e5m2),
    }
    if array.dtype.name in narrow:
        plain, dtype = narrow[array.dtype.name]
        return torch.from_numpy(np.ascontiguousarray(array).view(plain).copy()).view(dtype).reshape(array.shape)
    try:
        return torch.from_numpy(np.array(array, order="C", copy=True))
    except TypeError:
        raise FeedsError(f"PyTorch has no tensors of {array.dtype}") from None


@contextmanager
def running(source: Source) -> Iterator[None]:
    """Runs PyTorch without gradients, from the same random state each time, its errors told as the user's."""
    torch = require_torch()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), own_errors("running the model", source.file):
        torch.manual_seed(0)
        yield


def _copied(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value
