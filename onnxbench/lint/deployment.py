"""Rules on what runs here and fails, slows down or changes its numbers where the model is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.graph import Scope
from onnxbench.lint.facts import STANDARD_DOMAINS, Facts, constant_tensor, graph_of, listed, operator, readable_array
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.schemas import FIRST_IR_WITH_WEIGHTS_APART
from onnxbench.tensortype import elem_type, format_type, tensor_shape
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, TypeProto

checks = Checks("Deployment: what other runtimes and later stages trip over")

_INT32 = (-(1 << 31), (1 << 31) - 1)
_SENTINELS = frozenset({(1 << 63) - 1, (1 << 63) - 2, -(1 << 63), -(1 << 63) + 1})

INT64_RANGE = Rule(
    code="OB701",
    name="int64-beyond-int32",
    severity=Severity.WARNING,
    summary="An int64 constant does not fit into int32.",
    why="TensorRT before 10, many accelerators and JavaScript narrow int64 to int32: the value is cut off or "
    "clamped, and the result is another. The largest and smallest int64 as bounds of a Slice are left alone: they "
    "mean 'to the end', clamped or not. Constants that are stored apart are read only with --values.",
    mend="Use a value that fits; for a sentinel, the largest int32 does as well.",
    example="""
        <int64[1] big = {5000000000}>   y = Add (x, big)
        """,
    severities={"tensorrt": Severity.ERROR},
)
INT64_INTERFACE = Rule(
    code="OB702",
    name="int64-interface",
    severity=Severity.INFO,
    summary="A graph input or output is int64.",
    why="TensorRT before 10 binds it as int32, and so do many mobile runtimes: callers have to convert. A buffer of "
    "the other width is read as other numbers, without an error.",
    mend="Convert where the model is called, or add a Cast behind an int32 input.",
    example="""
        g (int64[1, 128] input_ids) => ...
        """,
)
FLOAT64 = Rule(
    code="OB703",
    name="float64",
    severity=Severity.WARNING,
    summary="A graph input, output or weight is float64.",
    why="TensorRT and most accelerators have no float64 and narrow it to float32 or refuse it; CPU kernels are "
    "slower or missing. NumPy's default type at export is the usual cause.",
    mend="Export in float32.",
    example="""
        g (double[3] x) => ...
        """,
)
NO_TENSORRT_TYPE = Rule(
    code="OB704",
    name="no-tensorrt-type",
    severity=Severity.ERROR,
    summary="A graph input or output has a type that TensorRT has not.",
    why="TensorRT takes tensors of numbers and booleans: no strings, sequences, maps, optionals or complex numbers.",
    mend="Cut the model where such types end ('onnxbench extract'), and do the rest outside.",
    example="""
        g (string[1] text) => ...
        """,
    only_for=("tensorrt",),
)
BAKED_BATCH = Rule(
    code="OB705",
    name="baked-batch",
    severity=Severity.WARNING,
    summary="A Reshape or Expand has the batch size as a constant.",
    why="With a dynamic batch, any other size than the one at export fails there, or mixes samples. With a batch of "
    "1 (an info) it is what stands in the way of making the batch dynamic.",
    mend="Use 0 (copy from the input) or -1 in place of the number, or export with a dynamic batch axis.",
    example="""
        g (float[N, 197, 768] x) => ...   <int64[3] s = {1, 197, 768}>   y = Reshape (x, s)
        """,
)
OVERRIDABLE = Rule(
    code="OB706",
    name="overridable-initializer",
    severity=Severity.WARNING,
    summary="Initializers are graph inputs as well.",
    why="From IR version 4 on this means that a caller may feed other values, so ONNX Runtime does not fold or fuse "
    "them (it warns once for each), and other tools ask for them to be fed.",
    mend="Remove them from the inputs, unless they are meant to be replaced: 'python -m "
    "onnxruntime.tools.remove_initializer_from_input --input IN --output OUT'.",
    example="""
        g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }
        """,
)
TRAINING_MODE = Rule(
    code="OB707",
    name="training-mode",
    severity=Severity.WARNING,
    summary="A node is in training mode, or the model carries training information.",
    why="Dropout then drops at inference and BatchNormalization uses the batch's own statistics: results are random "
    "or depend on the other samples. The model was exported without eval().",
    mend="Export after model.eval().",
    example="""
        y = BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)
        """,
)
UNSEEDED = Rule(
    code="OB708",
    name="unseeded-random",
    severity=Severity.INFO,
    summary="A random operator has no seed.",
    why="Two runs differ, so that a comparison of runtimes cannot tell noise from error.",
    mend="Set the 'seed' attribute, or make the random values an input.",
    example="""
        y = RandomNormalLike (x)
        """,
)
UNNAMED_DIM = Rule(
    code="OB709",
    name="unnamed-dimension",
    severity=Severity.INFO,
    summary="A dynamic dimension of a graph input has no name.",
    why="Names say which dimensions are equal. Without them tools cannot know that the batch of one input is the "
    "batch of another, and profiles have to be given for each.",
    mend="Name dynamic axes at export (dynamic_axes or dynamic_shapes with names).",
    example="""
        g (float[?, 3, 224, 224] x) => ...
        """,
)


@checks(INT64_RANGE)
def _int64_constants(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope, position, name, tensor in small_constants(facts):
        if tensor.data_type not in (7, 12, 13):
            continue
        outside = int32_breach(tensor)
        if not outside:
            continue
        readers = _direct_readers(scope, name)
        if not readers and name not in scope.outputs:
            continue
        if _SENTINELS.issuperset(outside) and all(_is_bound(node, name) for node in readers):
            continue
        message = f"constant {name!r} has {outside[0]:,}, which int32 cannot hold"
        yield facts.find(INT64_RANGE, message, scope=scope, position=position, tensor=name)


def small_constants(facts: Facts) -> Iterator[tuple[Scope, int | None, str, TensorProto]]:
    """Yields initializers and constants whose data is in the structure: graph, node or None, name, tensor."""
    for scope in facts.index.scopes:
        graph = graph_of(scope)
        for tensor in graph.initializer if graph is not None else ():
            if not weights.is_outside(tensor):
                yield scope, None, tensor.name, tensor
        for position, node in enumerate(scope.nodes):
            if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS and len(node.output) == 1:
                made = constant_tensor(node)
                if made is not None and not weights.is_outside(made):
                    yield scope, position, node.output[0], made


def int32_breach(tensor: TensorProto) -> list[int]:
    """Returns the distinct values of a tensor that int32 cannot hold."""
    array = readable_array(tensor)
    if array is None or not array.size:
        return []
    return sorted({int(value) for value in array[(array < _INT32[0]) | (array > _INT32[1])].ravel()})


def _direct_readers(scope: Scope, name: str) -> list[NodeProto]:
    """Returns the nodes that have a tensor among their inputs, in its graph and in the bodies that capture it."""
    found = []
    pending = [scope]
    while pending:
        at = pending.pop()
        for position in at.consumers.get(name, ()):
            if name in at.nodes[position].input:
                found.append(at.nodes[position])
            pending += [body for body in at.bodies.get(position, ()) if name in body.captures]
    return found


def _is_bound(node: NodeProto, name: str) -> bool:
    """Tells whether a node reads a tensor as the start or the end of a Slice."""
    return node.op_type == "Slice" and name in node.input[1:3]


@checks(INT64_INTERFACE, FLOAT64, NO_TENSORRT_TYPE)
def _interface_types(facts: Facts) -> Iterator[Finding | NotRun]:
    main = facts.index.main
    stored = main.constants
    for what, infos in (("input", facts.proto.graph.input), ("output", facts.proto.graph.output)):
        for info in infos:
            if what == "input" and info.name in stored:
                continue
            shown = f"{what} {info.name!r} is {format_type(info.type)}"
            if _is_foreign(info.type):
                yield facts.find(NO_TENSORRT_TYPE, shown, scope=main, tensor=info.name)
            elif elem_type(info.type) == 7:
                yield facts.find(INT64_INTERFACE, shown, scope=main, tensor=info.name)
            elif elem_type(info.type) == 11:
                yield facts.find(FLOAT64, shown, scope=main, tensor=info.name)
    for scope in facts.index.scopes:
        graph = graph_of(scope)
        doubles = [tensor.name for tensor in graph.initializer if tensor.data_type == 11] if graph is not None else []
        if doubles:
            message = f"{plural(len(doubles), 'initializer')} of float64: {listed(doubles)}"
            yield facts.find(FLOAT64, message, scope=scope, tensor=doubles[0])


def _is_foreign(kind: TypeProto) -> bool:
    which = kind.WhichOneof("value")
    return which is not None and (which != "tensor_type" or elem_type(kind) in (8, 14, 15))


@checks(BAKED_BATCH)
def _baked(facts: Facts) -> Iterator[Finding | NotRun]:
    main = facts.index.main
    batches = []
    for info in facts.proto.graph.input:
        shape = tensor_shape(info.type)
        if info.name not in main.constants and shape and len(shape) > 1:
            batches.append(shape[0])
    dynamic = {dim for dim in batches if isinstance(dim, str)}
    is_dynamic = any(not isinstance(dim, int) or dim < 0 for dim in batches)
    if not is_dynamic and 1 not in batches:
        return
    fed = _depends_on_inputs(main)
    types = facts.types(main)
    as_given: list[int] = []
    for position, node in enumerate(main.nodes):
        if node.op_type not in ("Reshape", "Expand") or len(node.input) < 2 or node.input[0] not in fed:
            continue
        wanted = facts.integers(main, node.input[1])
        if not wanted or len(wanted) < 2 or wanted[0] < 1:
            continue
        shape = tensor_shape(types[node.input[0]]) if node.input[0] in types else None
        lead = shape[0] if shape else None
        if is_dynamic and _fixes_batch(node.op_type, wanted, lead, dynamic):
            message = f"{node.op_type} to {wanted} has the number {wanted[0]} where the batch {lead!r} is dynamic"
            yield facts.find(BAKED_BATCH, message, scope=main, position=position)
        elif not is_dynamic and node.op_type == "Reshape" and wanted[0] == 1 and lead == 1:
            as_given.append(position)
    if as_given:
        labels = listed([main.label(position) for position in as_given])
        message = f"{plural(len(as_given), 'Reshape')} to shapes with the batch size 1 in them: {labels}"
        yield facts.find(BAKED_BATCH, message, scope=main, position=as_given[0], severity=Severity.INFO)


def _fixes_batch(op: str, wanted: list[int], lead: int | str | None, dynamic: set[str]) -> bool:
    """Tells whether a target shape holds for one batch size only, given the first dimension of what is reshaped."""
    if lead not in dynamic:
        return False
    if op == "Expand":
        return wanted[0] > 1
    return -1 not in wanted or wanted[0] == 1


def _depends_on_inputs(scope: Scope) -> set[str]:
    """Returns the tensors of a graph that a caller's inputs can change."""
    reached = set(scope.true_inputs())
    pending = list(reached)
    seen: set[int] = set()
    while pending:
        for position in scope.consumers.get(pending.pop(), ()):
            if position not in seen:
                seen.add(position)
                made = [name for name in scope.writes[position] if name not in reached]
                reached.update(made)
                pending += made
    return reached


