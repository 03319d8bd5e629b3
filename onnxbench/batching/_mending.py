"""The repairs that a trace asks for, made to a draft: constants change where they can, nodes come in where they must.

The batch is read from the first input that carries it, once: ``Shape``, then ``Gather``. A constant that nobody else
reads is changed in place; one that others read, too, is left to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.batching._tracing import WHOLE, Element, Mend, SizeOf, Spread, Times
from onnxbench.errors import UnsupportedError
from onnxbench.graph import NodeRef, Scope, TensorRef

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto, TensorProto

    from onnxbench.draft import Draft

_INT64 = 7
_FIRST_EXPAND = 8
_FIRST_USABLE = 7


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to one node so that the batch is free.

    Attributes:
        node: The node.
        op_type: Its operator, as it was.
        what: What was changed: ``shape`` of its Reshape, ``initial_h``, ``operator``.
        before: What it was.
        after: What it is now; ``batch`` stands for the size of the batch.
    """

    node: str
    op_type: str
    what: str
    before: str
    after: str

    def sentence(self) -> str:
        """The repair in one line."""
        return f"{self.op_type} {self.node}: {self.what} {self.before} -> {self.after}"


def mend(draft: Draft, mends: Sequence[Mend], source: tuple[str, int], batch: int) -> list[Repair]:
    """Repairs the main graph of a draft in place, and returns what was done.

    Args:
        draft: The draft.
        mends: The repairs, all positions as the nodes stand now.
        source: An input and its axis that is the batch.
        batch: The old batch.

    Raises:
        UnsupportedError: The opset is too old for a repair.
    """
    mender = _Mender(draft, source, batch)
    repairs = [mender.apply(each) for each in mends]
    mender.finish()
    return repairs


