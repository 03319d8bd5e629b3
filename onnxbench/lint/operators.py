"""Rules on operators and versions: schemas, opset imports, IR version, and what the installed runtime takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from onnxbench.graph import Scope, root_of
from onnxbench.lint.facts import STANDARD_DOMAINS, Facts, function_of, graph_of, listed, operator
from onnxbench.lint.rules import Checks, Finding, NotRun, Rule, Severity
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import dtype_name, elem_type
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnx import NodeProto

checks = Checks("Operators and versions")

UNKNOWN_OPERATOR = Rule(
    code="OB401",
    name="unknown-operator",
    severity=Severity.ERROR,
    summary="The operator set that is imported has no such operator.",
    why="The name is misspelt (case counts), the operator came with a later opset, or it is custom and stands in "
    "the standard domain.",
    mend="Raise the opset import to the version in the message, correct the name, or give custom operators a domain: "
    "onnxbench edit IN OUT --set-op op:NAME=custom::NAME.",
    example="""
        <opset_import: ["" : 17]>   y = Gelu (x)               # Gelu came with opset 20
        """,
)
REMOVED_OPERATOR = Rule(
    code="OB402",
    name="removed-operator",
    severity=Severity.ERROR,
    summary="The operator was removed before the opset that is imported.",
    why="Someone raised the opset import without converting the nodes.",
    mend="Convert from the opset that the model was made with (onnx.version_converter), or use what took its place.",
    example="""
        <opset_import: ["" : 19]>   y = Upsample (x, s)        # removed in opset 10; Resize took its place
        """,
)
OPERATOR_ARITY = Rule(
    code="OB403",
    name="operator-arity",
    severity=Severity.ERROR,
    summary="A node has more or fewer inputs or outputs than its operator, or lacks a required one.",
    why="What used to be an attribute became an input in a later opset (axes, pads, splits), or the other way round.",
    mend="Compare the node with the operator's version in the opset that is imported.",
    example="""
        y = Add (x)
        """,
)
ATTRIBUTE = Rule(
    code="OB404",
    name="bad-attribute",
    severity=Severity.ERROR,
    summary="An attribute is missing, unknown to the operator, there twice, or of the wrong type.",
    why="Runtimes refuse the node, or take a default in silence. Attributes that became inputs in a later opset are "
    "the usual cause.",
    mend="Compare the node with the operator's version in the opset that is imported.",
    example="""
        y = Relu <slope = 0.1> (x)
        """,
)
DOMAIN_NOT_IMPORTED = Rule(
    code="OB405",
    name="domain-not-imported",
    severity=Severity.ERROR,
    summary="A node's domain is not among the opset imports.",
    why="Without a version nobody knows which operator is meant. Functions have imports of their own.",
    mend="Add the import. For the standard domain, use the opset that the exporter wrote.",
    example="""
        <opset_import: ["" : 18]>   y = com.example.Enhance (x)
        """,
)
OPSET_CONFLICT = Rule(
    code="OB406",
    name="opset-conflict",
    severity=Severity.ERROR,
    summary="One domain is imported in two versions.",
    why="Which of them holds is chance: onnx and ONNX Runtime take the last, other readers the first. Neither "
    "complains.",
    mend="Keep the one that the nodes were written for.",
    example="""
        opset_import: ["" : 11, "" : 18]
        """,
)
OPSET_TWICE = Rule(
    code="OB407",
    name="opset-twice",
    severity=Severity.WARNING,
    summary="One domain is imported twice in the same version, or as both '' and 'ai.onnx'.",
    why="The two spellings mean the same; the onnx checker counts them as two domains.",
    mend="Keep one, spelled ''.",
    example="""
        opset_import: ["" : 18, "ai.onnx" : 18]
        """,
    mendable=True,
)
UNKNOWN_OPSET = Rule(
    code="OB408",
    name="unknown-opset",
    severity=Severity.ERROR,
    summary="The opset version is newer than the installed onnx knows, or not a version at all.",
    why="Its operators cannot be checked and their types not be inferred.",
    mend="Update the onnx package, or convert to an older opset.",
    example="""
        opset_import: ["" : 999]
        """,
)
OPSET_BEYOND_RUNTIME = Rule(
    code="OB409",
    name="opset-beyond-onnxruntime",
    severity=Severity.WARNING,
    summary="The installed ONNX Runtime does not take this opset version.",
    why="It refuses to load models of opsets newer than the ones that it was released with, whatever they contain.",
    mend="Update onnxruntime, or export with the opset in the message.",
    example="""
        opset_import: ["" : 28]                # onnxruntime 1.31 takes up to 26
        """,
    severities={"onnxruntime": Severity.ERROR},
)
IR_TOO_OLD = Rule(
    code="OB410",
    name="ir-too-old",
    severity=Severity.WARNING,
    summary="The model uses something that came with a later IR version than it states.",
    why="Readers that go by the IR version skip or misread it: local functions need 8, overloads and metadata on "
    "nodes 10, float8 9, int4 10, initializers that are not inputs 4.",
    mend="Raise ir_version to the number in the message.",
    example="""
        ir_version: 7, with functions
        """,
)
IR_MISSING = Rule(
    code="OB411",
    name="ir-missing",
    severity=Severity.ERROR,
    summary="The model states no IR version.",
    why="The onnx checker refuses it. Models that were put together from protobuf messages by hand lack it.",
    mend="Every command of onnxbench that writes a model sets the one that its opsets need.",
    example="""
        onnx.ModelProto(graph=graph)           # instead of helper.make_model(graph)
        """,
    mendable=True,
)
IR_UNKNOWN = Rule(
    code="OB412",
    name="ir-unknown",
    severity=Severity.ERROR,
    summary="The IR version is newer than the installed onnx knows.",
    why="The file may contain what this version of onnx cannot read.",
    mend="Update the onnx package.",
    example="""
        ir_version: 9999
        """,
)
IR_BEYOND_RUNTIME = Rule(
    code="OB413",
    name="ir-beyond-onnxruntime",
    severity=Severity.WARNING,
    summary="The installed ONNX Runtime does not take this IR version.",
    why="It refuses the model, even if the graph is plain. 'onnx.helper.make_model' writes the newest IR version "
    "that it knows, which is often newer than the runtime.",
    mend="Set ir_version to the number in the message (or pass ir_version= to make_model), or update onnxruntime.",
    example="""
        ir_version: 14                         # onnxruntime 1.31 takes up to 13
        """,
    severities={"onnxruntime": Severity.ERROR},
)
CUSTOM_OPERATOR = Rule(
    code="OB414",
    name="custom-operator",
    severity=Severity.INFO,
    summary="An operator is not of the ONNX standard.",
    why="Only runtimes that have it, or load a library with it, run the model; its types cannot be inferred. Those "
    "of com.microsoft come with ONNX Runtime, and no other runtime has them.",
    mend="Ship the operator's library with the model; for a model that is to run elsewhere, export without it.",
    example="""
        y = com.example.Enhance (x)
        """,
    severities={"tensorrt": Severity.WARNING},
)
DOMAIN_SPELLING = Rule(
    code="OB415",
    name="domain-spelling",
    severity=Severity.WARNING,
    summary="Nodes or imports spell the standard domain 'ai.onnx'.",
    why="It means the same as ''. ONNX Runtime understands both, the onnx checker wants nodes and imports to agree.",
    mend="Spell it ''.",
    example="""
        opset_import: ["" : 18]   ...   node { op_type: "Relu" domain: "ai.onnx" }
        """,
    mendable=True,
)
ATTRIBUTE_VALUE = Rule(
    code="OB416",
    name="bad-attribute-value",
    severity=Severity.ERROR,
    summary="A text attribute has a value that the operator does not have.",
    why="The onnx checker does not look at values; runtimes fail when they make the kernel, or take a default.",
    mend="Use one of the values in the message.",
    example="""
        y = AveragePool <auto_pad = "SAME"> (x)                # SAME_UPPER or SAME_LOWER
        """,
)
EMPTY_ATTRIBUTE = Rule(
    code="OB417",
    name="empty-attribute",
    severity=Severity.INFO,
    summary="A text attribute is empty where the operator has a default.",
    why="Some runtimes take it for the default and some for a value that they do not know.",
    mend="Remove the attribute.",
    example="""
        y = Conv <auto_pad = ""> (x, w)
        """,
)
SUPERSEDED_OPERATOR = Rule(
    code="OB418",
    name="superseded-operator",
    severity=Severity.INFO,
    summary="A later opset removed this operator.",
    why="It is valid in the opset that is imported. Converting the model to a newer one has to replace it, and "
    "newer runtimes and compilers keep it for compatibility alone.",
    mend="Convert with onnx.version_converter when you have to.",
    example="""
        <opset_import: ["" : 9]>   y = Upsample (x, s)         # Resize from opset 10 on
        """,
)
OPSET_TOO_OLD = Rule(
    code="OB419",
    name="opset-too-old",
    severity=Severity.WARNING,
    summary="The opset is older than ONNX Runtime promises to run.",
    why="It implements operators as they were from opset 7 on. Broadcasting was different before.",
    mend="Convert with onnx.version_converter.",
    example="""
        opset_import: ["" : 6]
        """,
)
CHECKER = Rule(
    code="OB420",
    name="onnx-checker",
    severity=Severity.ERROR,
    summary="The onnx checker refuses the model for a reason that no other rule has found.",
    why="What it refuses is not valid ONNX; the message is its own.",
    mend="Go by the message.",
    example="""
        whatever onnx.checker.check_model(model, full_check=True) says
        """,
)

RUNTIME_LIMITS: dict[tuple[int, int], tuple[int, int, int]] = {
    (1, 23): (23, 5, 11),
    (1, 24): (25, 5, 13),
    **dict.fromkeys(((1, minor) for minor in range(25, 32)), (26, 5, 13)),
    (1, 32): (28, 5, 14),
}
"""By the version of ONNX Runtime: the newest opset, the newest ai.onnx.ml opset, and the newest IR version that a model
may state. Measured by loading models into each; tests/test_lint.py measures the installed one again."""

_RUNTIME_DOMAINS = ("com.microsoft", "com.ms.", "ai.onnx.contrib", "ai.onnxruntime", "org.pytorch.aten")

_AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_DIRECTION = ("forward", "reverse", "bidirectional")
_REDUCTION = ("none", "add", "mul", "min", "max")
_LOSS = ("none", "sum", "mean")
_TRANSFORM = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_KERNEL = ("LINEAR", "POLY", "RBF", "SIGMOID")
_VALUES: dict[tuple[str, str], tuple[str, ...]] = {
    **{
        (op, "auto_pad"): _AUTO_PAD
        for op in ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv")
    },
    **{(op, "direction"): _DIRECTION for op in ("GRU", "LSTM", "RNN")},
    **{(op, "reduction"): _REDUCTION for op in ("ScatterElements", "ScatterND")},
    **{(op, "reduction"): _LOSS for op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")},
    **{
        (op, "post_transform"): _TRANSFORM
        for op in (
            "LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor", "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
        )
    },
    **{(op, "kernel_type"): _KERNEL for op in ("SVMClassifier", "SVMRegressor")},
    ("BitShift", "direction"): ("LEFT", "RIGHT"),
    ("DepthToSpace", "mode"): ("DCR", "CRD"),
    ("Gelu", "approximate"): ("none", "tanh"),
    ("GridSample", "mode"): ("bilinear", "nearest", "bicubic", "linear", "cubic"),
    ("GridSample", "padding_mode"): ("zeros", "border", "reflection"),
    ("Normalizer", "norm"): ("MAX", "L1", "L2"),
    ("Pad", "mode"): ("constant", "reflect", "edge", "wrap"),
    ("Resize", "coordinate_transformation_mode"): (
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
        "tf_half_pixel_for_nn", "tf_crop_and_resize",
    ),
    ("Resize", "keep_aspect_ratio_policy"): ("stretch", "not_larger", "not_smaller"),
    ("Resize", "mode"): ("nearest", "linear", "cubic"),
    ("Resize", "nearest_mode"): ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    ("RoiAlign", "coordinate_transformation_mode"): ("half_pixel", "output_half_pixel"),
    ("RoiAlign", "mode"): ("avg", "max"),
    ("StringNormalizer", "case_change_action"): ("LOWER", "UPPER", "NONE"),
    ("TfIdfVectorizer", "mode"): ("TF", "IDF", "TFIDF"),
    ("TreeEnsembleRegressor", "aggregate_function"): ("SUM", "AVERAGE", "MIN", "MAX"),
    ("Upsample", "mode"): ("nearest", "linear", "bilinear"),
}  # fmt: skip

_OPERATOR = re.compile(r"No Op registered for|op_type")
_REMOVED = re.compile(r"is deprecated in domain_version")
_ARITY = re.compile(r"(?:in|out)put size \d+ not in range|is marked single but|has zero input and zero output")
_ATTRIBUTE = re.compile(r"attr", re.IGNORECASE)
_DOMAIN = re.compile(r"No opset import for domain")


@checks(UNKNOWN_OPERATOR, REMOVED_OPERATOR, OPERATOR_ARITY, ATTRIBUTE, CHECKER)
def _nodes(facts: Facts) -> Iterator[Finding | NotRun]:
    for (number, position), complaint in facts.refused_nodes.items():
        scope = facts.index.scopes[number]
        node = scope.nodes[position]
        if _DOMAIN.search(complaint):
            continue  # OB405
        if _REMOVED.search(complaint):
            rule, message = REMOVED_OPERATOR, _removed_message(facts, scope, node)
        elif _OPERATOR.search(complaint):
            rule, message = UNKNOWN_OPERATOR, _unknown_message(facts, scope, node)
        elif _ARITY.search(complaint):
            rule, message = OPERATOR_ARITY, f"{operator(node)}: {complaint}"
        elif _ATTRIBUTE.search(complaint):
            rule, message = ATTRIBUTE, f"{operator(node)}: {complaint}"
        else:
            rule, message = CHECKER, f"{operator(node)}: {complaint}"
        yield facts.find(rule, message, scope=scope, position=position)


def _unknown_message(facts: Facts, scope: Scope, node: NodeProto) -> str:
    if not node.op_type:
        return "the node names no operator"
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    version = facts.opsets(scope).get(domain, 0)
    known = _schemas(domain)
    text = f"opset {version} of {domain or 'ai.onnx'} has no operator {node.op_type!r}"
    if node.op_type in known:
        later = [since for since in known[node.op_type] if since > version]
        return f"{text}; it came with opset {min(later)}" if later else text
    near = _near_operator(node.op_type, domain)
    return f"{text}; did you mean {near!r}?" if near else text


@cache
def _near_operator(op: str, domain: str) -> str | None:
    known = _schemas(domain)
    near = [other for other in known if other.casefold() == op.casefold()]
    near = near or get_close_matches(op, known, n=1, cutoff=0.75)
    return near[0] if near else None


def _removed_message(facts: Facts, scope: Scope, node: NodeProto) -> str:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    since = _removals(domain).get(node.op_type)
    return f"{node.op_type!r} was removed in opset {since}, and opset {facts.opsets(scope).get(domain)} is imported"


@cache
def _schemas(domain: str) -> dict[str, list[int]]:
    """Returns the operators of a domain and the opset versions in which each changed."""
    from onnx import defs

    found: dict[str, list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == domain and not schema.deprecated:
            found.setdefault(schema.name, []).append(schema.since_version)
    return found


@cache
def _removals(domain: str) -> dict[str, int]:
    """Returns the operators that a domain removed and never brought back, and in which opset."""
    from onnx import defs

    removed: dict[str, int] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == domain and schema.deprecated:
            removed[schema.name] = schema.since_version
    return removed


@checks(DOMAIN_NOT_IMPORTED, DOMAIN_SPELLING)
def _domains(facts: Facts) -> Iterator[Finding | NotRun]:
    functions = facts.index.functions
    spelled = {id(root_of(scope)): _spellings(facts, scope) for scope in facts.index.scopes if scope.parent is None}
    for scope in facts.index.scopes:
        imported = facts.opsets(scope)
        names = spelled[id(root_of(scope))]
        missing: dict[str, list[int]] = {}
        other: list[int] = []
        for position, node in enumerate(scope.nodes):
            domain = node.domain
            if plain_domain(domain) not in imported:
                if (domain, node.op_type, node.overload) not in functions:
                    missing.setdefault(domain, []).append(position)
            elif domain in STANDARD_DOMAINS and domain not in names:
                other.append(position)
        for domain, positions in missing.items():
            root = root_of(scope)
            who = f"function {root.path} does" if root.is_function else "the model does"
            more = f" (and {plural(len(positions) - 1, 'node')} more)" if len(positions) > 1 else ""
            message = f"{operator(scope.nodes[positions[0]])}{more} is of domain {domain!r}, which {who} not import"
            yield facts.find(DOMAIN_NOT_IMPORTED, message, scope=scope, position=positions[0])
        if other:
            spelling = scope.nodes[other[0]].domain
            message = (
                f"{plural(len(other), 'node')} say domain {spelling!r}, the opset import says {next(iter(names))!r}"
            )
            yield facts.find(DOMAIN_SPELLING, message, scope=scope, position=other[0], mendable=True)


def _spellings(facts: Facts, root: Scope) -> set[str]:
    """Returns how a model or function spells the standard domain in its imports."""
    holder = function_of(root) or facts.proto
    return {opset.domain for opset in holder.opset_import if opset.domain in STANDARD_DOMAINS}


@checks(OPSET_CONFLICT, OPSET_TWICE, UNKNOWN_OPSET, OPSET_BEYOND_RUNTIME, OPSET_TOO_OLD)
def _opsets(facts: Facts) -> Iterator[Finding | NotRun]:
    from onnx import defs

    limits = runtime_limits()
    for scope in facts.index.scopes:
        if scope.parent is not None:
            continue
        versions: dict[str, list[int]] = {}
        for opset in (function_of(scope) or facts.proto).opset_import:
            versions.setdefault(plain_domain(opset.domain), []).append(opset.version)
        for domain, stated in versions.items():
            shown = domain or "ai.onnx"
            if len(set(stated)) > 1:
                listed_versions = " and ".join(map(str, stated))
                yield facts.find(
                    OPSET_CONFLICT, f"domain {shown!r} is imported in versions {listed_versions}", scope=scope
                )
            elif len(stated) > 1:
                message = f"domain {shown!r} is imported {len(stated)} times in version {stated[0]}"
                yield facts.find(OPSET_TWICE, message, scope=scope, mendable=scope is facts.index.main)
            newest = _newest_opset(domain)
            version = stated[0]
            if newest is not None and version > newest:
                message = f"opset {version} of {shown!r} is newer than the {newest} that the installed onnx knows"
                yield facts.find(UNKNOWN_OPSET, message, scope=scope)
            elif version < 1:
                yield facts.find(UNKNOWN_OPSET, f"opset {version} of {shown!r} is not a version", scope=scope)
            elif domain == "" and version < 7:
                message = f"opset {version} is older than 7, the oldest that ONNX Runtime promises to run"
                yield facts.find(OPSET_TOO_OLD, message, scope=scope)
            limit = {"": limits[1], "ai.onnx.ml": limits[2]}.get(domain) if limits else None
            if limits and limit is not None and version > limit:
                message = f"onnxruntime {limits[0]} takes opsets of {shown!r} up to {limit}; this is {version}"
                yield facts.find(OPSET_BEYOND_RUNTIME, message, scope=scope)
    if not facts.proto.opset_import and facts.proto.ir_version >= 3:
        newest_standard = defs.onnx_opset_version()
        message = f"the model imports no opset at all (onnx knows versions up to {newest_standard})"
        yield facts.find(UNKNOWN_OPSET, message)


def _newest_opset(domain: str) -> int | None:
    """Returns the newest version of a domain that the installed onnx has operators of, or None for other domains."""
    from onnx import defs

    if domain == "":
        return int(defs.onnx_opset_version())
    return max((since for versions in _schemas(domain).values() for since in versions), default=None)


def runtime_limits() -> tuple[str, int, int, int] | None:
    """Returns what the installed ONNX Runtime takes (its version, opset, ai.onnx.ml opset, IR version), if known."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        numbers = re.match(r"(\d+)\.(\d+)", installed)
        limits = RUNTIME_LIMITS.get((int(numbers[1]), int(numbers[2]))) if numbers else None
        return (installed, *limits) if limits else None
    return None


