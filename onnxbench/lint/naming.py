"""Rules on names that get in the way of people and tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from onnxbench.lint.facts import Facts, listed
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.wording import plural

checks = Checks("Names")

UNNAMED_NODES = Rule(
    code="OB601",
    name="unnamed-nodes",
    severity=Severity.INFO,
    summary="Nodes have no name.",
    why="Names of nodes are optional. Without them a profiler, a debugger or a list of layers to keep in float32 "
    "can point at a node only by its position, which changes with the next export.",
    mend="onnxbench calls them by operator and position ('Conv#12') or by what they make.",
    example="""
        node { op_type: "Conv" input: "x" output: "y" }        # name: missing
        """,
)
EQUAL_NAMES = Rule(
    code="OB602",
    name="equal-node-names",
    severity=Severity.WARNING,
    summary="Nodes of one graph have the same name.",
    why="The standard allows it. ONNX Runtime refuses such a model, and tools that choose nodes by name choose more "
    "than was meant. Merging two models without prefixes is the usual cause.",
    mend="Name them apart.",
    example="""
        [n] y = Relu (x)   [n] z = Neg (y)
        """,
    severities={"onnxruntime": Severity.ERROR},
)
ODD_NAME = Rule(
    code="OB603",
    name="odd-name",
    severity=Severity.INFO,
    summary="A name contains control characters, or begins or ends with white space.",
    why="It is valid, and is lost or cut where names go through command lines, logs, or file names.",
    mend="Rename it if a tool trips over it; selectors take it quoted or from a file.",
    example="""
        node.output[0] = "a\\nb"
        """,
)

_ODD = re.compile(r"[\x00-\x1f\x7f]|^\s|\s$")


@checks(UNNAMED_NODES, EQUAL_NAMES)
def _node_names(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        names = [node.name for node in scope.nodes]
        unnamed = names.count("")
        if unnamed:
            first = scope.label(names.index(""))
            where = scope.path or "the graph"
            message = f"{unnamed} of {plural(len(names), 'node')} of {where} have no name; the first is {first!r}"
            yield facts.find(UNNAMED_NODES, message, scope=scope)
        if len(set(names)) + max(unnamed - 1, 0) < len(names):
            for name, count in Counter(filter(None, names)).items():
                if count > 1:
                    places = [scope.label(at) for at, other in enumerate(names) if other == name]
                    message = f"{count} nodes are called {name!r}: {listed(places)}"
                    yield facts.find(EQUAL_NAMES, message, scope=scope, position=names.index(name))


@checks(ODD_NAME)
def _odd_names(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        names = (*(node.name for node in scope.nodes), *scope.tensor_names(), *scope.outputs)
        odd = list(dict.fromkeys(name for name in names if name and _ODD.search(name)))
        if odd:
            count = plural(len(odd), "name")
            message = f"{count} with control characters or white space at an end: {listed(odd)}"
            yield facts.find(ODD_NAME, message, scope=scope, tensor=odd[0] if scope.defines(odd[0]) else None)
