"""Rules on names, order, bodies and functions: whether the graph is a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onnxbench.errors import ModelError, did_you_mean
from onnxbench.graph import Scope, home_of, refuse_duplicates, root_of, topological_order
from onnxbench.lint.facts import Facts, function_of, graph_of, listed, nodes_of
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.schemas import plain_domain
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnx import NodeProto

checks = Checks("Structure: names, order, bodies, functions")

_HINTS = 5  # near names are looked up for so many findings; each costs a pass over all names

UNDEFINED_TENSOR = Rule(
    code="OB101",
    name="undefined-tensor",
    severity=Severity.ERROR,
    summary="A node reads a tensor that nothing makes.",
    why="No runtime can compute the node. It is what is left when a model was cut without what If, Loop and Scan "
    "bodies read from outside, or when a tensor was renamed in one place only. A body sees the tensors of the "
    "graphs around it and never those of its sibling; a function sees its own inputs alone.",
    mend="Cut the original again with 'onnxbench extract', which counts what bodies capture; or correct the name.",
    example="""
        g (float[2] x) => (float[2] y) { y = Add (x, w) }      # no input, initializer or node is called w
        """,
)
UNDEFINED_OUTPUT = Rule(
    code="OB102",
    name="undefined-output",
    severity=Severity.ERROR,
    summary="An output of a graph, body or function is made by nothing.",
    why="The onnx checker does not look at this for functions, so that the model fails only when it is loaded.",
    mend="Correct the name, or take the output away: 'onnxbench extract IN OUT --outputs ...' with those that exist.",
    example="""
        g (float[2] x) => (float[2] z) { y = Relu (x) }        # z is never made
        """,
)
DUPLICATE_TENSOR = Rule(
    code="OB103",
    name="duplicate-tensor",
    severity=Severity.ERROR,
    summary="A tensor is made twice in one graph.",
    why="A tensor has one maker: which of the two is meant cannot be known, and runtimes refuse the model. Merging "
    "two models without prefixes is the usual cause.",
    mend="Rename one of them and its readers.",
    example="""
        g (float[2] x) => (float[2] y) { y = Relu (x)  y = Neg (x) }
        """,
)
CYCLE = Rule(
    code="OB104",
    name="cycle",
    severity=Severity.ERROR,
    summary="Nodes need each other's results.",
    why="No order exists in which they could run. A body that captures what its own node makes is a cycle too.",
    mend="One of the connections named in the message is wrong.",
    example="""
        g (float[2] x) => (float[2] y) { a = Add (x, y)  y = Relu (a) }
        """,
)
UNSORTED = Rule(
    code="OB105",
    name="unsorted-nodes",
    severity=Severity.ERROR,
    summary="Nodes stand before the nodes whose results they read.",
    why="The standard wants topological order and the onnx checker insists on it, as do converters that read nodes "
    "one by one; ONNX Runtime sorts by itself. Tools that append Cast or quantization nodes at the end leave such "
    "files.",
    mend="Every command of onnxbench that writes a model sorts it.",
    example="""
        g (float[2] x) => (float[2] y) { y = Relu (h)  h = Neg (x) }
        """,
    mendable=True,
)
SHADOWED_OUTPUT = Rule(
    code="OB106",
    name="shadowed-output",
    severity=Severity.ERROR,
    summary="A node in a body makes a tensor of a name that the graph around it has already.",
    why="The standard forbids it (single assignment holds across bodies); the onnx checker and ONNX Runtime refuse it.",
    mend="Rename the tensor in the body.",
    example="""
        h = Neg (x)
        k = If (c) <then_branch = t () => (float[2] h) { h = Relu (x) }, ...>
        """,
)
SHADOWED_NAME = Rule(
    code="OB107",
    name="shadowed-name",
    severity=Severity.INFO,
    summary="A body's input or initializer hides an outer tensor of the same name.",
    why="It is allowed, and inside the body the name means something else than outside: tools that look names up "
    "without their graph take one for the other.",
    mend="Rename it if a tool trips over it.",
    example="""
        h = Neg (x)
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] h) => ...>
        """,
)
DUPLICATE_INPUT = Rule(
    code="OB108",
    name="duplicate-input",
    severity=Severity.ERROR,
    summary="Two inputs of a graph have the same name.",
    why="A caller feeds inputs by name, so one of them cannot be fed.",
    mend="Rename one of them.",
    example="""
        g (float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }
        """,
)
DUPLICATE_INITIALIZER = Rule(
    code="OB109",
    name="duplicate-initializer",
    severity=Severity.ERROR,
    summary="Two initializers of a graph have the same name.",
    why="Their values can differ, and which of them a runtime takes is chance.",
    mend="Remove one of them.",
    example="""
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] w = {3, 4}> { y = Add (x, w) }
        """,
)
NAMELESS = Rule(
    code="OB110",
    name="nameless-value",
    severity=Severity.ERROR,
    summary="An input, output or initializer has no name.",
    why="Everything in a graph is found by its name; the empty name means 'not given'.",
    mend="Name it.",
    example="""
        graph { initializer { dims: 2 data_type: 1 float_data: [1, 2] } }      # name: missing
        """,
)
CAPTURED_OUTPUT = Rule(
    code="OB111",
    name="captured-output",
    severity=Severity.ERROR,
    summary="A body returns a tensor of the graph around it directly.",
    why="What a body returns must be made in it. The onnx checker and ONNX Runtime refuse such a body.",
    mend="Put an Identity node into the body: 'out = Identity (x)', and return 'out'.",
    example="""
        y = If (c) <then_branch = t () => (float[2] x) {}, ...>                # x is an outer tensor
        """,
)
BODY_ARITY = Rule(
    code="OB112",
    name="body-arity",
    severity=Severity.ERROR,
    summary="A body does not take or give as many values as its node needs.",
    why="Both branches of an If give as many values as the node has outputs. The body of a Loop with N carried "
    "values takes N + 2 inputs (iteration, condition) and gives at least N + 1 outputs; that of a Scan takes and "
    "gives all states and scanned slices.",
    mend="Correct the lists of inputs and outputs of the body.",
    example="""
        a, b = If (c) <then_branch = t () => (float[2] p) {...}, ...>          # two outputs, a branch with one
        """,
)
UNNAMED_GRAPH = Rule(
    code="OB113",
    name="unnamed-graph",
    severity=Severity.ERROR,
    summary="A graph or body has no name.",
    why="The onnx checker wants one; runtimes do not care.",
    mend="Every command of onnxbench that writes a model names its graphs.",
    example="""
        model = helper.make_model(onnx.GraphProto(node=nodes))                 # graph.name is empty
        """,
    mendable=True,
)
NOT_TEXT = Rule(
    code="OB114",
    name="name-not-text",
    severity=Severity.ERROR,
    summary="A name or text is not UTF-8.",
    why="Protobuf wants UTF-8 in strings. Python hands such names out as bytes, C++ runtimes may take them, and "
    "JSON or text forms of the model cannot be written.",
    mend="Export again with names in UTF-8.",
    example="""
        node.output[0] = b"h \\xff"
        """,
)
NO_OUTPUTS = Rule(
    code="OB115",
    name="no-outputs",
    severity=Severity.WARNING,
    summary="The graph has no outputs.",
    why="It computes nothing that a caller could see, so an optimizer removes all of it.",
    mend="Expose what is wanted: 'onnxbench expose IN OUT --outputs ...'.",
    example="""
        g (float[2] x) => () { y = Relu (x) }
        """,
)
DUPLICATE_METADATA = Rule(
    code="OB116",
    name="duplicate-metadata",
    severity=Severity.ERROR,
    summary="A key of the model's metadata is there twice.",
    why="The onnx checker refuses it, and readers differ in which value they take.",
    mend="Remove one of the entries.",
    example="""
        model.metadata_props: author = "a", author = "b"
        """,
)
DANGLING_ANNOTATION = Rule(
    code="OB117",
    name="dangling-annotation",
    severity=Severity.WARNING,
    summary="A quantization annotation speaks of a tensor that does not exist.",
    why="The scale and zero point are lost for whoever reads them: usually a tensor was renamed or fused away.",
    mend="Remove the annotation, or correct its name.",
    example="""
        quantization_annotation { tensor_name: "conv1_out" }                   # no tensor is called so
        """,
)
RECURSIVE_FUNCTION = Rule(
    code="OB151",
    name="recursive-function",
    severity=Severity.ERROR,
    summary="A local function calls itself, directly or through others.",
    why="Functions are macros: inlining a recursive one never ends, so the standard forbids it.",
    mend="Write the repetition as a Loop.",
    example="""
        <domain: "local"> F (a) => (b) { b = local.F (a) }
        """,
)
DUPLICATE_FUNCTION = Rule(
    code="OB152",
    name="duplicate-function",
    severity=Severity.ERROR,
    summary="Two local functions have the same domain, name and overload.",
    why="Which of them a call means cannot be known.",
    mend="Rename one of them and its calls, or give it an overload.",
    example="""
        <domain: "local"> F (a) => (b) {...}     <domain: "local"> F (a) => (b) {...}
        """,
)
CALL_ARITY = Rule(
    code="OB153",
    name="call-arity",
    severity=Severity.ERROR,
    summary="A call gives a local function more inputs, or takes more outputs, than it has.",
    why="The onnx checker does not look at it; ONNX Runtime fails when it inlines the call.",
    mend="Correct the call. Fewer are fine: they count as absent.",
    example="""
        y = local.F (x, x, x)                    # F (a, b) => (c)
        """,
)
FUNCTION_DOMAIN = Rule(
    code="OB154",
    name="function-domain-not-imported",
    severity=Severity.ERROR,
    summary="The domain of a local function is not among the opset imports of the graph that calls it.",
    why="A call is looked up by its domain, which has to be imported even when no operator set of that name exists. "
    "For a function that nothing calls, it is a warning.",
    mend="Add the import (any version will do).",
    example="""
        opset_import: ["" : 18]   ...   y = local.F (x)                        # "local" is not imported
        """,
)
DANGLING_REFERENCE = Rule(
    code="OB155",
    name="dangling-attribute-reference",
    severity=Severity.ERROR,
    summary="An attribute refers to a parameter that the function does not have, or is not in a function.",
    why="'@name' stands for the value that the call of a function gives. Elsewhere it stands for nothing, the "
    "attribute is empty, and neither the onnx checker nor ONNX Runtime notices: the default is taken in silence.",
    mend="Give the value itself, or declare the parameter in the function.",
    example="""
        g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha: float = @alpha> (x) }
        """,
)
FUNCTION_OPSET = Rule(
    code="OB156",
    name="function-opset",
    severity=Severity.ERROR,
    summary="A function uses an operator that is another one in the opset that the model imports.",
    why="A function may import another version of a domain than the model, as long as its operators are the same in "
    "both: runtimes inline it. The onnx checker refuses anything else.",
    mend="Make function and model import the same version, and convert the older one.",
    example="""
        <opset_import: ["" : 18]> ...   <domain: "local", opset_import: ["" : 12]> F (a) => (b) { b = Softmax (a) }
        """,
)


@checks(UNDEFINED_TENSOR, UNDEFINED_OUTPUT, CAPTURED_OUTPUT)
def _undefined(facts: Facts) -> Iterator[Finding | NotRun]:
    hints = 0
    unresolved: dict[int, set[str]] = {}
    for scope in facts.index.scopes:
        open_names = _open_names(scope)
        if scope.parent is not None:
            yield from _captured_outputs(facts, scope)
            around = unresolved[id(scope.parent)]
            open_names = {name for name in open_names if name in around and not scope.parent.defines(name)}
        unresolved[id(scope)] = open_names
        if not open_names:
            continue
        for position, node in enumerate(scope.nodes):
            for name in dict.fromkeys(node.input):
                if name in open_names:
                    hint = _where_else(facts, scope, name) if hints < _HINTS else None
                    hints += 1
                    yield facts.find(
                        UNDEFINED_TENSOR,
                        f"reads {name!r}, which nothing makes{_hint_text(hint)}",
                        scope=scope,
                        position=position,
                        tensor=name,
                    )
        for name in dict.fromkeys(scope.outputs):
            if name in open_names:
                what = "function output" if scope.is_function else "body output" if scope.parent else "graph output"
                hint = _where_else(facts, scope, name) if hints < _HINTS else None
                hints += 1
                message = f"{what} {name!r} is made by nothing{_hint_text(hint)}"
                yield facts.find(UNDEFINED_OUTPUT, message, scope=scope, tensor=name)


def _open_names(scope: Scope) -> set[str]:
    """Returns the names that a graph reads or gives and does not make."""
    if scope.parent is not None:
        return set(scope.captures)
    own = set(scope.inputs) | scope.constants
    names = {name for name in scope.consumers if name not in scope.producers and name not in own}
    return names | {name for name in scope.outputs if name and name not in scope.producers and name not in own}


def _captured_outputs(facts: Facts, scope: Scope) -> Iterator[Finding]:
    made = set(scope.inputs) | scope.constants | scope.producers.keys()
    for name in dict.fromkeys(scope.outputs):
        if name in made:
            continue
        at = home_of(scope, name)
        if at is not None:
            yield facts.find(
                CAPTURED_OUTPUT,
                f"body output {name!r} is a tensor of {at.path or 'the main graph'}",
                scope=scope,
                tensor=name,
            )


def _where_else(facts: Facts, scope: Scope, name: str) -> str | None:
    """Returns a word on where the name, or one like it, can be found."""
    for other in facts.index.scopes:
        if other is not scope and other.defines(name):
            return f"{other.path or 'the main graph'} has a tensor of this name, which cannot be seen from here"
    return did_you_mean(name, scope.tensor_names())


def _hint_text(hint: str | None) -> str:
    return f" ({hint})" if hint else ""


@checks(DUPLICATE_TENSOR, DUPLICATE_INPUT, DUPLICATE_INITIALIZER)
def _duplicates(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for name, count in Counter(filter(None, scope.inputs)).items():
            if count > 1:
                yield facts.find(DUPLICATE_INPUT, f"{count} inputs are called {name!r}", scope=scope, tensor=name)
        stored = _initializer_names(scope)
        if len(set(stored)) < len(stored):
            for name, count in Counter(filter(None, stored)).items():
                if count > 1:
                    message = f"{count} initializers are called {name!r}"
                    yield facts.find(DUPLICATE_INITIALIZER, message, scope=scope, tensor=name)
        given = set(scope.inputs) | scope.constants
        if len(scope.producers) == sum(map(len, scope.writes)) and given.isdisjoint(scope.producers):
            continue
        makers = dict.fromkeys(given, "the graph's own inputs or initializers")
        for position, names in enumerate(scope.writes):
            for name in names:
                if name in makers:
                    yield facts.find(
                        DUPLICATE_TENSOR,
                        f"makes {name!r}, which is made by {makers[name]} already",
                        scope=scope,
                        position=position,
                        tensor=name,
                    )
                makers.setdefault(name, f"node {scope.label(position)!r}")


def _initializer_names(scope: Scope) -> list[str]:
    graph = graph_of(scope)
    if graph is None:
        return []
    return [*(t.name for t in graph.initializer), *(s.values.name for s in graph.sparse_initializer)]


@checks(CYCLE, UNSORTED)
def _order(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        producers = scope.producers
        early = [
            (position, name)
            for position, names in enumerate(scope.reads)
            for name in names
            if producers.get(name, -1) >= position
        ]
        if not early:
            continue
        try:
            refuse_duplicates(scope)
        except ModelError:
            yield NotRun((CYCLE.code, UNSORTED.code), f"{scope.path or 'the graph'} makes a tensor twice (OB103)")
            continue
        position, name = early[0]
        try:
            topological_order(scope)
        except ModelError as error:
            yield facts.find(CYCLE, error.message, scope=scope, position=position, tensor=name)
            continue
        count = len({position for position, _ in early})
        yield facts.find(
            UNSORTED,
            f"{count} of {plural(len(scope.nodes), 'node')} of {scope.path or 'the graph'} stand before a node they "
            f"read; the first reads {name!r} of {scope.label(producers[name])!r}",
            scope=scope,
            position=position,
            tensor=name,
            mendable=True,
        )


@checks(SHADOWED_OUTPUT, SHADOWED_NAME)
def _shadows(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        if scope.parent is None:
            continue
        given = set(scope.inputs) | scope.constants
        for name in dict.fromkeys((*scope.inputs, *sorted(scope.constants), *scope.producers)):
            hidden = _hidden(scope, name)
            if hidden is None:
                continue
            owner, is_before = hidden
            where = owner.path or "the main graph"
            if name in given:
                message = f"{name!r} hides a tensor of {where}"
                yield facts.find(SHADOWED_NAME, message, scope=scope, tensor=name)
            elif is_before:
                message = f"makes {name!r}, which is a tensor of {where} already"
                yield facts.find(SHADOWED_OUTPUT, message, scope=scope, position=scope.producers[name], tensor=name)


def _hidden(scope: Scope, name: str) -> tuple[Scope, bool] | None:
    """Returns the graph around whose tensor a name hides, and whether that tensor exists before the body runs."""
    inner, at = scope, scope.parent
    while at is not None:
        if name in at.constants or name in at.inputs:
            return at, True
        if name in at.producers:
            if at.producers[name] < inner.owner:
                return at, True
            if at.producers[name] > inner.owner:
                return at, False
        inner, at = at, at.parent
    return None


@checks(NAMELESS, UNNAMED_GRAPH, NO_OUTPUTS, DUPLICATE_METADATA, NOT_TEXT)
def _names(facts: Facts) -> Iterator[Finding | NotRun]:
    for field, text in facts.unreadable:
        name = text if field.rsplit(".", 1)[-1] in ("input", "output", "name") else None
        severity = Severity.WARNING if field.endswith("doc_string") else None
        yield facts.find(NOT_TEXT, f"{field} {text!r} is not UTF-8", tensor=name, severity=severity)
    for scope in facts.index.scopes:
        if not scope.graph.name:
            what = "function" if scope.is_function else "body" if scope.parent else "graph"
            yield facts.find(UNNAMED_GRAPH, f"the {what} has no name", scope=scope, mendable=not scope.is_function)
        for what, names in (
            ("input", scope.inputs),
            ("output", scope.outputs),
            ("initializer", _initializer_names(scope)),
        ):
            for at, name in enumerate(names):
                if not name:
                    yield facts.find(NAMELESS, f"{what} number {at} has no name", scope=scope)
    if not facts.index.main.outputs:
        yield facts.find(NO_OUTPUTS, "the graph has no outputs")
    for key, count in Counter(entry.key for entry in facts.proto.metadata_props).items():
        if count > 1:
            yield facts.find(DUPLICATE_METADATA, f"the model's metadata has {key!r} {count} times")


@checks(DANGLING_ANNOTATION)
def _annotations(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for annotation in getattr(scope.graph, "quantization_annotation", ()):
            named = [("is for", annotation.tensor_name)]
            named += [(f"says {entry.key} is", entry.value) for entry in annotation.quant_parameter_tensor_names]
            for words, name in named:
                if not scope.defines(name):
                    message = f"a quantization annotation {words} {name!r}, which does not exist"
                    yield facts.find(DANGLING_ANNOTATION, message, scope=scope, tensor=name)


@checks(BODY_ARITY)
def _bodies(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for position, bodies in scope.bodies.items():
            node = scope.nodes[position]
            for body in bodies:
                complaint = _arity_complaint(node, body)
                if complaint and node.domain in ("", "ai.onnx"):
                    yield facts.find(BODY_ARITY, complaint, scope=scope, position=position)


def _arity_complaint(node: NodeProto, body: Scope) -> str | None:
    op = node.op_type
    taken, given = len(body.inputs), len(body.outputs)
    inputs, outputs = len(node.input), len(node.output)
    if op == "If":
        if taken:
            return f"branch {body.path!r} takes {plural(taken, 'input')}; a branch of an If takes none"
        if given != outputs:
            return f"branch {body.path!r} gives {plural(given, 'value')} and the node has {plural(outputs, 'output')}"
    elif op == "Loop":
        carried = max(inputs - 2, 0)
        if taken != carried + 2:
            words = plural(carried, "carried value")
            return f"the body takes {plural(taken, 'input')}; with {words} it must take {carried + 2}"
        if given != outputs + 1:
            return (
                f"the body gives {plural(given, 'value')}; for {plural(outputs, 'output')} it must give {outputs + 1}"
            )
    elif op == "Scan":
        scans = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
        had = inputs - 1 if node.input and not node.input[0] else inputs  # opset 8 had the lengths first, here absent
        if taken != had:
            return f"the body takes {plural(taken, 'input')} and the node gives {had} ({scans} of them scanned)"
        if given != outputs:
            return f"the body gives {plural(given, 'value')} and the node has {plural(outputs, 'output')}"
    return None


@checks(RECURSIVE_FUNCTION, DUPLICATE_FUNCTION)
def _functions(facts: Facts) -> Iterator[Finding | NotRun]:
    functions = facts.proto.functions
    for (domain, name, overload), count in Counter((f.domain, f.name, f.overload) for f in functions).items():
        if count > 1:
            shown = f"{domain}::{name}{':' if overload else ''}{overload}"
            yield facts.find(DUPLICATE_FUNCTION, f"{count} functions are called {shown}")
    calls = {
        key: [
            called
            for node in nodes_of(scope.graph)
            if (called := (node.domain, node.op_type, node.overload)) in facts.index.functions
        ]
        for key, scope in facts.index.functions.items()
    }
    for key in _beyond_order(calls):
        ring = _ring(key, calls)
        if ring:
            words = " -> ".join(f"{domain}::{name}" for domain, name, _ in ring)
            yield facts.find(
                RECURSIVE_FUNCTION, f"the function calls itself: {words}", scope=facts.index.functions[key]
            )


FunctionKey = tuple[str, str, str]


def _beyond_order(calls: dict[FunctionKey, list[FunctionKey]]) -> list[FunctionKey]:
    """Returns the functions that are on a cycle of calls, or lead to one."""
    callers: dict[FunctionKey, list[FunctionKey]] = {key: [] for key in calls}
    waiting = {key: len(set(called)) for key, called in calls.items()}
    for key, called in calls.items():
        for other in set(called):
            callers[other].append(key)
    ready = [key for key, count in waiting.items() if not count]
    for key in ready:
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    return [key for key, count in waiting.items() if count]


def _ring(start: FunctionKey, calls: dict[FunctionKey, list[FunctionKey]]) -> list[FunctionKey]:
    """Returns a shortest way from a function back to itself, empty if there is none."""
    came: dict[FunctionKey, FunctionKey] = {}
    pending = [start]
    for key in pending:
        for called in calls[key]:
            if called == start:
                way = [key]
                while way[-1] != start:
                    way.append(came[way[-1]])
                return [*reversed(way), start]
            if called not in came:
                came[called] = key
                pending.append(called)
    return []


@checks(CALL_ARITY, FUNCTION_DOMAIN)
def _calls(facts: Facts) -> Iterator[Finding | NotRun]:
    functions = facts.index.functions
    if not functions:
        return
    called: set[FunctionKey] = set()
    for scope in facts.index.scopes:
        imported = facts.opsets(scope)
        for position, node in enumerate(scope.nodes):
            key = (node.domain, node.op_type, node.overload)
            if key not in functions:
                continue
            function = functions[key]
            if key not in called and node.domain not in imported:
                root = root_of(scope)
                who = f"function {root.path}" if root.is_function else "the model"
                message = f"calls {function.path}, whose domain {node.domain!r} {who} does not import"
                yield facts.find(FUNCTION_DOMAIN, message, scope=scope, position=position)
            called.add(key)
            for what, said, taken in (
                ("inputs", len(node.input), len(function.inputs)),
                ("outputs", len(node.output), len(function.outputs)),
            ):
                if said > taken:
                    message = f"calls {function.path} with {said} {what}; it has {taken}"
                    yield facts.find(CALL_ARITY, message, scope=scope, position=position)
    model_imports = {opset.domain for opset in facts.proto.opset_import}
    for key, scope in functions.items():
        if key not in called and key[0] not in model_imports:
            message = f"the model does not import {key[0]!r}, the domain of a function that nothing calls"
            yield facts.find(FUNCTION_DOMAIN, message, scope=scope, severity=Severity.WARNING)


@checks(FUNCTION_OPSET)
def _function_opsets(facts: Facts) -> Iterator[Finding | NotRun]:
    from onnx import defs

    of_model = facts.opsets(facts.index.main)
    for scope in facts.index.scopes:
        root = root_of(scope)
        if not root.is_function:
            continue
        own = facts.opsets(root)
        for position, node in enumerate(scope.nodes):
            domain = plain_domain(node.domain)
            ours, theirs = own.get(domain), of_model.get(domain)
            if ours is None or theirs is None or ours == theirs or facts.index.function_of(node) is not None:
                continue
            versions = [_version_of(defs, node.op_type, number, domain) for number in (ours, theirs)]
            if None not in versions and versions[0] != versions[1]:
                message = (
                    f"{node.op_type} is another operator in opset {ours}, which the function imports, than in opset "
                    f"{theirs}, which the model does"
                )
                yield facts.find(FUNCTION_OPSET, message, scope=scope, position=position)


def _version_of(defs: Any, op: str, opset: int, domain: str) -> int | None:
    """Returns the opset in which an operator took the form that it has in ``opset``, or None if it has none."""
    if not 0 < opset < 1 << 31 or not defs.has(op, max_inclusive_version=opset, domain=domain):
        return None
    return int(defs.get_schema(op, max_inclusive_version=opset, domain=domain).since_version)


@checks(DANGLING_REFERENCE)
def _references(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        root = root_of(scope)
        function = function_of(root)
        given: set[str] = set()
        if function is not None:
            given = {*function.attribute, *(attribute.name for attribute in function.attribute_proto)}
        for position, node in enumerate(scope.nodes):
            for attribute in node.attribute:
                wanted = attribute.ref_attr_name
                if wanted and wanted not in given:
                    owner = f"function {root.path} has {listed(sorted(given)) or 'no parameters'}"
                    why = owner if root.is_function else "this is no function"
                    message = (
                        f"attribute {attribute.name!r} stands for parameter {wanted!r}, which does not exist ({why})"
                    )
                    yield facts.find(DANGLING_REFERENCE, message, scope=scope, position=position)
