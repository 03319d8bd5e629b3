"""Where a node comes from in PyTorch: module scope, module class, source line.

Two exporters leave two kinds of traces. The default one (``torch.export``) writes metadata on every node:
``pkg.torch.onnx.name_scopes`` and ``class_hierarchy`` are Python lists as text, from the model down to the
operator, and ``pkg.torch.onnx.stack_trace`` ends in the line that made the node. The TorchScript one puts the
module path into the node's name, ``/layer1/layer1.0/conv1/Conv``. Anything else has no provenance.

A TorchScript name has one segment per module that was *called*: the last atom of the module's path that is not
a number, and the numbers after it. So a child of a called Sequential ``layer1`` is ``layer1.0`` and takes the
place of the segment before it, a child ``conv1`` of that is appended, and so is ``layer.0`` of a ModuleList,
which is never called itself. Two things cannot be told from one name alone. A module ``model`` with a ModuleList
of that same name gives ``model`` and ``model.0``, as a Sequential would; and ``relu_1`` is the second call of
``relu`` or another module. ``Origins`` knows all nodes and weights of a model and decides both by evidence.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnx import NodeProto

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
CLASS_HIERARCHY = "pkg.torch.onnx.class_hierarchy"
STACK_TRACE = "pkg.torch.onnx.stack_trace"
FX_NODE = "pkg.torch.onnx.fx_node"
RULE = "pkg.onnxscript.rewriter.rule_name"
NAMESPACE = "namespace"
FX_VALUES = "onnxbench.fx_values"
"""On a node: the fx node whose value each output is, in order, ``-`` for none. Where it is missing, an output that is
called like the fx node in ``FX_NODE`` is that node's value."""
ORIGINS = "onnxbench.origins"
"""On a node that the exporter's optimizer made out of several: the fx nodes that went into it."""
TRACE = "onnxbench.stack_trace"
"""On a node of the TorchScript exporter, which keeps no stack trace itself: the trace, as ``STACK_TRACE`` has it."""
CLASSES = "onnxbench.class_hierarchy"
"""On such a node: the classes of the modules around it, as ``CLASS_HIERARCHY`` has them."""
EXPORT = "onnxbench.export"
"""On the model: what exported it and how, as JSON."""
MAP = "onnxbench.map"
"""On the model: from which PyTorch model ``onnxbench map`` wrote metadata, as JSON."""
SUMMARY = "onnxbench.provenance"
"""On the model: how many of its values map to PyTorch (``Coverage``), as JSON."""

_FRAME = re.compile(r'^ *File "([^"\n]+)", line (\d+)(?:, in (\S+))?[^\n]*(?:\n(?! *File ")([^\n]*))?', re.MULTILINE)
_FRAME_START = re.compile(r'(?=^ *File ")', re.MULTILINE)
_PLAIN_LIST = re.compile(r"\['[^'\\]*'(?:, '[^'\\]*')*\]")
_FX_NAME = re.compile(r"%(\w+) ")
_CALL = re.compile(r"(.+)_([1-9]\d*)")
_REENTRY = re.compile(r"@(\d+)")
_FRAMEWORK = re.compile(r"(^|[/\\])(site|dist)-packages[/\\]torch[/\\]|^<eval_with_key>")


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a stack trace: where, and what is written there."""

    file: str
    line: int
    function: str | None = None
    code: str | None = None

    @property
    def place(self) -> str:
        """``file.py:12``."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of a node's origin.

    Attributes:
        scope: Module path such as ``layer1.0.conv1``; ``""`` for the model itself, None when unknown.
        scopes: The modules that were being called, outermost first, ``scope`` last; empty if only ``scope`` is known.
        classes: The class names of these.
        frames: The stack trace, outermost call first; empty when the exporter kept none.
        call: 0 for the first call of the module, 1 for the second (of one that is called several times).
        rule: The rewrite rule of the exporter that made the node out of others, or None.
        kind: ``torch.export``, ``torchscript``, or ``none``.
    """

    scope: str | None = None
    scopes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    call: int = 0
    rule: str | None = None
    kind: str = "none"

    @property
    def module_class(self) -> str | None:
        """Class of the innermost module, or None."""
        return self.classes[-1] if self.classes else None

    @property
    def frame(self) -> Frame | None:
        """The innermost line of the user's own: not of PyTorch itself, unless there is no other."""
        own = (frame for frame in reversed(self.frames) if not _FRAMEWORK.search(frame.file))
        return next(own, self.frames[-1] if self.frames else None)

    @property
    def source(self) -> str | None:
        """``file.py:12`` of ``frame``, or None."""
        return self.frame.place if self.frame else None

    @property
    def code(self) -> str | None:
        """The text of that line, or None."""
        return self.frame.code if self.frame else None