@checks(IR_MISSING, IR_UNKNOWN, IR_BEYOND_RUNTIME, IR_TOO_OLD)
def _ir(facts: Facts) -> Iterator[Finding | NotRun]:
    import onnx

    stated = facts.proto.ir_version
    if not stated:
        yield facts.find(IR_MISSING, "the model states no IR version", mendable=True)
        return
    if stated > onnx.IR_VERSION:
        yield facts.find(
            IR_UNKNOWN, f"IR version {stated} is newer than the {onnx.IR_VERSION} that the installed onnx knows"
        )
    limits = runtime_limits()
    if limits and stated > limits[3]:
        message = f"onnxruntime {limits[0]} takes IR versions up to {limits[3]}; this is {stated}"
        yield facts.find(IR_BEYOND_RUNTIME, message)
    if stated < 3 and facts.proto.opset_import:
        message = f"the model imports opsets, which came with IR version 3; it states {stated}"
        yield facts.find(IR_TOO_OLD, message, severity=Severity.ERROR)
    needed = {version: what for what, version in _features(facts) if version > stated}
    if needed:
        version = max(needed)
        message = f"the model has {needed[version]}, which need IR version {version}; it states {stated}"
        orphans = stated < 4 and 4 in needed
        yield facts.find(IR_TOO_OLD, message, severity=Severity.ERROR if orphans else None)


