"""Whether one node fits one step of a pattern, and if not, the first reason why.

Operators, counts of inputs and outputs, attributes and constants are compared here, each by a function that returns
the reason in words, or None. The search for a whole match asks them (``_matcher``), and so does whoever explains why
there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.conformity import with_article
from onnxbench.graph import home_of
from onnxbench.patterns._facts import Facts
from onnxbench.patterns._pattern import Step, Value
from onnxbench.tensortype import dtype_name, format_shape

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TensorProto

    from onnxbench.graph import Scope

OVERLOAD = ":overload"
"""Behind the name of a captured operator: the name of its overload, of a call of a local function."""
_FLOATS = frozenset({1, 10, 11, 16})
_EPSILON = {1: 1.2e-7, 10: 9.8e-4, 11: 1.2e-7, 16: 7.9e-3}
"""Distance of neighbours relative to a number; of float64 that of float32, since patterns are written in digits."""


def read_names(node: NodeProto) -> list[str]:
    """Returns the inputs of a node without the empty ones at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def operator_difference(step: Step, facts: Facts, node: NodeProto) -> str | None:
    """Returns why a node's operator is not a step's, or None."""
    if not step.accepts(node.domain, node.op_type):
        domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
        return f"it is {with_article(node) if not domain else 'a ' + domain + node.op_type}"
    if facts.index.functions and node.domain in ("", "ai.onnx") and facts.index.function_of(node) is not None:
        return f"it calls the model's own function {node.op_type}"
    return None


def count_difference(step: Step, names: Sequence[str]) -> str | None:
    """Returns why the inputs of a node do not fit a step by their number, or None."""
    count, wanted = len(names), step.inputs
    has_many = bool(wanted) and wanted[-1] is not None and wanted[-1].is_many
    if count > len(wanted) and not has_many:
        return f"it has {count} inputs, and the pattern {step.count_words()}"
    for at, value in enumerate(wanted):
        given = names[at] if at < count else ""
        if value is None and given:
            return f"it has an input {at}, which is empty in the pattern"
        if value is not None and not given and not (value.is_optional or value.is_many):
            return f"it has no input {at}, and the pattern has {value.name!r} there"
    return None


def output_difference(step: Step, facts: Facts, scope: Scope, node: NodeProto) -> str | None:
    """Returns why the outputs of a node do not fit a step by their number, or None.

    More than the pattern names are fine where they are optional, but not of Split and the like, whose outputs depend on
    how many there are, nor of an operator that nothing is known of.
    """
    count = len(node.output)
    if count <= len(step.outputs) or facts.has_fixed_outputs(scope, node):
        return None
    return f"it has {count} outputs, and the pattern names {len(step.outputs)}"


def capture_attributes(step: Step, facts: Facts, scope: Scope, node: NodeProto) -> dict[str, Any] | str:
    """Returns what a step captures of a node's attributes, or why they do not fit."""
    given = {attribute.name: attribute for attribute in node.attribute}
    if not (given or step.attributes or step.captures or step.rest or step.operator_name):
        return {}
    captured: dict[str, Any] = {}
    defaults: dict[str, AttributeProto] | None = None
    for name, wanted in step.attributes.items():
        has = given.pop(name, None)
        if has is None:
            defaults = facts.defaults(scope, node) if defaults is None else defaults
            has = defaults.get(name)
        if has is None:
            return f"it has no attribute {name!r}, and the pattern wants {_worded(wanted)}"
        if has.ref_attr_name:
            return f"attribute {name!r} is given by the function's caller, and the pattern wants {_worded(wanted)}"
        if not attributes_equal(wanted, has):
            return f"attribute {name!r} is {_worded(has)}, and the pattern wants {_worded(wanted)}"
    for name, capture in step.captures.items():
        has = given.pop(name, None)
        if has is None:
            defaults = facts.defaults(scope, node) if defaults is None else defaults
            has = defaults.get(name) or step.defaults.get(name)
        if has is None:
            return f"it has no attribute {name!r}"
        if capture in captured and not are_same(captured[capture], has):
            return f"@{capture} is two different values"
        captured[capture] = has
    if step.rest is not None:
        captured[step.rest] = tuple(given.values())
    elif given:
        defaults = facts.defaults(scope, node) if defaults is None else defaults
        for name, has in given.items():
            default = defaults.get(name)
            if has.ref_attr_name or default is None or not attributes_equal(default, has):
                said = "given by the function's caller" if has.ref_attr_name else _worded(has)
                return f"attribute {name!r} is {said}, and the pattern does not mention it"
    if step.operator_name is not None:
        captured[step.operator_name] = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        captured[step.operator_name + OVERLOAD] = node.overload
    return captured


def attributes_equal(wanted: AttributeProto, has: AttributeProto) -> bool:
    """Tells whether two attributes have the same value; floats may differ by rounding, 1 is 1.0."""
    from onnx import helper

    if wanted.ref_attr_name or has.ref_attr_name:
        return wanted.ref_attr_name == has.ref_attr_name
    numbers = (wanted.FLOAT, wanted.INT, wanted.FLOATS, wanted.INTS)
    if wanted.type in numbers and has.type in numbers:
        a, b = helper.get_attribute_value(wanted), helper.get_attribute_value(has)
        first = [a] if isinstance(a, (int, float)) else list(a)
        second = [b] if isinstance(b, (int, float)) else list(b)
        if isinstance(a, (int, float)) != isinstance(b, (int, float)) or len(first) != len(second):
            return False
        return all(x == y or (x != x and y != y) or _is_near(x, y) for x, y in zip(first, second, strict=True))
    if wanted.type != has.type:
        return False
    kind = wanted.AttributeType.Name(wanted.type)
    field_name = {"STRING": "s", "STRINGS": "strings", "TENSOR": "t"}.get(kind)
    if field_name == "t":
        from onnx import numpy_helper

        if wanted.t.data_type != has.t.data_type or list(wanted.t.dims) != list(has.t.dims) or has.t.data_location == 1:
            return False
        same: bool = numpy_helper.to_array(wanted.t).tobytes() == numpy_helper.to_array(has.t).tobytes()
        return same
    if field_name is None:
        return bool(wanted.SerializeToString(deterministic=True) == has.SerializeToString(deterministic=True))
    a, b = getattr(wanted, field_name), getattr(has, field_name)
    return bool(a == b if kind == "STRING" else list(a) == list(b))


