"""Operations on what a model says of itself: versions, imports, metadata, doc strings, producer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import select, weights
from onnxbench.errors import NotFoundError, RefusedResultError, UnsupportedError, UsageError, did_you_mean
from onnxbench.operations._base import Effect, Operation
from onnxbench.schemas import find_schema, known_domains, plain_domain

if TYPE_CHECKING:
    from onnxbench.draft import Draft

_FIRST_IR_OF_METADATA = 10


@dataclass(frozen=True)
class SetIrVersion(Operation):
    """Set the IR version, if the model keeps to what that version allows.

    Attributes:
        version: The version.
    """

    word: ClassVar[str] = "set_ir_version"
    spelling: ClassVar[str] = "{version}"

    version: int

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        import onnx

        proto = draft.model.proto
        if not 3 <= self.version <= onnx.IR_VERSION:
            raise UsageError(
                f"there is no IR version {self.version} that onnx {onnx.__version__} checks",
                hint=f"Write one from 3 to {onnx.IR_VERSION}.",
            )
        for needed, why in _needs_of_ir(draft):
            if self.version < needed:
                raise RefusedResultError(f"the model needs IR version {needed}: {why}")
        if self.version < _FIRST_IR_OF_METADATA and any(node.metadata_props for node in proto.graph.node):
            draft.notes.append(f"metadata of nodes came with IR version 10; readers of {self.version} may pass over it")
        _set_field(draft, proto, "ir_version", self.version)


def _needs_of_ir(draft: Draft) -> Iterator[tuple[int, str]]:
    """Yields IR versions that the model needs, with the reason."""
    from onnx import helper

    proto = draft.model.proto
    for opset in proto.opset_import:
        needed = helper.find_min_ir_version_for([opset], ignore_unknown=True)
        yield needed, f"opset {opset.domain or 'ai.onnx'} {opset.version} came with it"
    for function in proto.functions:
        name = f"{function.domain}::{function.name}"
        yield (10, f"function {name} is an overload") if function.overload else (8, f"it has the function {name}")
    types = {23: 11, 24: 12, 25: 13, 26: 13, 27: 14, 28: 14, 16: 4, 17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10}
    for tensor in weights.tensors(proto):
        if tensor.data_type in types:
            yield types[tensor.data_type], f"the element type of tensor {tensor.name!r} came with it"
    for scope in draft.index.scopes:
        if scope is draft.main:
            for name in sorted(scope.constants - set(scope.inputs)):
                yield 4, f"before, every initializer had to be an input, and {name!r} is none"
                break
        graph: Any = scope.graph
        if not scope.is_function and graph.sparse_initializer:
            yield 5, "it has sparse initializers"


@dataclass(frozen=True)
class SetOpset(Operation):
    """Convert the model's operators, up or down, to another version of the standard opset.

    Attributes:
        version: The version, or ``latest``: what the installed onnx package knows.
    """

    word: ClassVar[str] = "set_opset"
    spelling: ClassVar[str] = "{version}"
    effect: ClassVar[Effect] = "rounding"

    version: int | str

    def apply(self, draft: Draft) -> None:
        """Converts them."""
        from onnxbench.opsets import convert_opset

        proto = draft.model.proto
        before, ir_version = draft.opset(), proto.ir_version
        operators = [ref.node.op_type for ref in draft.index.nodes()]
        done, notes = convert_opset(draft.model, self.version)
        if done.proto is proto:
            draft.notes.append(f"the model is of opset {before} already")
            return
        proto.CopyFrom(done.proto)
        draft.touch()
        draft.record("model", "", "opset", before=str(before), after=str(draft.opset()))
        if proto.ir_version != ir_version:
            draft.record("model", "", "ir_version", before=str(ir_version), after=str(proto.ir_version))
        was, now = Counter(operators), Counter(ref.node.op_type for ref in draft.index.nodes())
        for op_type in sorted({*was, *now}):
            if was[op_type] != now[op_type]:
                change = f"{op_type} nodes"
                draft.record("model", "", change, before=str(was[op_type]), after=str(now[op_type]))
        draft.notes += notes


@dataclass(frozen=True)
class ImportOpset(Operation):
    """Import a domain of operators, or another version of one that is not a standard domain.

    Attributes:
        domain: The domain: ``com.microsoft``, ``ai.onnx.ml``.
        version: Its version.
    """

    word: ClassVar[str] = "import_opset"
    spelling: ClassVar[str] = "{domain}={version}"

    domain: str
    version: int

    def apply(self, draft: Draft) -> None:
        """Imports it."""
        domain = plain_domain(self.domain)
        if self.version < 1:
            raise UsageError(f"{self.version} is no version of an opset")
        known = [opset for opset in draft.model.proto.opset_import if plain_domain(opset.domain) == domain]
        if not known:
            draft.import_domain(draft.main, domain, self.version)
            return
        before = known[0].version
        if before == self.version:
            return
        if domain in known_domains():
            self._require_same(draft, domain, before)
        for opset in known:
            opset.version = self.version
        words = domain or "ai.onnx"
        draft.record("model", "", "opset import", before=f"{words} {before}", after=f"{words} {self.version}")
        draft.touch()

    def _require_same(self, draft: Draft, domain: str, before: int) -> None:
        """Raises if an operator of the model is another one in the new version."""
        for ref in draft.index.nodes():
            if plain_domain(ref.node.domain) != domain or draft.index.function_of(ref.node) is not None:
                continue
            old, new = (find_schema(domain, ref.node.op_type, version) for version in (before, self.version))
            if new is None or old is None or old.since_version != new.since_version:
                raise RefusedResultError(
                    f"{ref.path} ({ref.node.op_type}) is not the same in {domain or 'ai.onnx'} {before} and "
                    f"{self.version}",
                    hint=f"set_opset: {self.version} converts the operators." if not domain else None,
                )


@dataclass(frozen=True)
class RemoveOpsetImport(Operation):
    """Remove the import of a domain that no node uses.

    Attributes:
        domain: The domain.
    """

    word: ClassVar[str] = "remove_opset_import"
    spelling: ClassVar[str] = "{domain}"
    keeps_types: ClassVar[bool] = True

    domain: str

    def apply(self, draft: Draft) -> None:
        """Removes it."""
        imported = [opset.domain for opset in draft.model.proto.opset_import]
        spelled = [each for each in imported if plain_domain(each) == plain_domain(self.domain)]
        if not spelled:
            hint = did_you_mean(self.domain, imported) or f"It imports {', '.join(d or 'ai.onnx' for d in imported)}."
            raise NotFoundError(f"the model does not import {self.domain!r}", hint=hint)
        if spelled[0] not in draft.unused_imports():
            user = next(r for r in draft.index.nodes() if plain_domain(r.node.domain) == plain_domain(self.domain))
            raise RefusedResultError(
                f"{self.domain!r} is used, by {user.path} ({user.node.op_type}) for one",
                hint="onnxbench find MODEL 'op:DOMAIN::*' lists the nodes.",
            )
        for each in spelled:
            draft.remove_import(each)


Holder = tuple[str, str, Any]
"""What can carry metadata or a doc string: its kind, its path, the message."""


def _holders(draft: Draft, at: str) -> list[Holder]:
    """Returns what a place means: ``model``, ``graph``, a function, or the nodes or tensors of a selector."""
    proto = draft.model.proto
    if at == "model":
        return [("model", "", proto)]
    if at == "graph":
        return [("model", "graph", proto.graph)]
    functions = {scope.path: scope for scope in draft.index.functions.values()}
    if at in functions:
        return [("function", at, functions[at].graph)]
    named = select.nodes_named(draft.index, at)
    if named:
        return [("node", ref.path, ref.node) for ref in named]
    selection = select.select(draft.index, at, folder=draft.folder)
    if selection.is_nodes:
        return [("node", ref.path, ref.node) for ref in draft.nodes(at)]
    found: list[Holder] = []
    for ref in draft.tensors(at):
        graph: Any = ref.scope.graph
        lists = [graph.value_info]
        if not ref.scope.is_function:
            lists = [graph.initializer, graph.input, graph.output, graph.value_info]
        held = next((each for messages in lists for each in messages if each.name == ref.name), None)
        if held is None:
            kind = draft.type_of(ref)
            if kind is None:
                raise UnsupportedError(
                    f"{ref.path!r} has no value info, which would carry it, and its type is unknown",
                    hint="State its type first.",
                )
            held = graph.value_info.add(name=ref.name)
            held.type.CopyFrom(kind)
        found.append(("tensor", ref.path, held))
    return found


@dataclass(frozen=True)
class SetMetadata(Operation):
    """Set an entry of the metadata.

    Attributes:
        key: The key.
        value: The value.
        at: Whose: ``model``, ``graph``, a function (``local::Block``), or the nodes or tensors of a selector.
    """

    word: ClassVar[str] = "set_metadata"
    spelling: ClassVar[str] = "{key}={value}"
    keeps_types: ClassVar[bool] = True

    key: str
    value: str
    at: str = "model"

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        for kind, path, message in _holders(draft, self.at):
            known = [entry for entry in message.metadata_props if entry.key == self.key]
            before = known[0].value if known else None
            if before == self.value:
                continue
            if known:
                known[0].value = self.value
            else:
                message.metadata_props.add(key=self.key, value=self.value)
            draft.record(kind, path, f"metadata {self.key}", before=_short(before), after=_short(self.value))
        _note_ir_of_metadata(draft, self.at)
        draft.touch()


def _note_ir_of_metadata(draft: Draft, at: str) -> None:
    version = draft.model.proto.ir_version
    if at != "model" and version < _FIRST_IR_OF_METADATA:
        draft.notes.append(
            "metadata of graphs, functions, nodes and tensors came with IR version 10, and "
            f"the model says {version}; set_ir_version: 10 says so"
        )


@dataclass(frozen=True)
class DeleteMetadata(Operation):
    """Remove entries of the metadata.

    Attributes:
        key: The key, or a glob: ``pkg.torch.*``.
        at: Whose: as for ``set_metadata``, or ``all``: of the model, its graphs, functions, nodes and tensors.
    """

    word: ClassVar[str] = "delete_metadata"
    spelling: ClassVar[str] = "{key}"
    keeps_types: ClassVar[bool] = True

    key: str
    at: str = "model"

    def apply(self, draft: Draft) -> None:
        """Removes them."""
        matches: Callable[[str], bool] = select.matcher(self.key)
        holders = list(_everything(draft)) if self.at == "all" else _holders(draft, self.at)
        seen: set[str] = set()
        done = 0
        for kind, path, message in holders:
            entries = message.metadata_props
            for position in reversed(range(len(entries))):
                key = entries[position].key
                seen.add(key)
                if matches(key):
                    draft.record(kind, path, f"metadata {key} removed", before=_short(entries[position].value))
                    del entries[position]
                    done += 1
        if not done:
            hint = did_you_mean(self.key, seen) or (f"There are: {', '.join(sorted(seen)[:8])}." if seen else None)
            if self.at != "all" and any(
                matches(e.key) for _, _, held in _everything(draft) for e in held.metadata_props
            ):
                hint = f"There is elsewhere: '{{key: {self.key}, at: all}}' removes it wherever it is."
            raise NotFoundError(f"no metadata {self.key!r} there", hint=hint or "There is none at all.")
        draft.touch()


def _everything(draft: Draft) -> Iterator[Holder]:
    """Yields all that carries metadata."""
    yield "model", "", draft.model.proto
    for scope in draft.index.scopes:
        graph: Any = scope.graph
        yield "function" if scope.is_function else "model", scope.path or "graph", graph
        for position, node in enumerate(scope.nodes):
            yield "node", f"{scope.path}/{scope.label(position)}" if scope.path else scope.label(position), node
        lists = [graph.value_info]
        if not scope.is_function:
            lists += [graph.initializer, graph.input, graph.output]
        for messages in lists:
            for each in messages:
                yield "tensor", f"{scope.path}/{each.name}" if scope.path else each.name, each


@dataclass(frozen=True)
class SetDoc(Operation):
    """Set a doc string; an empty one removes it.

    Attributes:
        text: The doc string.
        at: Whose: ``model``, ``graph``, a function (``local::Block``), or the nodes or tensors of a selector.
    """

    word: ClassVar[str] = "set_doc"
    spelling: ClassVar[str] = "{text}"
    keeps_types: ClassVar[bool] = True

    text: str
    at: str = "model"

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        for kind, path, message in _holders(draft, self.at):
            before = message.doc_string
            if before == self.text:
                continue
            if self.text:
                message.doc_string = self.text
            else:
                message.ClearField("doc_string")
            draft.record(kind, path, "doc_string", before=_short(before) or None, after=_short(self.text) or None)
        draft.touch()


def _set_field(draft: Draft, message: Any, field: str, value: Any, *, what: str = "") -> None:
    before = getattr(message, field)
    if before == value:
        return
    setattr(message, field, value)
    draft.record("model", "", what or field, before=str(before), after=str(value))


@dataclass(frozen=True)
class SetProducer(Operation):
    """Set what made the model.

    Attributes:
        producer: The name of the tool.
        version: Its version; the one that is there goes if none is given.
    """

    word: ClassVar[str] = "set_producer"
    spelling: ClassVar[str] = "{producer}[={version}]"
    keeps_types: ClassVar[bool] = True

    producer: str
    version: str = ""

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        _set_field(draft, draft.model.proto, "producer_name", self.producer)
        _set_field(draft, draft.model.proto, "producer_version", self.version)


@dataclass(frozen=True)
class SetModelVersion(Operation):
    """Set the version of the model itself.

    Attributes:
        version: The version, a whole number.
    """

    word: ClassVar[str] = "set_model_version"
    spelling: ClassVar[str] = "{version}"
    keeps_types: ClassVar[bool] = True

    version: int

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        if not -(1 << 63) <= self.version < 1 << 63:
            raise UsageError(f"{self.version} does not fit into 64 bits")
        _set_field(draft, draft.model.proto, "model_version", self.version)


@dataclass(frozen=True)
class SetDomain(Operation):
    """Set the domain of the model, a name space in reverse-DNS form.

    Attributes:
        domain: The domain: ``com.example.speech``.
    """

    word: ClassVar[str] = "set_domain"
    spelling: ClassVar[str] = "{domain}"
    keeps_types: ClassVar[bool] = True

    domain: str

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        _set_field(draft, draft.model.proto, "domain", self.domain)


@dataclass(frozen=True)
class SetGraphName(Operation):
    """Set the name of the main graph.

    Attributes:
        to: The name.
    """

    word: ClassVar[str] = "set_graph_name"
    spelling: ClassVar[str] = "{to}"
    keeps_types: ClassVar[bool] = True

    to: str

    def apply(self, draft: Draft) -> None:
        """Sets it."""
        if not self.to:
            raise UsageError("a graph needs a name")
        _set_field(draft, draft.model.proto.graph, "name", self.to, what="graph name")


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= 60 else f"{text[:60]}..."