_TYPE_IR = {17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 14, 28: 14}


def _features(facts: Facts) -> Iterator[tuple[str, int]]:
    """Yields things that a model has and the IR version that each came with."""
    proto = facts.proto
    if proto.functions:
        yield "local functions", 8
        if any(function.overload for function in proto.functions):
            yield "overloaded functions", 10
    if proto.training_info:
        yield "training information", 7
    if any(node.metadata_props for scope in facts.index.scopes for node in scope.nodes):
        yield "metadata on nodes", 10
    for scope in facts.index.scopes:
        graph = graph_of(scope)
        if graph is None:
            continue
        inputs = set(scope.inputs)
        if scope is facts.index.main and not inputs.issuperset(tensor.name for tensor in graph.initializer):
            yield "initializers that are not inputs", 4
        kinds = {tensor.data_type for tensor in graph.initializer}
        kinds.update(elem_type(info.type) for info in (*graph.input, *graph.output))
        for kind in sorted(kinds & _TYPE_IR.keys()):
            yield f"tensors of {dtype_name(kind)}", _TYPE_IR[kind]


@checks(CUSTOM_OPERATOR)
def _custom(facts: Facts) -> Iterator[Finding | NotRun]:
    uses: dict[str, list[tuple[Scope, int]]] = {}
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            domain = node.domain
            if (
                domain not in STANDARD_DOMAINS
                and not domain.startswith("ai.onnx.")
                and not facts.index.function_of(node)
            ):
                uses.setdefault(operator(node), []).append((scope, position))
    for name, places in uses.items():
        scope, position = places[0]
        ours = name.startswith(_RUNTIME_DOMAINS)
        whose = "comes with ONNX Runtime alone" if ours else "needs a library of its own"
        times = f" ({len(places)} nodes)" if len(places) > 1 else ""
        yield facts.find(CUSTOM_OPERATOR, f"{name}{times} {whose}", scope=scope, position=position)


