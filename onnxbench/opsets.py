"""Another version of the standard operators for a model, with everything else in it left as it is.

onnx's version converter knows how an operator of one version is said in another. It knows nothing else: it drops
functions, metadata, sparse initializers and quantization annotations, reads all weights, and gives up as a whole.
So it never gets to see the model. Only nodes whose operator changed between the two versions are looked at; each
becomes a small problem (the node, the types of what it reads, the values of small constants), equal problems are one,
and all of them go through the converter in one graph. What comes out replaces the node, and the first of it keeps the
node's name, metadata and unknown fields. This works alike in the main graph, in bodies and in functions.

Three things are ours, because the converter lacks them or is wrong:

* Down, it has few adapters. A node also goes down as it stands if the older version takes it (attributes, number of
  inputs, element types) and the converter, asked to bring that up again, gives the same node: then both mean the same.
* Resize and Upsample before opset 11 took coordinates ``asymmetric``; the converter leaves the new default.
* GroupNormalization had one scale per group up to opset 20, and has one per channel since; it is refused.

A node that cannot be converted, and every other one, is named in the error, and nothing is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.errors import ModelError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.inference import TypeFinder
from onnxbench.model import SMALL_WEIGHT, Model
from onnxbench.tensortype import Dim, dtype_name, elem_type, tensor_shape
from onnxbench.validity import make_valid

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto
    from onnx.defs import OpSchema

_MAIN = "main"
_MOST_NAMED = 12
_PLAIN_ELEMENTS = {1, 2, 3, 6, 7, 9, 10, 11}
"""Element types of constants that the converter is given; it has no use for others, and does not take all."""
_SCHEMA_WORDS = {"float32": "float", "float64": "double"}
_SAME_UPWARD = {"If": 1, "Loop": 1, "Scan": 9, "Constant": 1}
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
LOWEST = 9
"""The version that models are brought down to at most; before, operators did not broadcast alike."""
_CONSTANT_SCALARS = {
    "value_int": (7, "i", "int64_data"), "value_ints": (7, "ints", "int64_data"),
    "value_float": (1, "f", "float_data"), "value_floats": (1, "floats", "float_data"),
    "value_string": (8, "s", "string_data"), "value_strings": (8, "strings", "string_data"),
}  # fmt: skip
"""Attributes by which a Constant holds plain numbers: element type, the attribute's field, the tensor's field."""


def opset_number(version: int | str) -> int:
    """Returns an opset version from how it is spelled: a number, or ``latest`` for what the onnx package knows.

    Raises:
        UsageError: It is neither, or no version that the onnx package knows.
    """
    from onnx import defs

    newest = int(defs.onnx_opset_version())
    text = str(version).strip().lower()
    if text == "latest":
        return newest
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{version!r} is no opset version", hint="Give a number, or 'latest'.")
    number = int(text)
    if not 1 <= number <= newest:
        raise UsageError(f"there is no opset {number}", hint=f"The onnx package that is installed knows 1 to {newest}.")
    return number


def standard_opset(proto: ModelProto) -> int | None:
    """Returns the version of the standard domain that a model imports, or None if it imports none.

    Raises:
        ModelError: It imports two different ones.
    """
    found = {opset.version for opset in proto.opset_import if _plain(opset.domain) == ""}
    if len(found) > 1:
        raise ModelError(f"the standard opset is imported in the versions {' and '.join(map(str, sorted(found)))}")
    return found.pop() if found else None


def convert_opset(model: Model, version: int | str) -> tuple[Model, tuple[str, ...]]:
    """Returns a model that says the same with another version of the standard operators, and what was done.

    Names, metadata, doc strings, annotations, functions, sparse initializers, weights (not read) and the order of the
    nodes stay. Functions are brought to the same version. The IR version rises if the opset needs it.

    Args:
        model: The model; it is not changed.
        version: The version wanted, up or down, or ``latest``.

    Returns:
        The model (the given one if nothing is to be done), and notes: how many nodes changed, and how.

    Raises:
        UnsupportedError: An operator has no equal in that version, or it cannot be told; the details name all of them.
        RefusedResultError: The result would not be a valid model.
        UsageError: There is no such version.
    """
    target = opset_number(version)
    index = GraphIndex(model.proto)
    jobs = _jobs(model, index, target)
    if target < LOWEST and any(job.source > target for job in jobs):
        raise UnsupportedError(f"opset {target} is too old: models are brought down to opset {LOWEST} at most")
    changed = _solve(jobs, target)
    if not changed and all(_is_at(imports, target) for imports in _imports(model.proto)):
        return model, ()
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    notes = _apply(proto, changed)
    before = standard_opset(proto)
    for imports in _imports(proto):
        _set_version(imports, target)
    notes = [f"opset {before if before is not None else 'none'} is {target} now", *notes]
    notes += _raise_ir_version(proto)
    result = model.derive(proto)
    if jobs:
        _refuse_invalid(model, result, target)
    return result, tuple(notes)


# ---------------------------------------------------------------- what is to be done


@dataclass(slots=True)
class _Problem:
    """A node to be converted, its tensors called ``i0``, ``o0`` and so on.

    Attributes:
        nodes: What it is by now: at first the node alone, called ``main``.
        types: What is known of its tensors.
        constants: The values of small constants among its inputs.
        by_caller: Names of attributes that a caller of the function gives.
        bodies: Whether it has bodies, which were left out.
        failure: Why it cannot be converted.
    """

    nodes: list[NodeProto]
    types: dict[str, TypeProto]
    constants: dict[str, TensorProto]
    by_caller: tuple[str, ...] = ()
    bodies: bool = False
    failure: str = ""

    @property
    def main(self) -> NodeProto:
        return next((node for node in self.nodes if node.name == _MAIN), self.nodes[-1])


@dataclass(slots=True)
class _Job:
    """A node of the model whose operator differs between two versions."""

    scope: Scope
    scope_number: int
    position: int
    source: int
    names: dict[str, str]
    problem: _Problem

    @property
    def label(self) -> str:
        path = self.scope.path
        return f"{path}/{self.scope.label(self.position)}" if path else self.scope.label(self.position)


def _jobs(model: Model, index: GraphIndex, target: int) -> list[_Job]:
    """Returns the nodes that have to change; those that pose the same problem share it."""
    found: list[tuple[Scope, int, int, int]] = []
    unknown: dict[str, str] = {}
    function_keys = set(index.functions)
    versions: dict[int, int] = {}
    for number, scope in enumerate(index.scopes):
        source = versions[id(scope)] = _version_in(model.proto, scope, versions)
        if source == target:
            continue
        for position, node in enumerate(scope.nodes):
            if _plain(node.domain) or (node.domain, node.op_type, node.overload) in function_keys:
                continue
            now = _schema(node.op_type, source)
            if now is None:
                unknown.setdefault(node.op_type, scope.label(position))
            elif _differs(node.op_type, source, target):
                found.append((scope, number, position, source))
    if unknown:
        raise UnsupportedError(
            f"the standard domain has no operator {', '.join(sorted(unknown)[:_MOST_NAMED])} that onnx knows, so what "
            f"it is in opset {target} cannot be told",
            details=[f"node {label!r}" for label in list(unknown.values())[:_MOST_NAMED]],
        )
    finder = TypeFinder(model, index)
    by_scope: dict[int, list[tuple[Scope, int, int, int]]] = defaultdict(list)
    for entry in found:
        by_scope[entry[1]].append(entry)
    problems: dict[tuple[Any, ...], _Problem] = {}
    jobs: list[_Job] = []
    constants = _Constants(model)
    for entries in by_scope.values():
        scope = entries[0][0]
        asked = dict.fromkeys(
            name
            for _, _, at, _ in entries
            if scope.nodes[at].op_type not in _SAME_UPWARD or target < entries[0][3]
            for name in (*scope.nodes[at].input, *scope.nodes[at].output)
            if name
        )
        types = finder.find(scope, asked)
        for _, number, position, source in entries:
            jobs.append(_job(constants, scope, number, position, source, types, problems))
    return jobs


def _version_in(proto: ModelProto, scope: Scope, versions: Mapping[int, int]) -> int:
    """Returns the standard opset that holds in a graph: a function may import its own."""
    if scope.parent is not None:
        return versions[id(scope.parent)]
    if scope.is_function:
        own = [opset.version for opset in scope.graph.opset_import if _plain(opset.domain) == ""]
        if own:
            return int(max(own))
    return standard_opset(proto) or 1


def _job(
    small: _Constants, scope: Scope, number: int, position: int, source: int, types: Mapping[str, TypeProto],
    problems: dict[tuple[Any, ...], _Problem],
) -> _Job:  # fmt: skip
    from onnx import NodeProto

    node = scope.nodes[position]
    inner: dict[str, str] = {}
    for letter, names in (("i", node.input), ("o", node.output)):
        for at, name in enumerate(names):
            if name and name not in inner:
                inner[name] = f"{letter}{at}"
    plain = NodeProto(op_type=node.op_type, name=_MAIN)
    plain.input.extend(inner.get(name, "") for name in node.input)
    plain.output.extend(inner.get(name, "") for name in node.output)
    by_caller, bodies = [], False
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            by_caller.append(attribute.name)
        elif attribute.type in (5, 10):
            bodies = True
        elif node.op_type != "Constant" or attribute.name in _CONSTANT_SCALARS:
            plain.attribute.append(attribute)
        else:
            plain.attribute.add(name=attribute.name, type=attribute.type)  # weights stay where they are
    known = {inner[name]: types[name] for name in inner if name in types}
    constants = {
        inner[name]: value
        for name in dict.fromkeys(node.input)
        if name and (value := small.find(scope, name)) is not None
    }
    key = (
        source, plain.SerializeToString(deterministic=True), tuple(by_caller), bodies,
        tuple((name, value.SerializeToString(deterministic=True)) for name, value in sorted(known.items())),
        tuple((name, value.SerializeToString(deterministic=True)) for name, value in sorted(constants.items())),
    )  # fmt: skip
    problem = problems.get(key)
    if problem is None:
        for name, value in constants.items():
            value.name = name
        problem = problems[key] = _Problem([plain], known, constants, tuple(by_caller), bodies)
    return _Job(scope, number, position, source, {short: name for name, short in inner.items()}, problem)


class _Constants:
    """The small constants of a model's graphs, looked up by the names that nodes use for them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._stored: dict[Scope, dict[str, TensorProto]] = {}

    def find(self, scope: Scope, name: str) -> TensorProto | None:
        """Returns the value that a name stands for in a graph, without a name of its own; None if it may vary."""
        holder: Scope | None = scope
        while holder is not None:
            if holder not in self._stored:
                given = set(holder.inputs)
                tensors = () if holder.is_function else holder.graph.initializer
                self._stored[holder] = {tensor.name: tensor for tensor in tensors if tensor.name not in given}
            if name in self._stored[holder]:
                return self._small(self._stored[holder][name])
            if name in holder.producers:
                node = holder.nodes[holder.producers[name]]
                if node.op_type != "Constant" or _plain(node.domain) or len(node.attribute) != 1:
                    return None
                return self._small(_constant_tensor(node.attribute[0]))
            if name in holder.inputs:
                return None
            holder = holder.parent
        return None

    def _small(self, found: TensorProto | None) -> TensorProto | None:
        if found is None or found.data_type not in _PLAIN_ELEMENTS or weights.tensor_bytes(found) > SMALL_WEIGHT:
            return None
        value = type(found)()
        value.CopyFrom(found)
        value.ClearField("name")
        value.ClearField("doc_string")
        where = self._model.byte_range(found)
        if where is not None:
            value.ClearField("external_data")
            value.ClearField("data_location")
            value.raw_data = weights.read_bytes(where)
        return value


