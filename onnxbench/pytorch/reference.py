"""A PyTorch model as the reference of a search for drift (``onnxbench.bisection.Reference``).

    onnxbench.bisect("model.onnx", against=onnxbench.torch_reference("model.py:make", dtype="float64"))

Tensors of the ONNX model are matched with values of PyTorch (``matching``), and these are recomputed for any inputs
(``values``). With another element type the model is exported a second time, its weights converted: a value counts there
only if the fx node of its name is the same, element types aside.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.bisection import Match
from onnxbench.captures import Feeds, Value
from onnxbench.provenance import Provenance
from onnxbench.pytorch import require_torch
from onnxbench.pytorch.matching import Matching, match
from onnxbench.pytorch.sources import Source, as_source, require_inputs, with_dtype, with_inputs, with_weights
from onnxbench.pytorch.values import TorchValues, similar_inputs, torch_values
from onnxbench.tensortype import dtype_bits, dtype_number, elem_type

if TYPE_CHECKING:
    from onnxbench.bisection import Suspect
    from onnxbench.model import Model

_DRIFT = 0.1
"""How far a value may have drifted and still be matched by its values; the next one must be four times as far."""
_DTYPE = re.compile(r"torch\.(?:b?float|double|half)\w*")


class TorchReference:
    """A PyTorch model that is taken for right; made by ``torch_reference``.

    Attributes:
        label: What it is, in words.
        sets: None: it has values for any inputs.
        notes: What was decided without being told, once ``match`` was called.
    """

    def __init__(self, source: Source, *, dtype: str | None, by: str, inputs: Mapping[str, str]) -> None:
        torch = require_torch("comparing with PyTorch")
        require_inputs(source)
        self.sets: int | None = None
        self.label = f"{source.spelling} in PyTorch {torch.__version__}" + (f", {dtype}" if dtype else "")
        self.notes: tuple[str, ...] = ()
        self._source, self._dtype, self._by, self._said = source, dtype, by, inputs
        self._side: TorchValues | None = None
        self._known: dict[object, tuple[TorchValues, TorchValues]] = {}
        self._matched: TorchValues | None = None
        self._other: TorchValues | None = None
        self._shared: set[str] = set()
        self._model: Model | None = None
        self._examples: Feeds = {}

    @property
    def side(self) -> TorchValues:
        """The values of the model; ``match`` finds out what they are."""
        assert self._side is not None, "match comes first"
        return self._side

    def match(self, suspect: Suspect) -> Match:
        """Returns which of the suspect's tensors are which values of PyTorch.

        Raises:
            FeedsError: The inputs of the two are not the same.
            ExecutionError: The model fails in PyTorch, or the suspect on its example inputs.
        """
        side, wide = self._sides(suspect)
        self._examples = side.examples()
        parts = suspect.parts if suspect.parts.model is suspect.plain else None
        found = match(suspect.plain, side, by=self._by, drift=_DRIFT, parts=parts)
        lone = _lone_casts(found, side, suspect)
        tensors = {
            name: value
            for name, value in found.tensors.items()
            if suspect.parts.scope.defines(name) and name not in lone
        }
        ordered = _outputs_in_order(found, side, suspect)
        tensors.update(ordered)
        notes = [*side.notes]
        if found.ambiguous:
            notes.append(f"{len(found.ambiguous):,} tensors may be one of several values of PyTorch and were left out")
        if wide is not side:
            known = _same_values(side, wide)
            left = {name: value for name, value in tensors.items() if value in known}
            if len(left) < len(tensors):
                notes.append(f"{len(tensors) - len(left):,} values are computed otherwise in {self._dtype}")
            tensors = left
        if self._side is not wide:
            self._side, self._matched, self._other = wide, side, None
        self.notes = tuple(notes)
        ways = [found.how] if found.how else []
        return Match(tensors, ", ".join([*ways, "order of outputs"] if ordered else ways) or "nothing")

    def _sides(self, suspect: Suspect) -> tuple[TorchValues, TorchValues]:
        """Returns the values to match with and those to compare with; for models with the same inputs, the same."""
        key = tuple((port.name, port.shape, port.dtype, port.required) for port in suspect.ports)
        if key not in self._known:
            side = wide = torch_values(self._source, model=suspect.model, inputs=self._said)
            if self._dtype is not None:
                wide = self._in_dtype(self._dtype, suspect.model, side.inputs)
            self._known[key] = side, wide
            self._model = suspect.model
        return self._known[key]

    def _in_dtype(self, dtype: str, model: Model, inputs: Mapping[str, str]) -> TorchValues:
        source = replace(self._source, module=copy.deepcopy(self._source.module))
        return torch_values(with_dtype(source, dtype), model=model, inputs=inputs)

    def inputs(self, number: int) -> Feeds | None:
        """Returns inputs by the suspect's names: the example inputs, and others like them (see ``similar_inputs``)."""
        return similar_inputs(self._examples, number)

    def stream(
        self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]], *, number: int = 0
    ) -> Iterator[dict[str, Value]]:
        """Yields values, batch after batch (see ``Reference``)."""
        yield from self.side.stream(feeds, batches)

    def other_rounding(
        self, feeds: Mapping[str, Value], batches: Sequence[Sequence[str]], *, number: int = 0
    ) -> Iterator[dict[str, Value]]:
        """Yields the same values in float64 (in the model's own types, if float64 is what they are compared in).

        A value that is computed otherwise there is left out.
        """
        if self._other is None:
            assert self._matched is not None, "match comes first"
            assert self._model is not None
            wide = self._dtype == "float64"
            self._other = self._matched if wide else self._in_dtype("float64", self._model, self._matched.inputs)
            self._shared = _same_values(self.side, self._other)
        known = [[name for name in batch if name in self._shared] for batch in batches]
        yield from self._other.stream(feeds, known)

    def rerun(self, name: str, given: Mapping[str, Value]) -> Value | None:
        """Returns a value computed anew from values of others; None where they do not suffice."""
        return self.side.rerun(name, given)

    def recompute(self, names: Sequence[str], given: Mapping[str, Value]) -> dict[str, Value] | None:
        """Returns values computed from values of others; None where they do not suffice."""
        return self.side.recompute(names, given)

    def within(self, name: str, given: Mapping[str, Value]) -> dict[str, Value]:
        """Returns what the steps make that one value is computed by, from values of others, in their order."""
        return self.side.within(name, given)

    def between(self, name: str, known: Collection[str]) -> list[str]:
        """Returns the values that one is computed from, back to those that are known, in the order of the program."""
        values, found, pending = self.side.values, set(), [name]
        while pending:
            for each in values[pending.pop()].inputs:
                if each in values and each not in known and each not in found:
                    found.add(each)
                    pending.append(each)
        return [each for each in values if each in found]

    def origin(self, name: str) -> Provenance:
        """Returns the module and the source lines of a value."""
        return self.side.values[name].origin

    def explain(self, name: str) -> str:
        """Returns what makes a value, in words: ``layer_norm: aten.layer_norm.default(add, [16], weight, 1e-05)``."""
        return f"{name}: {self.side.call(name)}"

    def weight(self, name: str) -> Value | None:
        """Returns the values of a parameter or buffer that is called like this, or None."""
        return self.side.weight(name)

    def digest(self) -> str:
        """Returns the SHA-256 of the file that the model comes from, its parameters, buffers and element type."""
        import torch

        whole = hashlib.sha256(str(self._dtype).encode())
        if self._source.file is not None and self._source.file.is_file():
            whole.update(self._source.file.read_bytes())
        state = self._source.module.state_dict
        for name, tensor in sorted((state() if callable(state) else state).items()):
            if isinstance(tensor, torch.Tensor):
                whole.update(f"{name}\0{tensor.dtype}{list(tensor.shape)}\0".encode())
                whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return whole.hexdigest()