NONE = Provenance()


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a PyTorch module.

    Attributes:
        path: The module's path.
        calls: Which call it is, of the module and of those around it that are called more than once; empty for the
            first of all.
    """

    path: str
    calls: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.path + (f" (call {self.calls[-1] + 1})" if self.calls else "")


class Origins:
    """Reads the provenance of one model's nodes, with the whole model as evidence.

    Args:
        nodes: All nodes of the model, those of bodies and functions included; they are passed over once.
        weights: Names of its initializers, in which PyTorch writes module paths (``layer1.0.conv1.weight``).
    """

    def __init__(self, nodes: Iterable[NodeProto], weights: Iterable[str] = ()) -> None:
        self._weights = frozenset(weights)
        self._members: dict[str, list[NodeProto]] = {}
        self._is_silent = False  # whether it is known that no node tells anything
        for number, node in enumerate(nodes):
            spelled = _spelled_path(node)
            if spelled is not None:
                self._members.setdefault(spelled, []).append(node)
            self._is_silent = (not number or self._is_silent) and spelled is None and not node.metadata_props
        self._modules = _prefixes(self._weights) if self._members else frozenset()
        self._spellings = _ancestors(self._members)
        self._places: dict[str, tuple[str, int]] = {}

    def of(self, node: NodeProto) -> Provenance:
        """Returns where a node comes from; ``NONE`` when it carries no trace of PyTorch."""
        if self._is_silent:
            return NONE
        if node.metadata_props:
            # protobuf hands out bytes where text is not UTF-8; such an entry says nothing.
            said = {entry.key: entry.value for entry in node.metadata_props if isinstance(entry.value, str)}
            if NAME_SCOPES in said or STACK_TRACE in said:
                return _from_metadata(said)
        spelled = _spelled_path(node)
        if spelled is None:
            return NONE
        scope, call = self._place(spelled)
        if node.metadata_props and TRACE in said:
            classes = tuple(_literal_list(said.get(CLASSES, "")))
            return Provenance(scope, classes=classes, frames=_frames(said[TRACE]), call=call, kind="torchscript")
        return Provenance(scope, call=call, kind="torchscript")

    def kind(self, node: NodeProto) -> str:
        """Returns which trace of PyTorch a node carries: ``torch.export``, ``torchscript`` or ``none``."""
        if self._is_silent:
            return "none"
        if any(entry.key in (NAME_SCOPES, STACK_TRACE) for entry in node.metadata_props):
            return "torch.export"
        return "none" if _spelled_path(node) is None else "torchscript"

    def scope(self, node: NodeProto) -> str | None:
        """Returns the module path of a node, or None when it is unknown (cheaper than ``of``)."""
        if self._is_silent:
            return None
        for entry in node.metadata_props:
            if entry.key == NAME_SCOPES and isinstance(entry.value, str):
                return _innermost(_literal_list(entry.value))[0]
        spelled = _spelled_path(node)
        return None if spelled is None else self._place(spelled)[0]

    def modules(self, node: NodeProto) -> tuple[ModuleCall, ...]:
        """Returns the modules that a node lies in, outermost first, those that only hold others included."""
        if self._is_silent:
            return ()
        for entry in node.metadata_props:
            if entry.key == NAME_SCOPES and isinstance(entry.value, str):
                return _module_calls(tuple(_literal_list(entry.value)[:-1]))
        spelled = _spelled_path(node)
        if spelled is None:
            return ()
        path, call = self._place(spelled)
        parts = path.split(".") if path else []
        around = [ModuleCall(".".join(parts[:end])) for end in range(1, len(parts))]
        return (*around, ModuleCall(path, (call,) if call else ())) if parts else ()

    def _place(self, spelled: str) -> tuple[str, int]:
        """Returns the module path and the call that the path in a TorchScript name means."""
        place = self._places.get(spelled)
        if place is None:
            base, call = self._call(spelled)
            place = self._places[spelled] = _module_path(base, self._modules), call
        return place

    def _call(self, spelled: str) -> tuple[str, int]:
        """Splits ``/a/relu_1`` into ``/a/relu`` and 1 if it is a second call rather than a module of its own."""
        match = _CALL.fullmatch(spelled)
        if match is None or match[1] not in self._spellings or _module_path(spelled, self._modules) in self._modules:
            return spelled, 0
        if self._weights_read_in(spelled) - self._weights_read_in(match[1]):
            return spelled, 0
        return match[1], int(match[2])

    def _weights_read_in(self, spelled: str) -> frozenset[str]:
        return self._weights.intersection(name for node in self._members.get(spelled, ()) for name in node.input)


@lru_cache(maxsize=4096)
def _module_calls(scopes: tuple[str, ...]) -> tuple[ModuleCall, ...]:
    """Returns the modules in a name_scopes list: torch.export writes the second call of ``a`` as ``a@1``."""
    found: dict[str, ModuleCall] = {}
    calls: tuple[int, ...] = ()
    for scope in scopes:
        raw = ""
        for atom in scope.split(".") if scope else ():
            raw = f"{raw}.{atom}" if raw else atom
            path = _REENTRY.sub("", raw)
            if path in found:
                continue
            number = _REENTRY.search(atom)
            calls = (*calls, int(number[1])) if number else calls
            found[path] = ModuleCall(path, calls)
    return tuple(found.values())


def spelled_prefix(nodes: Iterable[NodeProto], module: ModuleCall | None) -> str:
    """Returns the part that the TorchScript-style names of nodes have in common, down to a module; often empty."""
    paths = [path.split("/") for node in nodes if (path := _spelled_path(node)) is not None]
    common = _common(paths)
    if module is not None:
        for end in range(1, len(common) + 1):
            if _module_path("/".join(common[:end]), frozenset()) == module.path:
                return "/".join(common[:end])
    return "/".join(common)


def call_name(nodes: Collection[NodeProto], module: ModuleCall | None, function: str) -> str:
    """Returns a name for a node that stands for others: one that tells of their module as their names did."""
    spelled = spelled_prefix(nodes, module)
    if spelled:
        return f"{spelled}/{function}"
    return function if module is None else module.path + "".join(f"@{number}" for number in module.calls)


def call_metadata(
    nodes: Collection[NodeProto], module: ModuleCall | None, name: str, operator: str
) -> dict[str, str]:  # fmt: skip
    """Returns what the exporter's metadata of nodes has in common, as metadata of a node that stands for them.

    Args:
        nodes: The nodes; those without such metadata say nothing.
        module: The module that the new node is a call of, or None.
        name: The new node's name.
        operator: Its operator.
    """
    said = [{e.key: e.value for e in node.metadata_props if isinstance(e.value, str)} for node in nodes]
    lists = [_literal_list(each[NAME_SCOPES])[:-1] for each in said if NAME_SCOPES in each]
    scopes = _common(lists)
    if module is not None:
        ends = [end for end, scope in enumerate(scopes, 1) if _REENTRY.sub("", scope) == module.path]
        scopes = scopes[: ends[0]] if ends else scopes
    made: dict[str, str] = {}
    namespaces = _common(
        [each[NAMESPACE].split("/")[:-1] for each in said if NAMESPACE in each and NAME_SCOPES in each]
    )
    if lists and namespaces:
        made[NAMESPACE] = "/".join((*namespaces[: len(scopes)], f"{name}: {operator}"))
    classes = _common([_literal_list(each[CLASS_HIERARCHY])[:-1] for each in said if CLASS_HIERARCHY in each])
    if lists and len(classes) >= len(scopes):
        made[CLASS_HIERARCHY] = repr([*classes[: len(scopes)], operator])
    if lists:
        made[NAME_SCOPES] = repr([*scopes, name])
    traces = _common([_FRAME_START.split(each[STACK_TRACE]) for each in said if STACK_TRACE in each])
    if any(traces):
        made[STACK_TRACE] = "".join(traces).rstrip()
    return made


def take_scope(node: NodeProto, call: NodeProto) -> None:
    """Makes a node of a function that several modules share tell of the module whose call it comes from.

    Its TorchScript-style name is relative to the module there, and its metadata tells of the first of these modules.
    A node that tells of neither, or of other classes than the call does, stays as it is.

    Args:
        node: A node of the function; it is changed.
        call: The call of the function.
    """
    spelled, own = _spelled_path(call), _spelled_path(node)
    if spelled and own is not None and node.name and not f"{own}/".startswith(f"{spelled}/"):
        node.name = spelled + node.name
    said, told = ({e.key: e for e in each.metadata_props if isinstance(e.value, str)} for each in (node, call))
    if not all(key in each for key in (NAME_SCOPES, CLASS_HIERARCHY) for each in (said, told)):
        return
    scopes, wanted = _literal_list(said[NAME_SCOPES].value), _literal_list(told[NAME_SCOPES].value)[:-1]
    classes, known = _literal_list(said[CLASS_HIERARCHY].value), _literal_list(told[CLASS_HIERARCHY].value)[:-1]
    depth = len(wanted)
    if not depth or len(scopes) <= depth or classes[: len(known)] != known or scopes[:depth] == wanted:
        return
    before, after = scopes[depth - 1], wanted[-1]
    moved = [after + each[len(before) :] if each.startswith(f"{before}.") else each for each in scopes[depth:]]
    said[NAME_SCOPES].value = repr([*wanted, *moved])
    if NAMESPACE in said:
        parts = said[NAMESPACE].value.split("/")
        for number, scope in enumerate([*wanted, *moved][: len(parts)]):
            _, colon, rest = parts[number].partition(": ")
            parts[number] = f"{scope}{colon}{rest}"
        said[NAMESPACE].value = "/".join(parts)


def _common(lists: Collection[list[str]]) -> list[str]:
    """Returns the longest list that all of these begin with."""
    if not lists:
        return []
    first, last = min(lists), max(lists)
    return next((first[:at] for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), first)


@dataclass(frozen=True, slots=True)
class ValueOrigin:
    """What a value that a node makes is in PyTorch.

    Attributes:
        value: The tensor, with the path of its graph.
        node: The node that makes it, likewise.
        kind: ``value`` if it is the value of an fx node; ``inside`` if it is a step within what one computes;
            ``module`` if only the module or the line is known; ``unknown``.
        fx: That fx node, or None.
        scope: Module path.
        module_class: The module's class.
        source: ``file.py:12``.
        code: What is written there.
        rule: The rule of the exporter's optimizer that made the node, or None.
        origins: The fx nodes that went into a node that such a rule made.
        by: What told: ``metadata``, ``names`` (of nodes), or nothing.
    """

    value: str
    node: str
    kind: Literal["value", "inside", "module", "unknown"]
    fx: str | None = None
    scope: str | None = None
    module_class: str | None = None
    source: str | None = None
    code: str | None = None
    rule: str | None = None
    origins: tuple[str, ...] = ()
    by: Literal["metadata", "names", ""] = ""

    @property
    def is_placed(self) -> bool:
        """Whether module path and source line are both known."""
        return self.scope is not None and self.source is not None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of a model's values map to PyTorch. A value is what a node makes, in any graph of the model.

    Attributes:
        values: All of them.
        exact: Those that are the value of an fx node.
        inside: Those that are a step within one.
        placed: Those with a module path and a source line.
        fused: Those of nodes that the exporter's optimizer made out of others.
        missing: The values without a module path or a source line, by name, the first hundred.
    """

    values: int
    exact: int
    inside: int
    placed: int
    fused: int
    missing: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of values with a module path and a source line; 1 for a model without values."""
        return self.placed / self.values if self.values else 1.0


def fx_name(node: NodeProto) -> str | None:
    """Returns the fx node that the exporter's metadata names, or None."""
    for entry in node.metadata_props:
        if entry.key == FX_NODE and isinstance(entry.value, str):
            match = _FX_NAME.match(entry.value)
            return match[1] if match else None
    return None


