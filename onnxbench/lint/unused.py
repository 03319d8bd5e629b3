"""Rules on what is in the model and of no use: nodes, weights, inputs, functions, notes, branches."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from onnxbench.graph import Scope
from onnxbench.lint.facts import STANDARD_DOMAINS, Facts, graph_of, listed, operator
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.weights import tensor_bytes
from onnxbench.wording import plural

checks = Checks("Unused: what can be left out")

_REWRITE = "'onnxbench extract IN OUT --outputs \"output:*\"' writes the model without it."

DEAD_NODE = Rule(
    code="OB501",
    name="dead-node",
    severity=Severity.WARNING,
    summary="No output depends on the node.",
    why="It is carried along, checked, and by some runtimes computed, for nothing. Rewrites that replace a node and "
    "leave the old one leave such nodes, and so do outputs that were taken away.",
    mend=_REWRITE,
    example="""
        g (float[2] x) => (float[2] y) { y = Relu (x)  z = Neg (x) }           # z is read by nobody
        """,
)
UNUSED_INITIALIZER = Rule(
    code="OB502",
    name="unused-initializer",
    severity=Severity.WARNING,
    summary="Nothing reads the initializer.",
    why="It makes the file larger and loading slower.",
    mend=_REWRITE,
    example="""
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Relu (x) }
        """,
)
UNUSED_INPUT = Rule(
    code="OB503",
    name="unused-input",
    severity=Severity.WARNING,
    summary="No output depends on the graph input.",
    why="Callers have to feed it and it changes nothing, which often means that something was frozen at export (a "
    "mask, a length, a scale that became a constant).",
    mend="Look at the export; or leave it out: 'onnxbench extract IN OUT --outputs \"output:*\"'.",
    example="""
        g (float[2] x, float[2] mask) => (float[2] y) { y = Relu (x) }
        """,
)
UNUSED_FUNCTION = Rule(
    code="OB504",
    name="unused-function",
    severity=Severity.INFO,
    summary="Nothing calls the local function.",
    why="It makes the file larger and has to be valid all the same.",
    mend=_REWRITE,
    example="""
        <domain: "local"> F (a) => (b) {...}                   # and no node calls local.F
        """,
)
UNUSED_IMPORT = Rule(
    code="OB505",
    name="unused-opset-import",
    severity=Severity.INFO,
    summary="A domain is imported that no node uses.",
    why="Some readers refuse a model for a domain that they do not know, used or not.",
    mend=_REWRITE,
    example="""
        opset_import: ["" : 18, "ai.onnx.ml" : 3]              # and no operator of ai.onnx.ml
        """,
)
DANGLING_VALUE_INFO = Rule(
    code="OB506",
    name="dangling-value-info",
    severity=Severity.INFO,
    summary="A value info is about a tensor that does not exist.",
    why="It is harmless until a new tensor gets that name, and then it is wrong.",
    mend=_REWRITE,
    example="""
        value_info: h float[3]                                 # no node makes h
        """,
)
DEAD_BRANCH = Rule(
    code="OB507",
    name="dead-branch",
    severity=Severity.WARNING,
    summary="The condition of an If, or the trip count of a Loop, is a constant.",
    why="One branch never runs, or the body never does. Often a Python condition was meant to depend on the input "
    "and was frozen at export; the dead branch also stands in the way of compilers that have no control flow.",
    mend="Lift the branch that runs: 'onnxbench extract IN OUT --lift NODE/then', or fold it with a simplifier.",
    example="""
        <bool c = {1}>   y = If (c) <then_branch = ..., else_branch = ...>
        """,
)


def _rewrite(facts: Facts, scope: Scope) -> str:
    """Returns what removes something that is of no use: bodies and functions are written as they are."""
    if scope is facts.index.main:
        return f"Left out when the model is written anew: {facts.rewrite_command()}"
    return f"Remove it from {scope.path!r}."


@checks(DEAD_NODE)
def _dead(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        live = facts.live[id(scope)]
        if len(live) == len(scope.nodes):
            continue
        for position, names in enumerate(scope.writes):
            if position not in live and names:
                readers = [reader for name in names for reader in scope.consumers.get(name, ())]
                words = "is read only by nodes that no output depends on" if readers else "is read by nobody"
                message = f"{operator(scope.nodes[position])} makes {listed(names)}, which {words}"
                yield facts.find(
                    DEAD_NODE, message, scope=scope, position=position, tensor=names[0], fix=_rewrite(facts, scope)
                )


@checks(UNUSED_INITIALIZER, UNUSED_INPUT)
def _unread(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        given = set(scope.outputs)
        graph = graph_of(scope)
        if graph is not None:
            stored = [(tensor.name, tensor_bytes(tensor)) for tensor in graph.initializer]
            stored += [(s.values.name, tensor_bytes(s.values)) for s in graph.sparse_initializer]
            for name, size in stored:
                if name and name not in scope.consumers and name not in given:
                    message = f"initializer {name!r} ({size:,} bytes) is read by nothing"
                    yield facts.find(UNUSED_INITIALIZER, message, scope=scope, tensor=name, fix=_rewrite(facts, scope))
        if scope is not facts.index.main:
            continue  # what a body or function takes is its caller's affair: a Loop always hands over the iteration
        live = facts.live[id(scope)]
        for name in dict.fromkeys(scope.true_inputs()):
            readers = scope.consumers.get(name, [])
            if name in given or any(position in live for position in readers):
                continue
            words = "only nodes that no output depends on read it" if readers else "nothing reads it"
            yield facts.find(UNUSED_INPUT, f"input {name!r} changes nothing: {words}", scope=scope, tensor=name)


@checks(UNUSED_FUNCTION, UNUSED_IMPORT)
def _uncalled(facts: Facts) -> Iterator[Finding | NotRun]:
    index = facts.index
    called = index.function_closure(index.main.nodes)
    for key, scope in index.functions.items():
        if key not in called:
            yield facts.find(
                UNUSED_FUNCTION,
                f"function {scope.path} is called by nothing",
                scope=scope,
                fix=_rewrite(facts, index.main),
            )
    used = {node.domain for scope in index.scopes for node in scope.nodes}
    used.update(domain for domain, _, _ in index.functions)
    if not STANDARD_DOMAINS.isdisjoint(used) or not used:
        used |= STANDARD_DOMAINS
    idle = list(dict.fromkeys(o.domain for o in facts.proto.opset_import if o.domain not in used))
    if idle:
        shown = [domain or "ai.onnx" for domain in idle]
        message = f"{plural(len(idle), 'domain')} imported and not used: {listed(shown, limit=12)}"
        yield facts.find(UNUSED_IMPORT, message, fix=_rewrite(facts, index.main))


@checks(DANGLING_VALUE_INFO)
def _notes(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        known = {*scope.producers, *scope.inputs, *scope.constants, *scope.outputs, *scope.consumers}
        idle = list(dict.fromkeys(info.name for info in scope.graph.value_info if info.name not in known))
        if idle:
            message = f"{plural(len(idle), 'value info')} of tensors that do not exist: {listed(idle)}"
            yield facts.find(DANGLING_VALUE_INFO, message, scope=scope, tensor=idle[0], fix=_rewrite(facts, scope))


@checks(DEAD_BRANCH)
def _branches(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for position in scope.bodies:
            node = scope.nodes[position]
            if node.domain not in STANDARD_DOMAINS or not node.input:
                continue
            value = _constant(facts, scope, node.input[0])
            if node.op_type == "If" and value is not None:
                taken, dead = ("then", "else") if value else ("else", "then")
                message = f"the condition {node.input[0]!r} is always {bool(value)}: branch {dead!r} never runs"
                body = scope.bodies[position][0].path.rsplit("/", 1)[0]
                fix = f"onnxbench extract {quote(facts.file_name())} branch.onnx --lift {quote(f'{body}/{taken}')}"
                yield facts.find(DEAD_BRANCH, message, scope=scope, position=position, fix=fix)
            elif node.op_type == "Loop":
                start = _constant(facts, scope, node.input[1]) if len(node.input) > 1 else None
                if value == 0 or start == 0:
                    yield facts.find(
                        DEAD_BRANCH, "the loop is never entered: its body never runs", scope=scope, position=position
                    )


def _constant(facts: Facts, scope: Scope, name: str) -> int | None:
    values = facts.integers(scope, name) if name else None
    return values[0] if values is not None and len(values) == 1 else None
