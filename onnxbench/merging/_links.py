"""What is connected to what, and whether the types fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench.errors import (
    NotFoundError,
    RefusedResultError,
    UsageError,
    did_you_mean,
)
from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.tensortype import elem_type, format_type, tensor_shape

if TYPE_CHECKING:
    from onnx import TypeProto


_OTHER_ELEMENTS = "the element types differ"


@dataclass(frozen=True, slots=True)
class Link:
    """One connection.

    Attributes:
        output: The tensor of A: one of its outputs, or one of its inputs, which then feeds both models.
        input: The input of B that it feeds.
        output_type: The type of the one as text.
        input_type: The type that the other wants.
        cast: Whether a Cast stands between them.
    """

    output: str
    input: str
    output_type: str
    input_type: str
    cast: bool = False


class Side:
    """A model with what is asked of its boundary."""

    def __init__(self, letter: str, model: Model) -> None:
        self.letter = letter
        self.model = model
        self.index = GraphIndex(model.proto)
        main = self.index.main
        self.inputs = list(dict.fromkeys(main.inputs))
        self.required = main.true_inputs()
        self.outputs = list(dict.fromkeys(main.outputs))
        self._finder = TypeFinder(model, self.index)

    def types(self, names: Sequence[str]) -> dict[str, TypeProto]:
        """Returns the types of tensors, those that the operators contradict corrected."""
        self._finder.verify(names)
        return self._finder.find(self.index.main, names)


def find_links(
    a: Side, b: Side, connections: Sequence[str] | Mapping[str, str], *, cast: bool
) -> tuple[Link, ...]:  # fmt: skip
    """Returns what feeds which inputs of B, each connection with the types of its ends, none twice.

    Args:
        a: The model that is fed from.
        b: The model that is fed.
        connections: ``OUT=IN`` words, or outputs of A by input of B; none: equal names, or the only ends there are.
        cast: Let a Cast stand between ends that differ in their element type only.

    Raises:
        NotFoundError: A model has no such end.
        UsageError: An input is fed twice, or nothing says what to connect.
        RefusedResultError: The types of two ends do not fit.
    """
    if isinstance(connections, Mapping):
        pairs = [(_known(a, output), _known(b, name)) for name, output in connections.items()]
    elif connections:
        pairs = [_pair(a, b, word) for word in connections]
    else:
        pairs = _obvious_pairs(a, b)
    pairs = list(dict.fromkeys(pairs))
    fed: dict[str, str] = {}
    for output, name in pairs:
        if name in fed:
            raise UsageError(f"input {name!r} of B is fed twice, by {fed[name]!r} and by {output!r}")
        fed[name] = output
    types_a = a.types([output for output, _ in pairs])
    types_b = b.types([name for _, name in pairs])
    links, wrong, only_elements = [], [], True
    for output, name in pairs:
        one, other = types_a.get(output), types_b.get(name)
        words = (format_type(one), format_type(other))
        needs_cast = cast and one is not None and other is not None and _differ_in_elements(one, other)
        complaint = "" if needs_cast else _complaint(one, other, cast=cast)
        if complaint:
            only_elements &= one is not None and other is not None and _differ_in_elements(one, other)
            wrong.append(f"{output!r} of A is {words[0]}, and {name!r} of B wants {words[1]}: {complaint}")
        links.append(Link(output, name, *words, cast=needs_cast))
    if wrong:
        raise RefusedResultError(
            f"{'a connection does' if len(wrong) == 1 else f'{len(wrong)} connections do'} not fit",
            details=wrong,
            hint="--cast puts a Cast between them." if only_elements and not cast else None,
        )
    return tuple(links)


def _known(side: Side, name: str) -> str:
    if name in _ends(side):
        return name
    raise _unknown(side, name)


def _ends(side: Side) -> list[str]:
    """Returns what can be connected: outputs and inputs of A, inputs of B."""
    return [*side.outputs, *side.inputs] if side.letter == "A" else side.inputs


def _unknown(side: Side, name: str) -> NotFoundError:
    what = "output" if side.letter == "A" else "input"
    hint = did_you_mean(name, _ends(side))
    if hint is None and side.letter == "A" and side.index.main.defines(name):
        hint = "It lies inside A; 'onnxbench expose' makes it an output."
    return NotFoundError(
        f"model {side.letter} has no {what} {name!r}", details=[_listing(side)], hint=hint
    )  # fmt: skip


def _listing(side: Side) -> str:
    names = side.outputs if side.letter == "A" else side.inputs
    types = side.types(names)
    said = ", ".join(f"{name!r} {format_type(types.get(name))}" for name in names[:12])
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{'outputs of A' if side.letter == 'A' else 'inputs of B'}: {said or 'none'}{more}"


def _pair(a: Side, b: Side, word: str) -> tuple[str, str]:
    """Returns what a word connects: it is cut at every sign that may be the one, and real names decide.

    Raises:
        NotFoundError: No cut gives two real names.
        UsageError: More than one does.
    """
    ends_a, ends_b = set(_ends(a)), set(_ends(b))
    found: dict[tuple[str, str], None] = {}
    near: list[tuple[int, str, str]] = []
    for sign in ("->", "=", ":"):
        at = word.find(sign)
        while at >= 0:
            one, other = word[:at].strip(), word[at + len(sign) :].strip()
            left, right = _named(one, "a.", ends_a), _named(other, "b.", ends_b)
            if left is not None and right is not None:
                found[left, right] = None
            near.append(((left is not None) + (right is not None), one, other))
            at = word.find(sign, at + 1)
    if not near:
        raise UsageError(f"--map {word!r} connects nothing", hint="Write OUT=IN: an output of A and an input of B.")
    if not found:
        _, one, other = max(near, key=lambda entry: entry[0])
        left = _named(one, "a.", ends_a)
        raise _unknown(a, one.removeprefix("a.")) if left is None else _unknown(b, other.removeprefix("b."))
    if len(found) > 1:
        raise UsageError(
            f"--map {word!r} can be read in {len(found)} ways",
            details=[f"{left!r} to {right!r}" for left, right in found],
            hint='Quote the names: --map \'"out"="in"\'.',
        )
    return next(iter(found))


def _named(text: str, letter: str, known: Collection[str]) -> str | None:
    """Returns the real name that a text means: as it stands, without the model's letter, without quotes."""
    for said in (text, text.removeprefix(letter)):
        if said in known:
            return said
        if len(said) > 1 and said[0] == said[-1] and said[0] in "\"'" and said[1:-1] in known:
            return said[1:-1]
    return None