def set_metadata(node: NodeProto, said: Mapping[str, str]) -> None:
    """Sets entries of a node's metadata; what else stands there stays."""
    known = {entry.key: entry for entry in node.metadata_props}
    for key, value in said.items():
        if key in known:
            known[key].value = value
        else:
            node.metadata_props.add(key=key, value=value)


def fx_values(node: NodeProto) -> list[str | None]:
    """Returns the fx node whose value each output of a node is, None where it is that of none."""
    for entry in node.metadata_props:
        if entry.key == FX_VALUES and isinstance(entry.value, str):
            said: list[str | None] = [None if name == "-" else name for name in entry.value.split()]
            return (said + [None] * len(node.output))[: len(node.output)]
    name = fx_name(node)
    return [output if output and output == name else None for output in node.output]


def set_fx_values(node: NodeProto, names: Sequence[str | None]) -> None:
    """Says whose values the outputs of a node are, where its metadata does not say so already."""
    if list(names) != fx_values(node):
        set_metadata(node, {FX_VALUES: " ".join(name or "-" for name in names)})


def value_origins(nodes: Iterable[tuple[str, NodeProto]], origins: Origins) -> list[ValueOrigin]:
    """Returns what each value is in PyTorch.

    Args:
        nodes: The nodes with the paths of their graphs (``""``, ``If_3/then/``).
        origins: Reads their provenance.
    """
    found = []
    for path, node in nodes:
        said = origins.of(node)
        name, values = fx_name(node), fx_values(node)
        made = {entry.key: entry.value for entry in node.metadata_props if entry.key == ORIGINS}
        for output, fx in zip(node.output, values, strict=True):
            if not output:
                continue
            kind: Literal["value", "inside", "module", "unknown"] = "unknown"
            if said.scope is not None or said.source is not None:
                kind = "module"
            if fx or name:
                kind = "value" if fx else "inside"
            by: Literal["metadata", "names", ""] = "names" if said.kind == "torchscript" else ""
            if fx or name or said.kind == "torch.export":
                by = "metadata"
            found.append(
                ValueOrigin(
                    path + output,
                    path + (node.name or node.op_type),
                    kind,
                    fx or name,
                    said.scope,
                    said.module_class,
                    said.source,
                    said.code,
                    said.rule,
                    tuple(made.get(ORIGINS, "").split()),
                    by,
                )
            )
    return found