def _is_near(first: float, second: float) -> bool:
    if isinstance(first, int) and isinstance(second, int):
        return False
    return abs(first - second) <= 1e-6 * max(abs(first), abs(second))


def are_same(first: Any, second: Any) -> bool:
    """Tells whether two captured attributes, or two captured sets of them, say the same."""
    if isinstance(first, str) or isinstance(second, str):
        return bool(first == second)
    if isinstance(first, tuple) or isinstance(second, tuple):
        mine = {each.name: each for each in first} if isinstance(first, tuple) else {}
        other = {each.name: each for each in second} if isinstance(second, tuple) else {}
        return mine.keys() == other.keys() and all(attributes_equal(mine[name], other[name]) for name in mine)
    return attributes_equal(first, second)


def constant_difference(value: Value, facts: Facts, scope: Scope, name: Any) -> str | None:
    """Returns why a tensor is not the constant of a pattern, or None."""
    assert value.constant is not None
    if not isinstance(name, str) or not name:
        return f"it has no constant {value.name!r}"
    wanted = _number_words(value.constant)
    tensor = facts.constant(scope, name)
    if tensor is None:
        if facts.is_overridable(scope, name):
            return f"{value.name!r} must be {wanted}, and {name!r} is an initializer that callers may override"
        return f"{value.name!r} must be the constant {wanted}, and {origin_words(facts, scope, name)}"
    dims, size = tuple(tensor.dims), 1
    for dim in dims:
        size *= dim
    if (value.constant.ndim and dims != value.constant.shape) or (not value.constant.ndim and size != 1):
        return f"{value.name!r} must be {wanted}, and {name!r} is of shape {format_shape(dims)}"
    is_float, wants_float = tensor.data_type in _FLOATS, value.element in _FLOATS
    if is_float != wants_float or (not is_float and value.element != tensor.data_type and value.constant.ndim):
        return f"{value.name!r} must be {dtype_name(value.element)}, and {name!r} is {dtype_name(tensor.data_type)}"
    if not is_float and not wants_float and value.element != tensor.data_type and value.element != 7:
        return f"{value.name!r} must be {dtype_name(value.element)}, and {name!r} is {dtype_name(tensor.data_type)}"
    has = facts.array(tensor)
    if _holds(value, has.reshape(value.constant.shape), tensor):
        return None
    return f"{value.name!r} must be {wanted}, and {name!r} is {_number_words(has)}"


def _holds(value: Value, has: Any, tensor: TensorProto) -> bool:
    import numpy as np

    wanted = value.constant
    assert wanted is not None
    if tensor.data_type == tensor.STRING:
        return bool(np.array_equal(wanted, has))
    if tensor.data_type not in _FLOATS:
        whole = np.uint64 if tensor.data_type == tensor.UINT64 else np.int64
        return bool(np.array_equal(wanted.astype(whole), has.astype(whole)))
    a, b = wanted.astype(np.float64), has.astype(np.float64)
    tolerance = value.tolerance if value.tolerance is not None else 4 * _EPSILON[tensor.data_type]
    with np.errstate(invalid="ignore", over="ignore"):
        if value.tolerance is None:  # what the number is in the model's own type
            a = wanted.astype(has.dtype).astype(np.float64)
        near = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= tolerance * np.abs(a))
        near &= np.isfinite(a) == np.isfinite(b)
    return bool(np.all(near))


def _number_words(array: Any) -> str:
    if array.size > 8:
        return f"{array.size} values"
    values = array.astype("float64").tolist() if array.dtype.kind not in "biuOSU" else array.tolist()
    if isinstance(values, float):
        return f"{values:.7g}"
    return str([f"{v:.7g}" if isinstance(v, float) else v for v in values] if array.ndim == 1 else values).replace(
        "'", ""
    )


def _worded(attribute: AttributeProto) -> str:
    from onnxbench.literals import float32_text

    kind = attribute.AttributeType.Name(attribute.type)
    if kind == "FLOAT":
        return float32_text(attribute.f)
    if kind == "FLOATS":
        return f"[{', '.join(map(float32_text, attribute.floats))}]"
    if kind in ("INT", "INTS"):
        return str(attribute.i if kind == "INT" else list(attribute.ints))
    return repr(attribute.s.decode(errors="backslashreplace")) if kind == "STRING" else f"a {kind.lower()}"


def origin_words(facts: Facts, scope: Scope, name: str) -> str:
    """Returns where a tensor comes from that no node of the graph makes as wanted, as the start of a sentence."""
    home = home_of(scope, name)
    if home is None:
        return f"{name!r} is made nowhere" if name else "there is no tensor"
    position = home.producers.get(name)
    if home is not scope:
        return f"{name!r} is a tensor of a graph around this one"
    if position is not None:
        return f"{name!r} is made by {node_words(home, position)}"
    return f"{name!r} is {'an initializer' if name in home.constants else 'an input of the graph'}"


def node_words(scope: Scope, position: int) -> str:
    """Returns what to call a node: its path and operator."""
    label = scope.label(position)
    path = f"{scope.path}/{label}" if scope.path else label
    return f"{path} ({scope.nodes[position].op_type})"