def _obvious_pairs(a: Side, b: Side) -> list[tuple[str, str]]:
    same = [(name, name) for name in a.outputs if name in set(b.required)]
    if same:
        return same
    if len(a.outputs) == 1 and len(b.required) == 1:
        return [(a.outputs[0], b.required[0])]
    raise UsageError(
        "no output of A is called like an input of B, so what is connected has to be said",
        details=[_listing(a), _listing(b)],
        hint="--map OUT=IN connects an output of A to an input of B.",
    )


def misfit(one: TypeProto | None, other: TypeProto | None) -> str:
    """Returns why a value of the one type cannot be one of the other; nothing where it can, or where nobody knows."""
    while True:
        if one is None or other is None:
            return ""
        kind, wanted = one.WhichOneof("value"), other.WhichOneof("value")
        if kind is None or wanted is None:
            return ""
        if kind != wanted:
            return f"a {_kind_word(kind)} is no {_kind_word(wanted)}"
        if kind == "sequence_type":
            one, other = one.sequence_type.elem_type, other.sequence_type.elem_type
        elif kind == "optional_type":
            one, other = one.optional_type.elem_type, other.optional_type.elem_type
        elif kind == "map_type":
            if one.map_type.key_type != other.map_type.key_type:
                return "the keys have other types"
            one, other = one.map_type.value_type, other.map_type.value_type
        else:
            break
    if 0 not in (elem_type(one), elem_type(other)) and elem_type(one) != elem_type(other):
        return _OTHER_ELEMENTS
    have, want = tensor_shape(one), tensor_shape(other)
    if have is None or want is None:
        return ""
    if len(have) != len(want):
        return f"{len(have)} dimension{'s are' if len(have) != 1 else ' is'} not {len(want)}"
    for at, (size, needed) in enumerate(zip(have, want, strict=True)):
        if isinstance(size, int) and isinstance(needed, int) and size != needed:
            return f"dimension {at} is {size}, not {needed}"
    return ""


def _kind_word(kind: str) -> str:
    return kind.removesuffix("_type").replace("_", " ")


def _complaint(one: TypeProto | None, other: TypeProto | None, *, cast: bool) -> str:
    """Returns all that keeps two types from being one; elements that a Cast would mend are no part of it."""
    said = misfit(one, other)
    if said != _OTHER_ELEMENTS or one is None or other is None or not _is_tensor(one, other):
        return said
    rest = misfit(_with_elements_of(one, other), other)
    if cast and rest and _is_castable(one, other):
        return rest
    return f"{said}, and {rest}" if rest else said


def _differ_in_elements(one: TypeProto, other: TypeProto) -> bool:
    """Tells whether two types differ in their elements alone, and a Cast mends that."""
    if not _is_tensor(one, other) or not _is_castable(one, other):
        return False
    return not misfit(_with_elements_of(one, other), other)


def _is_tensor(*types: TypeProto) -> bool:
    return {each.WhichOneof("value") for each in types} == {"tensor_type"}


def _is_castable(one: TypeProto, other: TypeProto) -> bool:
    have, want = elem_type(one), elem_type(other)
    return bool(have and want) and have != want and not {have, want} & {8, 14, 15}


def _with_elements_of(one: TypeProto, other: TypeProto) -> TypeProto:
    same = copy_of(one)
    same.tensor_type.elem_type = elem_type(other)
    return same