@checks(OVERRIDABLE)
def _overridable(facts: Facts) -> Iterator[Finding | NotRun]:
    main = facts.index.main
    both = [name for name in main.inputs if name in main.constants]
    if both and facts.proto.ir_version >= FIRST_IR_WITH_WEIGHTS_APART:
        message = f"{plural(len(both), 'initializer')} can be overridden by a caller: {listed(both)}"
        yield facts.find(OVERRIDABLE, message, scope=main, tensor=both[0])


@checks(TRAINING_MODE)
def _training(facts: Facts) -> Iterator[Finding | NotRun]:
    if facts.proto.training_info:
        yield facts.find(TRAINING_MODE, "the model carries training information, which runtimes for inference ignore")
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            if node.domain not in STANDARD_DOMAINS:
                continue
            if node.op_type == "BatchNormalization":
                mode = next((a.i for a in node.attribute if a.name == "training_mode"), 0)
                if mode == 1:
                    message = "BatchNormalization uses the statistics of the batch (training_mode = 1)"
                    yield facts.find(TRAINING_MODE, message, scope=scope, position=position)
            elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
                mode_values = facts.integers(scope, node.input[2])
                ratio = facts.constant(scope, node.input[1]) if node.input[1] else None
                off = ratio is not None and _is_zero(ratio)
                if mode_values == [1] and not off:
                    message = "Dropout drops at random (training_mode is true)"
                    yield facts.find(TRAINING_MODE, message, scope=scope, position=position)


def _is_zero(tensor: TensorProto) -> bool:
    array = readable_array(tensor)
    return array is not None and not array.any()


_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@checks(UNSEEDED)
def _random(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            is_random = node.op_type in _RANDOM and node.domain in STANDARD_DOMAINS
            if is_random and not any(attribute.name == "seed" for attribute in node.attribute):
                message = f"{operator(node)} has no seed: two runs differ"
                yield facts.find(UNSEEDED, message, scope=scope, position=position)


@checks(UNNAMED_DIM)
def _unnamed_dims(facts: Facts) -> Iterator[Finding | NotRun]:
    main = facts.index.main
    for info in facts.proto.graph.input:
        shape = tensor_shape(info.type) or ()
        if info.name not in main.constants and None in shape:
            message = f"input {info.name!r} is {format_type(info.type)}: what may vary has no name"
            yield facts.find(UNNAMED_DIM, message, scope=main, tensor=info.name)
