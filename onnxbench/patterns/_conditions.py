"""What a match binds names to, and the conditions and values that rules calculate from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.graph import Scope, home_of
from onnxbench.patterns._expressions import Expression, UnknownError, WrongError
from onnxbench.patterns._facts import Facts, size_of
from onnxbench.tensortype import Dim

if TYPE_CHECKING:
    from onnx import AttributeProto


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A captured tensor in an expression; only functions take it."""

    name: str
    tensors: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        raise TypeError(f"{self.name!r} is a tensor: write value({self.name}), or same(a, b)")

    __hash__ = None  # type: ignore[assignment]  # how Python says that it cannot be hashed


class Symbol:
    """A size that is a name (``batch``): equal to itself, and to everything else it cannot be known."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _unknown(self, other: object) -> Any:
        raise UnknownError(f"the size {self.name!r} is not a number")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Symbol) and other.name == self.name:
            return True
        return bool(self._unknown(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __lt__ = __le__ = __gt__ = __ge__ = _unknown
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _unknown
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _unknown

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(slots=True, eq=False)
class Bindings:
    """What the names of a pattern stand for in a match.

    Attributes:
        facts: What is known of the model.
        scope: The graph of the match.
        tensors: Tensors by name: a name, ``""`` for one that is absent, or several.
        attributes: Captured attributes: one, several (``_rest``), or an operator as text.
        sizes: Sizes that types of the pattern name; None for one that is unknown.
        lets: Values that the rule calculates.
    """

    facts: Facts
    scope: Scope
    tensors: dict[str, Any]
    attributes: dict[str, Any]
    sizes: dict[str, Dim] = field(default_factory=dict)
    lets: Mapping[str, Expression] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    def value_of(self, name: str) -> Any:
        """Returns what a name means in an expression.

        Raises:
            UnknownError: It cannot be known.
            WrongError: There is no such name.
        """
        if name in self._values:
            return self._values[name]
        if name in self.lets:
            self._values[name] = value = self.evaluate(self.lets[name])
            return value
        if name in self.attributes:
            found = self.attributes[name]
            return found if isinstance(found, (str, tuple)) else attribute_value(found, name)
        if name in self.tensors:
            bound = self.tensors[name]
            return Named(name, bound if isinstance(bound, tuple) else (bound,))
        if name in self.sizes:
            return _size(self.sizes[name], name)
        raise WrongError(f"there is no {name!r} in the pattern")

    def evaluate(self, expression: Expression) -> Any:
        """Returns the value of an expression; raises as it does."""
        functions = {name: _bound(function, self) for name, function in FUNCTIONS.items()}
        return expression.evaluate(self.value_of, functions)


def unmet_condition(where: tuple[Expression, ...], bindings: Bindings) -> str | None:
    """Returns which condition of a rule does not hold, and why; None if all do and all its values can be had."""
    for condition in where:
        try:
            if bindings.evaluate(condition):
                continue
            said = _explained(condition, bindings)
            return f"the condition '{condition.text}' does not hold{f' ({said})' if said else ''}"
        except UnknownError as unknown:
            return f"whether '{condition.text}' holds cannot be known: {unknown}"
        except WrongError as wrong:
            return f"the condition '{condition.text}' cannot be evaluated: {wrong}"
    for name in bindings.lets:
        try:
            bindings.value_of(name)
        except (UnknownError, WrongError) as problem:
            return f"the value of '{name}: {bindings.lets[name].text}' cannot be had: {problem}"
    return None


def _explained(condition: Expression, bindings: Bindings) -> str:
    """Returns the values that a condition is about, in words: ``rank(x) is 2``."""
    return ", ".join(f"{words} is {value}" for words, value in condition.parts(bindings.value_of, _all(bindings)))


def _all(bindings: Bindings) -> dict[str, Callable[..., Any]]:
    return {name: _bound(function, bindings) for name, function in FUNCTIONS.items()}


def _bound(function: Callable[..., Any], bindings: Bindings) -> Callable[..., Any]:
    return lambda *arguments: function(bindings, *arguments)


def attribute_value(attribute: AttributeProto, name: str) -> Any:
    """Returns the value of a captured attribute for an expression.

    Raises:
        UnknownError: It is given by the caller of a function.
        WrongError: It is a tensor, a body or the like.
    """
    from onnx import helper

    if attribute.ref_attr_name:
        raise UnknownError(f"attribute {name!r} is given by the function's caller")
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if attribute.type in (attribute.INTS, attribute.FLOATS):
        return list(value)
    if attribute.type == attribute.STRINGS:
        return [each.decode(errors="backslashreplace") for each in value]
    if not isinstance(value, (int, float)):
        raise WrongError(f"attribute {name!r} is no number or text")
    return value


def _size(dim: Dim, words: str) -> Any:
    """Returns a size; one without a name is a symbol of its own, so that it is still equal to itself."""
    return dim if isinstance(dim, int) else Symbol(dim if dim is not None else words)


# -- functions of expressions ------------------------------------------------------------------------------------


def _one(argument: Any) -> str:
    if not isinstance(argument, Named):
        raise TypeError("it wants a tensor of the pattern")
    if len(argument.tensors) != 1:
        raise TypeError(f"{argument.name!r} stands for several tensors")
    if not argument.tensors[0]:
        raise UnknownError(f"{argument.name!r} is absent")
    return argument.tensors[0]


def _rank(bindings: Bindings, tensor: Any) -> int:
    return len(bindings.facts.shape(bindings.scope, _one(tensor)))


def _dim(bindings: Bindings, tensor: Any, axis: int) -> Any:
    name = _one(tensor)
    return _size(bindings.facts.shape(bindings.scope, name)[axis], f"{axis} of {name!r}")


def _shape(bindings: Bindings, tensor: Any) -> list[Any]:
    name = _one(tensor)
    return [_size(dim, f"{at} of {name!r}") for at, dim in enumerate(bindings.facts.shape(bindings.scope, name))]


def _dtype(bindings: Bindings, tensor: Any) -> str:
    return bindings.facts.dtype(bindings.scope, _one(tensor))


def _value(bindings: Bindings, tensor: Any) -> Any:
    if isinstance(tensor, (list, int, float)):
        return tensor
    return bindings.facts.value(bindings.scope, _one(tensor))


def _scalar(bindings: Bindings, tensor: Any) -> Any:
    value = _value(bindings, tensor)
    while isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"{tensor.name!r} has {len(value)} elements, and one is wanted")
        value = value[0]
    return value


def _is_const(bindings: Bindings, tensor: Any) -> bool:
    return bindings.facts.constant(bindings.scope, _one(tensor)) is not None


def _has(bindings: Bindings, tensor: Any) -> bool:
    if not isinstance(tensor, Named):
        raise TypeError("it wants a tensor of the pattern")
    return any(tensor.tensors)


def _uses(bindings: Bindings, tensor: Any) -> int:
    name = _one(tensor)
    home = home_of(bindings.scope, name)
    return 0 if home is None else len(home.consumers.get(name, ())) + home.outputs.count(name)


def _op(bindings: Bindings, tensor: Any) -> str:
    name = _one(tensor)
    home = home_of(bindings.scope, name)
    position = home.producers.get(name) if home is not None else None
    return "" if home is None or position is None else home.nodes[position].op_type


def _opset(bindings: Bindings, domain: str = "") -> int:
    return bindings.facts.opset(bindings.scope, domain)


def _attr(bindings: Bindings, attributes: Any, name: str, default: Any) -> Any:
    if not isinstance(attributes, tuple):
        raise TypeError("it wants what _rest captured")
    found = next((each for each in attributes if each.name == name), None)
    return default if found is None else attribute_value(found, name)


def _same(bindings: Bindings, first: Any, second: Any) -> bool:
    return _one(first) == _one(second)


def _elements(bindings: Bindings, tensor: Any) -> list[Any]:
    """Returns the elements of a tensor that holds a shape, as sizes."""
    sizes = bindings.facts.sizes(bindings.scope, _one(tensor))
    return [_size_of_element(kind, what) for kind, what in sizes]


def _size_of_element(kind: str, what: Any) -> Any:
    if kind == "known":
        return what
    if kind == "name":
        return Symbol(what)
    name, at = what
    return Symbol(f"{at} of {name!r}" if kind == "dim" else f"element {at} of {name!r}")


def _reshape_target(bindings: Bindings, shape: Any, tensor: Any) -> list[int]:
    """Returns constants that make Reshape do to a tensor what a calculated shape makes it do.

    A size that is the tensor's own at the same axis becomes 0, a known one stays, and one that cannot be known
    becomes -1, if it is the only one: Reshape can only have worked if it was what remains.
    """
    name = _one(tensor)
    sizes = bindings.facts.sizes(bindings.scope, _one(shape))
    own = [size_of(name, at, dim) for at, dim in enumerate(bindings.facts.shape(bindings.scope, name))]
    target: list[int] = []
    for at, size in enumerate(sizes):
        if size[0] == "known":
            if size[1] == 0:
                raise UnknownError(f"element {at} of {_one(shape)!r} is 0, whose meaning allowzero decides")
            target.append(size[1])
        else:
            target.append(0 if at < len(own) and own[at] == size else -1)
    if target.count(-1) > 1:
        raise UnknownError(f"{target.count(-1)} elements of {_one(shape)!r} are not known, and Reshape can infer one")
    return target


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rank": _rank, "dim": _dim, "shape": _shape, "dtype": _dtype, "value": _value, "scalar": _scalar,
    "is_const": _is_const, "has": _has, "uses": _uses, "op": _op, "opset": _opset, "attr": _attr, "same": _same,
    "reshape_target": _reshape_target, "elements": _elements,
}  # fmt: skip
"""What expressions of rules can ask about a match."""