def torch_reference(
    source: str | os.PathLike[str] | Any,
    *,
    dtype: str | None = None,
    by: str = "auto",
    inputs: Mapping[str, str] | None = None,
    shapes: Sequence[str] = (),
    state_dict: str | os.PathLike[str] | None = None,
    keys: Sequence[str] = (),
) -> TorchReference:
    """Returns a PyTorch model as a reference for ``onnxbench.bisect``.

    Args:
        source: The model as ``onnxbench.export`` takes it: ``model.py:make``, (module, inputs), an exported program.
        dtype: Floating-point type that PyTorch computes in; ``float64`` leaves only the suspect's rounding.
        by: How tensors are matched with values of PyTorch: ``metadata``, ``names``, ``values``, or all in turn.
        inputs: Which argument an input of the ONNX model is, where names do not tell.
        shapes: Example inputs to draw, for a factory that gives none: ``x:[1,3,224,224]``.
        state_dict: A file of weights.
        keys: How its keys become those of the module: ``module.=>``.

    Raises:
        MissingDependencyError: torch is not installed.
        NotFoundError: There is no such model or file.
        UsageError: There are no example inputs, or an option does not fit.
        ExecutionError: The file or the factory failed.
    """
    require_torch("comparing with PyTorch")
    found = as_source(source)
    if shapes and not found.has_inputs:
        found = with_inputs(found, shapes)
    if state_dict is not None:
        found = with_weights(found, Path(state_dict), rules=keys)
    return TorchReference(found, dtype=dtype, by=by, inputs=inputs or {})


def _lone_casts(found: Matching, side: TorchValues, suspect: Suspect) -> set[str]:
    """Returns the few tensors that are a value of PyTorch but in a narrower element type, where the rest are not.

    Their values tell so, and a cast that does not belong there would pass for the value itself.
    """
    told = {name: pair.torch for name, pair in found.pairs.items() if pair.how == "values"}
    kinds = suspect.parts.kinds([name for name in told if name in suspect.parts.scope.producers], stated=True)
    odd = {name for name, kind in kinds.items() if _is_narrower(elem_type(kind), side.values[told[name]].dtype)}
    return odd if len(odd) < len(found.pairs) / 2 else set()


def _outputs_in_order(found: Matching, side: TorchValues, suspect: Suspect) -> dict[str, str]:
    """Returns the outputs that nothing else tells of, with the program's outputs at the same places.

    An output that is wrong is like no value of PyTorch, and the TorchScript exporter calls it by a number. None are
    returned if the two have other numbers of outputs, or an output that is known is at another place.
    """
    ours, theirs = suspect.parts.scope.outputs, side.outputs()
    if len(ours) != len(theirs):
        return {}
    pairs = dict(zip(ours, theirs, strict=True))
    known = [(found.pairs[name], value) for name, value in pairs.items() if name in found.pairs]
    if any(value not in (pair.torch, *pair.others) for pair, value in known):
        return {}
    producers = suspect.parts.scope.producers
    return {
        name: value
        for name, value in pairs.items()
        if name not in found.pairs and name in producers and value in side.values
    }


def _is_narrower(number: int, dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat")) and 0 < dtype_bits(number) < dtype_bits(dtype_number(dtype))


def _same_values(one: TorchValues, other: TorchValues) -> set[str]:
    """Returns the values that are the same in both, element types aside."""
    found = set()
    for name in one.values.keys() & other.values.keys():
        here, there = (_DTYPE.sub("float", side.call(name)) for side in (one, other))
        if here == there and one.values[name].shape == other.values[name].shape:
            found.add(name)
    return found