@checks(ATTRIBUTE_VALUE, EMPTY_ATTRIBUTE)
def _attribute_values(facts: Facts) -> Iterator[Finding | NotRun]:
    for scope in facts.index.scopes:
        for position, node in enumerate(scope.nodes):
            if node.domain and node.domain not in ("ai.onnx", "ai.onnx.ml"):
                continue
            for attribute in node.attribute:
                if attribute.type != 3 or attribute.ref_attr_name:
                    continue
                allowed = _VALUES.get((node.op_type, attribute.name))
                value = attribute.s.decode(errors="backslashreplace")
                if not value and (allowed or _has_default(node, attribute.name)):
                    message = f"attribute {attribute.name!r} of {node.op_type} is empty"
                    yield facts.find(EMPTY_ATTRIBUTE, message, scope=scope, position=position)
                elif value and allowed and value not in allowed:
                    message = f"{attribute.name} is {value!r}; {node.op_type} has {listed(list(allowed), limit=9)}"
                    yield facts.find(ATTRIBUTE_VALUE, message, scope=scope, position=position)


def _has_default(node: NodeProto, name: str) -> bool:
    schema = _latest_schema(node.op_type, "" if node.domain in STANDARD_DOMAINS else node.domain)
    return schema is not None and name in schema.attributes and bool(schema.attributes[name].default_value.name)