def coverage(values: Collection[ValueOrigin]) -> Coverage:
    """Returns how many of these values map to PyTorch."""
    kinds = Counter(each.kind for each in values)
    missing = [each.value for each in values if not each.is_placed]
    return Coverage(
        len(values), kinds["value"], kinds["inside"], len(values) - len(missing),
        sum(each.rule is not None for each in values), tuple(missing[:100]),
    )  # fmt: skip


def provenance(node: NodeProto) -> Provenance:
    """Returns what a node itself tells of where it comes from (see ``Origins`` for what the model tells)."""
    return _ALONE.of(node)


def scope_of(node: NodeProto) -> str | None:
    """Returns the module path that a node itself tells, or None (see ``Origins`` for what the model tells)."""
    return _ALONE.scope(node)


def torchscript_scope(name: str) -> str:
    """Returns the module path in a TorchScript-style node name.

    ``/layer1/layer1.0/conv1/Conv`` is in ``layer1.0.conv1``.
    """
    return _module_path(name.rpartition("/")[0], frozenset())


def _spelled_path(node: NodeProto) -> str | None:
    """Returns the path part of a TorchScript-style name; a node that has lost its name is known by its output."""
    name = node.name or (node.output[0] if node.output else "")
    return name.rpartition("/")[0] if name.startswith("/") else None