def _constant_tensor(attribute: AttributeProto) -> TensorProto | None:
    """Returns what a Constant holds as a tensor; None for what is none, or what a caller gives."""
    from onnx import TensorProto

    if attribute.ref_attr_name:
        return None
    if attribute.name == "value":
        return attribute.t
    if attribute.name not in _CONSTANT_SCALARS:
        return None
    number, held, stored = _CONSTANT_SCALARS[attribute.name]
    values = getattr(attribute, held)
    tensor = TensorProto(data_type=number)
    if held.endswith("s") and held != "s":
        tensor.dims.append(len(values))
    else:
        values = [values]
    getattr(tensor, stored).extend(values)
    return tensor


# ---------------------------------------------------------------- solving the problems


def _solve(jobs: Sequence[_Job], target: int) -> dict[int, dict[int, _Job]]:
    """Converts all problems and returns, by graph and position, the jobs whose node changes.

    Raises:
        UnsupportedError: Some cannot be converted.
    """
    by_source: dict[int, dict[int, _Problem]] = defaultdict(dict)
    originals: dict[int, NodeProto] = {}
    for job in jobs:
        by_source[job.source][id(job.problem)] = job.problem
    for source, problems in by_source.items():
        listed = list(problems.values())
        for problem in listed:
            first = type(problem.nodes[0])()
            first.CopyFrom(problem.nodes[0])
            originals[id(problem)] = first
        if target > source:
            _up(listed, source, target)
        else:
            for version in range(source, target, -1):
                _down(listed, version, version - 1)
    changed: dict[int, dict[int, _Job]] = defaultdict(dict)
    failed: dict[tuple[str, str], list[_Job]] = defaultdict(list)
    for job in jobs:
        problem, original = job.problem, originals[id(job.problem)]
        same = len(problem.nodes) == 1 and _same_node(original, problem.nodes[0], _schema(original.op_type, target))
        if problem.by_caller and not same and not problem.failure:
            problem.failure = f"the caller of the function gives its attribute {problem.by_caller[0]!r}"
        if problem.failure:
            failed[original.op_type, problem.failure].append(job)
        elif not same:
            changed[job.scope_number][job.position] = job
    if failed:
        operators = sorted({op for op, _ in failed})
        lines = [
            f"{op} ({len(held)} node{'s' if len(held) > 1 else ''}, the first {held[0].label!r}): {why}"
            for (op, why), held in failed.items()
        ]
        in_function = any(job.scope.is_function for held in failed.values() for job in held)
        raise UnsupportedError(
            f"{', '.join(operators[:_MOST_NAMED])} cannot be said in opset {target} without a change of meaning, or "
            "it cannot be told",
            details=lines[:_MOST_NAMED],
            hint="Inline the functions first (--inline-functions): types and attributes are known then."
            if in_function
            else None,
        )
    return changed


