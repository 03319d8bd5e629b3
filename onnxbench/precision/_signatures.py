"""What an operator's schema says of types: which inputs and outputs have one type, and which types that can be.

A schema names the type of each input and output: a type variable (``T``), whose slots change together, or a type
itself. Two things it does not say, and onnx's own inference, asked with other types, tells: variables that depend on
each other (``SequenceAt`` takes a sequence ``S`` and gives a tensor ``T``), and attributes that are element types
(``to`` of Cast, ``dtype`` of RandomNormal). No operator is listed here.

Types are written as schemas write them: ``tensor(float)``, ``seq(tensor(float16))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from onnxbench.schemas import attribute_type, find_schema
from onnxbench.tensortype import schema_word

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TypeProto
    from onnx.defs import OpSchema

FLOATS = {1: "float", 10: "float16", 11: "double", 16: "bfloat16"}
"""The element types that a conversion goes from and to, by number."""
_NUMBERS = {word: number for number, word in FLOATS.items()}
_INT, _TENSOR, _TYPE = 2, 4, 13  # AttributeProto types
_WRAPPERS = ("seq", "optional", "sparse_tensor", "tensor")


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """The types of an operator, for a number of inputs and outputs; there is one object for each.

    Attributes:
        schema: The schema.
        inputs: The variable of each input, numbered.
        outputs: The variable of each output.
        allowed: For each variable, the types that it may be.
        moves: For each variable, whether what has it is only moved: the operator takes strings or booleans there,
            with which nothing can be computed.
        is_made: For each variable, whether an output has it.
        quantizes: Whether the operator turns floats into quantized numbers or back, or computes with such: it takes
            or gives a zero point.
    """

    schema: OpSchema
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    allowed: tuple[frozenset[str], ...]
    moves: tuple[bool, ...]
    is_made: tuple[bool, ...]
    quantizes: bool

    @property
    def is_constant(self) -> bool:
        """Whether it is Constant."""
        return not self.inputs and self.schema.name == "Constant"


@cache
def signature(domain: str, op_type: str, version: int, inputs: int, outputs: int) -> Signature | None:
    """Returns the signature of an operator, or None if onnx does not know it in that version."""
    from onnx.defs import OpSchema

    schema = find_schema(domain, op_type, version) if version else None
    if schema is None:
        return None
    variables: dict[str, int] = {}
    allowed: list[frozenset[str]] = []
    constrained = {constraint.type_param_str for constraint in schema.type_constraints}
    slots: list[list[int]] = []
    for kind, formals, count in (("in", schema.inputs, inputs), ("out", schema.outputs, outputs)):
        numbers: list[int] = []
        for slot in range(count):
            if not formals:
                return None
            formal = formals[min(slot, len(formals) - 1)]
            is_shared = formal.type_str in constrained and (
                formal.is_homogeneous or formal.option != OpSchema.FormalParameterOption.Variadic
            )
            key = formal.type_str if is_shared else f"{kind}{slot}"
            if key not in variables:
                variables[key] = len(allowed)
                allowed.append(frozenset(formal.types))
            else:
                allowed[variables[key]] &= frozenset(formal.types)
            numbers.append(variables[key])
        slots.append(numbers)
    moves = tuple(any("(string)" in word or "(bool)" in word for word in types) for types in allowed)
    made = set(slots[1])
    quantizes = any(formal.name.endswith("zero_point") for formal in (*schema.inputs, *schema.outputs))
    return Signature(
        schema, tuple(slots[0]), tuple(slots[1]), tuple(allowed), moves,
        tuple(number in made for number in range(len(allowed))), quantizes,
    )  # fmt: skip


@cache
def element(word: str) -> int:
    """Returns the number of the floating-point element type within a type; 0 if there is none."""
    if word.startswith("map("):
        return 0
    return _NUMBERS.get(word.rpartition("(")[2].rstrip(")"), 0)


@cache
def retyped(word: str, number: int) -> str:
    """Returns a type with another element type."""
    head, _, rest = word.rpartition("(")
    return f"{head}({schema_word(number)}{')' * rest.count(')')}"


@cache
def is_plain(word: str) -> bool:
    """Tells whether a type is that of a dense tensor, which Cast takes."""
    return word.startswith("tensor(")


def tensor_word(number: int) -> str:
    """Returns the type of a tensor with an element type, as schemas write it."""
    return f"tensor({schema_word(number)})"


def type_word(value: TypeProto) -> str | None:
    """Returns a type as schemas write it, or None if it is not complete."""
    kind = value.WhichOneof("value")
    if kind == "tensor_type":
        return tensor_word(value.tensor_type.elem_type) if value.tensor_type.elem_type else None
    if kind == "sparse_tensor_type":
        return f"sparse_{tensor_word(value.sparse_tensor_type.elem_type)}"
    if kind in ("sequence_type", "optional_type"):
        inner = type_word(getattr(value, kind).elem_type)
        return f"{'seq' if kind == 'sequence_type' else 'optional'}({inner})" if inner else None
    if kind == "map_type":
        inner = type_word(value.map_type.value_type)
        return f"map({schema_word(value.map_type.key_type)}, {inner})" if inner else None
    return None


@cache
def type_proto(word: str) -> TypeProto:
    """Returns the message of a type, without shapes; of one that is not understood an empty message."""
    from onnx import TypeProto

    from onnxbench.tensortype import dtype_number

    value = TypeProto()
    inner, wrapper = value, ""
    while True:
        wrapper, _, rest = word.partition("(")
        word = rest[:-1]
        if wrapper not in _WRAPPERS:
            return TypeProto()
        if wrapper == "seq":
            inner = inner.sequence_type.elem_type
        elif wrapper == "optional":
            inner = inner.optional_type.elem_type
        else:
            number = dtype_number(word)
            if wrapper == "tensor":
                inner.tensor_type.elem_type = number
            else:
                inner.sparse_tensor_type.elem_type = number
            return value


def set_element(value: TypeProto, number: int) -> None:
    """Gives a type another element type, within sequences and optionals too."""
    kind = value.WhichOneof("value")
    while kind in ("sequence_type", "optional_type"):
        value = getattr(value, kind).elem_type
        kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        getattr(value, kind).elem_type = number


# ---------------------------------------------------------------- asked of onnx's inference

_Key = tuple[object, ...]


class Prober:
    """What onnx's inference says of single nodes, remembered by operator, attributes and types."""

    def __init__(self) -> None:
        self._made: dict[_Key, tuple[str | None, ...] | None] = {}
        self._coupled: dict[_Key, tuple[tuple[int, int], ...]] = {}
        self._attributes: dict[_Key, str | None] = {}

    def outputs(self, node: NodeProto, sig: Signature, given: tuple[str | None, ...]) -> tuple[str | None, ...] | None:
        """Returns the types that a node makes of these, None for those that inference cannot tell.

        None for all of it means that inference refuses these types.
        """
        key = _key(node, sig, given)
        if key not in self._made:
            self._made[key] = _infer(node, sig, given)
        return self._made[key]

    def coupled(
        self, node: NodeProto, sig: Signature, given: tuple[str | None, ...], made: tuple[str | None, ...], to: int
    ) -> tuple[tuple[int, int], ...]:
        """Returns pairs of variables that change together, which the schema does not say.

        Each floating-point variable of the inputs is given another element type: what becomes of the outputs then, or
        that inference refuses it, tells what depends on it.

        Args:
            node: The node.
            sig: Its signature.
            given: The types of its inputs.
            made: The types of its outputs.
            to: The element type to try; where a variable has it already, another one.
        """
        key = (*_key(node, sig, given), to)
        found = self._coupled.get(key)
        if found is None:
            found = self._coupled[key] = tuple(self._couplings(node, sig, given, made, to))
        return found

    def _couplings(
        self, node: NodeProto, sig: Signature, given: tuple[str | None, ...], made: tuple[str | None, ...], to: int
    ) -> list[tuple[int, int]]:
        floats = {sig.inputs[slot] for slot, word in enumerate(given) if word is not None and element(word)}
        others = {sig.outputs[slot] for slot, word in enumerate(made) if word is not None and element(word)} - floats
        if len(floats) + len(others) < 2:
            return []
        base = self.outputs(node, sig, given)
        if base is None:
            return []
        pairs: list[tuple[int, int]] = []
        for variable in sorted(floats):
            tried = tuple(
                retyped(word, to if element(word) != to else 1 if to != 1 else 10)
                if word is not None and sig.inputs[slot] == variable and element(word)
                else word
                for slot, word in enumerate(given)
            )
            if not all(
                word in sig.allowed[variable]
                for slot, word in enumerate(tried)
                if word and sig.inputs[slot] == variable
            ):
                continue
            now = self.outputs(node, sig, tried)
            if now is None:
                pairs += [(variable, other) for other in sorted(floats | others) if other != variable]
                continue
            pairs += [
                (variable, sig.outputs[slot])
                for slot, (before, after) in enumerate(zip(base, now, strict=True))
                if before != after and sig.outputs[slot] != variable
            ]
        return pairs

    def set_type(
        self, node: NodeProto, resolved: NodeProto, sig: Signature, given: tuple[str | None, ...], slot: int, word: str
    ) -> bool:
        """Gives a node the attribute that makes an output have a type, and tells whether there is one.

        Args:
            node: The node, which is changed.
            resolved: The same without references to attributes of a function.
            sig: Its signature.
            given: The types of its inputs.
            slot: The output.
            word: The type that it should have.
        """
        now = self.outputs(resolved, sig, given)
        if now is not None and now[slot] == word:
            return True
        number = element(word)
        key = (sig.schema.domain, sig.schema.name, sig.schema.since_version, slot)
        name = self._attributes.get(key)
        for candidate in [name] if name else _attribute_names(sig.schema):
            tried = type(node)()
            tried.CopyFrom(resolved)
            if not _set_element(tried, sig.schema, candidate, number):
                continue
            made = self.outputs(tried, sig, given)
            if made is not None and made[slot] == word:
                self._attributes[key] = candidate
                _set_element(node, sig.schema, candidate, number)
                return True
        return False