def _module_path(spelled: str, modules: Collection[str]) -> str:
    """Returns the module path that ``/layer1/layer1.0/conv1`` means (see the top of this file).

    Where a segment may replace the one before it or follow it, ``modules`` (known paths) decides, if it can.
    """
    path = last = ""
    for segment in spelled.split("/"):
        if not segment:
            continue
        appended = f"{path}.{segment}" if path else segment
        if last and segment.startswith(f"{last}."):
            replaced = path[: len(path) - len(last)] + segment
            path = appended if appended in modules and replaced not in modules else replaced
        else:
            path = appended
        last = segment
    return path


def _prefixes(names: Iterable[str]) -> frozenset[str]:
    """Returns every module path that these state_dict names go through."""
    found: set[str] = set()
    for name in names:
        path = name.rpartition(".")[0]
        while path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return frozenset(found)


def _ancestors(spellings: Iterable[str]) -> frozenset[str]:
    """Returns these slash-separated paths and all that enclose them."""
    found: set[str] = set()
    for spelled in spellings:
        while spelled and spelled not in found:
            found.add(spelled)
            spelled = spelled.rpartition("/")[0]
    return frozenset(found)


def _from_metadata(said: dict[str, str]) -> Provenance:
    scopes = _literal_list(said.get(NAME_SCOPES, ""))
    classes = _literal_list(said.get(CLASS_HIERARCHY, ""))[:-1]
    scope, call = _innermost(scopes)
    return Provenance(
        scope,
        tuple(_REENTRY.sub("", path) for path in scopes[:-1]) if len(classes) == len(scopes) - 1 else (),
        tuple(classes),
        _frames(said.get(STACK_TRACE, "")),
        call,
        said.get(RULE),
        "torch.export",
    )