def _up(problems: Sequence[_Problem], source: int, target: int) -> None:
    asked = []
    for problem in problems:
        node = problem.main
        problem.failure = _why_not_up(problem, source, target)
        since = _SAME_UPWARD.get(node.op_type)
        if not problem.failure and _says_last_axis(problem, source, target):
            continue
        if not problem.failure and (since is None or source < since):
            asked.append(problem)
    hardmax = [problem for problem in asked if problem.main.op_type == "Hardmax" and source <= 12 < target]
    for problem in hardmax:  # the converter leaves it as it is; it changed as Softmax did
        problem.main.op_type = "Softmax"
    was_resize = {id(problem): problem.main.op_type in ("Resize", "Upsample") for problem in asked}
    for problem, (nodes, failure) in zip(asked, _through_onnx(asked, source, target), strict=True):
        problem.failure = failure
        if not failure:
            problem.nodes = nodes
            if was_resize[id(problem)] and source <= 10 < target:
                problem.failure = _keep_old_coordinates(problem)
    for problem in hardmax:
        problem.main.op_type = "Hardmax"


def _says_last_axis(problem: _Problem, source: int, target: int) -> bool:
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


def _why_not_up(problem: _Problem, source: int, target: int) -> str:
    """Returns why the converter must not be asked, for what it would do would be wrong."""
    node = problem.main
    if node.op_type == "GroupNormalization" and source <= 20 < target:
        return "it has one scale per group up to opset 20, and one per channel since"
    modes = [attribute.s for attribute in node.attribute if attribute.name == "coordinate_transformation_mode"]
    if node.op_type == "Resize" and modes == [b"tf_half_pixel_for_nn"] and source < 13 <= target:
        return "opset 13 no longer knows coordinate_transformation_mode=tf_half_pixel_for_nn of it"
    schema = _schema(node.op_type, target)
    if problem.by_caller and schema is not None:
        missing = [name for name in problem.by_caller if name not in schema.attributes]
        if missing:
            return f"the caller of the function gives its attribute {missing[0]!r}, which it no longer has"
    if problem.bodies and (node.op_type not in _SAME_UPWARD or source < _SAME_UPWARD[node.op_type]):
        return f"what its bodies mean changed after opset {source}"
    return ""


