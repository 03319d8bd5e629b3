"""Rules on types and shapes: what the file states, and what its operators make of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxbench.graph import Scope, root_of
from onnxbench.lint.checker import Complaint, is_ranked
from onnxbench.lint.data import is_element_type
from onnxbench.lint.facts import Facts, graph_of, listed, operator
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.tensortype import agree, dtype_name, elem_type, format_type, initializer_type, is_complete, tensor_shape

if TYPE_CHECKING:
    from onnx import TypeProto, ValueInfoProto

checks = Checks("Types and shapes")

VALUE_INFO_CONFLICT = Rule(
    code="OB201",
    name="value-info-conflict",
    severity=Severity.ERROR,
    summary="A value info contradicts what the operators make.",
    why="Value infos are notes on inner tensors. Runtimes believe some of them and allocate by them, the onnx "
    "checker refuses the model, and cutting it at such a tensor would give a piece with a wrong input. They are "
    "left behind by tools that change a graph and not its notes.",
    mend="Every command of onnxbench that writes a model corrects those of the main graph. In bodies: remove them.",
    example="""
        g (float[3] x) => (float[3] y) <float[4] h> { h = Relu (x)  y = Neg (h) }
        """,
    mendable=True,
)
OUTPUT_WITHOUT_TYPE = Rule(
    code="OB202",
    name="output-without-type",
    severity=Severity.ERROR,
    summary="A graph output states no type, or no shape.",
    why="The standard wants a type on every output and the onnx checker insists; runtimes find it by themselves.",
    mend="Every command of onnxbench that writes a model completes it where it can be inferred.",
    example="""
        graph.output.append(onnx.ValueInfoProto(name="y"))
        """,
    mendable=True,
)
OUTPUT_CONFLICT = Rule(
    code="OB203",
    name="output-conflict",
    severity=Severity.ERROR,
    summary="The stated type of a graph output contradicts what the operators make.",
    why="Callers allocate by it. ONNX Runtime warns and gives another shape, or refuses the model.",
    mend="Every command of onnxbench that writes a model corrects it.",
    example="""
        g (float[3] x) => (float[5] y) { y = Relu (x) }
        """,
    mendable=True,
)
INPUT_WITHOUT_TYPE = Rule(
    code="OB204",
    name="input-without-type",
    severity=Severity.ERROR,
    summary="A graph input states no type.",
    why="Nothing else in the model can say what it is, so the types of all that depends on it are unknown.",
    mend="Cut the model at its inputs and say what they are: 'onnxbench extract IN OUT --inputs "
    "x:float32:1x3x224x224 --outputs y'.",
    example="""
        graph.input.append(onnx.ValueInfoProto(name="x"))
        """,
)
TYPE_MISMATCH = Rule(
    code="OB205",
    name="type-mismatch",
    severity=Severity.ERROR,
    summary="An operator gets element types that it does not take, or that do not fit each other.",
    why="ONNX has no implicit casts: both sides of an Add have the same type. Runtimes refuse the model when it is "
    "loaded. Conversions to float16 that miss a constant are the usual cause.",
    mend="Insert a Cast, or give the constant the type of the other side.",
    example="""
        g (float[3] x, int64[3] n) => (float[3] y) { y = Add (x, n) }
        """,
)
SHAPE_MISMATCH = Rule(
    code="OB206",
    name="shape-mismatch",
    severity=Severity.ERROR,
    summary="An operator gets shapes that it cannot work on.",
    why="Runtimes fail when the model is loaded, or only when it runs. Fixing input sizes that do not fit what was "
    "baked in at export is the usual cause.",
    mend="'onnxbench find MODEL upstream(TENSOR)' shows where the shape comes from.",
    example="""
        g (float[2, 3] x, float[4, 5] w) => (float[2, 5] y) { y = MatMul (x, w) }
        """,
)
INITIALIZER_CONFLICT = Rule(
    code="OB207",
    name="initializer-conflict",
    severity=Severity.ERROR,
    summary="An input and the initializer that is its default have different types.",
    why="The stored values cannot be what the input is said to be. Weights that were converted without their inputs "
    "leave such files.",
    mend="Remove the initializer from the graph inputs, or correct the type of the input.",
    example="""
        g (float[3] w, ...) => (...) <int64[3] w = {1, 2, 3}> {...}
        """,
)
DUPLICATE_VALUE_INFO = Rule(
    code="OB208",
    name="duplicate-value-info",
    severity=Severity.WARNING,
    summary="A tensor has two value infos, or one that contradicts its type as a graph input or output.",
    why="Readers differ in which they take. Where the two contradict each other it is an error: ONNX Runtime "
    "refuses the model and the onnx checker does not see it.",
    mend="Remove one of them.",
    example="""
        value_info: h float[3], h float[3]
        """,
)
NEGATIVE_DIM = Rule(
    code="OB209",
    name="negative-dimension",
    severity=Severity.ERROR,
    summary="A stated shape has a dimension below zero.",
    why="Old exporters wrote -1 for 'unknown' (a warning); ONNX writes an unknown dimension as one without a value. "
    "Some runtimes take -1 for a size, and allocate by it.",
    mend="Every command of onnxbench that writes a model turns -1 into an unknown dimension.",
    example="""
        input: x float[-1, 3, 224, 224]
        """,
    mendable=True,
)
UNKNOWN_RANK = Rule(
    code="OB210",
    name="unknown-rank",
    severity=Severity.WARNING,
    summary="A graph input or output states no shape, not even how many dimensions it has.",
    why="TensorRT and most compilers need a fixed rank; the onnx checker wants a shape of some kind.",
    mend="Give the input a shape: 'onnxbench extract IN OUT --inputs x:float32:Nx3xHxW --outputs y'.",
    example="""
        g (float x) => (float y) { y = Relu (x) }              # any rank
        """,
    severities={"tensorrt": Severity.ERROR},
)
RANK_LOST = Rule(
    code="OB211",
    name="rank-lost",
    severity=Severity.INFO,
    summary="From this node on the number of dimensions cannot be inferred.",
    why="Its inputs have a known rank and its outputs have none: a Reshape to a computed shape, a custom operator, "
    "an If whose branches differ. What follows cannot be planned ahead, nor cut with known shapes.",
    mend="'onnxbench extract' takes shapes from a run (--feeds) where inference gives up; fixing the input shapes "
    "often settles it.",
    example="""
        y = Reshape (x, s)                     # s is computed from values, its length unknown
        """,
)
BAD_ELEMENT_TYPE = Rule(
    code="OB212",
    name="bad-element-type",
    severity=Severity.ERROR,
    summary="An input, output or value info states an element type that does not exist.",
    why="UNDEFINED (0) or a number that the installed onnx does not know; type inference stops at it.",
    mend="Export again, or set the element type.",
    example="""
        input: x tensor_type { elem_type: 1000 }
        """,
)


@checks(VALUE_INFO_CONFLICT, OUTPUT_CONFLICT)
def _conflicts(facts: Facts) -> Iterator[Finding | NotRun]:
    main = facts.index.main
    told = set()
    for conflict in facts.inference.conflicts:
        scope = facts.index.scopes[conflict.scope]
        if not is_complete(conflict.stated):
            continue
        if conflict.is_output and scope is main:
            told.add(conflict.name)
        rule = OUTPUT_CONFLICT if conflict.is_output else VALUE_INFO_CONFLICT
        what = "output" if conflict.is_output else "value info"
        stated, known = format_type(conflict.stated), format_type(conflict.known)
        message = f"{what} {conflict.name!r} says {stated}, and the operators make {known}"
        yield facts.find(rule, message, scope=scope, tensor=conflict.name, mendable=scope is main)
    given = {info.name: info.type for info in facts.proto.graph.input}
    for info in facts.proto.graph.output:
        if info.name in given and info.name not in told and not agree(info.type, given[info.name]):
            stated, known = format_type(info.type), format_type(given[info.name])
            message = f"output {info.name!r} says {stated}, and the input of that name {known}"
            yield facts.find(OUTPUT_CONFLICT, message, scope=main, tensor=info.name)


@checks(TYPE_MISMATCH, SHAPE_MISMATCH)
def _mismatches(facts: Facts) -> Iterator[Finding | NotRun]:
    inference = facts.inference
    if inference.stopped:
        yield NotRun((TYPE_MISMATCH.code, SHAPE_MISMATCH.code), inference.stopped)
    seen = set()
    for complaint in inference.complaints:
        scope, position = facts.index.scopes[complaint.at[0]], complaint.at[1]
        if complaint.at in facts.refused_nodes or _is_arity(complaint):
            continue
        rule = TYPE_MISMATCH if complaint.about_types else SHAPE_MISMATCH
        key = (complaint.at, rule.code)
        if key not in seen:
            seen.add(key)
            yield facts.find(
                rule, f"{complaint.text} {_inputs_text(facts, scope, position)}", scope=scope, position=position
            )


def _is_arity(complaint: Complaint) -> bool:
    """Tells whether a complaint is on the number of inputs or outputs of a body, which has a rule of its own."""
    return "different number of outputs" in complaint.text or "were provided" in complaint.text


def _inputs_text(facts: Facts, scope: Scope, position: int) -> str:
    node = scope.nodes[position]
    shown = []
    for name in node.input:
        at: Scope | None = scope
        kind = None
        while at is not None and kind is None:
            kind = facts.types(at).get(name)
            at = at.parent
        shown.append(f"{name!r} {format_type(kind)}" if name else "none")
    return f"({operator(node)} gets {', '.join(shown)})"


@checks(OUTPUT_WITHOUT_TYPE, INPUT_WITHOUT_TYPE, UNKNOWN_RANK, BAD_ELEMENT_TYPE, NEGATIVE_DIM)
def _interface(facts: Facts) -> Iterator[Finding | NotRun]:
    main = facts.index.main
    known = facts.types(main)
    graph = facts.proto.graph
    for what, infos in (("input", graph.input), ("output", graph.output)):
        for info in infos:
            if not is_complete(info.type):
                if _bad_elements(info.type):
                    continue
                if what == "input":
                    yield facts.find(
                        INPUT_WITHOUT_TYPE, f"input {info.name!r} has no type", scope=main, tensor=info.name
                    )
                    continue
                kind = known.get(info.name)
                can_tell = is_complete(kind)
                words = f"; it is {format_type(kind)}" if can_tell else ", and it cannot be inferred"
                message = f"output {info.name!r} has no type{words}"
                yield facts.find(OUTPUT_WITHOUT_TYPE, message, scope=main, tensor=info.name, mendable=can_tell)
            elif info.type.WhichOneof("value") == "tensor_type" and tensor_shape(info.type) is None:
                if what == "output" and is_ranked(known.get(info.name)):
                    message = f"output {info.name!r} states no shape; it is {format_type(known[info.name])}"
                    yield facts.find(OUTPUT_WITHOUT_TYPE, message, scope=main, tensor=info.name, mendable=True)
                else:
                    message = f"{what} {info.name!r} has a type ({format_type(info.type)}) and no rank"
                    yield facts.find(UNKNOWN_RANK, message, scope=main, tensor=info.name)
    for scope in facts.index.scopes:
        for what, info in _infos(scope):
            if _bad_elements(info.type):
                number = elem_type(info.type)
                message = f"{what} {info.name!r} has the element type {number} ({dtype_name(number)})"
                yield facts.find(BAD_ELEMENT_TYPE, message, scope=scope, tensor=info.name)
            below = [dim for dim in tensor_shape(info.type) or () if isinstance(dim, int) and dim < 0]
            if below:
                old = all(dim == -1 for dim in below)
                yield facts.find(
                    NEGATIVE_DIM,
                    f"{what} {info.name!r} has a dimension of {below[0]}: {format_type(info.type)}",
                    scope=scope,
                    tensor=info.name,
                    severity=Severity.WARNING if old else None,
                    mendable=old and scope is main,
                )


def _infos(scope: Scope) -> Iterator[tuple[str, ValueInfoProto]]:
    graph = graph_of(scope)
    if graph is not None:
        for info in graph.input:
            yield "input", info
        for info in graph.output:
            yield "output", info
    for info in scope.graph.value_info:
        yield "value info", info


def _bad_elements(kind: TypeProto) -> bool:
    """Tells whether a type is a tensor's and its element type is none."""
    if kind.WhichOneof("value") not in ("tensor_type", "sparse_tensor_type"):
        return False
    number = elem_type(kind)
    return not is_element_type(number)