def provenance_of_call(scopes: Sequence[str], classes: Sequence[str], trace: str) -> Provenance:
    """Returns the provenance of what is computed within calls of modules, as PyTorch itself tells it.

    Args:
        scopes: Their paths, outermost first: ``["", "layers", "layers.0", "act@1"]``.
        classes: Their classes.
        trace: The stack trace.
    """
    scope, call = _innermost([*scopes, ""])
    paths = tuple(_REENTRY.sub("", path) for path in scopes)
    return Provenance(scope, paths, tuple(classes), _frames(trace), call, kind="torch.export")


def spelled_scopes(said: Provenance) -> tuple[list[str], list[str]]:
    """Returns the modules around a value as the default exporter spells them (``act@1``), and their classes."""
    if not said.scopes:
        return [], []
    last = said.scopes[-1] + (f"@{said.call}" if said.call and said.scopes[-1] else "")
    return [*said.scopes[:-1], last], list(said.classes)


@lru_cache(maxsize=4096)
def _frames(text: str) -> tuple[Frame, ...]:
    return tuple(
        Frame(file, int(line), function or None, code.strip() or None)
        for file, line, function, code in _FRAME.findall(text)
    )


def _innermost(scopes: list[str]) -> tuple[str | None, int]:
    """Returns the innermost module of a name_scopes list, whose last entry is the operator itself, and its call.

    torch.export writes the second call of ``relu`` as ``relu@1``.
    """
    modules = scopes[:-1]
    if not modules:
        return None, 0
    path = next((path for path in reversed(modules) if path), "")
    if "@" not in path:
        return path, 0
    calls = _REENTRY.findall(path)
    return _REENTRY.sub("", path), int(calls[-1]) if calls else 0


def _literal_list(text: str) -> list[str]:
    if _PLAIN_LIST.fullmatch(text):
        return text[2:-2].split("', '")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


_ALONE = Origins(())