@cache
def _latest_schema(op: str, domain: str) -> Any:
    from onnx import defs

    return defs.get_schema(op, domain=domain) if defs.has(op, domain=domain) else None


@checks(SUPERSEDED_OPERATOR)
def _superseded(facts: Facts) -> Iterator[Finding | NotRun]:
    uses: dict[tuple[str, str], list[tuple[Scope, int]]] = {}
    for scope in facts.index.scopes:
        imported = facts.opsets(scope)
        for position, node in enumerate(scope.nodes):
            domain = plain_domain(node.domain)
            if domain not in ("", "ai.onnx.ml"):
                continue
            since = _removals(domain).get(node.op_type)
            if since is not None and imported.get(domain, since) < since and node.op_type not in _revived(domain):
                uses.setdefault((domain, node.op_type), []).append((scope, position))
    for (domain, op), places in uses.items():
        scope, position = places[0]
        times = f" ({len(places)} nodes)" if len(places) > 1 else ""
        message = f"{op}{times} was removed in opset {_removals(domain)[op]}"
        yield facts.find(SUPERSEDED_OPERATOR, message, scope=scope, position=position)


@cache
def _revived(domain: str) -> frozenset[str]:
    """Returns the operators that came back in an opset after the one that removed them."""
    known = _schemas(domain)
    return frozenset(op for op, since in _removals(domain).items() if any(v > since for v in known.get(op, ())))