def _keep_old_coordinates(problem: _Problem) -> str:
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


def _down(problems: Sequence[_Problem], source: int, target: int) -> None:
    """Brings problems one version down: as they stand if that means the same, else by the converter."""
    steps: list[tuple[_Problem, int, _Problem]] = []
    for problem in problems:
        if problem.failure:
            continue
        for at, node in enumerate(problem.nodes):
            if not _plain(node.domain) and _differs(node.op_type, source, target):
                alone = _Problem([node], problem.types, problem.constants, problem.by_caller, problem.bodies)
                steps.append((problem, at, alone))
    plans: list[tuple[_Problem, int, _Problem, NodeProto | None, str]] = []
    for problem, at, alone in steps:
        candidate, why = _as_it_stands(alone, source, target)
        plans.append((problem, at, alone, candidate, why))
    tries = [
        _Problem([_named(candidate, _MAIN)], alone.types, alone.constants)
        for _, _, alone, candidate, _ in plans
        if candidate is not None and not _is_settled(candidate, source)
    ]
    brought_up = iter(_through_onnx(tries, target, source))
    replacements: dict[int, dict[int, list[NodeProto]]] = defaultdict(dict)
    left: list[tuple[_Problem, int, _Problem, str]] = []
    for problem, at, alone, candidate, why in plans:
        node = alone.nodes[0]
        if candidate is not None and not _is_settled(candidate, source):
            nodes, failure = next(brought_up)
            schema = _schema(node.op_type, source)
            if failure or len(nodes) != 1 or not _same_node(nodes[0], candidate, schema):
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
        asked, _through_onnx([_renamed_main(alone) for _, _, alone, _ in asked], source, target), strict=True
    ):
        fitted = []
        for made in nodes:
            older, no = _as_it_stands(_Problem([made], alone.types, alone.constants), source, target)
            failure = failure or no
            fitted.append(older or made)
        if failure:
            problem.failure = why or failure
            continue
        name = alone.nodes[0].name
        replacements[id(problem)][at] = [_named(made, name if made.name == _MAIN else "") for made in fitted]
    for problem in problems:
        swapped = replacements.get(id(problem), {})
        if swapped and not problem.failure:
            problem.nodes = _with_distinct_names(
                [made for at, node in enumerate(problem.nodes) for made in swapped.get(at, [node])]
            )


