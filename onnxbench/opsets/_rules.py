"""What a node is in another version: onnx's converter, and what has to be known besides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxbench.messages import copy_of
from onnxbench.opsets._converter import through_onnx
from onnxbench.opsets._problems import (
    MAIN,
    Problem,
    constant_tensor,
    same_node,
    value_of,
)
from onnxbench.schemas import find_schema, plain_domain, same_operator
from onnxbench.tensortype import Dim, elem_type, schema_word, tensor_shape

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TypeProto

SAME_UPWARD = {"If": 1, "Loop": 1, "Scan": 9, "Constant": 1}
"""Operators that mean the same in all versions from this one on: later ones take more. They may hold much, so the
converter is not asked."""
_SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
_DECIDED = {*((op, 13) for op in _SOFTMAXES), ("GridSample", 20), ("GroupNormalization", 21)}
"""Operators and versions where ``_fit_values`` alone decides on the way down; the converter is wrong there."""
_VALUES_SINCE = {
    ("Pad", "mode", b"wrap"): 19,
    ("ScatterElements", "reduction", b"max"): 18, ("ScatterElements", "reduction", b"min"): 18,
    ("ScatterND", "reduction", b"max"): 18, ("ScatterND", "reduction", b"min"): 18,
    ("Resize", "coordinate_transformation_mode", b"half_pixel_symmetric"): 19,
}  # fmt: skip
"""Values of attributes that came later than the attribute."""


def bring_up(problems: Sequence[Problem], source: int, target: int) -> None:
    """Puts into each problem the nodes that it is in a later opset, or why there are none (``failure``).

    Args:
        problems: The nodes, each as it is in ``source``.
        source: The opset that they are of.
        target: The later one.
    """
    asked = []
    for problem in problems:
        node = problem.main
        problem.failure = _why_not_up(problem, source, target)
        since = SAME_UPWARD.get(node.op_type)
        if not problem.failure and _says_last_axis(problem, source, target):
            continue
        if not problem.failure and (since is None or source < since):
            asked.append(problem)
    hardmax = [problem for problem in asked if problem.main.op_type == "Hardmax" and source <= 12 < target]
    for problem in hardmax:  # the converter leaves it as it is; it changed as Softmax did
        problem.main.op_type = "Softmax"
    was_resize = {id(problem): problem.main.op_type in ("Resize", "Upsample") for problem in asked}
    for problem, (nodes, failure) in zip(asked, through_onnx(asked, source, target), strict=True):
        problem.failure = failure
        if not failure:
            problem.nodes = nodes
            if was_resize[id(problem)] and source <= 10 < target:
                problem.failure = _keep_old_coordinates(problem)
    for problem in hardmax:
        problem.main.op_type = "Hardmax"


def _says_last_axis(problem: Problem, source: int, target: int) -> bool:
    """Tells whether a Softmax goes along the last axis, and makes it say so.

    Up to opset 12 it went along all axes from one on; at the last one that is the same. The converter knows this only
    of an axis that is not counted from the end.
    """
    node = problem.main
    if node.op_type not in _SOFTMAXES or not source <= 12 < target or problem.by_caller:
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = tensor_shape(problem.types[node.input[0]]) if node.input[0] in problem.types else None
    if axis != -1 and (shape is None or axis != len(shape) - 1):
        return False
    if not node.attribute:
        node.attribute.add(name="axis", type=2, i=axis)
    return True


def _why_not_up(problem: Problem, source: int, target: int) -> str:
    """Returns why the converter must not be asked, for what it would do would be wrong."""
    node = problem.main
    if node.op_type == "GroupNormalization" and source <= 20 < target:
        return "it has one scale per group up to opset 20, and one per channel since"
    modes = [attribute.s for attribute in node.attribute if attribute.name == "coordinate_transformation_mode"]
    if node.op_type == "Resize" and modes == [b"tf_half_pixel_for_nn"] and source < 13 <= target:
        return "opset 13 no longer knows coordinate_transformation_mode=tf_half_pixel_for_nn of it"
    schema = find_schema("", node.op_type, target)
    if problem.by_caller and schema is not None:
        missing = [name for name in problem.by_caller if name not in schema.attributes]
        if missing:
            return f"the caller of the function gives its attribute {missing[0]!r}, which it no longer has"
    if problem.bodies and (node.op_type not in SAME_UPWARD or source < SAME_UPWARD[node.op_type]):
        return f"what its bodies mean changed after opset {source}"
    return ""


def _keep_old_coordinates(problem: Problem) -> str:
    """Makes a Resize that was one of opset 10, or an Upsample, compute what it did; returns why it cannot."""
    node = next((node for node in problem.nodes if node.op_type == "Resize"), None)
    if node is None:
        return "the converter does not make a Resize of it"
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"nearest")
    rounding = ""
    if mode == b"nearest":
        from onnx import numpy_helper

        name = node.input[2] if len(node.input) > 2 else ""
        made = (one.attribute[0].t for one in problem.nodes if one.op_type == "Constant" and name in one.output)
        scales = problem.constants.get(name) or next(made, None)
        if scales is None:
            return "its scales are not known, and how it rounded depends on them"
        values = numpy_helper.to_array(scales)
        if not (values >= 1).all() and not (values <= 1).all():
            return "it rounds up where it shrinks and down where it grows, and does both"
        rounding = "floor" if (values >= 1).all() else "ceil"
    for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", rounding)):
        if value:
            node.attribute.add(name=name, type=3, s=value.encode())
    return ""


def bring_down(problems: Sequence[Problem], source: int, target: int) -> None:
    """Brings problems one version down: as they stand if that means the same, else by the converter."""
    steps: list[tuple[Problem, int, Problem]] = []
    for problem in problems:
        if problem.failure:
            continue
        for at, node in enumerate(problem.nodes):
            if not plain_domain(node.domain) and not same_operator("", node.op_type, source, target):
                alone = Problem([node], problem.types, problem.constants, problem.by_caller, problem.bodies)
                steps.append((problem, at, alone))
    plans: list[tuple[Problem, int, Problem, NodeProto | None, str]] = []
    for problem, at, alone in steps:
        candidate, why = _as_it_stands(alone, source, target)
        plans.append((problem, at, alone, candidate, why))
    tries = [
        Problem([_named(candidate, MAIN)], alone.types, alone.constants)
        for _, _, alone, candidate, _ in plans
        if candidate is not None and not _is_settled(candidate, source)
    ]
    brought_up = iter(through_onnx(tries, target, source))
    replacements: dict[int, dict[int, list[NodeProto]]] = defaultdict(dict)
    left: list[tuple[Problem, int, Problem, str]] = []
    for problem, at, alone, candidate, why in plans:
        node = alone.nodes[0]
        if candidate is not None and not _is_settled(candidate, source):
            nodes, failure = next(brought_up)
            schema = find_schema("", node.op_type, source)
            same = not failure and len(nodes) == 1
            same = same and any(same_node(nodes[0], one, schema) for one in (candidate, node))
            if not same:
                candidate, why = None, why or f"it changed its meaning in opset {source}"
        if candidate is not None:
            replacements[id(problem)][at] = [_named(candidate, node.name)]
        else:
            left.append((problem, at, alone, why))
    asked = []
    for problem, at, alone, why in left:
        if alone.bodies or (alone.nodes[0].op_type, source) in _DECIDED:
            problem.failure = why
        else:
            asked.append((problem, at, alone, why))
    for (problem, at, alone, why), (nodes, failure) in zip(
        asked, through_onnx([_renamed_main(alone) for _, _, alone, _ in asked], source, target), strict=True
    ):
        fitted = []
        for made in nodes:
            older, no = _as_it_stands(Problem([made], alone.types, alone.constants), source, target)
            failure = failure or no
            fitted.append(older or made)
        if failure:
            problem.failure = why or failure
            continue
        name = alone.nodes[0].name
        replacements[id(problem)][at] = [_named(made, name if made.name == MAIN else "") for made in fitted]
    for problem in problems:
        swapped = replacements.get(id(problem), {})
        if swapped and not problem.failure:
            problem.nodes = _with_distinct_names(
                [made for at, node in enumerate(problem.nodes) for made in swapped.get(at, [node])]
            )


def _is_settled(node: NodeProto, source: int) -> bool:
    return node.op_type in SAME_UPWARD or (node.op_type, source) in _DECIDED


def _named(node: NodeProto, name: str) -> NodeProto:
    copy = copy_of(node)
    copy.name = name
    return copy


def _renamed_main(problem: Problem) -> Problem:
    return Problem([_named(problem.nodes[0], MAIN)], problem.types, problem.constants)


def _with_distinct_names(nodes: list[NodeProto]) -> list[NodeProto]:
    """Numbers the tensors between the nodes of one problem anew: steps of the converter count each for itself."""
    names: dict[str, str] = {}
    for node in nodes:
        for at, name in enumerate(node.output):
            if name and name[0] not in "io":
                names[name] = node.output[at] = f"f{len(names)}"
    for node in nodes:
        for at, name in enumerate(node.input):
            if name in names:
                node.input[at] = names[name]
    return nodes


def _as_it_stands(problem: Problem, source: int, target: int) -> tuple[NodeProto | None, str]:
    """Returns a node as the version before would take it, or None and what that version lacks."""
    node = problem.nodes[0]
    now, older = find_schema("", node.op_type, source), find_schema("", node.op_type, target)
    assert now is not None
    if older is None or older.deprecated:
        return None, f"opset {target} has no such operator"
    candidate = copy_of(node)
    del candidate.attribute[:]
    for attribute in node.attribute:
        if attribute.name in older.attributes:
            candidate.attribute.append(attribute)
            continue
        default = now.attributes[attribute.name].default_value if attribute.name in now.attributes else None
        if (default is not None and value_of(default) == value_of(attribute)) or _says_nothing(
            attribute, node, problem
        ):
            continue
        tensor = constant_tensor(attribute) if node.op_type == "Constant" else None
        if tensor is None:
            return None, f"opset {target} has no attribute {attribute.name!r} of it"
        candidate.attribute.add(name="value", type=4).t.CopyFrom(tensor)
    missing = [name for name in problem.by_caller if name not in older.attributes]
    if missing:
        return None, f"opset {target} has no attribute {missing[0]!r} of it"
    for what, names, least, most in (
        ("inputs", candidate.input, older.min_input, older.max_input),
        ("outputs", candidate.output, older.min_output, older.max_output),
    ):
        while names and not names[-1] and len(names) > most:
            del names[-1]
        if not least <= len(names) <= most:
            return None, f"it has {len(names)} {what}, and opset {target} knows it with {_range(least, most)}"
    why = _type_complaint(candidate, problem.types, target) or _fit_values(candidate, problem, target)
    return (None, why) if why else (candidate, "")


def _fit_values(node: NodeProto, problem: Problem, target: int) -> str:
    """Fits a node to what schemas do not say of the version ``target``, coming from the one after it.

    Returns:
        Why that cannot be done, or nothing.
    """
    op = node.op_type
    for attribute in node.attribute:
        since = _VALUES_SINCE.get((op, attribute.name, attribute.s)) if attribute.type == 3 else None
        if since is not None and target < since:
            return f"opset {target} does not know {attribute.name}={attribute.s.decode(errors='replace')} of it"
    first = problem.types.get(node.input[0]) if node.input else None
    shape = tensor_shape(first) if first is not None else None
    if target == 20 and op == "GroupNormalization":
        return "it has one scale per group up to opset 20, and one per channel since"
    if target == 19 and op == "GridSample":
        if shape is None or len(shape) != 4:
            return "opset 19 takes four dimensions there, and that it has them is not known"
        for attribute in node.attribute:
            if attribute.name == "mode":
                attribute.s = {b"linear": b"bilinear", b"cubic": b"bicubic"}.get(attribute.s, attribute.s)
    if target == 12 and op in _SOFTMAXES:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        if axis != -1 and (shape is None or axis not in (-1, len(shape) - 1)):
            return "up to opset 12 it goes along all axes from its axis on, and that it is the last one is not known"
        del node.attribute[:]
        node.attribute.add(name="axis", type=2, i=-1 if shape is None else len(shape) - 1)
    if target == 12 and op in ("QuantizeLinear", "DequantizeLinear"):
        scale = problem.types.get(node.input[1])
        if scale is None or tensor_shape(scale) != ():
            return "opset 12 takes one scale, and that it has just one is not known"
    return _count_from_the_front(node, problem, shape) if target == 10 else ""


def _count_from_the_front(node: NodeProto, problem: Problem, shape: tuple[Dim, ...] | None) -> str:
    """Counts the axes of a node from the front, as opset 10 wants it; returns why that cannot be done, or nothing."""
    if node.op_type in ("Unsqueeze", "OneHot", "ConcatFromSequence"):  # their axes are those of what they make
        made = problem.types.get(node.output[0])
        shape = tensor_shape(made) if made is not None else None
    for attribute in node.attribute:
        if attribute.name != "axis" and not attribute.name.endswith("axes"):
            continue
        if attribute.i >= 0 and all(axis >= 0 for axis in attribute.ints):
            continue
        if shape is None or attribute.name not in ("axis", "axes"):
            return "opset 10 counts axes from the front, and how many there are is not known"
        if attribute.i < 0:
            attribute.i += len(shape)
        for at, axis in enumerate(attribute.ints):
            if axis < 0:
                attribute.ints[at] = axis + len(shape)
    return ""


def _says_nothing(attribute: AttributeProto, node: NodeProto, problem: Problem) -> bool:
    """Tells whether an attribute that the older version lacks makes no difference at this node."""
    from onnx import numpy_helper

    second = problem.constants.get(node.input[1]) if len(node.input) > 1 else None
    if attribute.name == "allowzero":
        return second is not None and bool((numpy_helper.to_array(second) != 0).all())
    if attribute.name == "noop_with_empty_axes":
        axes = next((len(one.ints) for one in node.attribute if one.name == "axes"), 0)
        return bool(axes) or (second is not None and numpy_helper.to_array(second).size > 0)
    if attribute.name == "num_outputs":
        shape = tensor_shape(problem.types[node.input[0]]) if node.input[0] in problem.types else None
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        return isinstance(size, int) and attribute.i == len(node.output) and size % attribute.i == 0
    return False


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} or more" if most > 1 << 20 else f"{least} to {most}"


def _type_complaint(node: NodeProto, types: Mapping[str, TypeProto], version: int) -> str:
    """Returns what a version's operator says against the types of a node's tensors, as far as they are known."""
    schema = find_schema("", node.op_type, version)
    if schema is None:
        return f"opset {version} has no operator {node.op_type}"
    bound: dict[str, str] = {}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for at, name in enumerate(names):
            if not formals:
                continue
            formal = formals[min(at, len(formals) - 1)]
            if not name:
                if formal.option == formal.option.Single and names is node.input:
                    return f"opset {version} wants its input {formal.name!r}"
                continue
            said = _type_word(types.get(name))
            if said and said not in formal.types:
                return f"opset {version} does not take {said} there"
            if said and formal.is_homogeneous and bound.setdefault(formal.type_str, said) != said:
                return f"opset {version} wants one type where {bound[formal.type_str]} and {said} are"
    return ""


def _type_word(value: TypeProto | None) -> str:
    """Returns a type as schemas spell it, ``seq(tensor(float))``; nothing where it is not known in full."""
    wrappers = []
    while value is not None:
        kind = value.WhichOneof("value")
        if kind == "sequence_type":
            wrappers.append("seq({})")
            value = value.sequence_type.elem_type
        elif kind == "optional_type":
            wrappers.append("optional({})")
            value = value.optional_type.elem_type
        else:
            break
    if value is None or value.WhichOneof("value") != "tensor_type" or not elem_type(value):
        return ""
    word = f"tensor({schema_word(elem_type(value))})"
    for wrapper in reversed(wrappers):
        word = wrapper.format(word)
    return word