# What the onnx checker says, and the rules that say it better. A complaint that none answers for is reported as it is.
_TYPES = ("OB101", "OB103", "OB104", "OB112", "OB201", "OB203", "OB205", "OB206", "OB207", "OB208", "OB209", "OB212")
_DATA = ("OB308", "OB309", "OB310", "OB311", "OB312", "OB313")
_ANSWERED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"InferenceError", (*_TYPES, *_DATA, "OB403", "OB404")),
    (r"too small for the declared|bytes of data where|values where its shape|one and only one value field", _DATA),
    (r"should not have data field|should (?:not )?be stored in|[Ss]parse tensor", _DATA),
    (r"[Ii]nvalid tensor data type|to UNDEFINED|data_type", ("OB212", *_DATA)),
    (r"Negative dimension|dimension product overflow", _DATA),
    (r"topologically sorted", ("OB101", "OB103", "OB104", "OB105")),
    (r"single static assignment", ("OB103", "OB106", "OB108")),
    (r"is not an output of any node|is made by no node", ("OB102", "OB110", "OB111")),
    (r"initializer name is not unique", ("OB109",)),
    (r"in initializer but not in graph input|cannot have opset_import", ("OB410",)),
    (r"initializers must have a non-empty name|Field 'name' of '(?:value_info|init|values)'", ("OB110",)),
    (r"Field 'name' of '(?:graph|function)'", ("OB113",)),
    (r"duplicate keys in metadata", ("OB116",)),
    (r"Cycle detected in model-local function", ("OB151",)),
    (r"multiple local functions", ("OB152",)),
    (r"calls .* with \d+ (?:in|out)puts", ("OB153",)),
    (r"refers to attribute", ("OB155",)),
    (r"in function op .* not compatible", ("OB156", "OB408")),
    (r"Field '[a-z_]+' of 'attr'", ("OB404",)),
    (r"Field '(?:type|shape|elem_type)'|Unrecognized type value case", ("OB202", "OB204", "OB210", "OB212")),
    (r"has a dimension of", ("OB209",)),
    (r"is not UTF-8", ("OB114",)),
    (r"ir_version set properly", ("OB411",)),
    (r"is higher than the checker", ("OB412",)),
    (r"No opset import for domain|must specify opset_import|Opset registered", ("OB154", "OB405", "OB408", "OB415")),
    (r"is imported in two versions", ("OB406",)),
    (r"the model uses opset", ("OB408",)),
    (r"No Op registered|Field 'op_type'", ("OB401", "OB407", "OB415")),
    (r"is deprecated", ("OB402",)),
    (r"not in range|marked single|zero input and zero output", ("OB403",)),
    (r"attribute|attr", ("OB404",)),
    (r"\(tensor name: \)", ("OB110",)),
)


def unanswered(facts: Facts, found: list[Finding]) -> Iterator[Finding]:
    """Yields what ``onnxbench.validity`` has against a model that no other finding answers for."""
    if not facts.complaints:
        return
    errors = {finding.code for finding in found if finding.severity is Severity.ERROR or finding.mendable}
    first = facts.complaints[0]
    for pattern, codes in _ANSWERED:
        if re.search(pattern, first, re.IGNORECASE):
            if errors.intersection(codes):
                return
            break
    yield facts.find(CHECKER, " ".join(facts.complaints))