def _is_settled(node: NodeProto, source: int) -> bool:
    return node.op_type in _SAME_UPWARD or (node.op_type, source) in _DECIDED


def _named(node: NodeProto, name: str) -> NodeProto:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = name
    return copy


def _renamed_main(problem: _Problem) -> _Problem:
    return _Problem([_named(problem.nodes[0], _MAIN)], problem.types, problem.constants)


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


def _as_it_stands(problem: _Problem, source: int, target: int) -> tuple[NodeProto | None, str]:
    """Returns a node as the version before would take it, or None and what that version lacks."""
    node = problem.nodes[0]
    now, older = _schema(node.op_type, source), _schema(node.op_type, target)
    assert now is not None
    if older is None or older.deprecated:
        return None, f"opset {target} has no such operator"
    candidate = type(node)()
    candidate.CopyFrom(node)
    del candidate.attribute[:]
    for attribute in node.attribute:
        if attribute.name in older.attributes:
            candidate.attribute.append(attribute)
            continue
        default = now.attributes[attribute.name].default_value if attribute.name in now.attributes else None
        if (default is not None and _value(default) == _value(attribute)) or _says_nothing(attribute, node, problem):
            continue
        tensor = _constant_tensor(attribute) if node.op_type == "Constant" else None
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


def _fit_values(node: NodeProto, problem: _Problem, target: int) -> str:
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


def _count_from_the_front(node: NodeProto, problem: _Problem, shape: tuple[Dim, ...] | None) -> str:
    """Counts the axes of a node from the front, as opset 10 wants it; returns why that cannot be done, or nothing."""
    if node.op_type == "Unsqueeze":
        made = problem.types.get(node.output[0])
        shape = tensor_shape(made) if made is not None else None
    for attribute in node.attribute:
        if attribute.name != "axis" and not attribute.name.endswith("axes"):
            continue
        if attribute.i >= 0 and all(axis >= 0 for axis in attribute.ints):
            continue
        if shape is None or attribute.name not in ("axis", "axes"):
            return "opset 10 counts axes from the front, and how many there are is not known"
        attribute.i = attribute.i + len(shape) if attribute.i < 0 else attribute.i
        counted = [axis + len(shape) if axis < 0 else axis for axis in attribute.ints]
        del attribute.ints[:]
        attribute.ints.extend(counted)
    return ""


def _says_nothing(attribute: AttributeProto, node: NodeProto, problem: _Problem) -> bool:
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
    schema = _schema(node.op_type, version)
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
    name = dtype_name(elem_type(value))
    word = f"tensor({_SCHEMA_WORDS.get(name, name)})"
    for wrapper in reversed(wrappers):
        word = wrapper.format(word)
    return word


# ---------------------------------------------------------------- onnx's converter


def _through_onnx(problems: Sequence[_Problem], source: int, target: int) -> list[tuple[list[NodeProto], str]]:
    """Returns what onnx makes of each problem's one node, or why it makes nothing.

    A call takes 20 ms, whatever it is asked, so all are asked at once. It fails as a whole: then kind by kind, and in
    a kind that fails node by node.
    """
    results: dict[int, tuple[list[NodeProto], str]] = {}
    _ask(list(enumerate(problems)), source, target, results)
    return [results[number] for number in range(len(problems))]