@checks(INITIALIZER_CONFLICT, DUPLICATE_VALUE_INFO)
def _statements(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        graph = graph_of(scope)
        ports = {info.name: info.type for info in (*graph.input, *graph.output)} if graph is not None else {}
        seen: dict[str, TypeProto] = {}
        for info in scope.graph.value_info:
            first = seen.get(info.name, ports.get(info.name))
            if first is not None and not agree(first, info.type):
                where = "another value info" if info.name in seen else "the graph"
                message = f"value info {info.name!r} says {format_type(info.type)}, and {where} {format_type(first)}"
                yield facts.find(DUPLICATE_VALUE_INFO, message, scope=scope, tensor=info.name, severity=Severity.ERROR)
            elif info.name in seen:
                message = f"{info.name!r} has two value infos, which agree"
                yield facts.find(DUPLICATE_VALUE_INFO, message, scope=scope, tensor=info.name)
            seen[info.name] = info.type
        stored = {tensor.name: tensor for tensor in graph.initializer} if graph is not None and graph.input else {}
        for given in graph.input if graph is not None and stored else ():
            if given.name in stored:
                kind = initializer_type(stored[given.name])
                if not agree(given.type, kind):
                    message = f"input {given.name!r} is {format_type(given.type)}, its initializer {format_type(kind)}"
                    yield facts.find(INITIALIZER_CONFLICT, message, scope=scope, tensor=given.name)


@checks(RANK_LOST)
def _lost_ranks(facts: Facts) -> Iterator[Finding | NotRun]:
    if facts.inference.stopped:
        yield NotRun((RANK_LOST.code,), facts.inference.stopped)
        return
    blamed = facts.refused_nodes.keys() | {complaint.at for complaint in facts.inference.complaints}
    for number, scope in enumerate(facts.index.scopes):
        if root_of(scope).is_function:
            continue  # the types in a function are those of each call
        types = facts.types(scope)
        outer = [facts.types(at) for at in _around(scope)]
        for position, names in enumerate(scope.writes):
            lost = [name for name in names if not is_ranked(types.get(name))]
            if not lost or (number, position) in blamed:
                continue
            if all(any(is_ranked(known.get(name)) for known in (types, *outer)) for name in scope.reads[position]):
                words = f"the rank of {listed(lost)} cannot be inferred"
                yield facts.find(RANK_LOST, words, scope=scope, position=position, tensor=lost[0])


def _around(scope: Scope) -> Iterator[Scope]:
    at = scope.parent
    while at is not None:
        yield at
        at = at.parent