def _key(node: NodeProto, sig: Signature, given: tuple[str | None, ...]) -> _Key:
    return sig, given, said_of(node)


def said_of(node: NodeProto) -> _Key:
    """Returns what the attributes of a node say that types may depend on."""
    return tuple([(each.name, _type_said(each)) for each in node.attribute])


def _type_said(attribute: AttributeProto) -> object:
    if attribute.ref_attr_name:
        return attribute.ref_attr_name
    if attribute.type == _INT:
        return attribute.i
    if attribute.type == _TENSOR:
        return -attribute.t.data_type
    return type_word(attribute.tp) if attribute.type == _TYPE else None


def _infer(node: NodeProto, sig: Signature, given: tuple[str | None, ...]) -> tuple[str | None, ...] | None:
    from onnx import helper, shape_inference

    alone = type(node)(op_type=node.op_type, domain=node.domain)
    types = {}
    for slot, word in enumerate(given):
        alone.input.append(f"i{slot}" if word is not None else "")
        if word is not None:
            types[f"i{slot}"] = type_proto(word)
    alone.output.extend(f"o{slot}" if name else "" for slot, name in enumerate(node.output))
    alone.attribute.extend(each for each in node.attribute if not each.ref_attr_name)
    for each in alone.attribute:
        if each.type == _TENSOR and each.t.data_location == 1:  # inference looks at the type alone
            number = each.t.data_type
            each.t.Clear()
            each.t.data_type = number
            each.t.dims.append(0)
    imports = [helper.make_opsetid(sig.schema.domain, sig.schema.since_version)]
    try:
        found = shape_inference.infer_node_outputs(sig.schema, alone, types, opset_imports=imports)
    except Exception:  # C++ errors of several types
        return None
    words = {name: type_word(value) for name, value in found.items()}
    return tuple(words.get(f"o{slot}") if name else None for slot, name in enumerate(node.output))