def _ask(
    numbered: list[tuple[int, _Problem]], source: int, target: int, results: dict[int, tuple[list[NodeProto], str]]
) -> None:
    pending = [numbered] if numbered else []
    while pending:
        group = pending.pop()
        try:
            made = _converted(group, source, target)
        except Exception as error:  # RuntimeError and others, from C++
            kinds: dict[str, list[tuple[int, _Problem]]] = defaultdict(list)
            for number, problem in group:
                kinds[problem.nodes[0].op_type].append((number, problem))
            if len(kinds) > 1:
                pending += kinds.values()
            elif len(group) > 1 and _has_no_adapter(error):
                results.update((number, ([], _words(error))) for number, _ in group)
            elif len(group) > 1:
                half = len(group) // 2
                pending += [group[:half], group[half:]]
            else:
                results[group[0][0]] = ([], _words(error))
            continue
        results.update((number, (nodes, "")) for number, nodes in made.items())


def _has_no_adapter(error: Exception) -> bool:
    return "No Adapter" in str(error) or "No Previous Version" in str(error)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text.partition("` failed: ")[2] or text
    if _has_no_adapter(error):
        return "onnx's version converter has no way to say it"
    return f"onnx's version converter says: {text[:160]}"


def _converted(group: list[tuple[int, _Problem]], source: int, target: int) -> dict[int, list[NodeProto]]:
    from onnx import ModelProto, version_converter

    proto = ModelProto(ir_version=10)
    proto.opset_import.add(domain="", version=source)
    graph = proto.graph
    graph.name = "problems"
    ends: dict[int, list[str]] = {}
    for number, problem in group:
        node = graph.node.add()
        node.CopyFrom(problem.nodes[0])
        node.name = str(number)
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name:
                    names[at] = f"{number}.{name}"
        for name in dict.fromkeys(name for name in problem.nodes[0].input if name):
            if name in problem.constants:
                tensor = graph.initializer.add()
                tensor.CopyFrom(problem.constants[name])
                tensor.name = f"{number}.{name}"
            else:
                _add_info(graph.input.add(), f"{number}.{name}", problem.types.get(name))
        ends[number] = [name for name in node.output if name]
        for name in ends[number]:
            _add_info(graph.output.add(), name, None)
    given = {tensor.name for tensor in graph.initializer}
    result = version_converter.convert_version(proto, target).graph
    nodes = [*result.node, *(_constant_node(tensor) for tensor in result.initializer if tensor.name not in given)]
    order = {id(node): at for at, node in enumerate(nodes)}
    producers = {name: node for node in nodes for name in node.output if name}
    made: dict[int, list[NodeProto]] = {}
    for number, _ in group:
        reached: dict[int, NodeProto] = {}
        pending = [producers[name] for name in ends[number]]
        while pending:
            node = pending.pop()
            if id(node) not in reached:
                reached[id(node)] = node
                pending += [producers[name] for name in node.input if name in producers]
        chosen = sorted(reached.values(), key=lambda node: (node.op_type == "Constant" and -1, order[id(node)]))
        made[number] = _short_names(chosen, number)
    return made


def _add_info(info: Any, name: str, value: TypeProto | None) -> None:
    info.name = name
    if value is not None:
        info.type.CopyFrom(value)


def _constant_node(tensor: TensorProto) -> NodeProto:
    from onnx import NodeProto

    node = NodeProto(op_type="Constant")
    node.output.append(tensor.name)
    node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
    node.attribute[0].t.ClearField("name")
    return node


def _short_names(nodes: Sequence[NodeProto], number: int) -> list[NodeProto]:
    """Returns nodes with the problem's own names: ``i0``, ``o0``, and ``f0`` for what lies between."""
    prefix = f"{number}."
    shortened: list[NodeProto] = []
    fresh: dict[str, str] = {}
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = _MAIN if node.name == str(number) else ""
        for names in (copy.output, copy.input):
            for at, name in enumerate(names):
                short = name.removeprefix(prefix)
                if not name:
                    continue
                if name.startswith(prefix) and short[0] in "io" and short[1:].isdigit():
                    names[at] = short
                else:
                    names[at] = fresh.setdefault(name, f"f{len(fresh)}")
        shortened.append(copy)
    if not any(node.name == _MAIN for node in shortened) and shortened:
        shortened[-1].name = _MAIN
    return shortened


# ---------------------------------------------------------------- putting it in place