@dataclass
class _Mender:
    draft: Draft
    source: tuple[str, int]
    batch: int
    prelude: list[NodeProto] = field(default_factory=list)
    inserted: dict[int, list[NodeProto]] = field(default_factory=dict)
    replaced: dict[str, None] = field(default_factory=dict)
    _made: dict[Any, str] = field(default_factory=dict)

    @property
    def scope(self) -> Scope:
        return self.draft.main

    def apply(self, each: Mend) -> Repair:
        node = self.scope.nodes[each.position]
        if self.draft.opset() < _FIRST_USABLE and each.kind not in ("drop", "identity"):
            raise UnsupportedError(
                f"opset {self.draft.opset()} is too old to make the batch dynamic", hint="Raise it to 13 or more first."
            )
        label, op_type = NodeRef(self.scope, each.position).path, node.op_type
        what, before, after = getattr(self, f"_{each.kind}")(each, node)
        self.draft.record("node", label, what, before=before, after=after)
        return Repair(label, op_type, what, before, after)

    def finish(self) -> None:
        """Puts the new nodes in, and takes out constants that nobody reads any more."""
        inserted = dict(self.inserted)
        if self.prelude:
            inserted[0] = self.prelude + inserted.get(0, [])
        self.draft.splice(self.scope, inserted)
        scope = self.scope
        unread = [
            name
            for name in self.replaced
            if name not in scope.consumers and name not in scope.outputs and name not in scope.inputs
        ]
        gone = [scope.producers[name] for name in unread if name in scope.producers]
        stored = {name for name in unread if name in scope.constants}
        self.draft.splice(scope, removed=[at for at in gone if scope.nodes[at].op_type == "Constant"])
        if stored:
            self.draft.remove_initializers(self.scope, stored)
        self.draft.forget(self.scope, unread)

    # -- the kinds ----------------------------------------------------------------------------------------------

    def _vector(self, each: Mend, node: NodeProto) -> tuple[str, str, str]:
        if each.name:
            attribute = next(held for held in node.attribute if held.name == each.name)
            before = list(attribute.ints)
            for at, element in enumerate(each.elements):
                if element is not None:
                    assert isinstance(element, int)
                    attribute.ints[at] = element
            return f"attribute {each.name}", _words(before), _words(list(attribute.ints))
        name = node.input[each.slot]
        known = self._constant(name)
        what = _input_word(node, each.slot)
        old: list[Element] = [None] * len(each.elements) if known is None else [int(v) for v in known.reshape(-1)]
        new = [was if element is None else element for was, element in zip(old, each.elements, strict=True)]
        key = (name, tuple(new), any(isinstance(element, SizeOf) for element in new) and each.position)
        if key not in self._made:
            self._made[key] = self._new_vector(each, node, name, known, new)
        node.input[each.slot] = self._made[key]
        return what, _words(old), _words(new)

    def _new_vector(
        self, each: Mend, node: NodeProto, name: str, known: np.ndarray[Any, Any] | None, new: Sequence[Element]
    ) -> str:
        import numpy as np

        self.replaced[name] = None
        dtype = known.dtype if known is not None else np.dtype(np.int64)
        sizes = [element for element in new if isinstance(element, int)]
        if known is not None and len(sizes) == len(new):
            array = np.array([min(size, np.iinfo(dtype).max) for size in sizes], dtype)
            if self._only_here(name, each.position) and self._change(name, array):
                return name
            return self._constant_node(each.position, f"{name}_dynamic", array)
        return self._join(each.position, node, name, new, dtype)

    def _spread(self, each: Mend, node: NodeProto) -> tuple[str, str, str]:
        name, spread = node.input[each.slot], each.spread
        assert spread is not None
        sizes = list(each.shape)
        before = _words(sizes)
        key = (name, spread)
        if key not in self._made:
            self._made[key] = self._spread_out(each.position, name, spread, sizes)
            self.replaced[name] = None
        node.input[each.slot] = self._made[key]
        factor = "" if spread.is_pure else f"{spread.factor} * "
        sizes_after = [f"{factor}batch" if axis == spread.axis else str(size) for axis, size in enumerate(sizes)]
        return _input_word(node, each.slot), before, f"[{', '.join(sizes_after)}]"

    def _reshape(self, each: Mend, node: NodeProto) -> tuple[str, str, str]:
        import numpy as np

        op_type, position = node.op_type, each.position
        ints = all(isinstance(element, int) for element in each.elements)
        if ints:
            target = self._constant_node(position, f"{node.output[0]}_shape", np.array(each.elements, np.int64))
        else:
            target = self._join(position, node, f"{node.output[0]}_shape", each.elements, np.dtype(np.int64))
        for name in node.input[1:]:
            self.replaced[name] = None
        data = node.input[0]
        del node.input[:], node.attribute[:]
        node.input.extend((data, target))
        node.op_type = "Reshape"
        return "operator", op_type, f"Reshape to {_words(each.elements)}"

    def _identity(self, each: Mend, node: NodeProto) -> tuple[str, str, str]:
        op_type = node.op_type
        for name in node.input[1:]:
            self.replaced[name] = None
        del node.input[1:], node.attribute[:]
        node.op_type = "Identity"
        return "operator", op_type, "Identity"

    def _index(self, each: Mend, node: NodeProto) -> tuple[str, str, str]:
        import numpy as np

        name, shape = node.input[each.slot], each.shape
        key = (name, "index", each.component)
        if key not in self._made:
            position = each.position
            scalar = self._batch_scalar()
            zero, one = (
                self._once(("number", number), "Constant", (), number, value=np.array(number, np.int64))
                for number in (0, 1)
            )
            counted = self._once("counted", "Range", (zero, scalar, one), "batch_numbers")
            flat = self._constant_node(position, f"{name}_axes", np.array([-1] + [1] * (len(shape) - 1), np.int64))
            mask = np.zeros(shape[-1], np.int64)
            mask[each.component] = 1
            rows = self._node(position, "Reshape", (counted, flat), f"{name}_rows")
            chosen = self._constant_node(position, f"{name}_component", mask)
            moved = self._node(position, "Mul", (rows, chosen), f"{name}_offsets")
            self._made[key] = self._node(position, "Add", (name, moved), f"{name}_batched")
        node.input[each.slot] = self._made[key]
        return _input_word(node, each.slot), "points at sample 0", "points at each sample"

    def _drop(self, each: Mend, node: NodeProto) -> tuple[str, str, str]:
        held = next(attribute for attribute in node.attribute if attribute.name == each.name)
        before = _words(list(held.ints))
        node.attribute.remove(held)
        return f"attribute {each.name}", before, "equal parts"

    # -- constants ----------------------------------------------------------------------------------------------

    def _constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """Returns the values of a tensor that is stored in the model, as it is now."""
        tensor = self._stored(name)
        return None if tensor is None else self.draft.model.array(tensor)

    def _stored(self, name: str) -> TensorProto | None:
        scope = self.scope
        if name in scope.constants and name not in scope.true_inputs():
            return self.draft.initializer(TensorRef(scope, name))
        at = scope.producers.get(name)
        if at is not None and scope.nodes[at].op_type == "Constant":
            return next((held.t for held in scope.nodes[at].attribute if held.name == "value"), None)
        return None

    def _only_here(self, name: str, position: int) -> bool:
        scope = self.scope
        once = list(scope.nodes[position].input).count(name) == 1
        return once and scope.consumers.get(name) == [position] and name not in scope.outputs

    def _change(self, name: str, array: np.ndarray[Any, Any]) -> bool:
        tensor = self._stored(name)
        if tensor is None or name in self.scope.inputs:
            return False
        for part in ("raw_data", "int64_data", "int32_data", "external_data", "data_location"):
            tensor.ClearField(part)
        tensor.raw_data = array.reshape(tuple(tensor.dims)).astype(array.dtype.newbyteorder("<")).tobytes()
        self.replaced.pop(name, None)
        return True

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, position: int, op_type: str, inputs: Sequence[str], base: str, **attributes: Any) -> str:
        """Adds a node before another one (-1: before all), and returns the tensor that it makes."""
        from onnx import helper

        made = self.draft.fresh(self.scope, base)
        node = helper.make_node(op_type, list(inputs), [made], name=self.draft.fresh_node(self.scope, made))
        for key, value in attributes.items():
            node.attribute.append(helper.make_attribute(key, value))
        (self.prelude if position < 0 else self.inserted.setdefault(position, [])).append(node)
        return made

    def _constant_node(self, position: int, base: str, array: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        return self._node(position, "Constant", (), base, value=numpy_helper.from_array(array))

    def _once(self, key: Any, op_type: str, inputs: Sequence[str], base: Any, **attributes: Any) -> str:
        """Returns a tensor that one node before all others makes."""
        if key not in self._made:
            if "value" in attributes:
                self._made[key] = self._constant_node(-1, f"batch_number_{base}", attributes["value"])
            else:
                self._made[key] = self._node(-1, op_type, inputs, str(base), **attributes)
        return self._made[key]

    def _batch_vector(self, factor: int, dtype: np.dtype[Any]) -> str:
        """Returns a tensor of one element: a multiple of the batch."""
        import numpy as np

        name, axis = self.source
        shape = self._once("shape", "Shape", (name,), "batch_shape")
        at = self._once(("axis", axis), "Constant", (), f"axis_{axis}", value=np.array([axis], np.int64))
        made = self._once("batch", "Gather", (shape, at), "batch_size")
        if factor != 1:
            number = self._once(
                ("factor", factor), "Constant", (), f"factor_{factor}", value=np.array([factor], np.int64)
            )
            made = self._once(("times", factor), "Mul", (made, number), f"batch_size_{factor}")
        if dtype != np.int64:
            to = 6 if dtype == np.int32 else _INT64
            made = self._once(("cast", factor, to), "Cast", (made,), f"{made}_int32", to=to)
        return made

    def _batch_scalar(self) -> str:
        import numpy as np

        self._batch_vector(1, np.dtype(np.int64))
        first = self._once("first", "Constant", (), "first", value=np.array(0, np.int64))
        return self._once("scalar", "Gather", (self._made["batch"], first), "batch_count")

    def _join(
        self, position: int, node: NodeProto, name: str, elements: Sequence[Element], dtype: np.dtype[Any]
    ) -> str:
        """Returns a vector of constants, multiples of the batch, sizes, and (None) elements of the old vector."""
        import numpy as np

        parts: list[str] = []
        run: list[int] = []
        runs: list[tuple[bool, list[int]] | Element] = []
        for at, element in enumerate(elements):
            if element is None or isinstance(element, int):
                kept = element is None
                value = at if element is None else element
                last = runs[-1] if runs else None
                if isinstance(last, tuple) and last[0] == kept:
                    last[1].append(value)
                else:
                    runs.append((kept, [value]))
            else:
                runs.append(element)
        del run
        for each in runs:
            if isinstance(each, tuple):
                kept, numbers = each
                if not kept:
                    parts.append(self._constant_node(position, f"{name}_fixed", np.array(numbers, dtype)))
                    continue
                at_name = self._constant_node(position, f"{name}_places", np.array(numbers, np.int64))
                parts.append(self._node(position, "Gather", (name, at_name), f"{name}_kept"))
            elif isinstance(each, Times):
                parts.append(self._batch_vector(each.factor, dtype))
            else:
                assert isinstance(each, SizeOf)
                shape = self._node(position, "Shape", (node.input[0],), f"{name}_sizes")
                axis = self._constant_node(position, f"{name}_axis", np.array([each.axis], np.int64))
                parts.append(self._node(position, "Gather", (shape, axis), f"{name}_size"))
        return self._node(position, "Concat", parts, f"{name}_dynamic", axis=0)

    def _spread_out(self, position: int, name: str, spread: Spread, sizes: list[int]) -> str:
        """Returns a tensor like another one, repeated for each sample of the batch."""
        import numpy as np

        current, axis = name, spread.axis
        if spread.outer > 1:
            split = [*sizes[:axis], spread.outer, spread.inner * self.batch, *sizes[axis + 1 :]]
            target = self._constant_node(position, f"{name}_split", np.array(split, np.int64))
            current, sizes, axis = self._node(position, "Reshape", (current, target), f"{name}_parts"), split, axis + 1
        if self.batch > 1:
            first = self._constant_node(position, f"{name}_first", np.arange(spread.inner))
            current = self._node(position, "Gather", (current, first), f"{name}_sample", axis=axis)
        repeats: list[Element] = [Times() if at == axis else 1 for at in range(len(sizes))]
        vector = self._join(position, self.scope.nodes[position], f"{name}_repeats", repeats, np.dtype(np.int64))
        op_type = "Expand" if spread.is_pure and self.draft.opset() >= _FIRST_EXPAND else "Tile"
        current = self._node(position, op_type, (current, vector), f"{name}_batched")
        if spread.outer > 1:
            joined = [*sizes[: axis - 1], -1, *sizes[axis + 1 :]]
            target = self._constant_node(position, f"{name}_joined", np.array(joined, np.int64))
            current = self._node(position, "Reshape", (current, target), f"{name}_rows")
        return current


def _input_word(node: NodeProto, slot: int) -> str:
    """Returns what an operator calls an input."""
    from onnxbench.schemas import find_schema

    schema = find_schema(node.domain, node.op_type, 1 << 20) if node.domain in ("", "ai.onnx") else None
    if schema is None or (slot >= len(schema.inputs) and not schema.inputs):
        return f"input {slot}"
    if slot >= len(schema.inputs) - 1 and str(schema.inputs[-1].option).endswith("Variadic"):
        return f"input {slot}"
    return f"input {schema.inputs[min(slot, len(schema.inputs) - 1)].name}"


def _words(elements: Sequence[Element]) -> str:
    """Returns a vector in words: ``[batch, 3, *]``; ``*`` is what was computed already."""

    def word(element: Element) -> str:
        if element is None:
            return "*"
        if isinstance(element, Times):
            return "batch" if element.factor == 1 else f"{element.factor} * batch"
        if isinstance(element, SizeOf):
            return f"size of axis {element.axis}"
        return "end" if element == WHOLE else str(element)

    return f"[{', '.join(map(word, elements))}]"