def _attribute_names(schema: OpSchema) -> list[str]:
    kinds = {name: attribute_type(schema, name) for name in schema.attributes}
    return sorted(
        (name for name, kind in kinds.items() if kind in (_INT, _TENSOR, _TYPE)), key=lambda name: kinds[name]
    )


def _set_element(node: NodeProto, schema: OpSchema, name: str, number: int) -> bool:
    """Makes an attribute state an element type, as its value or as that of its tensor."""
    held = next((each for each in node.attribute if each.name == name), None)
    if attribute_type(schema, name) == _INT:
        if held is None:
            held = node.attribute.add(name=name, type=_INT)
        held.ClearField("ref_attr_name")
        held.i = number
        return True
    if held is not None and held.type == _TYPE and not held.ref_attr_name:
        set_element(held.tp, number)
        return True
    from onnx import helper, numpy_helper

    if held is None and attribute_type(schema, name) == _TYPE:
        return False
    if held is None:  # what ConstantOfShape fills with then
        held = node.attribute.add(name=name, type=_TENSOR)
        held.t.CopyFrom(helper.make_tensor("value", number, [1], [0.0]))
        return True
    if held.ref_attr_name or held.t.data_location == 1 or not element(tensor_word(held.t.data_type)):
        return False
    from onnxbench.conversion import Loss, convert, packed

    values = numpy_helper.to_array(held.t).reshape(-1)
    held.t.CopyFrom(
        type(held.t)(
            name=held.t.name, data_type=number, dims=held.t.dims, raw_data=packed(convert(values, number, Loss()))
        )
    )
    return True