def _apply(proto: ModelProto, changed: Mapping[int, Mapping[int, _Job]]) -> list[str]:
    """Puts the converted nodes in place and returns what was done."""
    index = GraphIndex(proto)
    names = _Names(index)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    gone: list[tuple[int, str]] = []
    for number in sorted(changed, reverse=True):  # inner before outer: a graph that is remade copies its bodies
        scope = index.scopes[number]
        expanded: dict[int, list[NodeProto]] = {}
        for position, job in changed[number].items():
            node = scope.nodes[position]
            before, reads = node.op_type, set(node.input)
            made = _instantiated(job, node, scope, names)
            counts[before, " + ".join(sorted(dict.fromkeys(one.op_type for one in made)))] += 1
            gone += [(number, name) for name in reads - {name for one in made for name in one.input} if name]
            if len(made) == 1:
                node.CopyFrom(made[0])
            else:
                expanded[position] = made
        if expanded:
            rebuilt = []
            for position, node in enumerate(scope.nodes):
                for one in expanded.get(position, [node]):
                    copy = type(one)()
                    copy.CopyFrom(one)
                    rebuilt.append(copy)
            del scope.graph.node[:]
            scope.graph.node.extend(rebuilt)
    dropped = _drop_unread(proto, gone)
    notes = [
        f"{count} {before} node{'s' if count > 1 else ''} "
        + (f"{'are' if count > 1 else 'is'} said anew" if before == after else f"became {after}")
        for (before, after), count in counts.items()
    ]
    if dropped:
        notes.append(f"{dropped} constant{'s' if dropped > 1 else ''} that became attributes went")
    return notes


class _Names:
    """New names for tensors and nodes, distinct from all there are."""

    def __init__(self, index: GraphIndex) -> None:
        self._tensors = {name for scope in index.scopes for name in scope.tensor_names()}
        self._nodes = {node.name for scope in index.scopes for node in scope.nodes}

    def tensor(self, base: str) -> str:
        return _distinct(base, self._tensors)

    def node(self, base: str) -> str:
        return _distinct(base, self._nodes)


def _distinct(base: str, taken: set[str]) -> str:
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def _instantiated(job: _Job, node: NodeProto, scope: Scope, names: _Names) -> list[NodeProto]:
    """Returns the nodes that a node becomes: the first of them by name is the node, with all that it carries."""
    problem = job.problem
    main = problem.main
    outer = dict(job.names)
    base = next((name for name in node.output if name), node.name)
    for made in problem.nodes:
        for short in made.output:
            if short and short not in outer:
                outer[short] = names.tensor(f"{base}_{made.op_type.lower()}")
    result = []
    for made in problem.nodes:
        copy = type(node)()
        if made is main:
            copy.CopyFrom(node)
            copy.op_type = made.op_type
            _set_attributes(copy, made)
        else:
            copy.CopyFrom(made)
            copy.name = names.node(f"{node.name}_{made.op_type}") if node.name else ""
            copy.metadata_props.extend(node.metadata_props)
        del copy.input[:], copy.output[:]
        copy.input.extend(outer.get(name, "") for name in made.input)
        copy.output.extend(outer.get(name, "") for name in made.output)
        result.append(copy)
    return result


