"""The values of a tensor as text, or where they lie and what they are like where there are too many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxbench import literals, weights
from onnxbench.errors import ExternalDataError, ModelError
from onnxbench.modeltext._syntax import TYPE_NAMES, printable, type_word
from onnxbench.wire import STUB_PREFIX

if TYPE_CHECKING:
    from onnx import TensorProto

    from onnxbench.model import Model

Weights = Literal["elided", "inline", "stats"]
"""What is printed of large weights: nothing but type and place, every value, or statistics."""

_WRAP = 16  # values on a line, when they do not fit on the line of their tensor


@dataclass(slots=True)
class ValueText:
    """The text of a tensor's values.

    Attributes:
        rows: The literals, a row per line; a single row is put on the line of the tensor.
        comment: What stands in a comment beside it.
        is_long: Whether the rows stand on lines of their own.
    """

    rows: Iterable[str]
    comment: str = ""
    is_long: bool = False


class ValuePrinter:
    """Prints the values of a model's tensors.

    Attributes:
        left_out: How many tensors' values were left out.
        left_out_bytes: How many bytes these take.
    """

    def __init__(self, model: Model, mode: Weights, max_elements: int, notes: list[str]) -> None:
        """Prepares for a model.

        Args:
            model: The model that the tensors are of.
            mode: What is printed of large tensors.
            max_elements: Tensors of more elements are large.
            notes: Gets a line for what cannot be in the text.
        """
        self._model = model
        self._mode = mode
        self._max_elements = max_elements
        self._notes = notes
        self.left_out = self.left_out_bytes = 0

    def text_of(self, tensor: TensorProto) -> ValueText:
        """Returns what stands between the braces of a tensor."""
        count = math.prod(tensor.dims)
        problem = _data_problem(tensor, count)
        if problem:
            self._notes.append(f"tensor {tensor.name!r}: {problem}; its data is not in the text")
            return ValueText(["..."], problem)
        is_large = count > self._max_elements
        if is_large and self._mode != "inline":
            return self._leave_out(tensor)
        if tensor.data_type == 8:
            texts: Iterable[str] = map(literals.quote, tensor.string_data)
            return ValueText(_rows(list(texts)) if is_large else texts, is_long=is_large)
        try:
            array = self._model.array(tensor).reshape(-1)
        except (ExternalDataError, ModelError) as error:
            if self._mode == "inline" and isinstance(error, ExternalDataError):
                raise
            self._notes.append(f"{error.message}; the text has no values for it")
            return ValueText(["..."], self._place(tensor))
        if is_large:
            return ValueText(_array_rows(array, tensor.data_type), is_long=True)
        return ValueText(literals.array_texts(array, tensor.data_type))

    def _leave_out(self, tensor: TensorProto) -> ValueText:
        self.left_out += 1
        self.left_out_bytes += weights.tensor_bytes(tensor)
        return ValueText(["..."], self._place(tensor) + (self._statistics(tensor) if self._mode == "stats" else ""))

    def _place(self, tensor: TensorProto) -> str:
        """Returns the size of a tensor's data and where it lies, in words."""
        size = f"{weights.tensor_bytes(tensor):,} bytes"
        said = weights.entries(tensor)
        if not weights.is_outside(tensor):
            origin = self._model.origin
            return f"{size} in {printable(origin.name)}" if origin else size
        where = said.get("location", "")
        name = Path(where.removeprefix(STUB_PREFIX)).name if where.startswith(STUB_PREFIX) else where
        offset = said.get("offset", "0")
        return f"{size} at {int(offset) if offset.isdigit() else 0:,} of {printable(name)}"

    def _statistics(self, tensor: TensorProto) -> str:
        import numpy as np

        if tensor.data_type == 8 or tensor.data_type in (14, 15):
            return ""
        array = self._model.array(tensor).reshape(-1)
        values = array.astype(np.float64)
        finite = values[np.isfinite(values)]
        words = []
        if finite.size:
            words.append(f"min {finite.min():.4g}, max {finite.max():.4g}")
            words.append(f"mean {finite.mean():.4g}, std {finite.std():.4g}")
        for word, number in (("NaN", int(np.isnan(values).sum())), ("Inf", int(np.isinf(values).sum()))):
            if number:
                words.append(f"{number:,} {word}")
        return f": {', '.join(words)}"


def _rows(texts: list[str]) -> Iterator[str]:
    for at in range(0, len(texts), _WRAP):
        yield ", ".join(texts[at : at + _WRAP])


def _array_rows(array: Any, number: int) -> Iterator[str]:
    block = _WRAP << 12  # some megabytes of text at a time
    for start in range(0, len(array), block):
        yield from _rows(literals.array_texts(array[start : start + block], number))


def _data_problem(tensor: TensorProto, count: int) -> str:
    """Returns what is wrong with a tensor's own data, or "" (data outside is judged when it is read)."""
    number = tensor.data_type
    if number == 0 or number not in TYPE_NAMES:
        return f"element type {type_word(number)} has no values"
    if count < 0 or any(dim < 0 for dim in tensor.dims):
        return f"shape {list(tensor.dims)} has a negative size"
    if weights.is_outside(tensor):
        return ""
    if number == 8:
        held, wanted = len(tensor.string_data), count
    elif tensor.HasField("raw_data"):
        held, wanted = len(tensor.raw_data), weights.tensor_bytes(tensor)
    else:
        held, wanted = _typed_length(tensor), _typed_length_wanted(number, count)
    return "" if held == wanted else f"it holds {held:,} where {type_word(number)}{list(tensor.dims)} takes {wanted:,}"


def _typed_length(tensor: TensorProto) -> int:
    from onnx import helper

    return len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))


def _typed_length_wanted(number: int, count: int) -> int:
    if number in (21, 22, 23):
        return (count + 1) // 2
    return (count + 3) // 4 if number in (25, 26) else count * literals.literals_per_element(number)