def _set_attributes(node: NodeProto, made: NodeProto) -> None:
    """Gives a node the attributes of what was made of it; what says the same stays as it is, where it is."""
    new = {attribute.name: attribute for attribute in made.attribute}
    kept = []
    for attribute in node.attribute:
        other = new.pop(attribute.name, None)
        if other is not None:
            kept.append(attribute if attribute.type in (5, 10) or _value(attribute) == _value(other) else other)
        elif attribute.type in (5, 10) or attribute.ref_attr_name:
            kept.append(attribute)
    kept += new.values()
    copies = [type(attribute).FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend(copies)


def _drop_unread(proto: ModelProto, names: Iterable[tuple[int, str]]) -> int:
    """Removes constants that nothing reads any more, of those that a converted node had read; returns how many."""
    wanted = dict.fromkeys(names)
    if not wanted:
        return 0
    index = GraphIndex(proto)
    drops: dict[int, set[str]] = defaultdict(set)
    for number, name in wanted:
        scope: Scope | None = index.scopes[number]
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        if scope is None or name in scope.consumers or name in scope.outputs or name in scope.inputs:
            continue
        position = scope.producers.get(name)
        if name in scope.constants or (position is not None and scope.nodes[position].op_type == "Constant"):
            drops[index.scopes.index(scope)].add(name)
    for number in sorted(drops, reverse=True):
        graph, unread = index.scopes[number].graph, drops[number]
        for at in reversed(range(len(graph.node))):
            if graph.node[at].op_type == "Constant" and unread.issuperset(graph.node[at].output):
                del graph.node[at]
        for held in (getattr(graph, "initializer", []), graph.value_info):
            for at in reversed(range(len(held))):
                if held[at].name in unread:
                    del held[at]
    return sum(map(len, drops.values()))


# ---------------------------------------------------------------- imports, schemas, comparisons


def _imports(proto: ModelProto) -> list[Any]:
    """Returns the lists of opset imports: the model's, and that of each function that has standard operators."""
    own = [function.opset_import for function in proto.functions]
    return [proto.opset_import, *(imports for imports in own if any(_plain(one.domain) == "" for one in imports))]


def _is_at(imports: Iterable[OperatorSetIdProto], version: int) -> bool:
    found = [opset.version for opset in imports if _plain(opset.domain) == ""]
    return bool(found) and all(one == version for one in found)


def _set_version(imports: Any, version: int) -> None:
    found = [opset for opset in imports if _plain(opset.domain) == ""]
    for opset in found:
        opset.version = version
    if not found:
        imports.add(domain="", version=version)


def _raise_ir_version(proto: ModelProto) -> list[str]:
    from onnx import helper

    least = helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    if proto.ir_version >= least:
        return []
    proto.ir_version = least
    return [f"the IR version is {least} now, which the opset needs"]


def _refuse_invalid(model: Model, result: Model, target: int) -> None:
    """Raises RefusedResultError if the result cannot be made valid and the model could."""

    def complaints(one: Model) -> RefusedResultError | None:
        copy = type(one.proto)()
        copy.CopyFrom(one.proto)
        try:
            make_valid(copy, complete=one.with_small_weights)
        except RefusedResultError as error:
            return error
        return None

    wrong = complaints(result)
    if wrong is not None and complaints(model) is None:
        raise RefusedResultError(
            f"the model would not be valid in opset {target}", details=wrong.details, hint=wrong.hint
        )


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


@lru_cache(maxsize=4096)
def _schema(op_type: str, version: int) -> OpSchema | None:
    from onnx import defs

    try:
        return defs.get_schema(op_type, max_inclusive_version=version, domain="")
    except (defs.SchemaError, TypeError):
        return None


@lru_cache(maxsize=4096)
def _differs(op_type: str, source: int, target: int) -> bool:
    one, other = _schema(op_type, source), _schema(op_type, target)
    return one is None or other is None or one.since_version != other.since_version


def same_operator(op_type: str, domain: str, one: int, other: int) -> bool:
    """Tells whether an operator is the same in two versions of its domain; False if onnx does not know it."""
    from onnx import defs

    try:
        first, second = (defs.get_schema(op_type, max_inclusive_version=v, domain=domain) for v in (one, other))
    except (defs.SchemaError, TypeError):
        return False
    return bool(first.since_version == second.since_version)


def _same_node(one: NodeProto, other: NodeProto, schema: OpSchema | None) -> bool:
    """Tells whether two nodes say the same: attributes that are at their default count as left out."""
    if one.op_type != other.op_type or _without_end(one.input) != _without_end(other.input):
        return False
    if _without_end(one.output) != _without_end(other.output):
        return False
    return _said(one, schema) == _said(other, schema)


def _without_end(names: Iterable[str]) -> list[str]:
    listed = list(names)
    while listed and not listed[-1]:
        listed.pop()
    return listed


def _said(node: NodeProto, schema: OpSchema | None) -> dict[str, Any]:
    defaults = schema.attributes if schema is not None else {}
    return {
        attribute.name: value
        for attribute in node.attribute
        if (value := _value(attribute))
        != (_value(defaults[attribute.name].default_value) if attribute.name in defaults else None)
    }


def _value(attribute: AttributeProto) -> Any:
    """Returns an attribute's value in a form that can be compared, however it is stored."""
    if attribute.type in (1, 2, 3):
        return (
            attribute.type,
            attribute.f if attribute.type == 1 else attribute.i if attribute.type == 2 else attribute.s,
        )
    if attribute.type == 4 and attribute.t.data_type and not weights.is_outside(attribute.t):
        from onnx import numpy_helper

        array = numpy_helper.to_array(attribute.t)
        data = tuple(attribute.t.string_data) if array.dtype.kind in "OUS" else array.tobytes()
        return attribute.t.data_type, tuple(attribute.t.dims), data
    copy = type(attribute)()
    copy.CopyFrom(attribute)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    return copy.SerializeToString(deterministic=True)
